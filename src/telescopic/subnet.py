"""What a sub-network is: a value with three coordinates, and the grid of all of them. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self, overload


@dataclass(frozen=True, kw_only=True, slots=True)
class Subnet:
    """One member of a nested network: where the input enters, where the prediction is read, how wide it is.

    Every part is optional: `None` stands for the full network's value and is filled in by `Grid.resolve`.

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

    def _given(self) -> list[tuple[str, int]]:
        return [(f.name, value) for f in fields(self) if (value := getattr(self, f.name)) is not None]


class Grid(Sequence[Subnet]):
    """All members of a nested network, smallest first; each with all three coordinates given.

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
            Subnet(entry=entry, exit=exit_, width=width)
            for entry in self.entries
            for exit_ in self.exits
            for width in self.widths
            if entry <= exit_ + 1
        ]
        if not members:
            raise ValueError(f"no member: every entry {self.entries} lies behind every exit {self.exits}")
        self._members = tuple(sorted(members, key=_order))
        self._index = {member: i for i, member in enumerate(self._members)}
        self.full = Subnet(entry=self.entries[0], exit=self.exits[-1], width=self.widths[-1])

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Subnet]:
        return iter(self._members)

    def __contains__(self, subnet: object) -> bool:
        return subnet in self._index

    @overload
    def __getitem__(self, index: int) -> Subnet: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Subnet, ...]: ...
    def __getitem__(self, index: int | slice) -> Subnet | tuple[Subnet, ...]:
        return self._members[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        return f"Grid(entries={self.entries}, exits={self.exits}, widths={self.widths})"

    def resolve(self, subnet: Subnet | None = None) -> Subnet:
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
        complete = Subnet(entry=entry, exit=exit_, width=width)
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
        (e, x, w), (f, y, v) = _coordinates(self.resolve(large)), _coordinates(self.resolve(small))
        return e <= f and y <= x and v <= w

    def label(self, subnet: Subnet | None) -> str:
        """Short name: only the coordinates that differ between members, e.g. `entry=1`; `full` if there is but one."""
        member = self.resolve(subnet)
        varying = {"entry": self.entries, "exit": self.exits, "width": self.widths}
        parts = [f"{name}={getattr(member, name)}" for name, values in varying.items() if len(values) > 1]
        return ",".join(parts) or "full"


def _coordinates(member: Subnet) -> tuple[int, int, int]:
    assert member.entry is not None and member.exit is not None and member.width is not None
    return member.entry, member.exit, member.width


def _order(member: Subnet) -> tuple[int, int, int]:
    entry, exit_, width = _coordinates(member)
    return exit_ - entry + 1, width, exit_


def _distance(one: Subnet, other: Subnet) -> int:
    return sum(abs(a - b) for a, b in zip(_coordinates(one), _coordinates(other), strict=True))
