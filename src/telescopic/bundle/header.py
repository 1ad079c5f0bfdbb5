"""What a bundle says about itself, read from a file that may come from anyone: nothing is taken for granted."""

from typing import Any

from telescopic import documents
from telescopic.architecture import MAX_PARTS
from telescopic.catalogue import Catalogue
from telescopic.data import Preprocess
from telescopic.subnet import Grid

FORMAT = 1
FIELDS = ("format", "grid", "architecture", "catalogue", "preprocess", "classes", "input_shape", "provenance")


class BundleError(ValueError):
    """A file that is no whole bundle, or a network that cannot be kept in one."""


def read_facts(document: str | None) -> dict[str, Any]:
    """The fields of a `Bundle` from what its file says, of which nothing is taken for granted."""
    if document is None:
        raise BundleError("it is a safetensors file but no bundle, for it says nothing about a network")
    try:
        facts = documents.parse(document.encode())
    except ValueError as error:
        raise BundleError(f"its header cannot be read: {error}") from error
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
