"""How examples are divided into those to learn from and those to judge by."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from telescopic.data.batches import Split
from telescopic.inputs import each


def taken(inputs: Any, targets: NDArray[Any], index: NDArray[np.intp]) -> Split:
    """A part of some examples, of an array of inputs or a dict or tuple of several."""
    return Split(each(lambda x: torch.from_numpy(x[index]), inputs), torch.from_numpy(targets[index]))


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
