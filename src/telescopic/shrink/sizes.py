"""Sizes that layers without tensors write down, where no tensor says that they have changed."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm


@contextmanager
def following(model: nn.Module) -> Iterator[None]:
    """While it holds, layers without tensors take on the size of what they are given: norms, and `nn.Unflatten`."""

    def follow(part: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            vars(part).update(_fitting(part, args[0]))

    with ExitStack() as hooks:
        for layer in filter(_writes, model.modules()):
            hooks.enter_context(layer.register_forward_pre_hook(follow))
        yield


def written(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The sizes that layers without tensors have written down: attributes by the layer's path."""
    return {
        path: {name: getattr(layer, name) for name in ("num_features", "unflattened_size") if hasattr(layer, name)}
        for path, layer in model.named_modules()
        if _writes(layer)
    }


def _writes(layer: nn.Module) -> bool:
    own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return isinstance(layer, nn.Unflatten) or (isinstance(layer, _NormBase) and not own)


def _fitting(part: Any, x: Tensor) -> dict[str, Any]:
    if isinstance(part, nn.Unflatten):
        sizes = part.unflattened_size
        if not all(isinstance(size, int) for size in sizes) or -1 in sizes or not isinstance(part.dim, int):
            return {}
        # Channels come first; were they not, the network would not give the same.
        channels, rest = divmod(x.shape[part.dim], math.prod(sizes[1:]))
        return {} if rest else {"unflattened_size": (channels, *sizes[1:])}
    alone = isinstance(part, _InstanceNorm) and x.ndim == part._get_no_batch_dim()  # type: ignore[no-untyped-call]
    return {"num_features": x.shape[0 if alone else 1]}
