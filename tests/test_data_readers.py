import io
import struct
import tracemalloc
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from telescopic.data import DataError, load, readers
from telescopic.data.readers import read_cifar10, read_idx, read_mnist, read_npz, read_svhn

from chance import examples

RNG = np.random.RandomState(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(train: int = 6, test: int = 4, **changed: bytes) -> dict[str, bytes]:
    files = {}
    for part, n in (("train", train), ("t10k", test)):
        files[f"{part}-images-idx3-ubyte"] = idx(np.arange(n * 6).reshape(n, 2, 3))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n))
    return files | {name.replace("_", "-"): content for name, content in changed.items()}


def test_mnist_values() -> None:
    got = read_mnist(mnist())
    assert got.images.shape == (6, 1, 2, 3) and got.images[1].ravel().tolist() == list(range(6, 12))
    assert got.labels.dtype == np.int64 and got.labels.tolist() == list(range(6))
    assert got.test is not None and got.test[1].tolist() == list(range(4))


def test_mnist_errors() -> None:
    whole = mnist()["train-images-idx3-ubyte"]
    for content, message in [
        (whole[:-1], r"its header says \(6, 2, 3\), 52 bytes in all; found 51 bytes"),
        (whole + b"x", "52 bytes in all; found 53 bytes"),
        (b"", "found an empty file"),
        (b"\x89PNG....", "unsigned bytes, which begins 00 00 08; found 89 50 4e 47"),
        (whole[:9], "expected an idx file"),
        (struct.pack(">4I", 0x803, *[2**32 - 1] * 3), r"bytes in all; found 16 bytes"),
        (idx(np.zeros((5, 2, 3))), r"as many images .* found \(5, 2, 3\) and \(6,\)"),
    ]:
        with pytest.raises(DataError, match=f"train-images-idx3-ubyte: .*{message}"):
            read_mnist(mnist(**{"train_images_idx3_ubyte": content}))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: expected labels 0..9, found 0..10"):
        read_mnist(mnist(t10k_labels_idx1_ubyte=idx(np.array([0, 1, 2, 10]))))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: b"\0\0\x08" + tail))
def test_idx_never_fails_otherwise(content: bytes) -> None:
    try:
        array = read_idx(content, "f")
    except DataError as e:
        assert str(e).startswith("f: ")
    else:
        assert array.tobytes() == content[4 + 4 * content[3] :]


def test_cifar10_values_and_errors() -> None:
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    pixels = RNG.randint(0, 256, (6, 2, 3, 32, 32)).astype(np.uint8)
    files = {name: b"".join(bytes([k]) + image.tobytes() for image in pixels[k]) for k, name in enumerate(names)}
    got = read_cifar10(files)
    assert np.array_equal(got.images, pixels[:5].reshape(10, 3, 32, 32)) and np.array_equal(got.test[0], pixels[5])
    assert got.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and got.classes[3] == "cat"
    for content in (files[names[2]][:-1], b""):
        with pytest.raises(
            DataError, match=rf"data_batch_3.bin: expected records of 3,073 .* found {len(content):,} bytes"
        ):
            read_cifar10(files | {names[2]: content})
    with pytest.raises(DataError, match=r"test_batch.bin: expected labels 0..9, found 77..77"):
        read_cifar10(files | {names[5]: bytes([77]) * 3073})


def mat(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    savemat(stream, arrays, do_compression=True)
    return stream.getvalue()


def test_svhn_values_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_read_mat", cache(readers._read_mat))  # starts a process: one for equal files
    pixels = RNG.randint(0, 256, (4, 3, 32, 32)).astype(np.uint8)
    good = mat(X=pixels.transpose(2, 3, 1, 0), y=np.array([[10], [1], [9], [10]], np.uint8))
    files = {"train_32x32.mat": good, "test_32x32.mat": good}
    got = read_svhn(files)
    assert np.array_equal(got.images, pixels) and got.labels.tolist() == [0, 1, 9, 0]
    assert got.images.flags.c_contiguous and got.classes[0] == "0"
    for content, message in [
        (good[: len(good) // 2], "it cannot be read"),
        (good[:100], "it cannot be read"),
        (b"", "it cannot be read"),
        (b"not MATLAB at all" * 20, "it cannot be read"),
        (mat(X=pixels), "MATLAB 5 file with X and y"),
        (mat(X=pixels, y=np.ones(4, np.uint8)), r"expected X uint8 \(32, 32, 3, 4\), as y says; found uint8 \(4, 3"),
        (mat(X=np.zeros((32, 32, 3, 2)), y=np.ones(2)), "found float64"),
        (mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([1, 11], np.uint8)), "labels 0..9, found 1..11"),
    ]:
        with pytest.raises(DataError, match=f"test_32x32.mat: .*{message}"):
            read_svhn(files | {"test_32x32.mat": content})


@examples(few=4, many=100)  # each starts a process
@given(st.data())
def test_damaged_mat_files_raise_one_error(draw: st.DataObject) -> None:
    good = bytearray(mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.ones(2, np.uint8)))
    for _ in range(draw.draw(st.integers(1, 3))):
        good[draw.draw(st.integers(0, len(good) - 1))] = draw.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_read_mat", cache(readers._read_mat))
        try:
            read_svhn({"train_32x32.mat": bytes(good), "test_32x32.mat": bytes(good)})
        except DataError as e:
            assert "32x32.mat" in str(e)


def save(path: Path, **arrays: object) -> Path:
    np.savez(path / "own.npz", **arrays)  # type: ignore[arg-type]
    return path / "own.npz"


IMAGES, LABELS = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5), np.array([0, 1, 2, 0, 1, 2], np.uint8)


def test_npz_values(tmp_path: Path) -> None:
    got = read_npz(save(tmp_path, images=IMAGES, labels=LABELS, extra=[1.5]))
    assert np.array_equal(got.images[:, 0], IMAGES) and got.labels.dtype == np.int64
    assert got.classes == ("0", "1", "2") and got.test is None
    got = read_npz(save(tmp_path, images=IMAGES, labels=LABELS, test_images=IMAGES[:2], test_labels=[0, 4]))
    assert got.classes == tuple("01234") and np.array_equal(got.test[0][:, 0], IMAGES[:2])  # type: ignore[index]
    assert got.test[1].tolist() == [0, 4]  # type: ignore[union-attr]
    got = read_npz(
        save(tmp_path, images=IMAGES, labels=LABELS, validation_images=IMAGES[3:], validation_labels=[3, 0, 0])
    )
    assert got.classes == tuple("0123") and np.array_equal(got.validation[0][:, 0], IMAGES[3:])  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "missing: labels"),
        ({"test_images": IMAGES}, "both or none; missing: test_labels"),
        ({"images": IMAGES / 255}, r"images: expected uint8 in 0..255, found float64; convert"),
        ({"images": IMAGES[0]}, r"expected \[n, channels, height, width\] or .*, found \(4, 5\)"),
        ({"images": np.zeros((6, 8, 8, 3), np.uint8)}, r"\(6, 8, 8, 3\) looks like .*images.transpose\(0, 3, 1, 2\)"),
        ({"images": np.zeros((6, 1, 0, 4), np.uint8)}, r"found \(6, 1, 0, 4\)"),
        ({"labels": LABELS[:5]}, "6 images but 5 labels"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "0 images but 0 labels"),
        ({"labels": LABELS.astype(float)}, r"labels: expected integer labels \[n\], found float64 \(6,\)"),
        ({"labels": np.eye(6, dtype=int)}, r"found int64 \(6, 6\)"),
        ({"labels": LABELS.astype(int) - 1}, r"expected labels 0..\d+, found -1..1"),
        ({"labels": LABELS.astype(int) + 10**9}, r"found 1000000000..1000000002"),
        ({"validation_labels": LABELS}, "missing: validation_images"),
        (
            {"val_images": IMAGES, "val_labels": LABELS},
            "val_images, val_labels would not be used; .* validation_images",
        ),
        ({"classes": ["a", "b"]}, r"labels: expected labels 0..1, found 0..2"),
        ({"inputs": IMAGES, "targets": LABELS}, "give images and labels, or inputs and targets, not arrays of both"),
        ({"images": np.array([{}] * 6)}, "cannot be read as an .npz file of plain arrays .*allow_pickle"),
    ],
)
def test_npz_errors(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arrays = {k: v for k, v in ({"images": IMAGES, "labels": LABELS} | change).items() if v is not None}
    with pytest.raises(DataError, match=rf"own\.npz: .*{message}"):
        read_npz(save(tmp_path, **arrays))


def test_npz_of_any_inputs_and_targets(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6, dtype=">i2")
    got = read_npz(save(tmp_path, inputs=x, targets=y, test_inputs=x[:1] > 3, test_targets=y[:1], images_of=1))
    assert got.images.dtype == np.float32 and got.images.tolist() == x.tolist() and got.classes == ()
    assert got.labels.dtype == np.int64 and got.labels.tolist() == y.tolist() and got.validation is None
    assert got.test is not None and got.test[0].dtype == np.float32
    swapped = np.asfortranarray(x.astype(">f2"))
    got = read_npz(save(tmp_path, inputs=swapped, targets=x > 3, classes=["low", "high"]))
    assert got.images.dtype == np.float16 and got.images.tolist() == x.tolist() and got.images.flags.c_contiguous
    assert got.labels.dtype == np.int64 and got.labels.sum() == 8 and got.classes == ("low", "high")
    got = read_npz(save(tmp_path, inputs=IMAGES, targets=IMAGES))
    assert got.images.dtype == np.uint8 and got.images.shape == (6, 4, 5) and got.labels.dtype == np.int64
    got = read_npz(save(tmp_path, inputs=x.astype(np.longdouble), targets=x.astype(np.float16)))
    assert got.images.dtype == np.float32 and got.labels.dtype == np.float16


def test_npz_of_several_inputs(tmp_path: Path) -> None:
    x, mask = np.arange(12.0).reshape(6, 2), np.arange(6) > 2
    both = {"inputs.numbers": x, "inputs.mask": mask, "test_inputs.numbers": x[:2], "test_inputs.mask": mask[:2]}
    got = read_npz(save(tmp_path, **both, targets=np.arange(6), test_targets=np.arange(2)))
    assert {name: (one.dtype, one.tolist()) for name, one in got.images.items()} == {
        "mask": (np.bool_, mask.tolist()), "numbers": (np.float32, x.tolist()),
    }  # fmt: skip
    assert got.test[0]["numbers"].tolist() == x[:2].tolist() and got.validation is None
    alone = read_npz(save(tmp_path, **{"inputs.some.numbers": x}, targets=np.arange(6)))
    assert [*alone.images] == ["some.numbers"]
    for change, message in (
        ({"inputs": x}, "give inputs, or inputs.numbers, inputs.mask, not both"),
        ({"inputs.": x}, "inputs. would not be used; arrays are called .*; of several inputs inputs.NAME"),
        ({"inputs.mask": mask[:5]}, "5 inputs.mask but 6 targets"),
        ({"inputs.mask": np.array(["a"] * 6)}, "inputs.mask: expected numbers"),
        ({"images": x}, "not arrays of both kinds"),
    ):
        with pytest.raises(DataError, match=rf"own\.npz: .*{message}"):
            read_npz(save(tmp_path, **(both | change), targets=np.arange(6), test_targets=np.arange(2)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, :3], "test_labels": LABELS},
         r"training inputs uint8 \[\d, 1, 4, 5\], but test inputs uint8 \[6, 1, 3, 5\]"),
        ({"inputs": np.ones((6, 3)), "targets": np.ones(6), "test_inputs": np.ones((2, 4)), "test_targets": np.ones(2)},
         r"training inputs float32 \[\d, 3\], but test inputs float32 \[2, 4\]"),
        ({"inputs.a": np.ones(6), "targets": np.ones(6), "test_inputs.b": np.ones(2), "test_targets": np.ones(2)},
         "training a float32 .*, but test b float32"),
    ],
)  # fmt: skip
def test_npz_with_parts_that_do_not_belong_together(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"own\.npz: {message}.*; give both the same, but for how many"):
        load(save(tmp_path, **arrays))


def test_names_in_files_are_harmless_to_show() -> None:
    assert str(DataError("images\x1b[31m would not be used")) == r"images\x1b[31m would not be used"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": None}, "expected the arrays images and labels, or inputs and targets, .* missing: targets"),
        ({"validation_inputs": np.ones((2, 3))}, "both or none; missing: validation_targets"),
        ({"val_inputs": np.ones((2, 3))}, "val_inputs would not be used; .* validation_inputs"),
        ({"inputs": np.ones((6, 3), complex)}, r"inputs: expected numbers \[n, ...\], found complex128 \[6, 3\]"),
        ({"inputs": np.array(["a"] * 6)}, "inputs: expected numbers .*, found <U1"),
        ({"inputs": np.ones((6, 0))}, r"inputs: expected numbers .*, found float64 \[6, 0\]"),
        ({"targets": np.float32(1)}, r"targets: expected numbers .*, found float32 \[\]"),
        ({"targets": np.full(6, 2**63, np.uint64)}, "targets: 9223372036854775808 is too large for int64"),
        ({"targets": np.ones(5)}, "6 inputs but 5 targets"),
        ({"inputs": np.ones((0, 3)), "targets": np.ones(0)}, "0 inputs but 0 targets"),
        ({"classes": ["a", "b"]}, "classes name whole numbers, and targets are float64"),
    ],
)
def test_npz_errors_of_any_inputs_and_targets(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arrays = {"inputs": np.ones((6, 3)), "targets": np.arange(6.0)} | change
    with pytest.raises(DataError, match=rf"own\.npz: .*{message}"):
        read_npz(save(tmp_path, **{name: array for name, array in arrays.items() if array is not None}))


def test_npz_damaged(tmp_path: Path) -> None:
    content = save(tmp_path, images=IMAGES, labels=LABELS).read_bytes()
    array = io.BytesIO()
    np.save(array, IMAGES)
    for bad in (
        b"",
        b"x" * 50,
        content[:-30],
        content[:100],
        array.getvalue(),
        content.replace(IMAGES[3].tobytes(), b"\0" * 20),
    ):
        (tmp_path / "own.npz").write_bytes(bad)
        with pytest.raises(DataError, match=r"own\.npz: cannot be read as an \.npz .* write it with numpy\.savez"):
            read_npz(tmp_path / "own.npz")


def test_a_small_archive_that_would_fill_the_memory_is_refused_before(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    labels = np.zeros(10, np.int64)
    tracemalloc.start()
    np.savez_compressed(path, images=np.zeros((350, 1, 1000, 1000), np.uint8), labels=labels)
    tracemalloc.reset_peak()
    with pytest.raises(DataError, match=r"images: [\d,]+ bytes would become 350,000,000"):
        read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    names = np.zeros(3_000_000, "U1")
    np.savez_compressed(path, images=np.zeros((10, 1, 2, 2), np.uint8), labels=labels, classes=names)
    tracemalloc.reset_peak()
    with pytest.raises(DataError, match="at most 10,000 classes have names"):
        read_npz(path)
    tracemalloc.stop()
    with zipfile.ZipFile(path, "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**12,)})
        archive.writestr("images.npy", head.getvalue())
        archive.writestr("labels.npy", head.getvalue())
    with pytest.raises(DataError, match="more than the 128 bytes there are"):
        read_npz(path)
