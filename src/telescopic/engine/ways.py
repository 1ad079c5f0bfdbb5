"""Packed members that answer one after the other, each going on from what those before it have computed. No torch."""

from collections.abc import Sequence
from itertools import pairwise

from telescopic.engine.manifest import Packed
from telescopic.subnet import Coordinates

Way = tuple[Packed, ...]


def checked_path(members: Sequence[Packed]) -> Way:
    """Members as they were given.

    Raises:
        ValueError: if there is none, or one does not contain the one before.
    """
    if not members:
        raise ValueError("a path needs at least one member")
    for small, large in pairwise(members):
        if not _follows(small.subnet, large.subnet):
            raise ValueError(
                f"{large.label} does not follow {small.label} on a path: each member has the entry of the one "
                "before, and is deeper or wider than it or both, and neither shallower nor narrower"
            )
    return tuple(members)


def longest(members: Sequence[Packed]) -> Way:
    """The way to the last of them that has the most answers, of members smallest first."""
    ways: dict[Packed, Way] = {}
    for member in members:
        before = [ways[small] for small in ways if _follows(small.subnet, member.subnet)]
        ways[member] = (*max(before, key=len, default=()), member)
    return ways[members[-1]]


def _follows(small: Coordinates, large: Coordinates) -> bool:
    deeper, wider = large.exit - small.exit, large.width - small.width
    return small.entry == large.entry and min(deeper, wider) >= 0 and max(deeper, wider) > 0
