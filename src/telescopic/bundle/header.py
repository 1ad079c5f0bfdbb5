"""What a bundle says about itself, read from a file that may come from anyone: nothing is taken for granted."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from telescopic.architecture import MAX_PARTS
from telescopic.catalogue import Catalogue
from telescopic.data import Preprocess
from telescopic.subnet import Grid

FORMAT = 1
FIELDS = ("format", "grid", "architecture", "catalogue", "preprocess", "classes", "input_shape", "provenance")
MAX_HEADER = 8 * 2**20
"""Longest header read, in bytes. Ten thousand tensors take two million."""


class BundleError(ValueError):
    """A file that is no whole bundle, or a network that cannot be kept in one."""


@contextmanager
def reading(path: Path) -> Iterator[FileIO]:
    """Open a file; what can go wrong with its contents becomes a BundleError that names it."""
    try:
        with FileIO(path) as file:
            if sys.platform == "linux":  # or the kernel reads ahead: up to everything, for a member of an eighth
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            yield file
    except (ValueError, SafetensorError, OSError) as error:
        raise BundleError(f"{path}: {error}") from error


def read_header(file: FileIO) -> tuple[Any, dict[str, Any], int]:
    """The header of a safetensors file: metadata; tensors, by name with dtype, shape and place; where these begin."""
    length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if length > min(size - 8, MAX_HEADER):
        raise BundleError(
            f"its header would take {length} bytes, but the file has {size}, and a header at most {MAX_HEADER}: "
            "it is no bundle, or not a whole one"
        )
    header = _json(file.read(length))
    with safe_open(file.name, framework="pt"):
        pass  # safetensors has checked its form, and that the tensors fill the file, each in the size of its shape
    return header.pop("__metadata__", None), header, 8 + length


def _json(text: bytes) -> Any:
    """Read JSON strictly: no name twice in an object, no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has two values of one name")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"there is the number {constant}")

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from error


def read_facts(metadata: Any) -> dict[str, Any]:
    """The fields of a `Bundle` from a file's metadata, of which nothing is taken for granted."""
    if not isinstance(metadata, dict) or not isinstance(text := metadata.get("telescopic"), str):
        raise BundleError("it is a safetensors file but no bundle, for it says nothing about a network")
    facts = _json(text.encode())
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise BundleError(f"its format is {found!r:.50}, but this version of telescopic reads format {FORMAT} only")
    if different := sorted(facts.keys() ^ set(FIELDS)):
        raise BundleError(f"its header {'lacks' if different[0] in FIELDS else 'has an unknown'} {different[0]!r:.50}")
    del facts["format"]
    facts["grid"] = grid = _grid(facts["grid"])
    if facts["catalogue"] is not None:
        facts["catalogue"] = catalogue = Catalogue.from_dict(facts["catalogue"])
        if strangers := [member.label for member in catalogue if member.subnet not in grid]:
            raise BundleError(f"its catalogue has a member {strangers[0]!r:.50}, which its grid {grid!s:.200} has not")
    if facts["preprocess"] is not None:
        mean, std = (_tuple(facts["preprocess"], key, float) for key in ("mean", "std"))
        facts["preprocess"] = Preprocess(mean, std)
    facts["classes"] = _tuple(facts, "classes", str)
    if facts["input_shape"] is not None:
        facts["input_shape"] = shape = _tuple(facts, "input_shape", int)
        if min(shape, default=1) < 1:
            raise BundleError(f"its input_shape {shape!r:.50} must be whole numbers above 0")
    if not isinstance(facts["provenance"], dict):
        raise BundleError("its provenance is no object")
    return facts


def _grid(value: Any) -> Grid:
    entries, exits, widths = (_tuple(value, key, int) for key in ("entries", "exits", "widths"))
    if len(entries) * len(exits) * len(widths) > MAX_PARTS:
        raise BundleError(f"its grid has more than {MAX_PARTS} members")
    return Grid(entries, exits, widths)


def _tuple(values: Any, key: str, kind: type) -> tuple[Any, ...]:
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise BundleError(f"its {key} is no list of {kind.__name__}: {value!r:.50}")
    return tuple(value)
