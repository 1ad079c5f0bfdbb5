"""A pack in int8, made of one in float32: calibrated on images, judged by others, and its accuracy counted anew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from telescopic.data import Split, batches
from telescopic.engine.engine import Engine
from telescopic.engine.manifest import Manifest, finish, read_constants
from telescopic.packing.images import Images
from telescopic.packing.judging import Verdict, judge
from telescopic.packing.quantise import Calibration, quantise

_BATCH = 64
_COUNTED = 200  # images in a batch when accuracy is counted

Report = Callable[[str, int, int], None]
"""Told what is done, and how much of how much."""


def to_int8(
    plain: Path,
    folder: Path,
    manifest: Manifest,
    images: Images,
    *,
    max_loss: float,
    report: Report,
) -> tuple[Manifest, list[Verdict]]:
    """Write a float32 pack again in int8.

    Args:
        plain: folder of the float32 pack.
        folder: of the new one, which is empty.
        manifest: the float32 pack's, with the accuracy of its members if it is known.
        images: to calibrate on, to judge by, and to count accuracy on: of test images only if it was before.
        max_loss: see `judge`.
        report: told what is done.

    Returns:
        The new manifest; and for each member how its answers differ from those in float32.

    Raises:
        ValueError: if they differ too much.
    """
    constants, threads = read_constants(plain, manifest), torch.get_num_threads()
    calibration = Calibration(plain, manifest, constants, threads)
    everything = images.inputs.numpy()
    inputs = [everything[start : start + _BATCH] for start in range(0, len(everything), _BATCH)]
    for number, x in enumerate(inputs):
        calibration.see(x)
        report("calibrating", number + 1, len(inputs))
    ranges = calibration.ranges
    made = quantise(plain, manifest, ranges, constants, folder, lambda done, of: report("quantising", done, of))
    facts = {**manifest.provenance, "calibrated_on": images.what}
    made = finish(folder, replace(made, provenance=facts))
    before, engine = (Engine(path, threads=threads, cache=False) for path in (plain, folder))
    verdicts = judge(before, engine, images.held_out.numpy(), images.labels, max_loss=max_loss, report=report)
    members = manifest.members
    if images.validation is not None and members[0].accuracy is None:  # of all members or of none
        accuracies = _counted(before, images.validation, images, report)
        members = tuple(replace(m, score=a) for m, a in zip(members, accuracies, strict=True))
    accuracy = _counted(engine, images.validation, images, report)
    on_test = _counted(engine, None if members[0].test_score is None else images.test, images, report)
    members = tuple(
        replace(m, score=a, test_score=t, float_accuracy=m.accuracy, float_test_accuracy=m.test_accuracy)
        for m, a, t in zip(members, accuracy, on_test, strict=True)
    )
    return finish(folder, replace(made, members=members)), verdicts


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
