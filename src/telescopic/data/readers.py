"""File formats to arrays: idx (MNIST), CIFAR-10 binary, SVHN `.mat`, `.npz`, a folder of images by class.

Every reader returns `Arrays`: images uint8 `[n, channels, height, width]` and labels int64 `[n]`, to train and to test.
A file that is not what it claims to be raises a `DataError` that names the file, what was expected, what was found.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
DIGITS = tuple("0123456789")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DataError(ValueError):
    """Data that cannot be found, or that are not what they should be."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a reader returns. Without test images of its own, a data set has them taken from its training images."""

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    test_images: Images | None = None
    test_labels: Labels | None = None


def read_digits() -> Arrays:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels; its grey values 0..16 become 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Arrays(images, digits.target.astype(np.int64), DIGITS)


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
    found: list[Any] = []
    for part in ("train", "t10k"):
        names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        images, labels = (read_idx(contents[name], name) for name in names)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{names[0]}: expected as many images [n, height, width] as {names[1]} has labels [n]; "
                f"found {images.shape} and {labels.shape}"
            )
        found += [images[:, None], _labels(labels, len(classes), names[1])]
    return Arrays(found[0], found[1], classes, found[2], found[3])


def read_cifar10(contents: Mapping[str, bytes]) -> Arrays:
    """CIFAR-10's six binary files: records of one label byte and 3 x 32 x 32 pixel bytes."""
    parts = {}
    for name, content in sorted(contents.items()):
        if not content or len(content) % 3073:
            raise DataError(
                f"{name}: expected records of 3,073 bytes (label, 3x32x32 pixels); found {len(content):,} bytes"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        parts[name] = records[:, 1:].reshape(-1, 3, 32, 32), _labels(records[:, 0], 10, name)
    test = parts.pop("test_batch.bin")
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True))
    return Arrays(images, labels, CIFAR10, *test)


def read_svhn(contents: Mapping[str, bytes]) -> Arrays:
    """SVHN's cropped digits: `train_32x32.mat` and `test_32x32.mat`, MATLAB version 5 files."""
    from scipy.io import loadmat

    found: list[Any] = []
    for name in ("train_32x32.mat", "test_32x32.mat"):
        try:
            mat = loadmat(io.BytesIO(contents[name]), variable_names=("X", "y"))
            pixels, labels = mat["X"], mat["y"].reshape(-1)
        except Exception as e:  # a damaged file makes scipy raise anything, even UnboundLocalError
            raise DataError(f"{name}: expected a MATLAB 5 file with X and y; it cannot be read ({e})") from e
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
            raise DataError(
                f"{name}: expected X uint8 (32, 32, 3, {len(labels)}), as y says; found {pixels.dtype} {pixels.shape}"
            )
        labels = np.where(labels == 10, 0, labels)  # the authors label the digit 0 as 10
        found += [np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)), _labels(labels, 10, name)]
    return Arrays(found[0], found[1], DIGITS, found[2], found[3])


def read_npz(path: Path) -> Arrays:
    """The user's own arrays: `images` and `labels`, optionally `test_images`, `test_labels` and `classes` (names).

    Images are uint8 `[n, channels, height, width]` or `[n, height, width]`, labels integers from 0.

    Raises:
        DataError: an array is missing, or has another type or shape.
    """
    try:
        # Opened here, since numpy may leave a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            keys = {"images", "labels", "test_images", "test_labels", "classes"} & set(archive.files)
            arrays = {key: archive[key] for key in keys}
    except Exception as e:  # a damaged file makes numpy and zipfile raise a dozen types
        raise DataError(
            f"{path}: cannot be read as an .npz file of plain arrays ({e}); write it with numpy.savez"
        ) from e
    tests = {"test_images", "test_labels"}
    missing = {"images", "labels"} - keys | (tests - keys if tests & keys else set())
    if missing:
        raise DataError(
            f"{path}: expected the arrays images and labels, and both of test_images and test_labels or none; "
            f"missing: {', '.join(sorted(missing))}"
        )
    if "classes" in keys:
        classes = tuple(str(name) for name in arrays["classes"].reshape(-1))
    else:
        # Bounded, since as many names are made up as the highest label says.
        given = [_labels(arrays[key], 10_000, f"{path}: {key}") for key in keys & {"labels", "test_labels"}]
        classes = tuple(str(number) for number in range(1 + max(int(labels.max(initial=0)) for labels in given)))
    found: dict[str, Any] = {}
    for images, labels in (("images", "labels"), ("test_images", "test_labels")):
        if images in arrays:
            found[images] = _own_images(arrays[images], f"{path}: {images}")
            found[labels] = _labels(arrays[labels], len(classes), f"{path}: {labels}")
            if len(found[images]) != len(found[labels]) or not len(found[images]):
                raise DataError(f"{path}: {len(found[images])} {images} but {len(found[labels])} {labels}")
    shapes = [found[key].shape[1:] for key in ("images", "test_images") if key in found]
    if shapes[0] != shapes[-1]:
        raise DataError(f"{path}: images are {shapes[0]} but test_images {shapes[1]}; give both one size")
    return Arrays(classes=classes, **found)


def read_folder(path: Path) -> Arrays:
    """The user's own files: `path/CLASS/*.png`, or `path/train/CLASS/*.png` and `path/test/CLASS/*.png`.

    Images are grey if all of them are, else RGB; transparency is dropped. All must have one size.

    Raises:
        DataError: no images, one that cannot be read or has more than 8 bits, or two of different sizes.
    """
    has_test = (path / "train").is_dir() and (path / "test").is_dir()
    train, *test = [_image_files(part) for part in ([path / "train", path / "test"] if has_test else [path])]
    if not train:
        raise DataError(
            f"{path}: expected a folder per class with images in it (CLASS/*.png), or train/CLASS and test/CLASS"
        )
    classes = tuple(sorted({file.parent.name for file in train}))
    if test and not test[0]:
        raise DataError(f"{path / 'test'}: no images; put some in, by class, or remove the folder")
    for file in (file for part in test for file in part):
        if file.parent.name not in classes:
            raise DataError(f"{file.parent}: no training images of this class; classes are {', '.join(classes)}")
    files = train + [file for part in test for file in part]
    pixels = [_image(file) for file in files]
    for file, array in zip(files, pixels, strict=True):
        if array.shape[:2] != pixels[0].shape[:2]:
            (h, w), (height, width) = pixels[0].shape[:2], array.shape[:2]
            raise DataError(f"{files[0]} is {w}x{h} but {file} is {width}x{height}; resize all images to one size")
    if any(array.ndim == 3 for array in pixels):
        pixels = [array if array.ndim == 3 else np.repeat(array[:, :, None], 3, 2) for array in pixels]
    stacked = np.stack(pixels)
    images = stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    labels = np.array([classes.index(file.parent.name) for file in files], np.int64)
    if not test:
        return Arrays(images, labels, classes)
    n = len(train)
    return Arrays(images[:n], labels[:n], classes, images[n:], labels[n:])


def _image_files(folder: Path) -> list[Path]:
    """All of `folder/CLASS/`, sorted; no hidden ones, such as macOS's `._image.png`, which are no images."""
    found = (f for f in folder.glob("*/*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    return sorted(f for f in found if not f.name.startswith(".") and not f.parent.name.startswith("."))


def _image(file: Path) -> Images:
    """Pixels `[height, width]` of a grey image, `[height, width, 3]` of any other."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Exception as e:  # each format has its own
        raise DataError(f"{file}: cannot be read as an image ({e}); replace or remove it") from e
    if mode[0] in "IF":  # Pillow would cut all values above 255 off, without a word
        raise DataError(f"{file}: has more than 8 bits per pixel (Pillow's mode {mode}); convert it to 8 bits")
    return pixels


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


def _labels(labels: NDArray[Any], num_classes: int, where: str) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integer labels [n], found {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(f"{where}: expected labels 0..{num_classes - 1}, found {labels.min()}..{labels.max()}")
    return labels.astype(np.int64)


def _start(content: bytes) -> str:
    return content[:4].hex(" ") or "an empty file"
