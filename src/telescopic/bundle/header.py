"""What a bundle says about itself, read from a file of anyone: nothing is taken for granted. No torch."""

from io import FileIO
from pathlib import Path
from typing import Any

from telescopic import documents
from telescopic.catalogue.table import Catalogue
from telescopic.shapes import checked_shape
from telescopic.subnet import Grid
from telescopic.tensorheader import explained, read_header

MODELS = Path(__file__).parents[1] / "models"
"""Where the trained families are that come with the package."""
FORMAT = 1
FIELDS = ("format", "grid", "architecture", "catalogue", "preprocess", "classes", "input_shape", "provenance")


class BundleError(ValueError):
    """A file that is no whole bundle, or a network that cannot be kept in one."""


def find(path_or_name: str | Path) -> Path:
    """A bundle's file, or that of a family that comes with the package.

    Raises:
        BundleError: if there is none.
    """
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(MODELS.glob("*.safetensors"))}
    if name in shipped:
        return shipped[name]
    if path.exists():
        raise BundleError(f"{path} is no file: a bundle is one .safetensors file")
    raise BundleError(
        f"there is no file {path}; the families that come with telescopic: {', '.join(shipped) or 'none'}"
    )


def read_catalogue(path: Path) -> Catalogue | None:
    """The catalogue in a bundle, if it has one.

    Raises:
        BundleError: if the header is damaged or of an unknown version.
    """
    with explained(path, BundleError), FileIO(path) as file:
        header = read_header(file, most_bytes=documents.MAX_BYTES, most_values=documents.MAX_VALUES)
        catalogue: Catalogue | None = read_facts(header.document)["catalogue"]
    return catalogue


def read_facts(document: str | None) -> dict[str, Any]:
    """The fields of a `Bundle` from what its file says; of `preprocess`, what it is made with."""
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
        facts["preprocess"] = mean, std
    facts["classes"] = _tuple(facts, "classes", str)
    if facts["input_shape"] is not None:
        facts["input_shape"] = checked_shape(facts["input_shape"])
    if not isinstance(facts["provenance"], dict):
        raise BundleError("its provenance is no object")
    return facts


def _grid(value: Any) -> Grid:
    entries, exits, widths = (_tuple(value, key, int) for key in ("entries", "exits", "widths"))
    if len(entries) * len(exits) * len(widths) > documents.MAX_PARTS:
        raise BundleError(f"its grid has more than {documents.MAX_PARTS} members")
    return Grid(entries, exits, widths)


def _tuple(values: Any, key: str, kind: type) -> tuple[Any, ...]:
    value = values.get(key) if isinstance(values, dict) else None
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise BundleError(f"its {key} is no list of {kind.__name__}: {value!r:.50}")
    return tuple(value)
