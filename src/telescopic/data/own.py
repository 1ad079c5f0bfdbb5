"""Data of one's own: already in memory, or from loaders."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from telescopic.data.batches import Split
from telescopic.data.dataset import Dataset
from telescopic.data.dividing import apart, taken
from telescopic.data.readers import DataError, numbers
from telescopic.data.streams import first_of, length_of, sampler_of
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
        given = _arrays(*asked) if isinstance(asked, tuple) else len(left) // share if asked is None else asked
        if not isinstance(given, tuple) and not 0 <= given < max(1, len(left)):
            raise DataError(f"{name} has {len(left)} examples left: it cannot give {given} of them for the {what}")
        left, part = apart(x, y, left, given, seed)
        parts.append(part)
    tested, kept = parts
    return Dataset(name, taken(x, y, left), kept, tested, tuple(classes), source="arrays in memory")


def Loaders(
    *,
    train: Iterable[Any],
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    classes: Sequence[str] = (),
    name: str = "loaders",
) -> Dataset:
    """A data set that is read batch by batch, such as by a torch `DataLoader` with workers.

    A loader is anything that can be iterated again and again and gives `(inputs, targets)`: tensors `[batch, ...]`, of
    inputs perhaps a dict or tuple. The one to train with also knows how many batches it has, by `len`. Its first batch
    is read at once, and stands for the rest where shapes and types are looked at; each other one is compared with it.

    While a loader works torch's random numbers are those of the run's seed, the epoch and the batch, and `set_epoch` is
    called where loader, sampler or data set have one. So a resumed run reads the batches that it had seen once more,
    and goes on with the very ones that would have come, if all that is random in the loader is torch's. (A `generator`
    given to a DataLoader is not.) Under `torchrun` each process takes its share of every batch, all of which must be
    the same in all processes; or, where the loader has a `DistributedSampler`, the examples that this gives it.

    Args:
        train: to learn from.
        validation: to choose by.
        test: to test with.
        classes: their names, if there are classes.
        name: of the data, which a run is resumed with.

    Raises:
        DataError: if a loader gives nothing or something else, can be read only once, or the one to train with has no
            length.
    """
    if length_of(train) is None:
        raise DataError(
            f"the training loader is a {type(train).__name__} whose number of batches is not known, by which the "
            "learning rate goes: give it a __len__"
        )
    if getattr(train, "persistent_workers", False):
        raise DataError(
            "persistent workers keep their random numbers from epoch to epoch, and a resumed run would read other "
            "batches: DataLoader(..., persistent_workers=False)"
        )
    first = Split(*first_of(train, "training"), train)
    others = [
        first[:0] if loader is None else Split(*first_of(loader, what), loader)
        for loader, what in ((validation, "validation"), (test, "test"))
    ]
    for split, what in zip(others, ("validation", "test"), strict=True):
        if sampler_of(split.loader) is not None:
            raise DataError(f"the {what} loader has a DistributedSampler, which repeats examples: leave it out")
    kept, apart = others
    return Dataset(name, first, kept, apart, tuple(classes), source="loaders")


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
    return numbers(array, where, byte=byte, double=isinstance(given, Tensor), mask=truth)
