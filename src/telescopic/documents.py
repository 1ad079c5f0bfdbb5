"""JSON and texts from files of anyone: bounded before they are read, harmless when they are shown. No torch."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 8 * 2**20
"""Longest document read, unless said otherwise. Of a network of ten thousand tensors, everything takes two million."""
MAX_VALUES = 500_000
"""Most values in it, unless said otherwise; Python's objects take some hundred times the bytes of `{"":0}`."""
MAX_LEVELS = 200
MAX_PARTS = 10_000
"""Most modules and members that the description of a network may amount to; a copy for each entry counts, too."""
_BESIDE = 64  # values, and quotation marks, of all that a request may hold beside its examples


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


def examples(text: bytes, shape: Sequence[int], most: int) -> tuple["NDArray[Any]", dict[str, Any]]:
    """Examples from a JSON object: numbers as `inputs`, or numbers from 0 to 255 as `pixels`; one example, or several.

    Args:
        text: in UTF-8.
        shape: of one example.
        most: examples that there may be. What could hold more values than they have is not parsed.

    Returns:
        float32, or uint8 for pixels, as nested as they were given; and what else the object holds.

    Raises:
        ValueError: if it is anything else.
    """
    import numpy as np
    import pydantic_core  # several times as fast as Python's own

    lists = sum(math.prod(shape[:level]) for level in range(len(shape)))
    if text.count(b",") + text.count(b"[") + text.count(b"{") > most * (math.prod(shape) + lists) + _BESIDE:
        raise ValueError(f"there are more values than {most} examples of shape {list(shape)} have")
    if text.count(b'"') > _BESIDE:
        raise ValueError("there are more texts than a request has, and inputs are numbers")
    try:
        data = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error!s:.100}") from error
    if not isinstance(data, dict):
        raise ValueError("the request: it is no object")
    given = {name: values for name in ("inputs", "pixels") if (values := data.pop(name, None)) is not None}
    if len(given) != 1:
        raise ValueError("a request has either inputs or pixels")
    ((name, flat),) = given.items()
    if type(flat) is not list:
        raise ValueError(f"{name}: it is no list")
    found = [len(flat)]
    while flat and type(flat[0]) is list and len(found) < len(shape) + 2:
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) > 1:
            raise ValueError("all examples, and all rows of an example, are of one length")
        found.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    kinds = set(map(type, flat))  # of which there is no subclass, nor is a truth value a number
    if name == "pixels":
        try:
            if not kinds <= {int}:
                raise ValueError(kinds)
            return np.frombuffer(bytes(flat), np.uint8).reshape(found), data
        except ValueError as error:
            raise ValueError("pixels are whole numbers from 0 to 255") from error
    if not kinds <= {int, float}:
        raise ValueError("inputs are numbers, in lists as nested as an example")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64).astype(np.float32).reshape(found), data
    except OverflowError as error:
        raise ValueError("inputs are numbers that float32 holds") from error


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
