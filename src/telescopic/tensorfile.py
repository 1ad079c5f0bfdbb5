"""Tensors in one safetensors file with a document about them; both have checksums, verified when they are read.

The checksums are kept beside the document, in the file's metadata. They protect from damage, not from malice: whoever
changes a file on purpose changes them too. A file without them, as telescopic 0.1.0 wrote, is read unverified. Of large
tensors those of their beginnings are kept, too, so that the first rows can be read and verified without the others.
"""

import json
import math
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from telescopic import documents
from telescopic.tensorheader import CHECKSUMS, DOCUMENT, explained, read_header

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
DTYPES |= {"U8": torch.uint8, "BOOL": torch.bool}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WORDS = 509  # a prime, so that not even whole pages that changed places have their words in the same columns
_ROW = 8 * _WORDS
_PIECE = 256 * _ROW  # bytes, about a million: it is summed up while the processor still has it at hand
_STEP = _PIECE // 4  # bytes: whoever needs the first few reads up to a multiple of this many


class TensorFile:
    """A file that is open for reading.

    Attributes:
        document: what it says of its tensors; None if that is not for us.
        places: where its tensors are, by name.
    """

    def __init__(self, file: FileIO, most_bytes: int, most_values: int) -> None:
        """Read the header. Nothing in it is taken for granted."""
        self._file = file
        self.document, self.places, self._checksums, self._begun, self._start = read_header(
            file, most_bytes=most_bytes, most_values=most_values
        )

    def read(self, name: str, rows: int | None = None) -> Tensor:
        """One tensor, from its own bytes alone.

        Args:
            name: which.
            rows: how many of its first rows are wanted, if not all. Little more than these is read.

        Raises:
            ValueError: if its checksum is another than when it was written, or the file changes meanwhile.
        """
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise ValueError(f"{name!r:.200} is {place.dtype!r:.20}")
        dtype, shape = DTYPES[place.dtype], list(place.shape)
        size = math.prod(shape) * dtype.itemsize
        if place.last - place.first != size or self._file.seek(self._start + place.first) < place.first:
            raise ValueError("it changed while it was read")
        found, expected, number = _begun(dtype, shape), (self._checksums or {}).get(name), size
        if rows is not None and rows < shape[0]:
            number = size // shape[0] * rows
            shape[0] = rows
            if self._checksums is not None:
                steps, sums = -(-number // _STEP), self._begun.get(name, [])
                known = 0 < steps <= len(sums)
                number, expected = (steps * _STEP, sums[steps - 1]) if known else (size, expected)
        content = torch.empty(number, dtype=torch.uint8)
        for piece in _pieces(content):
            rest = piece
            while rest:
                if not (read := self._file.readinto(rest)):
                    raise ValueError("it became shorter while it was read")
                rest = rest[read:]
            if self._checksums is not None:
                found = _checksum(piece, found)
        if self._checksums is not None and expected != found:
            raise ValueError(f"it is damaged: {name!r:.200} has another checksum than when it was written")
        return content[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


@contextmanager
def opened(
    path: Path,
    error: type[ValueError],
    *,
    most_bytes: int = documents.MAX_BYTES,
    most_values: int = documents.MAX_VALUES,
) -> Iterator[TensorFile]:
    """Open a file; what can go wrong with its contents becomes one kind of error that names it.

    Args:
        path: the file.
        error: the kind.
        most_bytes: longest header that is read.
        most_values: most values in it.
    """
    with explained(path, error), FileIO(path) as file:
        if sys.platform == "linux":  # or the kernel reads ahead: up to everything, for a member of an eighth
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        yield TensorFile(file, most_bytes, most_values)


def write(path: Path, tensors: Mapping[str, Tensor], document: str) -> None:
    """Write tensors and what is to be said of them. Whole or not at all is the caller's part (`files.replacing`).

    Raises:
        ValueError: if a tensor is of a type that the format does not know.
    """
    kept = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} is {tensor.dtype}")
        plain = tensor.detach().cpu().contiguous()
        # What is a part of something larger is copied, for the format refuses tensors that share memory.
        kept[name] = plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
    sums: dict[str, int] = {}
    begun: dict[str, list[int]] = {}
    for name, tensor in kept.items():
        sums[name] = _begun(tensor.dtype, list(tensor.shape))
        steps: list[int] = []
        for piece in _pieces(tensor):
            steps += [_checksum(piece[:end], sums[name]) for end in range(_STEP, len(piece) + 1, _STEP)]
            sums[name] = _checksum(piece, sums[name])
        begun |= {name: steps} if steps else {}
    checksums = {"document": zlib.crc32(document.encode()), "tensors": sums, "begun": begun}
    save_file(kept, path, {DOCUMENT: document, CHECKSUMS: json.dumps(checksums, separators=(",", ":"))})


def _begun(dtype: torch.dtype, shape: list[int]) -> int:
    """Where a tensor's checksum begins: with what it is, for its bytes alone could be something else."""
    return zlib.crc32(f"{_NAMES[dtype]}{shape}".encode())


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    return (content[first : first + _PIECE] for first in range(0, len(content), _PIECE))


def _checksum(piece: memoryview, before: int) -> int:
    """CRC-32 of a table's column sums, and of the bytes that fill no row; `before` is that of the pieces before.

    The table has 509 unsigned words of 8 bytes in a row. Damage within 4,072 bytes changes some sum for certain; more
    of it escapes the CRC with a chance of one in 2³², or if words of one column cancel each other out, such as two that
    have changed places. CRC-32 of all bytes has no such gap, but takes ten times as long, which makes loading a
    hundred megabytes a third to a half slower instead of a tenth (benchmarks/loading.py).
    """
    rows = len(piece) // _ROW
    if rows:
        sums = np.frombuffer(piece, "<u8", rows * _WORDS).reshape(rows, _WORDS).sum(0, dtype="<u8")
        before = zlib.crc32(sums.tobytes(), before)
    return zlib.crc32(piece[rows * _ROW :], before)
