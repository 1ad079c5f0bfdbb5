import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from telescopic import data
from telescopic.data import DataError, photos
from telescopic.data.photos import read_folder


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (5, 4), value: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], *{"L": (), "RGB": (3,)}[mode])
    pixels = np.random.RandomState(value).randint(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_values(tmp_path: Path) -> None:
    dog = picture(tmp_path / "dog" / "1.png", value=1)
    cats = [picture(tmp_path / "cat" / f"{k}.PNG", value=k) for k in (2, 3)]
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._2.png").write_text("no image")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    got = read_folder(tmp_path)
    assert got.classes == ("cat", "dog") and got.labels.tolist() == [0, 0, 1] and got.test is None
    assert np.array_equal(got.images, np.stack([*cats, dog]).transpose(0, 3, 1, 2))
    with pytest.warns(UserWarning, match="its 1 test images have none of dog"):
        assert data.load(tmp_path).source == f"the folder {tmp_path}"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_parts_and_grey_images(tmp_path: Path, name: str) -> None:
    first = picture(tmp_path / "train" / "a" / "1.png", "L")
    picture(tmp_path / "train" / "b" / "1.png", "L", value=1)
    kept = [picture(tmp_path / name / label / "1.png", "L", value=v) for label, v in (("a", 7), ("b", 8))]
    tested = [picture(tmp_path / "test" / label / "1.png", "L", value=v) for label, v in (("a", 5), ("b", 9))]
    got = data.load(tmp_path)
    assert np.array_equal(got.train.images[0, 0], first) and got.train.images.shape == (2, 1, 4, 5)
    assert np.array_equal(got.validation.images[:, 0], kept) and got.validation.labels.tolist() == [0, 1]
    assert np.array_equal(got.test.images[:, 0], tested) and got.test.labels.tolist() == [0, 1]
    assert len(data.load(tmp_path, validation=2).validation) == 2, "as many as there are"
    with pytest.raises(DataError, match="has 2 validation images of its own: it cannot give 1"):
        data.load(tmp_path, validation=1)
    coloured = picture(tmp_path / "test" / "a" / "1.png", value=3)
    grey = read_folder(tmp_path)
    assert np.array_equal(grey.images[0], [first] * 3), "one colour image makes all RGB"
    assert np.array_equal(grey.test[0][0], coloured.transpose(2, 0, 1))  # type: ignore[index]


def test_train_alone_gives_the_other_parts(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for number in range(10):
            picture(tmp_path / "train" / label / f"{number}.png", value=number)
    got = data.load(tmp_path)
    assert got.classes == ("a", "b") and [len(split) for split in got.splits] == [14, 2, 4]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("train", "car", "test"):
        picture(tmp_path / label / "1.png")
    assert read_folder(tmp_path).classes == ("car", "test", "train")


def test_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    for place in ("a/1.png", "b/1.png", "1.png", "b/more/1.png"):
        picture(tmp_path / place)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / "photo.heic").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    for problem in (
        rf"{tmp_path}: 4 problems",
        rf"{tmp_path}/1.png: an image in no folder of a class",
        rf"{tmp_path}/b/more/1.png: deeper than",
        rf"{tmp_path}/empty: a class without images; put some in, or remove",
        rf"{tmp_path}/a/photo.heic: an image of a kind that is not read",
    ):
        assert problem in str(caught.value)


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "b").mkdir()
    for number, bad in enumerate((b"", b"no png", whole[:-30], whole[:60])):
        (tmp_path / "b" / f"{number}.png").write_bytes(bad)
    with pytest.raises(DataError, match=r": 4 problems\n.*b/0.png: is no image(.|\n)*b/3.png: cannot be read"):
        read_folder(tmp_path)
    for number in range(4, 20):
        (tmp_path / "b" / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r": 20 problems(.|\n)*and 10 more$"):
        read_folder(tmp_path)


def test_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"expected a folder per class with images in it \(CLASS/\*\.png\)"):
        read_folder(tmp_path)
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "2.png", size=(6, 4))
    picture(tmp_path / "b" / "3.png", size=(6, 8))
    sizes = r"a/1.png is 5x4 but .*b/2.png is 6x4, and there are 3 sizes .*size=\(height, width\)"
    with monkeypatch.context() as watched:
        watched.setattr(photos.images, "decode", None)  # it is told before any image is decoded
        with pytest.raises(DataError, match=sizes):
            read_folder(tmp_path)
    assert read_folder(tmp_path, (3, 2)).images.shape == (3, 3, 3, 2)
    with pytest.warns(UserWarning, match="1 test images have none of a"):
        assert data.load(tmp_path, size=(3, 2), validation=0).input_shape == (3, 3, 2)
    with pytest.raises(DataError, match="size is the height and width for a folder of images"):
        data.load("digits", size=(3, 2))
    with pytest.raises(DataError, match=r"3 images of 50000000x50000000 fit neither into memory"):
        read_folder(tmp_path, (50_000_000, 50_000_000))


def test_a_turned_photo_has_the_size_that_people_see(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    lying = np.arange(20, dtype=np.uint8).reshape(4, 5)
    (tmp_path / "a").mkdir()
    Image.fromarray(lying).save(tmp_path / "a" / "1.png", exif=exif)
    upright = picture(tmp_path / "b" / "1.png", "L", (4, 5))
    assert np.array_equal(read_folder(tmp_path).images[:, 0], [np.rot90(lying, -1), upright])


def test_a_part_that_does_not_fit_the_others(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test: no images; expected a folder per class"):
        read_folder(tmp_path)
    picture(tmp_path / "test" / "c" / "1.png")
    with pytest.raises(DataError, match=r"test/c: no training images of this class; classes are a"):
        read_folder(tmp_path)
    (tmp_path / "test" / "c").rename(tmp_path / "test" / "a")
    picture(tmp_path / "test" / "a" / "1.png", size=(9, 9))
    with pytest.raises(DataError, match=r"train/a/1.png is 5x4 but .*test/a/1.png is 9x9"):
        read_folder(tmp_path)
    (tmp_path / "holdout").mkdir()
    with pytest.raises(DataError, match=r"holdout: beside train there are val and test"):
        read_folder(tmp_path)
    (tmp_path / "holdout").rename(tmp_path / "val")
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match=r"val and .*valid are both for validation"):
        read_folder(tmp_path)


def test_a_header_that_lies_takes_no_memory(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    whole = (tmp_path / "a" / "1.png").read_bytes()
    head = b"IHDR" + struct.pack(">II", 9_000, 9_000) + whole[24:29]
    (tmp_path / "a" / "1.png").write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])
    with pytest.raises(DataError, match=r"a/1.png: has 81,000,000 pixels, and at most 67,108,864"):
        read_folder(tmp_path)
