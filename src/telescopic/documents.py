"""JSON and texts from files of anyone: bounded before they are read, harmless when they are shown. No torch."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescopic.shapes import Shape, parted

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


def examples(text: bytes, inputs: Mapping[str, Shape], most: int) -> tuple[dict[str, "NDArray[Any]"], dict[str, Any]]:
    """Examples from a JSON object: numbers as `inputs`, or numbers from 0 to 255 as `pixels`; one example, or several.

    Both are objects that have the inputs by their names, each in one of them; of a single input, itself will do.

    Args:
        text: in UTF-8.
        inputs: of the network, by name: the shape of each in one example.
        most: examples that there may be. What could hold more values than they have is not parsed.

    Returns:
        Each input in its type, or as uint8 of pixels, as nested as it was given; and what else the object holds.

    Raises:
        ValueError: if it is anything else.
    """
    import pydantic_core  # several times as fast as Python's own

    shapes = [parted(shape)[1] for shape in inputs.values()]
    held = sum(math.prod(sizes[:level]) for sizes in shapes for level in range(len(sizes) + 1))  # values, and lists
    if text.count(b",") + text.count(b"[") + text.count(b"{") > most * held + len(inputs) + _BESIDE:
        told = " and ".join(str([*sizes]) for sizes in shapes)
        raise ValueError(f"there are more values than {most} examples of shape {told:.200} have")
    if text.count(b'"') > 2 * len(inputs) + _BESIDE:
        raise ValueError("there are more texts than a request has, and inputs are numbers")
    try:
        data = pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error!s:.100}") from error
    if not isinstance(data, dict):
        raise ValueError("the request: it is no object")
    both = {word: data.pop(word) for word in ("inputs", "pixels") if word in data}
    said = {word: values for word, values in both.items() if values is not None}
    if len(inputs) == 1 and len(said) != 1:
        raise ValueError("a request has either inputs or pixels")
    given, alone = [], 0
    for word, values in said.items():
        if not isinstance(values, dict):
            alone += 1
            if len(inputs) > 1:
                raise ValueError(f"{word}: this network takes {', '.join(inputs)}, by name in an object, not a list")
            values = dict.fromkeys(inputs, values)
        given += [(name, word, one) for name, one in values.items()]
    require_named([name for name, _, _ in given], inputs)
    made = {}
    for name, word, one in given:
        try:
            made[name] = _array(one, word, *parted(inputs[name]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}" if len(inputs) > 1 else str(error)) from error
    if len(re.findall(rb'"(?:[^"\\]|\\.)*"\s*:', text)) > len(both) + _names(data) + len(given) - alone:
        raise ValueError("an object has two values of one name")
    return made, data


def _names(data: Any) -> int:
    """How many names objects have, one within the other."""
    if isinstance(data, dict):
        return len(data) + sum(map(_names, data.values()))
    return sum(map(_names, data)) if isinstance(data, list) else 0


def require_named(given: Sequence[str], inputs: Collection[str]) -> None:
    """Refuse what is not each of a network's inputs once.

    Raises:
        ValueError: naming both.
    """
    if sorted(given) != sorted(inputs):
        raise ValueError(f"this network takes {', '.join(inputs)}, each once, not {', '.join(given) or 'nothing':.200}")


def _array(values: Any, word: str, kind: str | None, sizes: Sequence[int]) -> "NDArray[Any]":
    """Lists of numbers as an array of their type: None is float32."""
    import numpy as np

    if type(values) is not list:
        raise ValueError(f"{word}: it is no list")
    flat, found = values, [len(values)]
    while flat and type(flat[0]) is list and len(found) < len(sizes) + 2:
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) > 1:
            raise ValueError("all examples, and all rows of an example, are of one length")
        found.append(len(flat[0]))
        flat = list(chain.from_iterable(flat))
    kinds = set(map(type, flat))  # of which there is no subclass, nor is a truth value a number
    if word == "pixels":
        try:
            if not kinds <= {int}:
                raise ValueError(kinds)
            return np.frombuffer(bytes(flat), np.uint8).reshape(found)
        except ValueError as error:
            raise ValueError("pixels are whole numbers from 0 to 255") from error
    if not kinds <= ({int, float} if kind is None else {bool} if kind == "bool" else {int}):
        what = {None: "numbers", "bool": "true or false"}.get(kind, f"whole numbers ({kind})")
        raise ValueError(f"inputs are {what}, in lists as nested as an example")
    try:
        with np.errstate(over="ignore"):
            numbers = np.array(flat, np.float64 if kind is None else np.bool_ if kind == "bool" else np.int64)
            if kind not in (None, "bool") and numbers.size:
                ends = np.iinfo(kind)
                if not ends.min <= numbers.min() <= numbers.max() <= ends.max:
                    raise OverflowError
            return numbers.astype(kind or np.float32).reshape(found)
    except OverflowError as error:
        raise ValueError(f"inputs are numbers that {kind or 'float32'} holds") from error


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
