"""Image files to pixels: the one way, both for what a network learns from and for what it is asked. No torch.

An image is taken as people see it. It is turned as its EXIF data say; what is transparent lies on white; of 16 bits the
upper 8 are kept, as Pillow does with colours. Colour profiles are not applied. What cannot be taken so is refused:
files with several frames (of a phone's multi-picture JPEG the first is the photo), and numbers of an unknown range.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from telescopic.extras import needs

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

MOST_PIXELS = 2**26
_ORIENTATION, _TURNED = 0x112, (5, 6, 7, 8)  # the EXIF tag, and its values for a quarter turn
_OTHER_BITS = ("L;2", "L;4", "RGB;16B")  # Pillow makes 8 bits of these, but compares them with the colour as it stands
_WHITE = 255


class ImageError(ValueError):
    """An image file that is not taken; the message says why."""


class TooManyPixels(ImageError):
    """An image file that would take too much memory."""


def decode(
    source: Path | bytes,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    most_pixels: int = MOST_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Pixels:
    """Pixels `[channels, height, width]` of an image file.

    Args:
        source: where the file is, or what is in it.
        channels: 1 for grey or 3 for colours; by default as in the file.
        size: height and width; the middle of the image, of this shape, is resized (bicubic). By default as in the file.
        most_pixels: of the file; found out before anything is decoded.
        formats: Pillow's names of the formats that are allowed; by default all that it knows.

    Raises:
        TooManyPixels: if there are more.
        ImageError: if it cannot be read, wholly and without doubt.
    """
    from PIL import ImageOps

    with _opened(source, most_pixels, formats) as image:
        mode = "L" if (channels or _channels(image)) == 1 else "RGB"
        ImageOps.exif_transpose(image, in_place=True)
        plain = _on_white(_of_8_bits(image), mode)
        if size is not None:
            plain = ImageOps.fit(plain, (size[1], size[0]))
        pixels = np.asarray(plain, np.uint8)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def shape(source: Path | bytes, *, most_pixels: int = MOST_PIXELS) -> tuple[int, int, int]:
    """Channels, height and width that `decode` would give, from the file's header alone.

    Raises:
        TooManyPixels: if there are more.
        ImageError: if it is no image, or one that `decode` refuses by its header.
    """
    with _opened(source, most_pixels, None) as image:
        width, height = image.size
        if image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _TURNED:  # of TIFF Pillow has turned it
            width, height = height, width
        return _channels(image), height, width


@contextmanager
def _opened(source: Path | bytes, most_pixels: int, formats: tuple[str, ...] | None) -> Iterator["Image.Image"]:
    """The file's image, of which nothing is decoded; whatever is raised inside becomes an `ImageError`."""
    with needs("train"):
        from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if math.prod(image.size) > most_pixels:
                raise TooManyPixels(f"has {math.prod(image.size):,} pixels, and at most {most_pixels:,} are taken")
            # A phone's JPEG holds the photo, and then what belongs to it.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise ImageError("has several frames or pages; save the one that is meant as a file of its own")
            if image.mode[0] in "IF" and not _is_of_16_bits(image):
                raise ImageError(f"has numbers of unknown range (Pillow's mode {image.mode}); convert it to 8 bits")
            if image.format == "PNG" and "transparency" in image.info and image.tile[0].args in _OTHER_BITS:
                raise ImageError("has a transparent colour in another number of bits; save it with an alpha channel")
            yield image
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"has more than the {most_pixels:,} pixels that are taken") from error
    except UnidentifiedImageError as error:  # whose text is the address of an object
        raise ImageError(
            f"is no {' or '.join(formats)} image" if formats else "is no image of a known format"
        ) from error
    except Exception as error:  # decoders raise what they like
        raise ImageError(f"cannot be read as an image ({str(error) or type(error).__name__:.200})") from error


def _channels(image: "Image.Image") -> int:
    return 1 if image.mode in ("1", "L", "LA") or image.mode[0] == "I" else 3


def _is_of_16_bits(image: "Image.Image") -> bool:
    """Whether an image of whole numbers above 255 has them from 0, black, to 65,535, white."""
    if image.mode[0] == "F" or image.format not in ("PNG", "PPM", "TIFF"):
        return False
    # In TIFF they may be of fewer bits, or signed, or 0 may be white.
    tags: Any = getattr(image, "tag_v2", None)
    return tags is None or (tags.get(258), tags.get(262), tags.get(339, (1,))) == ((16,), 1, (1,))


def _of_8_bits(image: "Image.Image") -> "Image.Image":
    """The same image without numbers above 255, of which Pillow's own conversion would make white."""
    from PIL import Image

    if image.mode[0] != "I":
        return image
    values = np.asarray(image)
    made = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")  # a grey value of 16 bits that means nothing is there
    if clear is not None:
        made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made


def _on_white(image: "Image.Image", mode: str) -> "Image.Image":
    """Grey or in colours, with white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    ground = Image.new(mode, image.size, _WHITE if mode == "L" else (_WHITE,) * 3)
    ground.paste(layer.convert(mode), mask=layer.getchannel("A"))
    return ground
