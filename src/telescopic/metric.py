"""What the number that says how good a member is means: its name, which way is better, its unit. No torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from telescopic.quantities import human


@dataclass(frozen=True)
class Metric:
    """What a score means.

    Attributes:
        name: as tables and messages call it, such as `accuracy`.
        better: whether the `higher` or the `lower` score is the better one.
        unit: of a score; `%` stands for a fraction from 0 to 1, which is written as a percentage.
        chance: score of who guesses and has seen nothing but the training targets; None if nobody knows.

    Raises:
        ValueError: if a value is of the wrong type or outside its range.
    """

    name: str
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    chance: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant: it may have come from a file."""
        for name, value in (("name", self.name), ("unit", self.unit)):
            if not isinstance(value, str) or len(value) > 40 or not value.isprintable():
                raise ValueError(f"{name} of a metric is a short text, not {value!r:.50}")
        if not self.name or self.better not in ("higher", "lower"):
            raise ValueError(f"a metric has a name, and higher or lower is better, not {self.better!r:.50}")
        if self.chance is not None:
            self.require(self.chance, "chance")

    def require(self, score: object, what: str) -> None:
        """Refuse what is no such score.

        Raises:
            ValueError: naming `what` it is.
        """
        low, high = (0.0, 1.0) if self.unit == "%" else (-1e300, 1e300)
        if type(score) not in (int, float) or not low <= score <= high:  # type: ignore[operator]
            number = "a number from 0 to 1" if self.unit == "%" else "a finite number"
            raise ValueError(f"{what} is None or {number}, not {score!r:.50}")

    def worth(self, score: float) -> float:
        """The score, with its sign such that more is better."""
        return score if self.better == "higher" else -score

    def best(self, scores: Iterable[float]) -> float:
        """The best of some scores."""
        return max(scores, key=self.worth)

    @property
    def word(self) -> str:
        """`accuracy` or `score`: what files and sentences call it where its name might hold anything."""
        return ACCURACY.name if self.name == ACCURACY.name else "score"

    def text(self, score: float) -> str:
        """A score as people read it, such as `97.50 %` or `0.4512`."""
        if math.isnan(score):
            return "–"
        return human(score, "%") if self.unit == "%" else f"{score:.4g} {self.unit}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The metric that `to_dict` described.

        Raises:
            ValueError: if the data are anything else.
        """
        if not isinstance(data, Mapping) or set(data) != {f.name for f in fields(cls)}:
            raise ValueError("a metric is a mapping with name, better, unit and chance, and nothing else")
        return cls(**data)


ACCURACY = Metric("accuracy", unit="%")
"""Share of the answers that are right."""
