"""One decoder: what a folder of images teaches is what the server makes of the same files."""

import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import telescopic as tl
from telescopic.data import Preprocess
from telescopic.data.photos import read_folder
from telescopic.engine.given import Given
from telescopic.images import ImageError, TooManyPixels, decode, shape
from telescopic.limits import Limits
from telescopic.serve.bodies import Takes
from telescopic.serve.decoders import Decoders
from telescopic.shapes import several

from packs import small_pack

RNG = np.random.default_rng(0)
GREY, RGB, RGBA = (RNG.integers(0, 256, (5, 8, *channels), np.uint8) for channels in ((), (3,), (4,)))
DEEP = RNG.integers(0, 65536, (5, 8), np.uint16)


def file(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    values: np.ndarray, kind: int, bits: int = 16, clear: bytes = b"", extent: tuple[int, int] | None = None
) -> bytes:
    """What Pillow does not write: 16 bits with colours or alpha, transparent colours, and lies about the size."""
    head = struct.pack(">IIBBBBB", *(extent or values.shape[1::-1]), bits, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in values)
    parts = [(b"IHDR", head), *([(b"tRNS", clear)] if clear else []), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


COLOURED = {
    **{f"turned {n}.jpg": file(Image.fromarray(RGB), "JPEG", exif=turned(n)) for n in range(1, 9)},
    **{f"turned {n}.png": file(Image.fromarray(RGBA), exif=turned(n)) for n in range(1, 9)},
    **{f"turned {n}.webp": file(Image.fromarray(RGB), "WEBP", exif=turned(n)) for n in range(1, 9)},
    "rgb.png": file(Image.fromarray(RGB)),
    "clear colour.png": file(Image.fromarray(RGB), transparency=tuple(RGB[1, 2].tolist())),
    "palette.png": file(Image.fromarray(RGB).quantize(16)),
    "palette with alpha.png": file(Image.fromarray(RGBA).quantize(16, method=Image.Quantize.FASTOCTREE)),
    "palette with a hole.png": file(Image.fromarray(RGB).quantize(16), transparency=3),
    "cmyk.jpg": file(Image.fromarray(RGBA, "RGBA").convert("RGB").convert("CMYK"), "JPEG"),
    "alpha.webp": file(Image.fromarray(RGBA), "WEBP", lossless=True),
    "16 bits.png": png(DEEP[:, :6].reshape(5, 2, 3), 2),
    "16 bits with alpha.png": png(DEEP.reshape(5, 2, 4), 6),
    "grey, 16 bits with alpha.png": png(DEEP.reshape(5, 4, 2), 4),
}
PLAIN = {
    **{f"turned {n}.jpg": file(Image.fromarray(GREY), "JPEG", exif=turned(n)) for n in range(1, 9)},
    **{f"turned, 16 bits {n}.png": file(Image.fromarray(DEEP), exif=turned(n)) for n in range(1, 9)},
    "grey.png": file(Image.fromarray(GREY)),
    "one bit.png": file(Image.fromarray(GREY).convert("1")),
    "clear.png": file(Image.fromarray(GREY), transparency=int(GREY[0, 0])),
    "clear, 16 bits.png": png(DEEP, 0, clear=struct.pack(">H", DEEP[1, 1])),
    "alpha.png": file(Image.fromarray(RGBA[..., :2], "LA")),
}
TYPES = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


@pytest.mark.parametrize(("files", "channels"), [(PLAIN, 1), (COLOURED | PLAIN, 3)])
def test_what_is_learned_is_what_is_served(tmp_path: Path, files: dict[str, bytes], channels: int) -> None:
    for label in ("a", "b"):
        (tmp_path / "own" / label).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "own" / "a" / name).write_bytes(content)
    (tmp_path / "own" / "b" / "other.png").write_bytes(files["grey.png"])
    learned = read_folder(tmp_path / "own", (6, 5)).images[: len(files)]
    assert learned.shape[1:] == (channels, 6, 5)
    engine = tl.Engine(small_pack(tmp_path / "small.telescope", (channels, 6, 5)), cache=False)
    decoders, takes = Decoders(Limits()), Takes(several(engine.input_shape), True, 1)
    for name, pixels in zip(sorted(files), learned, strict=True):
        served, _ = decoders.submit(files[name], TYPES[name.rpartition(".")[2]], takes).result(30)
        assert np.array_equal(served["input"], pixels), name
    decoders.close()
    if channels == 3:  # what is grey in the file is grey in colours
        grey = [pixels for name, pixels in zip(sorted(files), learned, strict=True) if name in PLAIN]
        assert len(grey) == len(PLAIN) and all((pixels == pixels[0]).all() for pixels in grey)


def test_what_is_learned_is_what_an_engine_prepares() -> None:
    # The two programs that make numbers of pixels, one in torch and one without it.
    pixels = RNG.permutation(np.arange(768) % 256).astype(np.uint8).reshape(1, 3, 16, 16)
    for mean, std in (((0.0,), (1.0,)), ((0.1307,), (0.3081,)), ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 1 / 3))):
        theirs = Given((3, 16, 16), np.dtype(np.float32), {"mean": mean, "std": std}).checked(pixels)
        assert np.array_equal(Preprocess(mean, std)(torch.from_numpy(pixels)).numpy(), theirs)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return 255 - (255 - colour.astype(float)) * alpha / 255


def test_values() -> None:
    assert np.array_equal(decode(file(Image.fromarray(RGB))), RGB.transpose(2, 0, 1))
    assert np.array_equal(decode(file(Image.fromarray(DEEP)))[0], DEEP >> 8)
    assert decode(b"P5 3 1 65535\n" + bytes([0x12, 0x34, 0xFF, 0xFF, 0, 0x80])).tolist() == [[[0x12, 255, 0]]]
    assert np.array_equal(decode(png(DEEP.reshape(5, 4, 2)[..., :1].repeat(3, 2), 2))[1], DEEP[:, ::2] >> 8)
    expected = over_white(RGBA[..., :3], RGBA[..., 3:]).transpose(2, 0, 1)
    assert np.abs(decode(file(Image.fromarray(RGBA))) - expected).max() <= 0.51
    expected = over_white(RGBA[..., 0], RGBA[..., 1])
    assert np.abs(decode(file(Image.fromarray(RGBA[..., :2], "LA")))[0] - expected).max() <= 0.51
    hole = decode(png(DEEP, 0, clear=struct.pack(">H", DEEP[1, 1])))[0]
    assert np.array_equal(hole, np.where(DEEP[1, 1] == DEEP, 255, DEEP >> 8))
    ink = Image.new("CMYK", (2, 1), (255, 0, 0, 0))
    assert decode(file(ink, "TIFF"))[:, 0, 0].tolist() == [0, 255, 255]
    assert decode(file(Image.fromarray(RGB)), channels=1).shape == (1, 5, 8)
    assert np.array_equal(decode(file(Image.fromarray(GREY)), channels=3), np.stack([GREY] * 3))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("deep", [False, True])
def test_it_is_turned_as_exif_says(form: str, deep: bool) -> None:
    upright = (DEEP >> 8).astype(np.uint8) if deep else GREY
    turns: list[Callable[[np.ndarray], np.ndarray]] = [  # from the EXIF standard: where row 0 and column 0 are
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        np.transpose,
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).T,
        lambda a: np.rot90(a, 1),
    ]
    for number, turn in enumerate(turns, 1):
        content = file(Image.fromarray(DEEP if deep else GREY), form, exif=turned(number))
        assert np.array_equal(decode(content)[0], turn(upright)), number
        assert shape(content) == decode(content).shape


def test_the_middle_is_resized() -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 5:25] = 200  # bicubic looks a little beyond the middle
    assert (decode(file(Image.fromarray(wide)), size=(4, 4)) == 200).all()
    assert (decode(file(Image.fromarray(wide), exif=turned(6)), size=(4, 4)) == 200).all()


@pytest.mark.parametrize("name", [*COLOURED, *PLAIN])
def test_the_shape_is_known_from_the_header(name: str) -> None:
    content = (COLOURED | PLAIN)[name]
    assert shape(content) == decode(content).shape


TIFF = Image.fromarray(DEEP)
FRAMES = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
REFUSED = {
    "animated GIF": (file(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "several frames"),
    "animated WebP": (file(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "several frames"),
    "animated PNG": (file(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "several frames"),
    "TIFF of two pages": (file(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "several frames"),
    "32 bits": (file(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), "unknown range .*mode I"),
    "floats": (file(Image.fromarray(np.float32(GREY)), "TIFF"), "unknown range .*mode F"),
    "0 is white": (file(TIFF, "TIFF", tiffinfo={262: 0}), "unknown range .*I;16"),
    "2 bits with a clear value": (png(np.array([[0xB0]]), 0, 2, struct.pack(">H", 2)), "alpha channel"),
    "16 bits with a clear colour": (png(DEEP[:, :6].reshape(5, 2, 3), 2, clear=b"\1\2\3\4\5\6"), "alpha channel"),
    "nothing": (b"", "no image of a known format"),
    "text": (b"not an image", "no image of a known format"),
    "a bomb": (png(np.zeros((1, 1)), 0, 8, extent=(60_000, 60_000)), "more than the 67,108,864 pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_doubtful_is_refused(name: str, tmp_path: Path) -> None:
    content, reason = REFUSED[name]
    (tmp_path / "file").write_bytes(content)
    for source in (content, tmp_path / "file"):
        for call in (decode, shape):
            with pytest.raises(ImageError, match=reason) as caught:
                call(source)
            assert "0x" not in str(caught.value)


def test_of_a_phones_several_pictures_the_first_is_the_photo() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    content = file(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "MPO" and image.n_frames == 2
        assert np.array_equal(decode(content, formats=("JPEG",)), np.asarray(image).transpose(2, 0, 1))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    content = file(Image.fromarray(GREY))
    assert decode(content, most_pixels=40).shape == (1, 5, 8)
    whole = content.index(b"IDAT")
    for bad in (content, content[: whole + 10]):  # the pixels are not there
        with pytest.raises(TooManyPixels, match="40 pixels, and at most 39"):
            decode(bad, most_pixels=39)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM"])
def test_half_a_file_is_no_image(form: str) -> None:
    content = file(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), np.uint8)), form)
    for part in (0.9, 0.5):
        with pytest.raises(ImageError):
            decode(content[: int(part * len(content))])


def test_other_formats_are_refused_where_one_is_expected() -> None:
    with pytest.raises(ImageError, match="is no JPEG image"):
        decode(file(Image.fromarray(GREY)), formats=("JPEG",))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([*COLOURED.values(), *PLAIN.values()]), st.data())
def test_damaged_files_raise_one_error(content: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert decode(bytes(damaged)).dtype == np.uint8
