"""Which member to choose under budgets, and why; the one place where that is decided. No torch.

A catalogue bounds many quantities before anything runs, and refuses what cannot be kept (`choose`). Where members run,
one cost is bound, and there is always an answer (`within`): by the engine, its controller and the server.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Real

from telescopic.quantities import human
from telescopic.subnet import Coordinates, Subnet


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is known of one member.

    Attributes:
        subnet: which, with all three coordinates.
        label: its short name in its grid.
        accuracy: fraction of the validation images classified rightly; None if not measured.
        test_accuracy: the same of the test images.
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
    accuracy: float | None = None
    test_accuracy: float | None = None
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
        for name in ("accuracy", "test_accuracy", "latency_ms", "latency_p95_ms"):
            value, most = getattr(self, name), 1 if name.endswith("accuracy") else 1e12
            if value is not None and not (type(value) in (int, float) and 0 <= value <= most):
                raise ValueError(f"{name} of {self.label} is None or a number from 0 to {most:g}, not {value!r:.50}")
        if (self.latency_ms is None) != (self.latency_p95_ms is None):
            raise ValueError(f"{self.label} has latency_ms and latency_p95_ms or neither")


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


class BudgetError(ValueError):
    """No member keeps every budget."""


_COMPARED = {"latency_ms": "latency_p95_ms"}  # as the engine and its controller do: what holds in 95 % of passes
_UNITS = {"bytes": "B", "peak_activation": "B", "latency_ms": "ms", "accuracy": "%"}
_NEEDS = {
    "macs": "needs {} MACs",
    "params": "has {} parameters",
    "bytes": "takes {}",
    "peak_activation": "needs {} for feature maps",
    "latency_ms": "takes {} in 95 % of passes",
    "accuracy": "reaches {}",
}


@dataclass(frozen=True)
class Budget:
    """A bound on one quantity of a member: the least accuracy, or the most of anything else.

    Raises:
        ValueError: if the limit is not a number of 0 or more, or as an accuracy not a fraction.
    """

    quantity: str
    limit: float

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant."""
        if not isinstance(self.limit, Real) or not self.limit >= 0:
            raise ValueError(f"{self.name} is a number of 0 or more, not {self.limit!r}")
        if self.quantity == "accuracy" and self.limit > 1:
            raise ValueError(f"min_accuracy is a fraction from 0 to 1: write {self.limit:g} % as {self.limit / 100:g}")

    @property
    def name(self) -> str:
        """As the user gives it."""
        return f"{'min' if self.quantity == 'accuracy' else 'max'}_{self.quantity}"

    def value(self, member: Member) -> float:
        """What the member has of this quantity, as it is compared: of a latency the one that 95 % of passes keep."""
        return float(getattr(member, _COMPARED.get(self.quantity, self.quantity)))

    def excess(self, member: Member) -> float:
        """How many times the member goes beyond the limit; at most 1 if it fits."""
        value = self.value(member)
        small, large = (value, self.limit) if self.quantity == "accuracy" else (self.limit, value)
        return large / small if small else (math.inf if large else 1.0)

    def admits(self, member: Member) -> bool:
        """Whether the member keeps within the limit."""
        value = self.value(member)
        return bool(value >= self.limit if self.quantity == "accuracy" else value <= self.limit)

    def need(self, member: Member) -> str:
        """What the member has of this quantity, in words; in full where rounding would hide the difference."""
        value, unit = self.value(member), _UNITS.get(self.quantity, "")
        text = human(value, unit)
        if text == human(self.limit, unit):
            text = f"{value * (100 if unit == '%' else 1):,.12g} {unit}".strip()
        return _NEEDS[self.quantity].format(text)

    def __str__(self) -> str:
        """Name and limit: `max_macs 700 k`."""
        return f"{self.name} {human(self.limit, _UNITS.get(self.quantity, ''))}"


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
    return (member.macs, member.params) if member.accuracy is None else (member.accuracy,)


def _rank(member: Member) -> tuple[float, ...]:
    """Worth first; of equals, the cheapest."""
    return *_worth(member), -member.macs, -member.params, -member.bytes, -member.peak_activation


def _praise(member: Member) -> str:
    return "largest" if member.accuracy is None else "most accurate"


def _named(member: Member) -> str:
    return member.label if member.accuracy is None else f"{member.label} ({human(member.accuracy, '%')})"
