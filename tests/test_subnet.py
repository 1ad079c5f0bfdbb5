import re
from dataclasses import FrozenInstanceError
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telescopic import Coordinates, Grid, Subnet

COORDINATES = st.none() | st.integers(-3, 30)
SUBNETS = st.builds(Subnet, entry=COORDINATES, exit=COORDINATES, width=COORDINATES)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    some = {"min_size": 1, "max_size": 3}
    entries = {0, *draw(st.sets(st.integers(0, 6), **some))}
    return Grid(entries, draw(st.sets(st.integers(-1, 6), **some)), draw(st.sets(st.integers(1, 5), **some)))


def coordinates(member: Subnet) -> tuple[int, int, int]:
    return member.entry, member.exit, member.width


# Subnet -------------------------------------------------------------------------------------------------------------


def test_a_subnet_is_a_value() -> None:
    one = Subnet(entry=1)
    assert one == Subnet(entry=1) != Subnet(exit=1)
    assert {one: "found"}[Subnet(entry=1)] == "found"
    with pytest.raises(FrozenInstanceError):
        one.entry = 2
    with pytest.raises(TypeError):
        Subnet(1)  # which of the three it is must be said


def test_text_of_a_subnet() -> None:
    assert str(Subnet(exit=-1, entry=0)) == "entry=0,exit=-1"
    assert str(Subnet(width=4)) == "width=4"
    assert str(Subnet()) == "full"
    assert Subnet.parse("full") == Subnet.parse(" ") == Subnet()
    assert Subnet.parse(" width = 4, entry=1") == Subnet(entry=1, width=4)


@settings(deadline=None)
@given(SUBNETS)
def test_parse_reads_what_str_writes(subnet: Subnet) -> None:
    assert Subnet.parse(str(subnet)) == subnet


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "entry",
        "entry=",
        "entry=x",
        "entry=1.5",
        "entry=--1",
        "depth=1",
        "entry=1,",
        "entry=1,entry=2",
        "full,exit=1",
    ],
)
def test_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(
        ValueError, match=rf"cannot read sub-network {re.escape(repr(text))}: write for example 'entry=1'"
    ):
        Subnet.parse(text)


@pytest.mark.parametrize("value", [1.0, True, "1"])
def test_coordinates_are_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match=f"^exit of a sub-network is a whole number or None, not {value!r}$"):
        Subnet(exit=value)


# Grid ---------------------------------------------------------------------------------------------------------------


def test_members_by_hand() -> None:
    grid = Grid(entries=(2, 1), exits=(1, 2, 0, 0), widths=(1, 4))
    no_stage = [(1, 0, 1), (2, 1, 1), (1, 0, 4), (2, 1, 4)]  # entry 2, exit 0 is no member
    one_stage = [(1, 1, 1), (2, 2, 1), (1, 1, 4), (2, 2, 4)]
    assert [coordinates(member) for member in grid] == [*no_stage, *one_stage, (1, 2, 1), (1, 2, 4)]
    assert (grid.entries, grid.exits, grid.widths) == ((1, 2), (0, 1, 2), (1, 4))
    assert coordinates(grid.full) == (1, 2, 4)
    assert len(grid) == 10
    assert grid[2:4] == (grid[2], grid[3])
    assert grid[1] in grid
    assert Subnet(entry=2) not in grid
    assert grid == Grid((1, 2), (0, 1, 2), (1, 4)) != Grid((1, 2), (0, 1, 2))
    assert hash(grid) == hash(Grid((1, 2), (0, 1, 2), (1, 4)))
    assert eval(repr(grid)) == grid


@settings(deadline=None)
@given(grids())
def test_the_order_never_puts_a_member_before_one_it_contains(grid: Grid) -> None:
    for (i, one), (j, other) in product(enumerate(grid), repeat=2):
        inside = one.entry >= other.entry and one.exit <= other.exit and one.width <= other.width
        assert grid.contains(other, one) is inside
        assert not inside or i <= j
    assert grid.full == grid[-1]
    assert all(grid.contains(None, member) for member in grid)
    assert [grid.index(member) for member in grid] == list(range(len(grid)))


@settings(deadline=None)
@given(grids())
def test_every_allowed_combination_is_a_member_once(grid: Grid) -> None:
    allowed = {c for c in product(grid.entries, grid.exits, grid.widths) if c[0] <= c[1] + 1}
    assert len(grid) == len(allowed)
    assert {coordinates(member) for member in grid} == allowed


@settings(deadline=None)
@given(grids(), SUBNETS)
def test_resolve_finds_the_member_or_the_nearest_one(grid: Grid, subnet: Subnet) -> None:
    full = zip(coordinates(grid.full), coordinates(subnet), strict=True)
    wanted = tuple(default if given is None else given for default, given in full)
    try:
        assert coordinates(grid.resolve(subnet)) == wanted
    except ValueError as error:
        assert wanted not in {coordinates(member) for member in grid}

        def distance(member: Subnet) -> int:
            return sum(abs(a - b) for a, b in zip(coordinates(member), wanted, strict=True))

        nearest = Subnet.parse(str(error).rpartition("nearest is ")[2])
        assert nearest in grid
        assert distance(nearest) == min(map(distance, grid))


def test_parts_left_open_are_those_of_the_full_network() -> None:
    grid = Grid((0, 1, 3), (1, 2), (1, 2))
    assert grid.resolve() == grid.resolve(Subnet()) == grid.full
    assert grid.resolve(Subnet(exit=1)) == Subnet(entry=0, exit=1, width=2)
    assert grid.index(Subnet(entry=3)) == 1
    assert grid.contains(Subnet(width=1), Subnet(entry=3, width=1))
    assert not grid.contains(Subnet(exit=1), Subnet())
    with pytest.raises(ValueError, match=r"^member entry=3 is at 1, outside \[2, 4\)$"):
        grid.index(Subnet(entry=3), 2, 4)


def test_no_such_member() -> None:
    grid = Grid((0, 1, 3), (1, 2))
    facts = r"entries are \(0, 1, 3\), exits \(1, 2\), widths \(1,\), and an entry is at most its exit \+ 1"
    message = rf"^there is no member entry=5: {facts}; nearest is entry=3,exit=2,width=1$"
    for ask in (grid.resolve, grid.index, grid.label, lambda subnet: grid.contains(subnet, None)):
        with pytest.raises(ValueError, match=message):
            ask(Subnet(entry=5))
    with pytest.raises(ValueError, match="no member entry=3,exit=1"):  # both are there, but not together
        grid.resolve(Subnet(entry=3, exit=1))
    with pytest.raises(TypeError, match=r"expected a telescopic\.Subnet, got int 1"):
        grid.resolve(1)


def test_a_label_has_the_coordinates_that_vary() -> None:
    assert Grid((0, 1), (3,)).label(Subnet(entry=1)) == "entry=1"
    assert Grid((0,), (1, 3), (1, 2)).label(Subnet(exit=1)) == "exit=1,width=2"
    assert Grid((2,), (3,)).label(None) == "full"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (((), (1,)), "^a grid needs at least one value in entries$"),
        (((0,), ()), "one value in exits"),
        (((0,), (1,), ()), "one value in widths"),
        (((-1,), (1,)), r"^entries start at 0, exits at -1, widths at 1; these are \(-1,\), \(1,\), \(1,\)$"),
        (((0,), (-2,)), "exits at -1"),
        (((0,), (1,), (0,)), "widths at 1"),
        (((3, 4), (0, 1)), r"^no member: every entry \(3, 4\) lies behind every exit \(0, 1\)$"),
        (((0.5,), (1,)), r"entry of a sub-network is a whole number or None, not 0\.5"),
    ],
)
def test_grids_that_are_none(grid: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(*grid)


def test_coordinates_are_a_subnet_that_leaves_nothing_open() -> None:
    grid = Grid([0, 1], [2, 3], [1, 2])
    asked = Subnet(entry=1, exit=3, width=2)
    found = grid.resolve(asked)
    assert type(found) is Coordinates and all(type(member) is Coordinates for member in (grid.full, *grid))
    assert found == asked and hash(found) == hash(asked) and asked in grid and found != Subnet(entry=1, exit=3)
    assert Coordinates.parse(str(found)) == Coordinates.of(asked) == found and found.stages == 3
    for open_, left in ((Subnet(entry=1), "exit, width"), (Subnet(entry=1, exit=3), "width")):
        with pytest.raises(ValueError, match=left):
            Coordinates.of(open_)
    with pytest.raises(ValueError, match="width"):
        Coordinates.parse("entry=1,exit=3")
