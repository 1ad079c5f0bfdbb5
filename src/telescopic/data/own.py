"""Data of one's own, already in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from telescopic.data.dataset import Dataset
from telescopic.data.dividing import divide, taken
from telescopic.data.readers import DataError, numbers
from telescopic.inputs import named

Given = Tensor | NDArray[Any] | Sequence[Any]
Inputs = Given | Mapping[str, Given] | tuple[Given, ...]


def of(
    inputs: Inputs,
    targets: Given,
    *,
    validation: int | tuple[Inputs, Given] | None = None,
    test: int | tuple[Inputs, Given] | None = None,
    classes: Sequence[str] = (),
    name: str = "own",
    seed: int = 0,
) -> Dataset:
    """A data set of tensors or arrays, of any type and shape.

    Python's and numpy's float64 become float32 as torch's networks are; of bytes see `Preprocess`. Classes (whole
    numbers `[n]`) become int64, and are drawn in proportion.

    Networks that take several inputs are given a dict of them by name, or a tuple. Among several, truth values stay
    what they are, for they are masks; elsewhere they become 0.0 and 1.0.

    Args:
        inputs: `[n, ...]`, or a dict or tuple of such.
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
    left, parts = np.arange(len(y)), []
    for what, asked, share in (("test", test, 5), ("validation", validation, 10)):
        if isinstance(asked, tuple):
            given = _arrays(*asked)
            parts.append(taken(*given, np.arange(len(given[1]))))
            continue
        number = len(left) // share if asked is None else asked
        if not 0 <= number < max(1, len(left)):
            raise DataError(f"{name} has {len(left)} examples left: it cannot give {number} of them for the {what}")
        left, held = divide(y, left, number, seed)
        parts.append(taken(x, y, held))
    kept, apart = parts[1], parts[0]
    return Dataset(name, taken(x, y, left), kept, apart, tuple(classes), source="arrays in memory")


def _arrays(inputs: Inputs, targets: Given) -> tuple[Any, NDArray[Any]]:
    """Inputs and targets in the types that networks and losses take."""
    x, y = _several(inputs), _array(targets, "targets", byte=False)
    for name, some in named(x, "inputs").items():
        if len(some) != len(y):
            what = "inputs" if some is x else f"inputs {name!r}"
            raise DataError(f"there are {len(some)} {what} and {len(y)} targets: give one target for each input")
    return x, y


def _several(given: Any, where: str = "inputs", alone: bool = True) -> Any:
    """The array, or each of several."""
    if isinstance(given, Mapping):
        if not given or not all(isinstance(name, str) and name for name in given):
            raise DataError(f"{where}: a dict has inputs by their names, and this one {list(given)}")
        return {name: _several(some, f"{where}[{name!r}]", False) for name, some in given.items()}
    if isinstance(given, tuple) and given and all(isinstance(x, Tensor | np.ndarray | Mapping) for x in given):
        return tuple(_several(some, f"{where}[{number}]", False) for number, some in enumerate(given))
    return _array(given, where, byte=True, truth=not alone)


def _array(given: Given, where: str, *, byte: bool, truth: bool = False) -> NDArray[Any]:
    array = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    made = numbers(array, where, byte=byte, double=isinstance(given, Tensor))
    return made.astype(bool) if truth and array.dtype == bool else made
