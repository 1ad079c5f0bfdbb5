import gzip
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from telescopic import data
from telescopic.data import DataError, readers, sources
from telescopic.data.dividing import divide


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no files of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TELESCOPIC_DATA", raising=False)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "downloads", lambda name: iter(()))


def images_of(split: data.Split) -> Iterator[bytes]:
    return (image.numpy().tobytes() for image in split.images)


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits", validation=0)
    original = {
        i.tobytes(): t for i, t in zip(load_digits().images.astype(np.uint8), load_digits().target, strict=True)
    }
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1437, 0, 360)
    assert digits.input_shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    assert digits.train.images.max() == 255 and "scikit-learn" in digits.source
    back = (digits.test.images[:, 0] * (16 / 255)).round().to(torch.uint8).double().numpy()
    for image, label in zip(back.astype(np.uint8), digits.test.labels, strict=True):
        assert original[image.tobytes()] == label


def test_splits_share_nothing_and_follow_the_seed() -> None:
    first, again, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (1294, 143, 360)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.validation.labels, again.validation.labels)
    assert torch.equal(first.test.images, other.test.images), "the test images must not depend on the seed"
    assert not torch.equal(first.validation.images, other.validation.images)
    parts = [set(images_of(split)) for split in (first.train, first.validation, first.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    golden = "".join(map(str, first.validation.labels[:12].tolist()))
    assert golden == "178754150948", "the split must stay the same for ever: published results use it"


@pytest.mark.parametrize("number", [-1, 1437, 2000])
def test_too_many_validation_images(number: int) -> None:
    with pytest.raises(DataError, match=rf"digits has 1437 training images: it can give 0 to 1436 .* not {number}"):
        data.load("digits", validation=number)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data(), st.integers(0, 5))
def test_divide_is_a_partition_in_proportion(labels: list[int], draw: st.DataObject, seed: int) -> None:
    array, number = np.array(labels, np.int64), draw.draw(st.integers(0, len(labels)))
    rest, taken = divide(array, np.arange(len(labels)), number, seed)
    assert sorted([*rest, *taken]) == list(range(len(labels))) and len(taken) == number
    assert (np.diff(rest) > 0).all() and (np.diff(taken) > 0).all()
    few = 0 if number < len(set(labels)) else sum(labels.count(label) * number < len(labels) for label in set(labels))
    lone = sum(labels.count(label) == 1 for label in set(labels))
    for label in set(labels):
        assert abs((array[taken] == label).sum() - number * (array == label).mean()) < 2 + few + lone
        if labels.count(label) > 1 and number >= len(set(labels)):
            assert label in array[taken]
        if len(labels) - number >= len(set(labels)):
            assert label in array[rest]


@pytest.mark.parametrize(
    ("name", "guess"), [("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("cifar-10", "cifar10")]
)
def test_unknown_names_get_a_suggestion(name: str, guess: str) -> None:
    for call in (data.load, data.fetch):
        with pytest.raises(
            DataError, match=rf"unknown data set '{name}' \(did you mean {guess}\?\): give one of digits"
        ):
            call(name)


def test_a_path_that_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz: no such file"):
        data.load(tmp_path / "nowhere.npz")
    (tmp_path / "table.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"table\.csv: data of your own are an \.npz file or a folder"):
        data.load(tmp_path / "table.csv")


def test_own_npz_end_to_end(tmp_path: Path) -> None:
    pixels = np.arange(40 * 2 * 3 * 5, dtype=np.uint32).astype(np.uint8).reshape(40, 2, 3, 5)
    np.savez(tmp_path / "mine.npz", images=pixels, labels=np.arange(40, dtype=np.int32) % 4, classes=list("abcd"))
    mine = data.load(tmp_path / "mine.npz")
    assert (len(mine.train), len(mine.validation), len(mine.test)) == (28, 4, 8)
    assert mine.classes == ("a", "b", "c", "d") and mine.input_shape == (2, 3, 5)
    assert torch.bincount(mine.test.labels).tolist() == [2, 2, 2, 2]
    assert mine.source == f"the file {tmp_path / 'mine.npz'}"
    by_image = {image.tobytes(): n % 4 for n, image in enumerate(pixels)}
    assert all(by_image[i] == n for i, n in zip(images_of(mine.test), mine.test.labels.tolist(), strict=True))


def test_own_npz_of_any_kind(tmp_path: Path) -> None:
    x = np.arange(120.0).reshape(60, 2)
    np.savez(tmp_path / "mine.npz", inputs=x, targets=x[:, :1] / 7)
    mine = data.load(tmp_path / "mine.npz", validation=5)
    assert [len(split) for split in mine.splits] == [43, 5, 12] and mine.input_shape == (2,) and mine.classes == ()
    together = torch.cat([split.inputs for split in mine.splits])
    assert sorted(together[:, 0].tolist()) == x[:, 0].tolist()
    for split in mine.splits:
        assert torch.equal(split.targets, (split.inputs[:, :1].double() / 7).float()), "each keeps its own"
    other = data.load(tmp_path / "mine.npz", validation=5, seed=1)
    assert torch.equal(other.test.inputs, mine.test.inputs), "the test examples are always the same"
    assert not torch.equal(other.validation.inputs, mine.validation.inputs)
    with pytest.raises(DataError, match=r"mine.npz has 48 training examples: it can give 0 to 47 of them"):
        data.load(tmp_path / "mine.npz", validation=48)
    np.savez(tmp_path / "mine.npz", inputs=x, targets=np.tile([[0, 1]], (60, 1)), classes=["a", "b"])
    assert data.load(tmp_path / "mine.npz").classes == ("a", "b"), "names of labels, of which there may be several"
    np.savez(
        tmp_path / "mine.npz",
        inputs=x,
        targets=np.arange(60) % 3,
        validation_inputs=x[:6],
        validation_targets=np.ones(6),
    )
    with pytest.raises(DataError, match=r"training targets int64 \[\d+\], but validation targets float32 \[6\]"):
        data.load(tmp_path / "mine.npz")


def unequal(path: Path, *numbers: int) -> Path:
    labels = np.repeat(np.arange(len(numbers)), numbers)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1).repeat(2, 2)
    np.savez(path / "unequal.npz", images=images, labels=labels, classes=list("abcdefghijklmnop")[: len(numbers)])
    return path / "unequal.npz"


def test_rare_classes_are_in_every_part_while_they_last(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = data.load(unequal(tmp_path, 94, 3, 3))
    assert [split.labels.unique().tolist() for split in made.splits] == [[0, 1, 2]] * 3
    with pytest.warns(UserWarning) as caught:
        made = data.load(unequal(tmp_path, 97, 1, 2))
    assert "its 8 validation images have none of b, c; its 20 test images have none of b." in str(caught[0].message)
    assert str(caught[0].filename) == __file__ and made.train.labels.unique().tolist() == [0, 1, 2]


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unequal.npz: all training images are of one class, b; give two or more"):
        data.load(unequal(tmp_path, 0, 20))


def test_a_single_image_is_too_few(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 2, 2), np.uint8), labels=[0])
    with pytest.raises(DataError, match=r"one.npz has 1 images, too few to train and to test"):
        data.load(tmp_path / "one.npz")


@pytest.fixture
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Writes a small MNIST into a folder, and makes it the one that is expected."""
    rng = np.random.RandomState(0)
    contents = {}
    for part, n in (("train", 50), ("t10k", 10)):
        contents[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 0x803, n, 4, 4) + rng.bytes(n * 16)
        contents[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 0x801, n) + bytes(k % 10 for k in range(n))
    facts = {f: sources.File(sources.hashlib.sha256(c).hexdigest(), len(c)) for f, c in contents.items()}
    monkeypatch.setitem(sources.FILES, "mnist", facts)

    def write(folder: Path, suffix: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            (folder / (file + suffix)).write_bytes(gzip.compress(content) if suffix else content)

    return write


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("under", ["", "mnist"])
def test_mnist_from_a_folder(
    tmp_path: Path, tiny_mnist: Callable[[Path, str], None], suffix: str, under: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_mnist(tmp_path / "d" / under, suffix)
    mnist = data.load("mnist", data_dir=tmp_path / "d")
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (40, 10, 10)
    assert mnist.test.labels.tolist() == list(range(10)) and mnist.input_shape == (1, 4, 4)
    assert mnist.source == f"data_dir ({tmp_path / 'd' / under})"
    monkeypatch.setenv("TELESCOPIC_DATA", str(tmp_path / "d"))
    assert data.fetch("mnist") == data.Fetched(
        "mnist", tmp_path / "d" / under, f"TELESCOPIC_DATA ({tmp_path / 'd' / under})"
    )
    everything = data.load("mnist", validation=0)
    assert everything.train.labels.tolist() == [k % 10 for k in range(50)], "the official order is kept"
    assert len(everything.validation) == 0 and everything.validation.images.shape == (0, 1, 4, 4)


def test_to_a_device(tmp_path: Path) -> None:
    there = data.load("digits").to("meta")
    assert {s.images.device.type for s in (there.train, there.validation, there.test)} == {"meta"}
    assert there.test.labels.device.type == "meta" and there.name == "digits"


def test_names_and_all() -> None:
    assert data.names() == ("digits", "mnist", "fashion-mnist", "cifar10", "svhn")
    assert set(data._READERS) == set(sources.FILES) == set(sources.URLS)
    assert all(hasattr(data, name) for name in data.__all__)
    assert data.fetch("digits").folder is None
    assert len(readers.FASHION) == len(readers.CIFAR10) == 10
