"""How examples are divided into those to learn from and those to judge by."""

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from telescopic.data.batches import Split
from telescopic.data.sources import cache_dir
from telescopic.files import make_folder
from telescopic.inputs import each

_CHUNK = 1024  # examples that are copied at once


def taken(inputs: Any, targets: NDArray[Any], index: NDArray[np.intp]) -> Split:
    """A part of some examples, of an array of inputs or a dict or tuple of several."""
    return Split(each(lambda x: torch.from_numpy(_part(x, index)), inputs), torch.from_numpy(targets[index]))


def space_for(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array to be filled: in memory; or where there is no room for two of it, in a file of the cache.

    The file has no name, and is gone with the array.

    Raises:
        OSError: if the disk has no room for it either.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if 2 * size <= _free():
        return np.empty(shape, dtype)
    folder = make_folder(cache_dir("decoded"))
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # or a full disk would end the process, when a page is written
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "w+", shape=shape)


def _free() -> int:
    """Bytes of memory that are left to this process, as far as the system tells."""
    try:
        known = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(known["MemAvailable:"])
    except (OSError, KeyError, ValueError):
        return sys.maxsize
    try:
        group = Path("/sys/fs/cgroup")
        bound, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(bound) - int(used))
    except (OSError, ValueError):  # no group, or one without a bound
        return free


def _part(array: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """Some examples, in a file if all are in one."""
    if not isinstance(array, np.memmap):
        return array[index]
    made = space_for((len(index), *array.shape[1:]), array.dtype) if len(index) else array[:0]
    for start in range(0, len(index), _CHUNK):
        made[start : start + _CHUNK] = array[index[start : start + _CHUNK]]
    return made


def apart(
    inputs: Any, targets: NDArray[Any], left: NDArray[np.intp], given: tuple[Any, NDArray[Any]] | int, seed: int
) -> tuple[NDArray[np.intp], Split]:
    """Examples that are kept apart: others that are given, or so many of those that are left; and what is left then."""
    if isinstance(given, tuple):
        return left, taken(*given, np.arange(len(given[1])))
    left, held = divide(targets, left, given, seed)
    return left, taken(inputs, targets, held)


def divide(
    targets: NDArray[Any], index: NDArray[np.intp], number: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split an index in two, `number` of it in the second part; both keep their order.

    Every class is divided in proportion. Each part gets one image of every class at least, the first part before the
    second, if the class has as many and the part has as many as there are classes. Targets that are no classes, int64
    `[n]`, are all alike.
    """
    labels = targets if targets.ndim == 1 and targets.dtype == np.int64 else np.zeros(len(targets), np.int64)
    # RandomState, not a Generator: numpy keeps its stream for ever, so the split is the same in all versions.
    shuffled = np.random.RandomState(seed).permutation(index)
    classes = np.unique(labels[index])
    place = np.empty(len(index))  # of an image among those of its class, from 0 to 1
    for label in classes:
        members = np.flatnonzero(labels[shuffled] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        if number >= len(classes) and len(members) > 1:
            place[members[0]] = 0
        if len(index) - number >= len(classes):
            place[members[-1]] = 1
    order = np.argsort(place, kind="stable")
    return np.sort(shuffled[order[number:]]), np.sort(shuffled[order[:number]])
