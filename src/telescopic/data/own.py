"""Data of one's own, already in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from telescopic.data.dataset import Dataset
from telescopic.data.dividing import divide, taken
from telescopic.data.readers import DataError, numbers

Given = Tensor | NDArray[Any] | Sequence[Any]


def of(
    inputs: Given,
    targets: Given,
    *,
    validation: int | tuple[Given, Given] | None = None,
    test: int | tuple[Given, Given] | None = None,
    classes: Sequence[str] = (),
    name: str = "own",
    seed: int = 0,
) -> Dataset:
    """A data set of tensors or arrays, of any type and shape.

    Python's and numpy's float64 become float32 as torch's networks are; of bytes see `Preprocess`. Classes (whole
    numbers `[n]`) become int64, and are drawn in proportion.

    Args:
        inputs: `[n, ...]`.
        targets: `[n, ...]`.
        validation: number of examples that are drawn by `seed` and kept apart to choose by; or inputs and targets of
            their own. Default: a tenth of those that are not for the test.
        test: likewise to test with. Default: a fifth.
        classes: their names, if there are classes.
        name: of the data, which a run is resumed with.
        seed: determines which examples are drawn.

    Raises:
        DataError: if there are not as many targets as inputs, they hold no numbers, or too many are to be kept apart.
    """
    x, y = _arrays(inputs, targets)
    left, parts = np.arange(len(x)), []
    for what, asked, share in (("test", test, 5), ("validation", validation, 10)):
        if isinstance(asked, tuple):
            given = _arrays(*asked)
            parts.append(taken(*given, np.arange(len(given[0]))))
            continue
        number = len(left) // share if asked is None else asked
        if not 0 <= number < max(1, len(left)):
            raise DataError(f"{name} has {len(left)} examples left: it cannot give {number} of them for the {what}")
        left, held = divide(y, left, number, seed)
        parts.append(taken(x, y, held))
    kept, apart = parts[1], parts[0]
    return Dataset(name, taken(x, y, left), kept, apart, tuple(classes), source="arrays in memory")


def _arrays(*given: Given) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs and targets in the types that networks and losses take."""
    found = []
    for what, some in zip(("inputs", "targets"), given, strict=True):
        array = np.asarray(some.detach().cpu() if isinstance(some, Tensor) else some)
        found.append(numbers(array, what, byte=what == "inputs", double=isinstance(some, Tensor)))
    if len(found[0]) != len(found[1]):
        raise DataError(f"there are {len(found[0])} inputs and {len(found[1])} targets: give one target for each input")
    return found[0], found[1]
