"""What a request may hold: wishes and inputs. Nothing that comes over the wire is believed."""

import io
import math
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from telescopic.engine.engine import Engine
from telescopic.engine.manifest import Floats
from telescopic.images import ImageError, Pixels, TooManyPixels, decode

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
NPY = ("application/x-npy", "application/octet-stream")
_MOST_PIXELS = 2**24  # of an image file, which may be small and hold many

_Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


class BodyError(ValueError):
    """A request that cannot be answered.

    Attributes:
        status: of the HTTP response.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Wishes(BaseModel):
    """What a request may wish for; at most one of the last three, since each of them names a member."""

    model_config = ConfigDict(extra="forbid")

    deadline_ms: _Milliseconds | None = Field(default=None, description="Milliseconds within which the answer is due.")
    max_latency_ms: _Milliseconds | None = Field(
        default=None, description="The most accurate member that computes no longer than this, in 95 % of runs."
    )
    quality: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="From 0, the least accurate member, to 1, the most accurate."
    )
    subnet: Annotated[str, Field(max_length=100)] | None = Field(default=None, description="A member, such as entry=1.")

    def together(self, others: "Wishes") -> "Wishes":
        """These and others.

        Raises:
            BodyError: if both say the same, or they name a member twice.
        """
        mine, theirs = self.model_dump(exclude_none=True), others.model_dump(exclude_none=True)
        wishes = {name: theirs.get(name, mine.get(name)) for name in Wishes.model_fields}
        naming = [name for name in ("max_latency_ms", "quality", "subnet") if wishes[name] is not None]
        if len(naming) > 1:
            raise BodyError(422, f"one wish at a time, not {' and '.join(naming)}")
        if twice := sorted(mine.keys() & theirs.keys()):
            raise BodyError(422, f"{twice[0]} is there twice, in the query and in the body")
        return Wishes(**{name: wish for name, wish in wishes.items() if wish is not None})


class Body(Wishes):
    """A request in JSON: wishes, and either inputs or pixels."""

    inputs: list[Any] | None = Field(
        default=None, description="Numbers as the network sees them: one example, or several."
    )
    pixels: list[Any] | None = Field(default=None, description="Pixels from 0 to 255: one image, or several.")


def read(body: bytes, content_type: str, engine: Engine) -> tuple[Floats, Wishes]:
    """The inputs of a request, as the network sees them, and the wishes in its body.

    Args:
        body: its body.
        content_type: what it is said to be.
        engine: what knows the inputs.

    Raises:
        BodyError: if it cannot be read, or is not what the network takes.
    """
    kind, wishes = content_type.partition(";")[0].strip().lower(), Wishes()
    if kind in ("", "application/json"):
        array, wishes = _json(body)
    elif kind in NPY:
        array = _npy(body)
    elif kind in IMAGES:
        array = _image(body, IMAGES[kind], engine)
    else:
        known = ", ".join(("application/json", *NPY, *IMAGES))
        raise BodyError(415, f"a request is {known}, not {kind[:50]!r}")
    if array.shape == engine.input_shape:
        array = array[None]
    try:
        return engine.prepared(array), wishes
    except ValueError as error:
        raise BodyError(422, str(error)) from error


def told(error: ValidationError) -> str:
    """The first thing that is wrong, in a line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}"


def _json(body: bytes) -> tuple[NDArray[Any], Wishes]:
    try:
        data = Body.model_validate_json(body)
    except ValidationError as error:
        raise BodyError(422, told(error)) from error
    given = [values for values in (data.inputs, data.pixels) if values is not None]
    if len(given) != 1:
        raise BodyError(422, "a request has either inputs or pixels")
    try:
        array = np.asarray(given[0])
    except ValueError as error:  # rows of different lengths, or too many dimensions
        raise BodyError(422, "all examples, and all rows of an example, are of one length") from error
    wishes = Wishes(**data.model_dump(include=set(Wishes.model_fields)))
    if data.pixels is not None:
        if array.dtype.kind != "i" or not ((array >= 0) & (array <= 255)).all():
            raise BodyError(422, "pixels are whole numbers from 0 to 255")
        return array.astype(np.uint8), wishes
    if array.dtype.kind not in "if":
        raise BodyError(422, "inputs are numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32), wishes


def _npy(body: bytes) -> NDArray[Any]:
    """An array in NumPy's own format; its header is looked at first, for it may ask for any amount of memory."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
        if dtype.hasobject or dtype.itemsize * math.prod(shape) != len(body) - file.tell():
            raise ValueError("its header does not fit its size")
        array: NDArray[Any] = np.load(io.BytesIO(body), allow_pickle=False)
    except Exception as error:  # the parser of the header raises what it likes
        raise BodyError(422, f"the body is no array in the format of numpy.save: {error!s:.100}") from error
    return array


def _image(body: bytes, kind: str, engine: Engine) -> Pixels:
    """An image file's pixels `[channels, height, width]`: its middle, of the shape that the network takes, resized."""
    if len(engine.input_shape) != 3 or engine.input_shape[0] not in (1, 3) or not engine.takes_pixels:
        raise BodyError(415, "this network takes no image files: send inputs as JSON or in the format of numpy.save")
    channels, *size = engine.input_shape
    try:
        return decode(body, channels=channels, size=(size[0], size[1]), most_pixels=_MOST_PIXELS, formats=(kind,))
    except ImageError as error:
        raise BodyError(413 if isinstance(error, TooManyPixels) else 422, f"the image {error}") from error
