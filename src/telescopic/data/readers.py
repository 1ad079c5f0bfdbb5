"""File formats to arrays: idx (MNIST), CIFAR-10 binary, SVHN `.mat`, `.npz`.

Every reader returns `Arrays`: images uint8 `[n, channels, height, width]` and labels int64 `[n]`, to train and to test;
of an `.npz` of the user's own they may be inputs and targets of any type and shape.
A file that is not what it claims to be raises a `DataError` that names the file, what was expected, what was found.
"""

import io
import math
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telescopic.documents import printable
from telescopic.extras import needs
from telescopic.inputs import named

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

_UNPACKED, _PACKED = 2**28, 64  # bytes that any array may have, and as many again for a byte of its compressed file
_CLASSES, _NAME = 10_000, 4_000  # names of classes, and bytes of one

DIGITS = tuple("0123456789")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DataError(ValueError):
    """Data that cannot be found, or that are not what they should be. What files say in it is harmless to show."""

    def __init__(self, told: str) -> None:
        super().__init__(printable(told))


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a reader returns. Without images to validate or to test with, they are taken from those to train with.

    Inputs of networks that take several are a dict of arrays.
    """

    images: Any
    labels: NDArray[Any]
    classes: tuple[str, ...]
    validation: tuple[Any, NDArray[Any]] | None = None
    test: tuple[Any, NDArray[Any]] | None = None


def read_digits() -> Arrays:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels; its grey values 0..16 become 0..255."""
    with needs("train"):
        found = find_spec("sklearn")  # which is not imported, for that takes longer than all else
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    rows = np.loadtxt(
        Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=","
    )
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return Arrays(images, rows[:, -1].astype(np.int64), DIGITS)


def read_idx(content: bytes, file: str) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes, such as MNIST's.

    Raises:
        DataError: the header is not idx, or the length is not what the header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] == 0 or len(content) < 4 + 4 * content[3]:
        raise DataError(
            f"{file}: expected an idx file of unsigned bytes, which begins 00 00 08; found {_start(content)}"
        )
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    start, size = 4 + 4 * len(shape), 1
    for length in shape:  # Python's integers: numpy's would wrap around on a hostile header
        size *= length
    if len(content) != start + size:
        raise DataError(f"{file}: its header says {shape}, {start + size:,} bytes in all; found {len(content):,} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_mnist(contents: Mapping[str, bytes], classes: tuple[str, ...] = DIGITS) -> Arrays:
    """MNIST's four idx files (plain), by their usual names; Fashion-MNIST's are alike."""
    found: list[tuple[Any, Any]] = []
    for part in ("train", "t10k"):
        names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        images, labels = (read_idx(contents[name], name) for name in names)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{names[0]}: expected as many images [n, height, width] as {names[1]} has labels [n]; "
                f"found {images.shape} and {labels.shape}"
            )
        found.append((images[:, None], _labels(labels, names[1], len(classes))))
    return Arrays(*found[0], classes, test=found[1])


def read_cifar10(contents: Mapping[str, bytes]) -> Arrays:
    """CIFAR-10's six binary files: records of one label byte and 3 x 32 x 32 pixel bytes."""
    parts = {}
    for name, content in sorted(contents.items()):
        if not content or len(content) % 3073:
            raise DataError(
                f"{name}: expected records of 3,073 bytes (label, 3x32x32 pixels); found {len(content):,} bytes"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        parts[name] = records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0], name, 10)
    test: tuple[Any, Any] = parts.pop("test_batch.bin")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True))
    return Arrays(images, labels, CIFAR10, test=test)


def read_svhn(contents: Mapping[str, bytes]) -> Arrays:
    """SVHN's cropped digits: `train_32x32.mat` and `test_32x32.mat`, MATLAB version 5 files."""
    with needs("train"):
        import scipy  # noqa: F401

    found: list[tuple[Any, Any]] = []
    for name in ("train_32x32.mat", "test_32x32.mat"):
        try:
            pixels, labels = _read_mat(contents[name])
        except (ValueError, OSError) as e:
            raise DataError(f"{name}: expected a MATLAB 5 file with X and y; it cannot be read ({e})") from e
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
            raise DataError(
                f"{name}: expected X uint8 (32, 32, 3, {len(labels)}), as y says; found {pixels.dtype} {pixels.shape}"
            )
        labels = np.where(labels == 10, 0, labels)  # the authors label the digit 0 as 10
        found.append((np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), _labels(labels, name, 10)))
    return Arrays(*found[0], DIGITS, test=found[1])


_READ = """
import io, sys
import numpy
from scipy.io import loadmat

found = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=("X", "y"))
numpy.savez(sys.stdout.buffer, X=found["X"], y=found["y"].reshape(-1))
"""


def _read_mat(content: bytes) -> tuple[NDArray[Any], NDArray[Any]]:
    """X and y of a MATLAB file, read in a process of its own: a damaged file can end the one in which scipy reads it.

    Raises:
        ValueError: if it cannot be read.
    """
    done = subprocess.run([sys.executable, "-P", "-c", _READ], input=content, capture_output=True, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(told[-1] if told else f"its reader ended with {done.returncode}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        return found["X"], found["y"]


def read_npz(path: Path) -> Arrays:
    """The user's own arrays: `images` and `labels`, or `inputs` and `targets`; and `classes` (names), if there are any.

    There may also be `validation_images` with `validation_labels`, and `test_images` with `test_labels`; likewise of
    inputs and targets. Images are uint8 `[n, channels, height, width]` or `[n, height, width]`, labels integers from 0,
    whose names are made up if they are missing. Inputs and targets are numbers `[n, ...]` (see `numbers`). Several
    inputs are called `inputs.NAME`, and `test_inputs.NAME` and so on.

    Raises:
        DataError: an array is missing, has another type or shape, or a name that would be overlooked.
    """
    kinds = {
        words: [(f"{part}{words[0]}", f"{part}{words[1]}") for part in ("", "validation_", "test_")]
        for words in (("images", "labels"), ("inputs", "targets"))
    }
    several = tuple(f"{inputs}." for inputs, _ in kinds["inputs", "targets"])
    known = {"classes", *(name for pairs in kinds.values() for pair in pairs for name in pair)}
    try:
        # Opened here, since numpy may leave a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            every = [*archive.files]
            used = [name for name in every if name in known or (name.startswith(several) and name not in several)]
            for name in used:
                _check_member(archive.zip, name, f"{path}: {name}")
            arrays: dict[str, Any] = {name: archive[name] for name in used}
    except DataError:
        raise
    except Exception as e:  # a damaged file makes numpy and zipfile raise a dozen types
        raise DataError(
            f"{path}: cannot be read as an .npz file of plain arrays ({e}); write it with numpy.savez"
        ) from e
    for inputs in several:
        if of := [name for name in arrays if name.startswith(inputs)]:
            if inputs[:-1] in arrays:
                raise DataError(f"{path}: give {inputs[:-1]}, or {', '.join(of)}, not both")
            arrays[inputs[:-1]] = {name.removeprefix(inputs): arrays.pop(name) for name in sorted(of)}
    names = {*arrays}
    some = [words for words, pairs in kinds.items() if names & {name for pair in pairs for name in pair}]
    if len(some) > 1:
        raise DataError(f"{path}: give images and labels, or inputs and targets, not arrays of both kinds")
    words = some[0] if some else ("images", "labels")
    if astray := sorted(n for n in {*every} - {*used} if any(word[:-1] in n.lower() for word in words)):
        told = ", ".join(sorted(known)) + ("; of several inputs inputs.NAME" if words[0] == "inputs" else "")
        raise DataError(f"{path}: {', '.join(astray)} would not be used; arrays are called {told}")
    pairs = [pair for pair in kinds[words] if pair == words or names & set(pair)]
    if missing := sorted({name for pair in pairs for name in pair} - names):
        raise DataError(
            f"{path}: expected the arrays images and labels, or inputs and targets, and of those to validate or test "
            f"with both or none; missing: {', '.join(missing)}"
        )
    classes = tuple(str(name) for name in arrays["classes"].reshape(-1)) if "classes" in arrays else ()
    read_inputs: Callable[[Any, str], Any] = _inputs
    read_targets: Callable[[Any, str], Any] = partial(numbers, byte=False)
    if words == ("images", "labels"):
        if "classes" not in arrays:
            # Bounded, since as many names are made up as the highest label says.
            given = [_labels(arrays[labels], f"{path}: {labels}", _CLASSES) for _, labels in pairs]
            classes = tuple(str(number) for number in range(1 + max(int(labels.max(initial=0)) for labels in given)))
        read_inputs, read_targets = _own_images, partial(_labels, num_classes=len(classes))
    elif classes and arrays["targets"].dtype.kind == "f":
        raise DataError(f"{path}: classes name whole numbers, and targets are {arrays['targets'].dtype}")
    parts: dict[str, tuple[Any, Any]] = {}
    for images, labels in pairs:
        x, y = read_inputs(arrays[images], f"{path}: {images}"), read_targets(arrays[labels], f"{path}: {labels}")
        for name, one in named(x, images).items():
            if len(one) != len(y) or not len(one):
                called = name if one is x else f"{images}.{name}"
                raise DataError(f"{path}: {len(one)} {called} but {len(y)} {labels}")
        parts[images.removesuffix(words[0])] = x, y
    return Arrays(*parts[""], classes, validation=parts.get("validation_"), test=parts.get("test_"))


def numbers(array: NDArray[Any], where: str, *, byte: bool, double: bool = False, mask: bool = False) -> NDArray[Any]:
    """An array of numbers `[n, ...]` in a type that networks and losses take: float16, float32, int64, or uint8.

    Args:
        array: as it was given.
        where: what messages call it.
        byte: whether bytes stay as they are, and truth values become float32; else both become int64.
        double: whether float64 stays; else it becomes float32, as networks are.
        mask: whether truth values stay, too.

    Raises:
        DataError: if it holds no numbers, no example has one, or one does not fit into the type.
    """
    kind = array.dtype.kind
    if kind not in "fiub" or not array.ndim or 0 in array.shape[1:]:
        raise DataError(f"{where}: expected numbers [n, ...], found {array.dtype} {list(array.shape)}")
    if kind == "b" and mask:
        made = array.dtype
    elif kind == "f" or (kind == "b" and byte):
        wide = array.dtype.itemsize >= 8 and not (double and array.dtype.itemsize == 8)
        made = np.dtype(np.float32) if wide or kind == "b" else array.dtype.newbyteorder("=")
    else:
        made = array.dtype if byte and array.dtype == np.uint8 else np.dtype(np.int64)
    if array.dtype.itemsize == 8 and kind == "u" and array.size and int(array.max()) >= 2**63:
        raise DataError(f"{where}: {array.max()} is too large for int64")
    with np.errstate(over="ignore"):  # what becomes infinite is refused where all that is infinite is
        return np.ascontiguousarray(array, made)


def _inputs(given: Any, where: str) -> Any:
    """An array, or several by name, of which truth values are masks."""
    if not isinstance(given, dict):
        return numbers(given, where, byte=True)
    return {name: numbers(array, f"{where}.{name}", byte=True, mask=True) for name, array in given.items()}


def _check_member(archive: zipfile.ZipFile, name: str, where: str) -> None:
    """Refuse an array that is much larger than its file, before there is memory for it."""
    file = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    info = archive.getinfo(file)
    with archive.open(file) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    size = math.prod(shape) * dtype.itemsize
    if size > info.file_size:
        raise DataError(
            f"{where}: its header says {shape} of {dtype}, more than the {info.file_size:,} bytes there are"
        )
    if size > _UNPACKED + _PACKED * info.compress_size:
        raise DataError(
            f"{where}: {info.compress_size:,} bytes would become {size:,}, as in no data; if they are, save them with "
            "numpy.savez, which does not compress"
        )
    if name == "classes" and (math.prod(shape) > _CLASSES or dtype.itemsize > _NAME):
        raise DataError(f"{where}: at most {_CLASSES:,} classes have names, of {_NAME // 4:,} characters at most")


def _own_images(images: NDArray[Any], where: str) -> Images:
    if images.dtype != np.uint8:
        raise DataError(
            f"{where}: expected uint8 in 0..255, found {images.dtype}; convert, e.g. (x * 255).round().astype('uint8')"
        )
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(f"{where}: expected [n, channels, height, width] or [n, height, width], found {images.shape}")
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        raise DataError(
            f"{where}: {images.shape} looks like [n, height, width, channels]; save images.transpose(0, 3, 1, 2)"
        )
    return np.ascontiguousarray(images)


def _labels(labels: NDArray[Any], where: str, num_classes: int) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integer labels [n], found {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(f"{where}: expected labels 0..{num_classes - 1}, found {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


def _start(content: bytes) -> str:
    return content[:4].hex(" ") or "an empty file"
