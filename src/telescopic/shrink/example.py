"""The example that a network is run on to see what it does: two inputs on its device and of its type, or a function."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.inputs import Tensors, each, first_line, leaves, named
from telescopic.shrink.failing import where
from telescopic.wrappers import in_mode

Inputs = Sequence[Tensors] | Callable[[nn.Module], Any]
"""What a network is called with, each argument a batch or a dict or tuple of such; or a function that calls it."""


class Run(nn.Module):
    """A network on its example, in one precision if one is named: a module that takes no inputs."""

    def __init__(self, model: nn.Module, inputs: Inputs, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.inputs, self.dtype = model, inputs, dtype

    def forward(self) -> Any:
        """What the network or the function gives."""
        if callable(self.inputs):
            return self.inputs(self.model)

        def copied(x: Tensor) -> Tensor:
            return x.to(self.dtype if self.dtype and x.is_floating_point() else x.dtype, copy=True)

        return self.model(*(each(copied, x) for x in self.inputs))


def as_one(example: Any) -> Any:
    """An example of a network that is called with one value, which a tuple is too."""
    return (example,) if isinstance(example, tuple) and len(example) > 1 else example


def examples(model: nn.Module, example: Any) -> Inputs:
    """Two examples, on the network's device and of its type, on which it runs; or the function, which runs.

    Raises:
        ValueError: if they are no tensors, are empty, or the network does not run on them.
    """
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(f"this {type(model).__name__} has lazy layers without a shape: call it on an input once")
    like = next(model.parameters(), None)
    if like is None:
        raise ValueError(f"this {type(model).__name__} has no parameters, and so no channels")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode, and cannot be trained: make the network outside"
            )
    given = getattr(model, "shrink_example", None) if example is None else example
    if given is None:
        raise ValueError(
            "without an example it is not known which channels belong together: pass example=a batch of inputs, or "
            "use what add_filters returned (of DistributedDataParallel, its .module)"
        )
    if callable(given) and not isinstance(given, nn.Module | Tensor):
        if error := _failure(model, given):
            said = f"{where(model, error) or 'it'} says: {first_line(error)}"
            raise ValueError(f"the example is a function that does not run on the network: {said}") from error
        return given  # type: ignore[no-any-return]
    batches = list(given) if isinstance(given, list | tuple) else [given]
    for x in batches:
        for name, one in named(x).items():
            _require_batch(one, "" if one is x else f" for {name}")

    def two(x: Tensor) -> Tensor:
        pair = (x if len(x) > 1 else torch.cat((x, x)))[:2].detach().to(like.device)
        return pair.to(like.dtype, copy=True) if x.is_floating_point() else pair.clone()

    made = [each(two, x) for x in batches]
    _require_running(model, made, batches)
    return made


def _require_batch(x: Any, where: str) -> None:
    if not isinstance(x, Tensor):
        remedy = ": give torch.from_numpy(x)" if type(x).__name__ == "ndarray" else ""
        raise ValueError(
            f"an example is a tensor [batch, ...], or several in a dict or tuple, "
            f"not a {type(x).__name__}{where}{remedy}"
        )
    if not x.ndim or not len(x):
        raise ValueError(f"an example is a batch [batch, ...] of one input or more, not a tensor {list(x.shape)}")
    if x.is_meta:
        raise ValueError(f"the example {list(x.shape)} is on the meta device, where it holds no values")


def _require_running(model: nn.Module, two: Sequence[Tensors], batches: Sequence[Tensors]) -> None:
    error = _failure(model, two)
    if error is None:
        return
    as_given = [each(lambda x, y: x.detach().to(y), x, y) for x, y in zip(batches, two, strict=True)]
    shapes = " and ".join(str(list(x.shape)) for x in leaves([*batches]))
    said = f"{where(model, error) or 'it'} says: {first_line(error)}"

    def runs(change: Callable[[Tensor], Tensor]) -> bool:
        return _failure(model, [each(change, x) for x in as_given]) is None

    if runs(lambda x: x[None]) and runs(lambda x: x[None].repeat_interleave(2, 0)):
        raise ValueError(
            f"the example {shapes} is one input without a batch, for with one the network runs: give example[None]"
        ) from error
    if len(leaves(batches[0])[0]) == 1 and runs(lambda x: x):
        raise ValueError(
            f"the network runs on the one input {shapes}, but not on two of it, which must stay apart, as flatten(1) "
            f"keeps them and flatten() does not; {said}"
        ) from error
    raise ValueError(f"the network does not run on two inputs of the example {shapes}: {said}") from error


def _failure(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What a network raises, in training or in eval mode."""
    for training in (True, False):
        with unchanged(model, training):
            try:
                Run(model, inputs)()
            except Exception as error:  # it is anyone's code
                return error
    return None


@contextmanager
def unchanged(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or eval mode for a while, after which modes, buffers and random numbers are as before."""
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for part in model.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    places = {t.device for t in model.parameters()} - {torch.device("cpu")}
    devices = sorted({place.index for place in places if place.type == "cuda"})
    # What is compiled runs as it was written. Nothing is if this is not loaded, and loading it takes a second.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    # What a forward pass makes without saying where belongs where the network is.
    with torch.random.fork_rng(devices), eager, places.pop() if len(places) == 1 else nullcontext():
        try:
            with in_mode(model, training=training):
                yield
        finally:
            for part, name, buffer, kept in buffers:
                part._buffers[name] = buffer  # some forward passes exchange it instead of writing to it
                buffer.data.copy_(kept)
