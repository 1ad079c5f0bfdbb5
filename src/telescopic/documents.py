"""JSON and texts from files of anyone: bounded before they are read, harmless when they are shown. No torch."""

import json
import math
from pathlib import Path
from typing import Any

MAX_BYTES = 8 * 2**20
"""Longest document read, unless said otherwise. Of a network of ten thousand tensors, everything takes two million."""
MAX_VALUES = 500_000
"""Most values in it, unless said otherwise; Python's objects take some hundred times the bytes of `{"":0}`."""
MAX_LEVELS = 200
MAX_PARTS = 10_000
"""Most modules and members that the description of a network may amount to; a copy for each entry counts, too."""


def read(path: Path, *, finite: bool = True) -> Any:
    """Read a JSON file of at most `MAX_BYTES`, as `parse` does.

    Raises:
        ValueError: if it is longer, or no such JSON.
        OSError: if there is no such file.
    """
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)  # not by the size it claims: a pipe has none, and ends when it likes
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return parse(text, finite=finite)


def parse(text: bytes, *, most_values: int = MAX_VALUES, finite: bool = True) -> Any:
    """Read JSON strictly: no name twice in an object, and no more than can be meant.

    Args:
        text: in UTF-8.
        most_values: how many values there may be; they are counted before any is made.
        finite: whether to refuse NaN and infinite numbers, which Python writes though JSON has none.

    Raises:
        ValueError: if it is anything else.
    """
    signs = text.count(b",") + text.count(b"[") + text.count(b"{")  # each value but one has such a sign before it
    if signs > most_values:
        raise ValueError(f"it has {signs} values, or signs that might separate some; {most_values} are allowed")
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse if finite else None,
            parse_float=_finite if finite else None,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(MAX_LEVELS):
        inner = (held.values() if isinstance(held, dict) else held for held in level if isinstance(held, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return value
    raise ValueError(f"it is nested too deeply, in more than {MAX_LEVELS} levels")


def printable(text: str) -> str:
    """Text that any terminal and any page can show: what is no printable character or line's end is spelt out.

    A terminal obeys control characters; others turn the direction of writing, or look like nothing.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has two values of one name")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"there is the number {constant}")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits:.20} is too large")
    return value
