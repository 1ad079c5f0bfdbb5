"""What an engine takes for inputs, and what it refuses. No torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from telescopic.engine.manifest import Floats

_FLOAT32 = np.dtype(np.float32)


def checked(x: ArrayLike, shape: tuple[int, ...], preprocess: Mapping[str, Sequence[float]] | None) -> Floats:
    """What was given as float32 `[batch, ...]`.

    Args:
        x: inputs float32, or uint8 pixels, if it is known how to prepare them.
        shape: of one input.
        preprocess: mean and standard deviation of each channel, or one for all, of pixels from 0 to 1.

    Raises:
        ValueError: if it has another shape or type, or holds what is no finite number.
    """
    array = np.asarray(x)
    if array.shape[1:] != shape or not array.ndim or not len(array):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"inputs have shape [batch, {wanted}] with 1 example or more, not {list(array.shape)}")
    if array.dtype == _FLOAT32:
        if not np.logical_and.reduce(np.isfinite(array), axis=None):  # several µs faster than all()
            raise ValueError("inputs are finite numbers, and there is NaN or infinity among these")
        return array
    if array.dtype == np.uint8 and preprocess is not None:
        mean, std = (np.asarray(preprocess[name], np.float32) for name in ("mean", "std"))
        across = (-1,) + (1,) * (array.ndim - 2)
        pixels: Floats = (array.astype(np.float32) / np.float32(255) - mean.reshape(across)) / std.reshape(across)
        return pixels
    pixels_too = " or uint8 pixels" if preprocess is not None else ""
    raise ValueError(f"inputs are float32{pixels_too}, not {array.dtype}: convert them")
