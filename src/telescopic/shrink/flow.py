"""What is known of a tensor while a network is watched: whose channel each element is, and whether it is dead."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FREE = -1
"""In place of a channel: an element that is no channel's and fits any number of them."""


@dataclass(frozen=True)
class Flow:
    """Two tensors of the shape of the one they describe, on the CPU.

    Attributes:
        ids: number of the channel of which each element is part, or `FREE`.
        zero: whether it is 0 because a filter's channel is dead, and stays so however other weights are trained.
    """

    ids: Tensor
    zero: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.ids.shape


def alive(ids: Tensor) -> Flow:
    """A tensor that may be anything."""
    return Flow(ids, torch.zeros((), dtype=torch.bool).expand(ids.shape))


def free(shape: Sequence[int]) -> Flow:
    """A tensor that has nothing to do with channels."""
    return alive(torch.full((), FREE).expand(tuple(shape)))


def spread(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """A vector along one dimension of a shape, the same along all others."""
    return vector.view([len(vector) if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)


def along(values: Tensor, dim: int) -> Tensor | None:
    """The vector along one dimension, if all others agree on it."""
    first = values
    for d in range(values.ndim):
        if d != dim % values.ndim:
            first = first.narrow(d, 0, 1)
    return first.reshape(-1) if bool((values == first).all()) else None


def every(mask: Tensor, dim: int) -> Tensor:
    """Along one dimension, whether all others are true."""
    return mask.movedim(dim, 0).flatten(1).all(1) if mask.ndim > 1 else mask


def varies(ids: Tensor, dim: int) -> bool:
    """Whether values differ along a dimension."""
    return ids.stride(dim) != 0 and bool((ids != ids.narrow(dim, 0, 1)).any())


def lean(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one shape without the dimensions along which all of them repeat themselves."""
    found = list(tensors)
    for d in range(found[0].ndim):
        if all(t.stride(d) == 0 for t in found):
            found = [t.narrow(d, 0, 1) for t in found]
    return found
