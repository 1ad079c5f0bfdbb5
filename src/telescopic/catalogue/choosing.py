"""Which member to choose under budgets, and why; the one place where that is decided. No torch.

A catalogue bounds many quantities before anything runs, and refuses what cannot be kept (`choose`). Where members run,
one cost is bound, and there is always an answer (`within`): by the engine, its controller and the server.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real

from telescopic.metric import ACCURACY, Metric
from telescopic.quantities import human
from telescopic.subnet import Coordinates, Subnet


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is known of one member.

    Attributes:
        subnet: which, with all three coordinates.
        label: its short name in its grid.
        score: how good it is on the validation examples, as `metric` says: by default accuracy, the fraction that is
            classified rightly; None if not measured.
        test_score: the same of the test examples.
        metric: what the two mean, the same for all members of a network.
        macs: multiply-adds of one example; this and the next four as `telescopic.Cost` defines them.
        params: number of parameters.
        bytes: parameters and buffers, in bytes.
        peak_activation: largest sum of feature maps alive at one time, in bytes.
        largest_feature_map: in bytes.
        latency_ms: median time of a pass, in milliseconds; None if not measured.
        latency_p95_ms: 95 % of the passes took at most this many milliseconds.

    Raises:
        ValueError: if a value is of the wrong type or outside its range.
    """

    subnet: Coordinates
    label: str
    score: float | None = None
    test_score: float | None = None
    metric: Metric = ACCURACY
    macs: int
    params: int
    bytes: int
    peak_activation: int
    largest_feature_map: int
    latency_ms: float | None = None
    latency_p95_ms: float | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values: they may have come from a file."""
        object.__setattr__(self, "subnet", Coordinates.of(self.subnet))
        named = str(self.subnet)
        if not isinstance(self.label, str):
            raise ValueError(f"a catalogue's member has a label, not {self.label!r}")
        said = str(Subnet.parse(self.label))
        if said != self.label or not set(said.split(",")) <= {*named.split(","), "full"}:
            raise ValueError(f"label {self.label!r} does not name {named}")
        for name in ("macs", "params", "bytes", "peak_activation", "largest_feature_map"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**63:
                raise ValueError(f"{name} of {self.label} is a whole number of 0 or more, not {value!r:.50}")
        for score, what in ((self.score, ""), (self.test_score, "test ")):
            if score is not None:
                self.metric.require(score, f"{what}{self.metric.name} of {self.label}")
        for name in ("latency_ms", "latency_p95_ms"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value <= 1e12):
                raise ValueError(f"{name} of {self.label} is None or a number from 0 to 1e+12, not {value!r:.50}")
        if (self.latency_ms is None) != (self.latency_p95_ms is None):
            raise ValueError(f"{self.label} has latency_ms and latency_p95_ms or neither")

    @property
    def accuracy(self) -> float | None:
        """The score, where it is one.

        Raises:
            ValueError: if it is another.
        """
        return self._accuracy(self.score)

    @property
    def test_accuracy(self) -> float | None:
        """The test score, likewise."""
        return self._accuracy(self.test_score)

    def _accuracy(self, score: float | None) -> float | None:
        if self.metric.word != "accuracy":
            raise ValueError(
                f"{self.label} has no accuracy, for its score is {self.metric.name}: read score, test_score"
            )
        return score


@dataclass(frozen=True, kw_only=True)
class Choice(Member):
    """The member that was chosen.

    Attributes:
        num_fitting: number of members that keep every budget.
        binding: names of the budgets that stand against a better member, such as `max_macs`; empty if none does.
        why: all this in a sentence.
    """

    num_fitting: int
    binding: tuple[str, ...]
    why: str

    def __repr__(self) -> str:
        """What it is, what it is worth, and why it was chosen."""
        metric, judged = self.metric, ""
        if self.score is not None:
            named = "" if metric.word == "accuracy" else f"{metric.name} "
            judged = f", {named}{metric.text(self.score)} on validation {'examples' if named else 'images'}"
        return f"{self.label}: {human(self.macs)} MACs, {human(self.params)} parameters{judged}\n{self.why}"


class BudgetError(ValueError):
    """No member keeps every budget."""


_COMPARED = {"latency_ms": "latency_p95_ms"}  # as the engine and its controller do: what holds in 95 % of passes
_UNITS = {"bytes": "B", "peak_activation": "B", "latency_ms": "ms"}
_NEEDS = {
    "macs": "needs {} MACs",
    "params": "has {} parameters",
    "bytes": "takes {}",
    "peak_activation": "needs {} for feature maps",
    "latency_ms": "takes {} in 95 % of passes",
}


@dataclass(frozen=True)
class Budget:
    """A bound on one quantity of a member: the worst score, or the most of anything else.

    Raises:
        ValueError: if the limit is not a number of 0 or more, or no such score.
    """

    quantity: str
    limit: float
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant."""
        negative = self.quantity == "score" and self.metric.unit != "%"
        if not isinstance(self.limit, Real) or not self.limit >= (-math.inf if negative else 0):
            raise ValueError(f"{self.name} is a number{'' if negative else ' of 0 or more'}, not {self.limit!r}")
        if self.quantity == "score" and self.metric.unit == "%" and self.limit > 1:
            raise ValueError(f"{self.name} is a fraction from 0 to 1: write {self.limit:g} % as {self.limit / 100:g}")

    @property
    def least(self) -> bool:
        """Whether it bounds from below."""
        return self.quantity == "score" and self.metric.better == "higher"

    @property
    def name(self) -> str:
        """As the user gives it."""
        accuracy = self.quantity == "score" and self.metric.word == "accuracy"
        return f"{'min' if self.least else 'max'}_{'accuracy' if accuracy else self.quantity}"

    def value(self, member: Member) -> float:
        """What the member has of this quantity, as it is compared: of a latency the one that 95 % of passes keep."""
        return float(getattr(member, _COMPARED.get(self.quantity, self.quantity)))

    def excess(self, member: Member) -> float:
        """How many times the member goes beyond the limit; at most 1 if it fits."""
        value = self.value(member)
        small, large = (value, self.limit) if self.least else (self.limit, value)
        if min(small, large) < 0:  # only scores can be
            return 1 + (large - small) / (abs(self.limit) or 1.0)
        return large / small if small else (math.inf if large else 1.0)

    def admits(self, member: Member) -> bool:
        """Whether the member keeps within the limit."""
        value = self.value(member)
        return value >= self.limit if self.least else value <= self.limit

    def need(self, member: Member) -> str:
        """What the member has of this quantity, in words; in full where rounding would hide the difference."""
        value, percent = self.value(member), self.quantity == "score" and self.metric.unit == "%"
        text = self._text(value)
        if text == self._text(self.limit):
            unit = self.metric.unit if self.quantity == "score" else _UNITS.get(self.quantity, "")
            text = f"{value * (100 if percent else 1):,.12g} {unit}".strip()
        if self.quantity == "score":
            return f"reaches {text}" if self.metric.word == "accuracy" else f"has {self.metric.name} {text}"
        return _NEEDS[self.quantity].format(text)

    def _text(self, value: float) -> str:
        return self.metric.text(value) if self.quantity == "score" else human(value, _UNITS.get(self.quantity, ""))

    def __str__(self) -> str:
        """Name and limit: `max_macs 700 k`."""
        return f"{self.name} {self._text(self.limit)}"


def within(costs: Sequence[float], worths: Sequence[float], most: float) -> int | None:
    """Place of the member that is worth most among those that cost at most so much, of equals the cheapest.

    Args:
        costs: of each member.
        worths: of each member.
        most: the bound.

    Returns:
        The place; None if all cost more.
    """
    fitting = [place for place, cost in enumerate(costs) if cost <= most]
    return max(fitting, key=lambda place: (worths[place], -costs[place]), default=None)


def front(costs: Sequence[float], worths: Sequence[float]) -> list[int]:
    """Places of the members that are worth more than all that cost no more, by rising cost, and so by rising worth."""
    found: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -worths[place])):
        if not found or worths[place] > worths[found[-1]]:
            found.append(place)
    return found


def choose(members: Sequence[Member], budgets: Sequence[Budget]) -> Choice:
    """The best of the members that keep every budget; see `Catalogue.choose`.

    Raises:
        BudgetError: if none does.
    """
    fitting = [member for member in members if all(budget.admits(member) for budget in budgets)]
    if not fitting:
        raise BudgetError(_nearest_miss(members, budgets))
    best = max(fitting, key=_rank)
    binding, reason = _obstacles(best, members, budgets)
    if not budgets:
        why = f"no budget was given: the {_praise(best)} of {len(members)} members"
    else:
        why = f"{len(fitting)} of {len(members)} members fit; {reason or f'none binds: the {_praise(best)} of all'}"
    facts = {field.name: getattr(best, field.name) for field in fields(Member)}
    return Choice(**facts, num_fitting=len(fitting), binding=tuple(b.name for b in binding), why=why)


def _obstacles(best: Member, members: Sequence[Member], budgets: Sequence[Budget]) -> tuple[list[Budget], str]:
    """The budgets each of which alone stands against a better member, or else the fewest that do so together."""
    better = sorted((member for member in members if _worth(member) > _worth(best)), key=_rank, reverse=True)
    violated = [(member, [budget for budget in budgets if not budget.admits(member)]) for member in better]
    fewest = min((len(obstacles) for _, obstacles in violated), default=0)
    if fewest > 1:
        member, obstacles = next(pair for pair in violated if len(pair[1]) == fewest)
        names, needs = (b.name for b in obstacles), (b.need(member) for b in obstacles)
        return obstacles, f"{' and '.join(names)} bind together: {_named(member)} {' and '.join(needs)}"
    alone: dict[Budget, Member] = {}
    for member, obstacles in violated:
        if len(obstacles) == 1:
            alone.setdefault(obstacles[0], member)
    return list(alone), "; ".join(f"{b.name} binds: {_named(member)} {b.need(member)}" for b, member in alone.items())


def _nearest_miss(members: Sequence[Member], budgets: Sequence[Budget]) -> str:
    nearest = min(members, key=lambda member: max(budget.excess(member) for budget in budgets))
    needs = " and ".join(budget.need(nearest) for budget in budgets if not budget.admits(nearest))
    asked = " and ".join(map(str, budgets))
    return f"none of {len(members)} members fits {asked}; nearest is {nearest.label}, which {needs}"


def _worth(member: Member) -> tuple[float, ...]:
    return (member.macs, member.params) if member.score is None else (member.metric.worth(member.score),)


def _rank(member: Member) -> tuple[float, ...]:
    """Worth first; of equals, the cheapest."""
    return *_worth(member), -member.macs, -member.params, -member.bytes, -member.peak_activation


def _praise(member: Member) -> str:
    if member.score is None:
        return "largest"
    return "most accurate" if member.metric.word == "accuracy" else "best"


def _named(member: Member) -> str:
    if member.score is None:
        return member.label
    name = "" if member.metric.word == "accuracy" else f"{member.metric.name} "
    return f"{member.label} ({name}{member.metric.text(member.score)})"
