"""A pack in int8, made of one in float32: calibrated on images, compared with it, and its accuracy counted anew."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telescopic.data import Dataset, Preprocess, Split, batches
from telescopic.packing.quantise import Calibration, quantise
from telescopic.runtime.engine import Engine
from telescopic.runtime.manifest import Floats, Manifest, finish, read_constants
from telescopic.subnet import Subnet

TOLERANCE = 0.5
"""Largest difference from the float32 logits that passes, as a fraction of these; both as root mean squares."""

_IMAGES = 256  # to calibrate on, of a data set
_BATCH = 64
_COUNTED = 200  # images in a batch when accuracy is counted

Report = Callable[[str, int, int], None]
"""Told what is done, and how much of how much."""


@dataclass(frozen=True, eq=False)
class Images:
    """What a pack is quantised by.

    Attributes:
        inputs: to calibrate on, float32 `[batch, ...]`.
        what: what these are, for the card.
        preprocess: from pixels to inputs.
        validation: images to count accuracy on; None if there are no labels.
        test: the same.
    """

    inputs: Tensor
    what: str
    preprocess: Preprocess
    validation: Split | None = None
    test: Split | None = None

    @classmethod
    def of(cls, given: Dataset | Tensor, shape: Sequence[int], preprocess: Preprocess | None) -> "Images":
        """From what the user gave.

        Args:
            given: a data set, of which training images are taken, evenly spread; or inputs.
            shape: of one input.
            preprocess: from pixels to inputs; by default into fractions of 255.

        Raises:
            TypeError: if it is something else.
            ValueError: if it does not fit the network.
        """
        wanted = f"[batch, {', '.join(map(str, shape))}]"
        if isinstance(given, Tensor):
            if given.dtype != torch.float32 or tuple(given.shape[1:]) != tuple(shape) or not len(given):
                raise ValueError(f"int8 takes inputs float32 {wanted}, not {given.dtype} {[*given.shape]}")
            return cls(given.detach().cpu(), f"{len(given)} inputs", preprocess or Preprocess())
        if not isinstance(given, Dataset):
            raise TypeError(f"int8 takes a data set, or inputs float32 {wanted}, not a {type(given).__name__}")
        if given.input_shape != tuple(shape):
            raise ValueError(f"int8 takes images {wanted}, and those of {given.name} are {[*given.input_shape]}")
        prepare = preprocess or Preprocess()
        images = given.train.images[:: -(-len(given.train) // _IMAGES)].cpu()
        what = f"{len(images)} training images of {given.name}"
        return cls(prepare(images), what, prepare, given.validation, given.test)


def to_int8(
    plain: Path, folder: Path, manifest: Manifest, images: Images, *, test: bool, threads: int, report: Report
) -> tuple[Manifest, float]:
    """Write a float32 pack again in int8.

    Args:
        plain: folder of the float32 pack.
        folder: of the new one, which is empty.
        manifest: the float32 pack's, with the accuracy of its members if it is known.
        images: to calibrate on, and to count accuracy on.
        test: whether to count it on test images too.
        threads: within a segment.
        report: told what is done.

    Returns:
        The new manifest; and by how much its answers differ at most from those in float32, member by member, as
        a fraction of these, both as root mean squares.

    Raises:
        ValueError: if they differ too much.
    """
    constants = read_constants(plain, manifest)
    calibration = Calibration(plain, manifest, constants, threads)
    expected: dict[Subnet, list[Floats]] = {member.subnet: [] for member in manifest.members}
    everything = images.inputs.numpy()
    inputs = [everything[start : start + _BATCH] for start in range(0, len(everything), _BATCH)]
    for number, x in enumerate(inputs):
        for subnet, logits in calibration.see(x).items():
            expected[subnet].append(logits)
        report("calibrating", number + 1, len(inputs))
    made = quantise(plain, manifest, calibration, constants, folder, lambda done, of: report("quantising", done, of))
    facts = {**manifest.provenance, "calibrated_on": images.what}
    made = finish(folder, replace(made, provenance=facts))
    engine = Engine(folder, threads=threads, cache=False)
    worst = max(_apart(engine, member.subnet, inputs, expected[member.subnet]) for member in manifest.members)
    before = manifest.members
    if images.validation is not None and before[0].accuracy is None:  # of all members or of none
        accuracies = _counted(Engine(plain, threads=threads, cache=False), images.validation, images, report)
        before = tuple(replace(m, accuracy=a) for m, a in zip(before, accuracies, strict=True))
    accuracy = _counted(engine, images.validation, images, report)
    on_test = _counted(engine, images.test if test else None, images, report)
    members = tuple(
        replace(m, accuracy=a, test_accuracy=t, float_accuracy=m.accuracy, float_test_accuracy=m.test_accuracy)
        for m, a, t in zip(before, accuracy, on_test, strict=True)
    )
    return finish(folder, replace(made, members=members)), worst


def _apart(engine: Engine, subnet: Subnet, inputs: Sequence[Floats], expected: Sequence[Floats]) -> float:
    """How far a member's answers are from those in float32."""
    ours = np.concatenate([engine.run(x, subnet=subnet).logits for x in inputs])
    theirs = np.concatenate(expected)
    apart = float(np.sqrt(np.square(ours - theirs).mean() / (np.square(theirs).mean() or 1.0)))
    if not apart <= TOLERANCE:
        raise ValueError(
            f"in int8 the answers of {engine.member(subnet).label} are off by {apart:.2f} of those in float32, as root "
            f"mean squares, and {TOLERANCE} is allowed: calibrate on more images, or leave this member out"
        )
    return apart


def _counted(engine: Engine, split: Split | None, images: Images, report: Report) -> list[float | None]:
    """Fraction of the images that each member classifies rightly; None if there are none."""
    if split is None or not len(split):
        return [None] * len(engine.members)
    right = np.zeros(len(engine.members), np.int64)
    done = 0
    for pixels, labels in batches(split, _COUNTED):
        x = images.preprocess(pixels.cpu()).numpy()
        guesses = [engine.run(x, subnet=member.subnet).logits.argmax(1) for member in engine.members]
        right += [int((guess == labels.cpu().numpy()).sum()) for guess in guesses]
        done += len(x)
        report("counting", done, len(split))
    return [int(number) / len(split) for number in right]
