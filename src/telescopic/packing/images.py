"""What a pack is quantised by: inputs to calibrate on, others to judge by, and whether they are like the network's."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from telescopic.data import Dataset, Preprocess, Split

_IMAGES = 256  # to calibrate on, of a data set
_HELD_OUT = 1000  # at most, of a data set
_SHARE = 4  # of inputs alone every fourth is held out
_FAR = 4.0  # times as far as the median input
_SPREAD = 2.0  # times more or less than images prepared as the training images were


@dataclass(frozen=True, eq=False)
class Images:
    """What a pack is quantised by.

    Attributes:
        inputs: to calibrate on, float32 `[batch, ...]`.
        held_out: others to judge by, of the same kind.
        labels: of those, int64 `[batch]`; None if there are none.
        what: what these are, for the card.
        preprocess: from pixels to inputs.
        validation: images to count accuracy on; None if there are no labels.
        test: the same.
    """

    inputs: Tensor
    held_out: Tensor
    labels: NDArray[np.int64] | None
    what: str
    preprocess: Preprocess
    validation: Split | None = None
    test: Split | None = None

    @classmethod
    def of(cls, given: Dataset | Tensor, shape: Sequence[int], preprocess: Preprocess | None) -> "Images":
        """From what the user gave. There is a warning if it does not look like what the network has learned from.

        Args:
            given: a data set, of which training images are taken, evenly spread, and to judge by validation images, or
                other training images where there are none; or inputs, of which every fourth is for judging.
            shape: of one input.
            preprocess: from pixels to inputs; by default into fractions of 255.

        Raises:
            TypeError: if it is something else.
            ValueError: if it does not fit the network, or nothing can be learned from it.
        """
        wanted = f"[batch, {', '.join(map(str, shape))}]"
        if isinstance(given, Tensor):
            if given.dtype != torch.float32 or tuple(given.shape[1:]) != tuple(shape) or not len(given):
                raise ValueError(f"int8 takes inputs float32 {wanted}, not {given.dtype} {[*given.shape]}")
            inputs, judging = given.detach().cpu(), _fourth(len(given))
            _look(inputs, preprocess)
            what = f"{int((~judging).sum())} inputs"
            return cls(inputs[~judging], inputs[judging], None, what, preprocess or Preprocess())
        if not isinstance(given, Dataset):
            raise TypeError(f"int8 takes a data set, or inputs float32 {wanted}, not a {type(given).__name__}")
        if any(split.loader is not None for split in (given.train, given.validation, given.test)):
            raise ValueError(f"int8 takes data in memory, and {given.name} comes from loaders: give inputs as a tensor")
        if given.input_shape != tuple(shape):
            raise ValueError(f"int8 takes images {wanted}, and those of {given.name} are {[*given.input_shape]}")
        prepare, train, others = preprocess or Preprocess(), given.train, given.validation
        step = -(-len(train) // _IMAGES)
        calibrating = torch.arange(len(train)) % step == 0
        if not len(others):
            calibrating = calibrating if step > 1 else ~_fourth(len(train))
            others = Split(train.images[~calibrating], train.labels[~calibrating])
        images = train.images[calibrating].cpu()
        inputs, what = prepare(images), f"{len(images)} training images of {given.name}"
        _look(inputs, preprocess)
        spread = slice(None, None, -(-len(others) // _HELD_OUT))
        held_out, labels = prepare(others.images[spread].cpu()), others.labels[spread].cpu().numpy()
        return cls(inputs, held_out, labels, what, prepare, given.validation, given.test)


def _fourth(number: int) -> Tensor:
    """Which of so many are held out: every fourth, and at least one."""
    if number < 2:
        raise ValueError(f"int8 takes 2 inputs or more, some to calibrate on and others to judge by, not {number}")
    return torch.arange(number) % _SHARE == min(_SHARE, number) - 1


def _look(inputs: Tensor, preprocess: Preprocess | None) -> None:
    """Refuse inputs of which nothing can be learned, and warn of those that are not like the network's."""
    flat, number = inputs.flatten(1), len(inputs)
    if strange := int((~flat.isfinite()).any(1).sum()):
        raise ValueError(f"int8 takes inputs of finite numbers, and {strange} of {number} have NaN or infinity")
    constant = int((flat.amax(1) == flat.amin(1)).sum())
    if constant == number or (flat == flat[0]).all():
        kind = f"{float(flat[0, 0]):g} everywhere" if (flat == flat[0, 0]).all() else "all alike or constant"
        raise ValueError(f"int8 is calibrated on inputs such as the network will see, and these {number} are {kind}")
    doubts = [f"{constant} of {number} have one value everywhere"] if constant else []
    furthest = flat.abs().amax(1)
    typical = float(furthest.median())
    if far := int((furthest > _FAR * typical).sum()):
        doubts.append(
            f"{far} of {number} go further than {_FAR:g} times as far as most: up to {furthest.max():.4g}, "
            f"and the median is {typical:.4g}; such values are cut off"
        )
    doubts += _unprepared(inputs, preprocess)
    if doubts:
        warnings.warn(f"inputs that int8 is calibrated on: {'; '.join(doubts)}", stacklevel=4)


def _unprepared(inputs: Tensor, preprocess: Preprocess | None) -> list[str]:
    """What speaks against inputs having been prepared as those that the network has learned from."""
    if preprocess is None:
        whole = float(inputs.min()) >= 0 and float(inputs.max()) > 16 and bool((inputs == inputs.round()).all())
        return [f"all are whole numbers up to {inputs.max():g}, as pixels that were not prepared"] if whole else []
    across = (1, -1) + (1,) * (inputs.ndim - 2)
    mean, std = (torch.tensor(value).view(across) for value in (preprocess.mean, preprocess.std))
    low, high = (0 - mean) / std, (1 - mean) / std
    beyond = torch.maximum(low - inputs, inputs - high).flatten(1).amax(1)
    if float((beyond / (1 / std).max()).median()) > 1:  # most go further than as far again as pixels can
        raise ValueError(
            f"int8 takes inputs as the network sees them, from {low.min():.3g} to {high.max():.3g}, and most of these "
            f"go from {inputs.min():.3g} to {inputs.max():.3g}: prepare them with {preprocess}"
        )
    outside = int((beyond > 1e-3).sum())
    found = [f"{outside} of {len(inputs)} have values that no pixel prepared with {preprocess} has"] if outside else []
    spread = float(inputs.std())
    if preprocess != Preprocess() and not 1 / _SPREAD < spread < _SPREAD:
        found.append(f"their standard deviation is {spread:.2g}, where {preprocess} gives the training images about 1")
    return found
