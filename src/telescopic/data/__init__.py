"""Examples with targets: the well-known small sets of images, and the user's own."""

import difflib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from telescopic.data import readers, sources
from telescopic.data.batches import Augment, Preprocess, Split, batch_sizes, batches, prepared
from telescopic.data.dataset import Dataset
from telescopic.data.dividing import apart, taken
from telescopic.data.own import Loaders, of
from telescopic.data.photos import read_folder
from telescopic.data.readers import DataError
from telescopic.data.sources import Fetched

__all__ = [
    "Augment",
    "DataError",
    "Dataset",
    "Fetched",
    "Loaders",
    "Preprocess",
    "Split",
    "batch_sizes",
    "batches",
    "fetch",
    "folder",
    "load",
    "names",
    "of",
    "prepared",
]

_READERS: dict[str, Callable[[Mapping[str, bytes]], readers.Arrays]] = {
    "mnist": readers.read_mnist,
    "fashion-mnist": partial(readers.read_mnist, classes=readers.FASHION),
    "cifar10": readers.read_cifar10,
    "svhn": readers.read_svhn,
}


def names() -> tuple[str, ...]:
    """The data sets that `load` knows by name."""
    return ("digits", *_READERS)


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    validation: int | None = None,
    size: int | tuple[int, int] | None = None,
    workers: int = 2,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """A data set by its name, or the user's own from an `.npz` file or a folder of images by class.

    An `.npz` holds images and labels, or inputs and targets of any type and shape, which are examples like images. Of
    several inputs each is an array `inputs.NAME`.

    The test images are the official ones. Where there are none (digits, the user's own without a test part) they are
    a fifth of the images, rounded up, always the same. The validation images are taken from the training images unless
    the user's own have a part for them. Both are drawn from every class in proportion, and at least one image from each
    class that has two, if as many images are drawn as there are classes. A warning names the classes that are missing.

    Args:
        name: one of `names()`, or a path; for a folder called like a data set write "./mnist".
        data_dir: a folder with the data set's files, or with a folder of its name that has them.
            Default: the environment's TELESCOPIC_DATA.
        validation: number of validation images, 0 for none. Default: 5,000, or a tenth of the images if that is less,
            but one for each class if that is no more than a fifth.
        size: height and width, or one number for both, to which the images of a folder are brought: the middle of each,
            of this shape, resized as `telescopic serve` does. Default: their own, which must be the same for all.
        workers: threads that decode the images of a folder, each of which is decoded once.
        seed: determines which training images serve for validation.
        download: False to look on this machine only.

    Raises:
        DataError: the data are unknown, cannot be had, or are damaged; all are of one class; or too many validation
            images are asked for.
    """
    key = str(name)
    path = None if key in names() else _own(key)
    size = (size, size) if isinstance(size, int) else size
    if size is not None and (path is None or not path.is_dir() or min(size) < 1):
        raise DataError(f"{key}: size is the height and width for a folder of images, not {size} for this")
    if path is None:
        arrays, source = _named(key, data_dir, download)
    elif path.is_dir():
        arrays, source = read_folder(path, size, workers), f"the folder {path}"
    else:
        arrays, source = readers.read_npz(path), f"the file {path}"
    everything = np.arange(len(arrays.labels))
    images, labels = arrays.images, arrays.labels
    pictures = isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype == np.uint8
    what = "images" if pictures else "examples"
    everything, test = apart(images, labels, everything, arrays.test or -(-len(labels) // 5), seed=0)
    if not len(everything):
        raise DataError(f"{key} has {len(labels)} {what}, too few to train and to test with")
    if arrays.classes and labels.ndim == 1 and len(one := np.unique(labels)) == 1:
        raise DataError(f"{key}: all training images are of one class, {arrays.classes[one[0]]}; give two or more")
    if arrays.validation is None:
        some = min(len(arrays.classes), len(everything) // 5)
        number = min(5000, max(len(everything) // 10, some)) if validation is None else validation
        if not 0 <= number < len(everything):
            raise DataError(f"{key} has {len(everything)} training {what}: it can give 0 to {len(everything) - 1} "
                            f"of them for validation, not {number}")  # fmt: skip
    elif validation not in (None, number := len(arrays.validation[1])):
        raise DataError(f"{key} has {number} validation {what} of its own: it cannot give {validation}")
    everything, kept_apart = apart(images, labels, everything, arrays.validation or number, seed)
    made = Dataset(key, taken(images, labels, everything), kept_apart, test, classes=arrays.classes, source=source)
    _warn_of_missing(made)
    return made


def folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    validation: int | None = None,
    workers: int = 2,
    seed: int = 0,
) -> Dataset:
    """Photos in a folder for each class, of any sizes and modes: see `load`, of which this is a part.

    Raises:
        DataError: if it is no folder, something in it is no image or in no class, or a class has none: all of it is
            said at once.
    """
    if not Path(path).expanduser().is_dir():
        raise DataError(f"{path}: no such folder")
    own = f".{os.sep}{path}" if str(path) in names() else path  # a data set's name would mean that
    return load(own, size=size, validation=validation, workers=workers, seed=seed)


def fetch(name: str, *, data_dir: str | Path | None = None, download: bool = True) -> Fetched:
    """Make a data set's files present on this machine, in the user's cache unless they are elsewhere already.

    Raises:
        DataError: the name is unknown, no source has the files, the files in `data_dir` are damaged, or the cache
            cannot be written.
    """
    if name == "digits":
        return Fetched(name, None, "scikit-learn, which contains it")
    if name not in names():
        raise _unknown(name)
    fetched = sources.obtain(name, data_dir=data_dir, download=download)[1]
    if fetched.folder is None:
        raise DataError(f"{name} was had, but could not be kept: {fetched.source}")
    return fetched


def _named(name: str, data_dir: str | Path | None, download: bool) -> tuple[readers.Arrays, str]:
    if name == "digits":
        return readers.read_digits(), "scikit-learn, which contains it"
    contents, fetched = sources.obtain(name, data_dir=data_dir, download=download)
    return _READERS[name](contents), fetched.source


def _own(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".npz"):
        return path
    if path.is_file():
        raise DataError(f"{path}: data of your own are an .npz file or a folder of images by class")
    if path.suffix == ".npz" or os.sep in name:
        raise DataError(f"{path}: no such file or folder")
    raise _unknown(name)


def _warn_of_missing(data: Dataset) -> None:
    """Of what the accuracy on the images kept apart says nothing, or what nobody learns."""
    lacking = []
    if data.train.targets.ndim > 1:
        return
    for what, split in zip(("training", "validation", "test"), data.splits, strict=True):
        missing = [data.classes[i] for i in sorted(set(range(len(data.classes))) - set(split.labels.tolist()))]
        if len(split) and missing:
            some = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            lacking.append(f"its {len(split)} {what} images have none of {some}")
    if lacking:
        warnings.warn(f"{data.name}: {'; '.join(lacking)}. Accuracy says nothing of these classes", stacklevel=3)


def _unknown(name: str) -> DataError:
    near = difflib.get_close_matches(name.lower(), names(), n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return DataError(f"unknown data set {name!r}{guess}: give one of {', '.join(names())}, "
                     "or the path of an .npz file or of a folder of images by class")  # fmt: skip
