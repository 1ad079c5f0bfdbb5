"""Which dimension of features the channels are: told by the layers that make and read them.

Features of three sizes may be `[batch, channels, length]` or `[batch, tokens, channels]`, and those of four
`[batch, channels, height, width]` or `[batch, height, width, channels]`: their shape does not say.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling

from telescopic.layers.heads import GlobalAvgPool2d
from telescopic.layers.sized import ALONE, NOTHING

_SECOND: tuple[type[nn.Module], ...] = (conv._ConvNd, batchnorm._NormBase, nn.GroupNorm, nn.PReLU, GlobalAvgPool2d)
_SECOND += (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._LPPoolNd)
_SECOND += (pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd)
_LAST: tuple[type[nn.Module], ...] = (nn.Linear, nn.RMSNorm, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)
_LAST += (nn.RNNBase,)


class Watch:
    """Notes what each layer takes and gives while parts run, and then says where the channels of features are."""

    def __init__(self) -> None:
        self._calls: list[tuple[nn.Module, _Face | None, _Face | None]] = []

    @contextmanager
    def on(self, part: nn.Module) -> Iterator[None]:
        """Watch a part while it runs inside `with`."""

        def note(layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            made = made[0] if isinstance(made, tuple) else made  # an LSTM gives its states too
            self._calls.append((layer, _face(given[0]) if given else None, _face(made)))

        with ExitStack() as hooks:
            for layer in part.modules():
                hooks.enter_context(layer.register_forward_hook(note))
            yield

    def channels(self, features: Tensor) -> int | None:
        """The dimension of the channels, 1 or -1; None if layers do not tell, or contradict each other.

        Asked are the layers that take these very features or give them, with activations in between; or if there are
        none, those that give features of the same shape.
        """
        said: set[int | None] = set()
        read = {_face(features)}
        for layer, given, made in self._calls:
            if given is not None and given in read:
                said.add(_of(layer, features.ndim))
                if _passes(layer):
                    read.add(made)
        written = {_face(features)}
        for layer, given, made in reversed(self._calls):
            if made is not None and made in written:
                said.add(_of(layer, features.ndim))
                if _passes(layer):
                    written.add(given)
        said.discard(None)
        if not said and len(set(features.shape[1:])) > 1:
            # A residual sum has the form of what was added to it, unless that might be turned over.
            alike = [layer for layer, _, made in self._calls if made is not None and made.shape == features.shape]
            said = {_of(layer, features.ndim) for layer in alike} - {None}
        return said.pop() if len(said) == 1 else None


@dataclass(frozen=True)
class _Face:
    """What two tensors have in common only if they are the same features, seen in the same way."""

    storage: torch.UntypedStorage  # which is kept, so that no other one takes its place
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]


def _face(value: Any) -> _Face | None:
    if not isinstance(value, Tensor):
        return None
    return _Face(value.untyped_storage(), int(value.storage_offset()), value.shape, value.stride())


def _passes(layer: nn.Module) -> bool:
    """Whether it works number by number, wherever the channels are."""
    return type(layer) in ALONE | NOTHING and not isinstance(layer, _SECOND)


def _of(layer: nn.Module, ndim: int) -> int | None:
    """Where a layer takes and gives channels in features of so many dimensions; None if it does not tell."""
    if isinstance(layer, _SECOND):
        # Torch takes one example without its batch too, and so a 2-d layer of tokens has them for an image.
        sizes = {"1d": 3, "2d": 4, "3d": 5}.get(type(layer).__name__[-2:], ndim)
        return 1 if sizes == ndim else None
    over = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm | nn.RMSNorm) else 1
    return -1 if isinstance(layer, _LAST) and over == 1 else None
