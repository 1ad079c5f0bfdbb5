"""Whether a pack in int8 is as good as in float32, judged by examples that it was not calibrated on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from telescopic.engine.engine import Engine
from telescopic.engine.manifest import Floats

_BATCH = 200
_CHANGES = 5
"""Without labels so many times as many examples may change their class: most of them were close calls, and as many of
the others become right as wrong. Of the families that come with the package 3 to 15 times as many change."""
_ERROR = 0.5
"""Without labels: the largest error that the median example may have."""


@dataclass(frozen=True)
class Verdict:
    """How a member's answers in int8 compare with those in float32, over examples held out.

    Attributes:
        label: the member's short name.
        examples: how many.
        same: fraction of them with the same class.
        error: median over examples of the logits' difference, as a fraction of the logits: both as root mean squares.
        right: how many are classified rightly in float32, and in int8; None without labels.
    """

    label: str
    examples: int
    same: float
    error: float
    right: tuple[int, int] | None

    @property
    def changed(self) -> int:
        """How many have another class."""
        return self.examples - round(self.same * self.examples)

    def __str__(self) -> str:
        """All of it, in words."""
        told = f"{self.changed} of {self.examples} examples held out have another class in int8 than in float32"
        if self.right is not None:
            told += f", and {self.right[1]} are right instead of {self.right[0]}"
        return f"{told}; the median error is {100 * self.error:.2g} % of the logits"

    def holds(self, max_loss: float) -> bool:
        """Whether no more is lost than `judge` allows."""
        chance = 2 * math.sqrt(self.changed)  # two standard deviations of what as many coins would do
        if self.right is not None:
            return self.right[0] - self.right[1] <= max_loss * self.examples + chance
        return self.changed <= _CHANGES * max_loss * self.examples + chance and (self.error <= _ERROR or max_loss >= 1)


def judge(
    before: Engine,
    after: Engine,
    x: Floats,
    labels: NDArray[np.int64] | None,
    *,
    max_loss: float,
    report: Callable[[str, int, int], None],
) -> list[Verdict]:
    """Compare all members of a pack in float32 with the same in int8, example by example.

    Args:
        before: in float32.
        after: in int8.
        x: inputs `[batch, ...]` on which it was not calibrated.
        labels: their classes, int `[batch]`, if they are known.
        max_loss: how much of the examples a member may lose, as a fraction, beyond what chance explains. With labels,
            so many fewer may be classified rightly. Without, five times as many may have another class, and the median
            example's error may be half of its logits at most.
        report: told how many members have been judged, and of how many.

    Raises:
        ValueError: if a member loses more: it says how much each of those does.
    """
    verdicts = []
    for number, member in enumerate(before.members):
        first, second = (
            np.concatenate([e.run(x[i : i + _BATCH], subnet=member.subnet).logits for i in range(0, len(x), _BATCH)])
            for e in (before, after)
        )
        classes, others = first.argmax(1), second.argmax(1)
        sizes = np.sqrt(np.square(first).sum(1))
        errors = np.sqrt(np.square(first - second).sum(1)) / np.where(sizes > 0, sizes, 1)
        right = None if labels is None else (int((classes == labels).sum()), int((others == labels).sum()))
        verdicts.append(
            Verdict(member.label, len(x), float((classes == others).mean()), float(np.median(errors)), right)
        )
        report("judging", number + 1, len(before.members))
    if bad := [verdict for verdict in verdicts if not verdict.holds(max_loss)]:
        told = "; ".join(f"{verdict.label}: {verdict}" for verdict in bad[:3])
        more = f"; and so {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"int8 costs {len(bad)} of {len(verdicts)} members more than max_loss={max_loss:g} allows: {told}{more}. "
            "Calibrate on more inputs, such as the network will see; leave these members out; or allow more"
        )
    return verdicts
