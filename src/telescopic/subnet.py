"""What a sub-network is: a value with three coordinates, and the grid of all of them. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self, overload

Statistics = Literal["shared", "per-entry", "recalibrated"]
"""Policy for running statistics, see `Nested`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Subnet:
    """What is asked for: where the input enters, where the prediction is read, how wide the network is.

    Every part is optional: `None` stands for the full network's value and is filled in by `Grid.resolve`, which gives
    `Coordinates`. Both are equal if they say the same.

    Attributes:
        entry: index of the first stage that runs.
        exit: index of the last stage that runs; its head gives the prediction. `entry == exit + 1` runs no stage at
            all: the entry's adapter feeds the head directly.
        width: number of channel groups used.
    """

    entry: int | None = None
    exit: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        """Refuse coordinates that are not whole numbers."""
        for name, value in self._given():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} of a sub-network is a whole number or None, not {value!r}")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Subnet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __str__(self) -> str:
        """The coordinates that are given, as `parse` reads them: `entry=1,exit=3`."""
        return ",".join(f"{name}={value}" for name, value in self._given()) or "full"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `entry=1,exit=3` (any of the three, in any order); `full` is the full network.

        Raises:
            ValueError: if the text has another form.
        """
        parts: dict[str, int] = {}
        for item in [] if text.strip() in ("", "full") else text.split(","):
            name, _, value = (piece.strip() for piece in item.partition("="))
            if name not in ("entry", "exit", "width") or name in parts or not value.removeprefix("-").isdecimal():
                raise ValueError(f"cannot read sub-network {text!r}: write for example 'entry=1' or 'entry=1,exit=3'")
            parts[name] = int(value)
        return cls(**parts)

    def _values(self) -> tuple[int | None, int | None, int | None]:
        return self.entry, self.exit, self.width

    def _given(self) -> list[tuple[str, int]]:
        return [(n, v) for n, v in zip(("entry", "exit", "width"), self._values(), strict=True) if v is not None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coordinates(Subnet):
    """Which member of a grid: a `Subnet` that leaves nothing open."""

    entry: int
    exit: int
    width: int

    @classmethod
    def of(cls, subnet: Subnet) -> Self:
        """The same, if nothing in it is open.

        Raises:
            ValueError: if something is.
        """
        if isinstance(subnet, cls):
            return subnet
        given = dict(subnet._given())
        if missing := [name for name in ("entry", "exit", "width") if name not in given]:
            raise ValueError(f"sub-network {subnet} leaves {', '.join(missing)} open")
        return cls(**given)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `entry=0,exit=3,width=1`.

        Raises:
            ValueError: if the text has another form, or leaves something open.
        """
        return cls.of(Subnet.parse(text))

    @property
    def stages(self) -> int:
        """Number of stages that it runs."""
        return self.exit - self.entry + 1

    def follows(self, small: "Coordinates") -> bool:
        """Whether it goes on where another one has ended: of the same entry, and deeper or wider or both."""
        return self != small and small.entry == self.entry and small.exit <= self.exit and small.width <= self.width


def require_path(members: Sequence[Coordinates]) -> None:
    """Refuse what is no path: members that answer one after the other, each from what the one before has left.

    Raises:
        ValueError: if there is none, or one does not follow the one before.
    """
    if not members:
        raise ValueError("a path needs at least one member")
    for small, large in pairwise(members):
        if not large.follows(small):
            raise ValueError(
                f"{large} does not follow {small} on a path: each member has the entry of the one before, and is "
                "deeper or wider than it or both, and neither shallower nor narrower"
            )


class Grid(Sequence[Coordinates]):
    """All members of a nested network, smallest first.

    The order is by number of stages run, then width, then exit. It never puts a member before one it contains,
    so it is the order of cost wherever a total one exists.

    Args:
        entries: stages before which the input may enter.
        exits: stages after which the prediction may be read.
        widths: numbers of channel groups that may be used.

    Raises:
        ValueError: if a coordinate has no value, or no entry lies at or before an exit.
    """

    def __init__(self, entries: Iterable[int], exits: Iterable[int], widths: Iterable[int] = (1,)) -> None:
        self.entries, self.exits, self.widths = (tuple(sorted(set(values))) for values in (entries, exits, widths))
        for name, values in (("entries", self.entries), ("exits", self.exits), ("widths", self.widths)):
            if not values:
                raise ValueError(f"a grid needs at least one value in {name}")
        if self.entries[0] < 0 or self.exits[0] < -1 or self.widths[0] < 1:
            raise ValueError(
                f"entries start at 0, exits at -1, widths at 1; these are {self.entries}, {self.exits}, {self.widths}"
            )
        members = [
            Coordinates(entry=entry, exit=exit_, width=width)
            for entry in self.entries
            for exit_ in self.exits
            for width in self.widths
            if entry <= exit_ + 1
        ]
        if not members:
            raise ValueError(f"no member: every entry {self.entries} lies behind every exit {self.exits}")
        self._members = tuple(sorted(members, key=lambda m: (m.stages, m.width, m.exit)))
        self._index: dict[Subnet, int] = {member: i for i, member in enumerate(self._members)}
        self.full = Coordinates(entry=self.entries[0], exit=self.exits[-1], width=self.widths[-1])

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Coordinates]:
        return iter(self._members)

    def __contains__(self, subnet: object) -> bool:
        return subnet in self._index

    @overload
    def __getitem__(self, index: int) -> Coordinates: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Coordinates, ...]: ...
    def __getitem__(self, index: int | slice) -> Coordinates | tuple[Coordinates, ...]:
        return self._members[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        return f"Grid(entries={self.entries}, exits={self.exits}, widths={self.widths})"

    def resolve(self, subnet: Subnet | None = None) -> Coordinates:
        """The member that `subnet` names, with the full network's value for each part left open.

        Raises:
            ValueError: if there is no such member; the message names the nearest one.
        """
        if subnet is None:
            return self.full
        if not isinstance(subnet, Subnet):
            raise TypeError(f"expected a telescopic.Subnet, got {type(subnet).__name__} {subnet!r}")
        entry = self.full.entry if subnet.entry is None else subnet.entry
        exit_ = self.full.exit if subnet.exit is None else subnet.exit
        width = self.full.width if subnet.width is None else subnet.width
        complete = Coordinates(entry=entry, exit=exit_, width=width)
        if complete in self._index:
            return complete
        nearest = min(self._members, key=lambda member: _distance(member, complete))
        raise ValueError(
            f"there is no member {subnet}: entries are {self.entries}, exits {self.exits}, widths {self.widths}, and "
            f"an entry is at most its exit + 1; nearest is {nearest}"
        )

    def index(self, subnet: Subnet | None, start: int = 0, stop: int | None = None) -> int:
        """Position of a member in the grid, and so in `Nested.all` and in every table. Parts may be left open."""
        index = self._index[self.resolve(subnet)]
        if not start <= index < (len(self) if stop is None else stop):
            raise ValueError(f"member {subnet} is at {index}, outside [{start}, {stop})")
        return index

    def contains(self, large: Subnet | None, small: Subnet | None) -> bool:
        """Whether everything `small` runs between its adapter and its head also belongs to `large`."""
        large, small = self.resolve(large), self.resolve(small)
        return large.entry <= small.entry and small.exit <= large.exit and small.width <= large.width

    def label(self, subnet: Subnet | None) -> str:
        """Short name: only the coordinates that differ between members, e.g. `entry=1`; `full` if there is but one."""
        member = self.resolve(subnet)
        varying = {"entry": self.entries, "exit": self.exits, "width": self.widths}
        parts = [f"{name}={getattr(member, name)}" for name, values in varying.items() if len(values) > 1]
        return ",".join(parts) or "full"


def _distance(one: Coordinates, other: Coordinates) -> int:
    return abs(one.entry - other.entry) + abs(one.exit - other.exit) + abs(one.width - other.width)
