"""A network is given the widths that another one of its kind has learned, before it gets that one's tensors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from telescopic.cost.counting import on_meta
from telescopic.inputs import Tensors, each
from telescopic.layers.cuts import named_tensors, put_, resize_
from telescopic.layers.filter import Filter, filters_of
from telescopic.nested import Nested
from telescopic.shrink.family import Every
from telescopic.shrink.sizes import following, written
from telescopic.wrappers import unwrapped


@torch.no_grad()
def reshape_(model: nn.Module, shapes: Mapping[str, Sequence[int]], example: Tensors) -> None:
    """Give parameters and buffers other sizes, and layers the sizes they say; what the tensors hold is lost.

    Whatever the shapes come from, say a file that somebody else wrote, the network is tried in them on a copy without
    memory before it is touched.

    Args:
        model: a network with filters, of any widths.
        shapes: of each parameter and buffer, by name.
        example: a batch of inputs `[batch, ...]`, or a dict or tuple of several.

    Raises:
        ValueError: if these are no shapes of this network; it is as it was then.
    """
    own = named_tensors(model)
    if different := sorted(own.keys() ^ shapes.keys()):
        raise ValueError(f"{different[0]} is only in one of the two")
    changed = {name for name, tensor in own.items() if tuple(tensor.shape) != tuple(shapes[name])}
    if not changed:
        return
    fixed = not filters_of(model)
    for name in sorted(changed):
        if fixed or len(shapes[name]) != own[name].ndim or min(shapes[name], default=1) < 1:
            raise ValueError(f"{name} is {tuple(shapes[name])} there and {tuple(own[name].shape)} here")
    model = unwrapped(model)
    trial = on_meta(model)
    outputs = _run(trial, example)
    _reshape(trial, shapes, changed)
    try:
        with following(trial), _strict(trial):
            found = _run(trial, example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"with its shapes the network does not run: {error}") from error
    if found != outputs:
        raise ValueError(f"with its shapes the network gives {list(found)} instead of {list(outputs)}")
    _reshape(model, shapes, changed)
    for path, attributes in written(trial).items():
        vars(model.get_submodule(path)).update(attributes)


def _run(model: nn.Module, example: Tensors) -> torch.Size:
    every = Every(model) if isinstance(model, Nested) else model
    first = next(model.parameters())

    def empty(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=first.dtype if x.is_floating_point() else x.dtype, device="meta")

    shape: torch.Size = every(each(empty, example)).shape
    return shape


def _reshape(model: nn.Module, shapes: Mapping[str, Sequence[int]], changed: set[str]) -> None:
    tensors = named_tensors(model)
    for name in changed:
        tensor = tensors[name]
        tensor.grad = None
        put_(tensor, torch.empty(tuple(shapes[name]), dtype=tensor.dtype, device=tensor.device))
    resize_(model, {id(tensors[name]) for name in changed})


@contextmanager
def _strict(model: nn.Module) -> Iterator[None]:
    """While it holds, what would only fit because it is broadcast is refused."""

    def check(part: nn.Module, args: tuple[Tensor, ...]) -> None:
        own = [t for t in (*part.parameters(recurse=False), *part.buffers(recurse=False)) if t.ndim == 1]
        sizes = {len(tensor) for tensor in own}
        if isinstance(part, Filter):
            sizes.add(args[0].shape[part.dim])
        elif isinstance(part, nn.Linear):
            sizes.add(part.out_features)
        elif isinstance(part, nn.modules.conv._ConvNd):
            sizes.add(part.out_channels)
        if len(sizes) > 1:
            raise ValueError(f"a {type(part).__name__} would have {' and '.join(map(str, sorted(sizes)))} channels")

    with ExitStack() as hooks:
        for part in model.modules():
            hooks.enter_context(part.register_forward_pre_hook(check))
        yield
