"""A folder of the user's own images, sorted by class into folders. Nothing in it is left out without a word."""

import mimetypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from telescopic import images
from telescopic.data.dividing import space_for
from telescopic.data.readers import Arrays, DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
PARTS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_TOLD = 10  # problems that a message lists

_Classes = Mapping[str, list[Path]]  # images by the name of their class, all sorted


def read_folder(path: Path, size: tuple[int, int] | None = None, workers: int = 2) -> Arrays:
    """The user's own files: `path/CLASS/*.png`, or `path/train/CLASS/*.png` and so on for `val` and `test`.

    Beside `train`, the part for validation is called `val`, `valid` or `validation`; it may be missing, and so may
    `test`. Images are grey if all of them are, else RGB; how they are read says `telescopic.images`.

    Args:
        path: the folder.
        size: height and width to which all images are brought; without it, all must have one size.
        workers: threads that decode. Each file is decoded once: what does not fit into memory lies in a file.

    Raises:
        DataError: no images; a class without images; images that are in no class or cannot be read, all of which are
            named; or images of different sizes.
    """
    parts = _parts(path)
    problems: list[str] = []
    found = {name: _by_class(folder, problems) for name, folder in parts.items()}
    for name, folder in parts.items():
        if not found[name] and not problems:
            expected = "a folder per class with images in it (CLASS/*.png), or train/CLASS, val/CLASS and test/CLASS"
            raise DataError(f"{folder}: no images; expected {expected}")
        problems += [
            f"{folder / label}: no training images of this class; classes are {', '.join(found['train'])}"
            for label in found[name]
            if label not in found["train"]
        ]
    _refuse(path, problems)
    files = [file for classes in found.values() for members in classes.values() for file in members]
    pixels = _read(path, files, size, workers)
    classes = tuple(found["train"])
    labels = np.array([classes.index(file.parent.name) for file in files], np.int64)
    arrays = {}
    start = 0
    for name, by_class in found.items():
        part = slice(start, start := start + sum(map(len, by_class.values())))
        arrays[name] = pixels[part], labels[part]
    return Arrays(*arrays["train"], classes, arrays.get("validation"), arrays.get("test"))


def _parts(path: Path) -> dict[str, Path]:
    """The folders of the parts that there are, `train` first; without parts, all is `train`."""
    if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in (path / "train").glob("*/*")):
        return {"train": path}
    parts = {"train": path / "train"}
    for folder in _folders(path):
        part = PARTS.get(folder.name)
        if part is None:
            raise DataError(f"{folder}: beside train there are val and test, and nothing else; move it, or rename it")
        if parts.setdefault(part, folder) != folder:
            raise DataError(f"{parts[part]} and {folder} are both for validation; make one of them")
    return parts


def _by_class(folder: Path, problems: list[str]) -> _Classes:
    """The images of a part. What is hidden is no part of it, such as macOS's `._image.png`, which is no image."""
    found = {}
    problems += [f"{file}: an image in no folder of a class" for file in _images(folder, problems)]
    for label in _folders(folder):
        found[label.name] = _images(label, problems)
        deeper = [file for below in _folders(label) for file in _images(below, problems)]
        problems += [f"{file}: deeper than in the folder of a class" for file in deeper]
        if not found[label.name] and not deeper:
            problems.append(f"{label}: a class without images; put some in, or remove the folder")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, problems: list[str]) -> list[Path]:
    """Those directly inside; images of other kinds are problems, other files are not looked at."""
    found = []
    for file in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            found.append(file)
        elif (mimetypes.guess_type(file.name, strict=False)[0] or "").startswith("image/"):
            problems.append(f"{file}: an image of a kind that is not read; convert it to PNG")
    return found


def _read(path: Path, files: list[Path], size: tuple[int, int] | None, workers: int) -> images.Pixels:
    """All images `[n, channels, height, width]`; the headers of all are read before any pixels are."""
    problems: dict[Path, str] = {}
    sizes: dict[tuple[int, int], Path] = {}
    channels = 1
    for file in files:
        try:
            depth, height, width = images.shape(file)
        except (images.ImageError, OSError) as error:
            problems[file] = f"{file}: {error}"
        else:
            channels = max(channels, depth)
            sizes.setdefault((height, width), file)
    if size is None and len(sizes) > 1:
        (h, w), (height, width) = list(sizes)[:2]
        mixed = f"{sizes[h, w]} is {w}x{h} but {sizes[height, width]} is {width}x{height}"
        remedy = "resize the images to one, or load them with size=(height, width)"
        _refuse(path, [f"{mixed}, and there are {len(sizes)} sizes in all; {remedy}", *problems.values()])
    height, width = size or next(iter(sizes), (0, 0))
    try:
        pixels = space_for((len(files), channels, height, width), np.uint8)
    except (MemoryError, ValueError, OSError) as error:
        many = f"{len(files):,} images of {width}x{height} fit neither into memory nor into a file: {error}"
        raise DataError(f"{path}: {many}; load them with a smaller size=(height, width)") from error

    def put(number: int) -> str | None:
        try:
            pixels[number] = images.decode(files[number], channels=channels, size=size)
        except (images.ImageError, OSError) as error:
            return str(error)
        return None

    good = [number for number, file in enumerate(files) if file not in problems]
    with ThreadPoolExecutor(workers) as pool:
        for number, problem in zip(good, pool.map(put, good), strict=True):
            if problem is not None:
                problems[files[number]] = f"{files[number]}: {problem}"
    _refuse(path, list(problems.values()))
    return pixels


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        more = f"\n  and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        told = "".join(f"\n  {problem}" for problem in problems[:_TOLD])
        raise DataError(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}{told}{more}")
