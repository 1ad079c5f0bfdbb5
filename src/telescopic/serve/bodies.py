"""What a request may hold: wishes and inputs. Nothing that comes over the wire is believed."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from telescopic.documents import examples, require_named
from telescopic.serve.waiting import UnansweredError
from telescopic.shapes import Shape, parted

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
NUMPY = ("application/x-npy", "application/x-npz", "application/octet-stream")
JSON = "application/json"
# What numpy.save writes of numbers. The header is a Python expression; nothing of a stranger's is evaluated.
_NPY = re.compile(
    rb"\{'descr': ?'([<>|=][biuf]\d{1,2})', ?'fortran_order': ?(True|False), ?'shape': ?\(([\d, ]{0,200})\),? ?\} *\n?"
)
# Zip's list of files stands before this, the end of the archive: how long it is, and where.
_LISTED = struct.Struct("<4s8x2I2x")
_ZIP64 = 20  # bytes of what stands before that in an archive of gigabytes

_Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


class BodyError(UnansweredError):
    """A request that cannot be taken, as the status of the response says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, 1 if status == 503 else None


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
        if others is NONE or self is NONE:
            return self if others is NONE else others
        mine, theirs = self.model_dump(exclude_none=True), others.model_dump(exclude_none=True)
        if twice := sorted(mine.keys() & theirs.keys()):
            raise BodyError(422, f"{twice[0]} is there twice, in the query and in the body")
        return wishes(mine | theirs)

    @model_validator(mode="after")
    def _one(self) -> Self:
        naming = [name for name in ("max_latency_ms", "quality", "subnet") if getattr(self, name) is not None]
        if len(naming) > 1:
            raise PydanticCustomError("wishes", "one wish at a time, not {names}", {"names": " and ".join(naming)})
        return self


NONE = Wishes()


class Body(Wishes):
    """A request in JSON: wishes, and either inputs or pixels. It describes what `read` takes."""

    inputs: list[Any] | dict[str, list[Any]] | None = Field(
        default=None,
        description="Numbers as the network sees them: one example, or several. Of several inputs by name.",
    )
    pixels: list[Any] | dict[str, list[Any]] | None = Field(
        default=None, description="Pixels from 0 to 255: one image, or several. Of several inputs by name."
    )


Arrays = dict[str, NDArray[Any]]
"""What a request holds, by the names of the network's inputs."""


@dataclass(frozen=True)
class Takes:
    """What a network takes.

    Attributes:
        inputs: the shape of each in one example, by name.
        pixels: whether it is known how to prepare pixels.
        examples: most in a request.
    """

    inputs: Mapping[str, Shape]
    pixels: bool
    examples: int

    @property
    def images(self) -> bool:
        """Whether an image file can be made an example."""
        shapes = [*self.inputs.values()]
        return self.pixels and len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][0] in (1, 3)

    def __str__(self) -> str:
        """For people: `ids int64 [batch, 6], mask bool [batch, 6]`."""
        parts = [(name, *parted(shape)) for name, shape in self.inputs.items()]
        return ", ".join(f"{name} {kind or 'float32'} {['batch', *sizes]}" for name, kind, sizes in parts).replace(
            "'", ""
        )

    def batch(self, given: Arrays) -> Arrays:
        """With the batch in front, also of one example that came without it.

        Raises:
            BodyError: if there are more examples than a request may have.
        """
        made = {}
        for name, array in given.items():
            _, sizes = parted(self.inputs[name])
            made[name] = array = array[None] if array.shape == sizes else array
            if array.shape[1:] == sizes and len(array) > self.examples:
                raise BodyError(
                    422, f"a request has at most {self.examples} examples, not {len(array)}: send several requests"
                )
        return made


def wishes(given: bytes | dict[str, Any]) -> Wishes:
    """The wishes in a query, or beside inputs in JSON.

    Raises:
        BodyError: if there is anything else, or one twice.
    """
    if not given:
        return NONE
    try:
        if isinstance(given, bytes):
            pairs = parse_qsl(given.decode("latin-1"), keep_blank_values=True, max_num_fields=len(Wishes.model_fields))
            if len({name for name, _ in pairs}) < len(pairs):
                raise BodyError(422, "the query has something twice")
            given = dict(pairs)
        return Wishes.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])).encode("unicode_escape").decode()
        raise BodyError(422, f"{where or 'the request':.100}: {first['msg']}") from error
    except ValueError as error:
        raise BodyError(422, "the query has more than wishes") from error


def kind_of(content_type: str, takes: Takes) -> str:
    """What a body is: a content type without what may follow it.

    Raises:
        BodyError: if none is said, or one that this network does not take.
    """
    kind, known = content_type.partition(";")[0].strip().lower(), (JSON, *NUMPY, *IMAGES)
    if kind not in known:
        found = repr(kind[:50]) if kind else "without a content type"
        raise BodyError(415, f"a request is {', '.join(known)}, not {found}")
    if kind in IMAGES and not takes.images:
        raise BodyError(415, "this network takes no image files: send inputs as JSON, or in the formats of numpy")
    return kind


def read(body: bytes, kind: str, takes: Takes) -> tuple[Arrays, dict[str, Any]]:
    """The inputs of a request that is no image, and what else is in its body.

    Raises:
        BodyError: if it cannot be read.
    """
    try:
        if kind == JSON:
            return examples(body, takes.inputs, takes.examples)
        if body[:2] == b"PK":
            return _npz(body, takes), {}
        if len(takes.inputs) > 1:
            raise BodyError(422, f"this network takes {', '.join(takes.inputs)}: send what numpy.savez writes, or JSON")
        return dict.fromkeys(takes.inputs, _npy(body)), {}
    except ValueError as error:
        raise BodyError(422, str(error)) from error


def _npz(body: bytes, takes: Takes) -> Arrays:
    """Arrays by name: an archive that `numpy.savez` wrote, in which nothing is compressed."""
    signature, size, _ = _LISTED.unpack(body[-_LISTED.size :].rjust(_LISTED.size))
    before = body[-_LISTED.size - _ZIP64 :][:4]
    # Python would read all of a list, however long, before anything could be asked.
    if signature != b"PK\5\6" or before == b"PK\6\7" or size > 4096 * len(takes.inputs):
        raise BodyError(422, f"the body is no archive of numpy.savez with {', '.join(takes.inputs)} in it")
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            files = archive.infolist()
            if any(file.compress_type for file in files) or sum(file.file_size for file in files) > len(body):
                raise BodyError(422, "the body is compressed: send what numpy.savez writes")
            require_named([file.filename.removesuffix(".npy") for file in files], takes.inputs)
            return {file.filename.removesuffix(".npy"): _npy(archive.read(file)) for file in files}
    except (ValueError, BodyError):
        raise
    except Exception as error:  # a damaged archive raises a dozen types
        raise BodyError(422, f"the body is no archive of numpy.savez: {error!s:.100}") from error


def with_predict(description: dict[str, Any], takes: Takes) -> dict[str, Any]:
    """A description in OpenAPI with what a request for a prediction may hold."""
    if "/predict" not in description["paths"]:
        binary = {"schema": {"type": "string", "format": "binary"}}
        kinds: dict[str, Any] = {JSON: {"schema": Body.model_json_schema()}}
        kinds |= dict.fromkeys((*NUMPY, *(IMAGES if takes.images else ())), binary)
        query = [
            {"name": name, "in": "query", "required": False, "schema": about}
            for name, about in Wishes.model_json_schema()["properties"].items()
        ]
        codes = {"200": "the answer", "400": "no HTTP", "401": "without the token", "403": "from another site"}
        codes |= {"408": "too slow", "413": "too large", "415": "of an unknown type", "421": "by another name"}
        codes |= {"422": "not what the network takes", "429": "too many at once", "431": "too long a head"}
        codes |= {"500": "a member fails, whatever is asked", "503": "too much waits"}
        description["paths"]["/predict"] = {
            "post": {
                "summary": "Answer",
                "description": f"The network takes {takes}.",
                "parameters": query,
                "requestBody": {"required": True, "content": kinds},
                "responses": {code: {"description": about} for code, about in codes.items()},
            }
        }
    return description


def _npy(body: bytes) -> NDArray[Any]:
    """An array in NumPy's own format, of which nothing is copied."""
    long = 2 if body[6:7] == b"\x01" else 4
    end = 8 + long + int.from_bytes(body[8 : 8 + long], "little")
    found = _NPY.fullmatch(body, 8 + long, end) if body[:6] == b"\x93NUMPY" and end <= len(body) else None
    if found is None:
        raise BodyError(422, "the body is no array of numbers in the format of numpy.save")
    try:
        dtype, shape = (
            np.dtype(found[1].decode()),
            tuple(int(length) for length in found[3].split(b",") if length.strip()),
        )
        if dtype.itemsize * math.prod(shape) != len(body) - end:
            raise ValueError("its header does not fit its size")
        return np.frombuffer(body, dtype, offset=end).reshape(shape, order="F" if found[2] == b"True" else "C")
    except (ValueError, TypeError) as error:
        raise BodyError(422, f"the body is no array in the format of numpy.save: {error!s:.100}") from error
