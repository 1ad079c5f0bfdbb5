"""What an engine is given: each input in its shape, its type and its range, or refused. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from telescopic.engine.manifest import Array, Floats, Manifest
from telescopic.shapes import INPUT

_FLOAT32 = np.dtype(np.float32)
Inputs = Array | Mapping[str, Array]
"""A batch of the one input, or of each of several by its name, as the network sees them."""


@dataclass(frozen=True, eq=False)
class Given:
    """What is to be given of one input.

    Attributes:
        shape: of one example.
        dtype: of its numbers.
        preprocess: mean and standard deviation of each channel, or one for all, of pixels from 0 to 1; None if bytes
            are not taken for pixels.
        below: what whole numbers, which are not negative then, must be less than; or an array of such for each number
            of an example, among which 0 is any. None is any everywhere.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    preprocess: Mapping[str, Sequence[float]] | None = None
    below: int | NDArray[np.int64] | None = None

    def checked(self, x: ArrayLike) -> Array:
        """What was given as `[batch, ...]` in the type that the network takes.

        Args:
            x: of this type; whole numbers may be of another one that has them; and float32 may be uint8 pixels, if it
                is known how to prepare them.

        Raises:
            ValueError: if it has another shape or type, or holds what is no finite number or not in the range.
        """
        array = np.asarray(x)
        if array.shape[1:] != self.shape or not array.ndim or not len(array):
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"inputs have shape [batch, {wanted}] with 1 example or more, not {list(array.shape)}")
        return self._floats(array) if self.dtype == _FLOAT32 else self._whole(array)

    def facts(self) -> dict[str, Any]:
        """All but the preprocessing, as JSON has it."""
        below = None if self.below is None else np.asarray(self.below).tolist()
        return {"type": str(self.dtype), "shape": self.shape, "below": below}

    def _floats(self, array: Array) -> Floats:
        if array.dtype == _FLOAT32:
            if not np.logical_and.reduce(np.isfinite(array), axis=None):  # several µs faster than all()
                raise ValueError("inputs are finite numbers, and there is NaN or infinity among these")
            return array
        if array.dtype == np.uint8 and self.preprocess is not None:
            mean, std = (np.asarray(self.preprocess[name], np.float32) for name in ("mean", "std"))
            across = (-1,) + (1,) * (array.ndim - 2)
            pixels: Floats = (array.astype(np.float32) / np.float32(255) - mean.reshape(across)) / std.reshape(across)
            return pixels
        pixels_too = " or uint8 pixels" if self.preprocess is not None else ""
        raise ValueError(f"inputs are float32{pixels_too}, not {array.dtype}: convert them")

    def _whole(self, array: Array) -> Array:
        if self.dtype == np.bool_ or array.dtype.kind not in "iu":
            if array.dtype != self.dtype:
                raise ValueError(f"it is {self.dtype}, not {array.dtype}: convert it")
        elif not np.can_cast(array.dtype, self.dtype):
            ends, least, most = np.iinfo(self.dtype), int(array.min()), int(array.max())
            if not ends.min <= least <= most <= ends.max:
                raise ValueError(f"it is {self.dtype}, and {least} to {most} does not fit")
        array = np.ascontiguousarray(array, self.dtype)
        if self.dtype == np.bool_:  # bytes of anyone: a library may multiply by 2 what is true as 2
            array = array.view(np.uint8) != 0
        if self.below is not None:
            below = np.asarray(self.below)
            wrong = ((array < 0) | (array >= below)) & (below > 0)
            if wrong.any():
                place = np.unravel_index(int(wrong.argmax()), array.shape)
                most = int(np.broadcast_to(below, array.shape)[place]) - 1
                where = ", ".join(map(str, place))
                raise ValueError(f"the number at [{where}] is {array[place]}, and the network takes 0 to {most} there")
        return array


def wanted(manifest: Manifest) -> dict[str, Given]:
    """What a pack is to be given, by name."""
    made = {}
    for name, tensor in manifest.inputs.items():
        below = manifest.below.get(tensor)
        each = np.reshape(below, manifest.tensors[tensor]) if isinstance(below, tuple) else below
        made[name] = Given(manifest.tensors[tensor], np.dtype(manifest.dtype(tensor)), manifest.preprocess, each)
    return made


def taken(x: Any, inputs: Mapping[str, Given]) -> Inputs:
    """What was given as the network of a pack sees it.

    Args:
        x: as `Engine.run` takes it, or as this gave it before.
        inputs: what is wanted.

    Raises:
        ValueError: if an input is missing or unknown, or not what it is to be.
    """
    alone = [*inputs] == [INPUT]
    of_one = alone and isinstance(x, tuple) and len(x) == 1 and np.ndim(x[0]) == len(inputs[INPUT].shape) + 1
    values = x if isinstance(x, tuple) and (of_one or not alone) else (x,)
    if isinstance(x, Mapping):
        given = x
    else:
        given = dict(zip(inputs, values, strict=True)) if len(values) == len(inputs) else {}
    if given.keys() != inputs.keys():
        found = f"a dict of {', '.join(map(str, given))}" if isinstance(x, Mapping) else f"a {type(x).__name__}"
        raise ValueError(f"this network takes {', '.join(inputs)}, in a dict or in this order in a tuple, not {found}")
    if alone:
        return inputs[INPUT].checked(given[INPUT])
    made = {}
    for name, one in inputs.items():
        try:
            made[name] = one.checked(given[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if len({*(sizes := {name: len(one) for name, one in made.items()}).values()}) > 1:
        raise ValueError(f"inputs have as many examples each, and these {sizes}")
    return made


def size_of(x: Inputs) -> int:
    """Number of examples."""
    return len(next(iter(x.values())) if isinstance(x, Mapping) else x)


def together(batches: Sequence[Inputs]) -> Inputs:
    """One batch of several, each as `taken` gave it."""
    if len(batches) == 1:
        return batches[0]
    every: Sequence[Any] = batches  # all of one kind, for they are of one network
    if isinstance(every[0], Mapping):
        return {name: np.concatenate([x[name] for x in every]) for name in every[0]}
    return np.concatenate(every)


def examples(inputs: Mapping[str, Given], batch: int, *, random: bool) -> Inputs:
    """Inputs to try a network on: random numbers, and ones of other types; or zeros."""
    made: dict[str, Array] = {}
    for name, one in inputs.items():
        shape = (batch, *one.shape)
        made[name] = np.full(shape, int(random), one.dtype)
        if one.below is not None:
            made[name][:, np.broadcast_to(one.below == np.int64(1), one.shape)] = 0  # of one row there is the first
        if random and one.dtype == _FLOAT32:
            made[name] = np.random.default_rng(0).standard_normal(shape, np.float32)
    return made
