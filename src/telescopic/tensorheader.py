"""The header of a safetensors file of ours: where its tensors are, and the document about them. No torch.

Nothing in it is taken for granted: it is bounded before it is read; its form and the document's checksum are checked.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from telescopic import documents

DOCUMENT, CHECKSUMS = "telescopic", "checksums"
"""Names in the file's metadata."""


class Place(NamedTuple):
    """Where a tensor is, and what: its bytes are from `first` to `last`, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


class Header(NamedTuple):
    """What stands before the tensors.

    Attributes:
        document: what the file says of its tensors; None if that is not for us.
        places: where its tensors are, by name.
        checksums: of the tensors, by name; None if the file has none.
        begun: of large tensors, those of their first bytes, by name; `tensorfile` knows of how many.
        size: bytes before the first tensor.
    """

    document: str | None
    places: dict[str, Place]
    checksums: dict[str, Any] | None
    begun: dict[str, list[Any]]
    size: int


def read_header(file: FileIO, *, most_bytes: int, most_values: int) -> Header:
    """Read the header of a file that is open at its beginning.

    Args:
        file: the file.
        most_bytes: longest header that is read.
        most_values: most values in it.

    Raises:
        ValueError: if it is no such header, or its document is damaged.
        SafetensorError: if the file has not the form that the format asks for.
    """
    length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if length > min(size - 8, most_bytes):
        raise ValueError(
            f"its header would take {length} bytes, but the file has {size}, and a header at most {most_bytes}: "
            "it is not a whole file, or none of ours"
        )
    header = _parsed(file.read(length), most_values)
    with safe_open(file.name, framework="np"):
        pass  # safetensors has checked its form, and that the tensors fill the file, each in the size of its shape
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}
    places = {n: Place(s["dtype"], tuple(s["shape"]), *s["data_offsets"]) for n, s in header.items()}
    document, checksums, begun = metadata.get(DOCUMENT), None, dict[str, Any]()
    if CHECKSUMS in metadata:
        sums = _parsed(metadata[CHECKSUMS].encode(), most_values)
        if not isinstance(sums, dict) or not isinstance(sums.get("tensors"), dict):
            raise ValueError("its checksums cannot be read")
        begun = sums.get("begun", begun)
        if not isinstance(begun, dict) or not all(isinstance(each, list) for each in begun.values()):
            raise ValueError("its checksums cannot be read")
        if document is None or sums.get("document") != zlib.crc32(document.encode()):
            raise ValueError("it is damaged: what it says of its tensors has another checksum than when written")
        checksums = sums["tensors"]
    return Header(document, places, checksums, begun, 8 + length)


@contextmanager
def explained(path: Path, error: type[ValueError]) -> Iterator[None]:
    """What can go wrong with a file's contents becomes one kind of error that names it."""
    try:
        yield
    except (ValueError, SafetensorError, OSError, RecursionError) as reason:
        raise error(f"{path}: {documents.printable(str(reason))}") from reason


def _parsed(text: bytes, most_values: int) -> Any:
    try:
        return documents.parse(text, most_values=most_values)
    except ValueError as error:
        raise ValueError(f"its header cannot be read: {error}") from error
