"""What a request may hold: wishes and inputs. Nothing that comes over the wire is believed."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from telescopic.documents import examples
from telescopic.shapes import Shape

IMAGES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
NPY = ("application/x-npy", "application/octet-stream")
JSON = "application/json"
# What numpy.save writes of numbers. The header is a Python expression; nothing of a stranger's is evaluated.
_NPY = re.compile(
    rb"\{'descr': ?'([<>|=][biuf]\d{1,2})', ?'fortran_order': ?(True|False), ?'shape': ?\(([\d, ]{0,200})\),? ?\} *\n?"
)

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
        if others is NONE or self is NONE:
            return self._one() if others is NONE else others._one()
        mine, theirs = self.model_dump(exclude_none=True), others.model_dump(exclude_none=True)
        wishes = {name: theirs.get(name, mine.get(name)) for name in Wishes.model_fields}
        if twice := sorted(mine.keys() & theirs.keys()):
            raise BodyError(422, f"{twice[0]} is there twice, in the query and in the body")
        return Wishes(**{name: wish for name, wish in wishes.items() if wish is not None})._one()

    def _one(self) -> "Wishes":
        naming = [name for name in ("max_latency_ms", "quality", "subnet") if getattr(self, name) is not None]
        if len(naming) > 1:
            raise BodyError(422, f"one wish at a time, not {' and '.join(naming)}")
        return self


NONE = Wishes()


class Body(Wishes):
    """A request in JSON: wishes, and either inputs or pixels. It describes what `read` takes."""

    inputs: list[Any] | None = Field(
        default=None, description="Numbers as the network sees them: one example, or several."
    )
    pixels: list[Any] | None = Field(default=None, description="Pixels from 0 to 255: one image, or several.")


@dataclass(frozen=True)
class Takes:
    """What a network takes.

    Attributes:
        shape: of one example.
        pixels: whether it is known how to prepare pixels.
        examples: most in a request.
    """

    shape: tuple[int, ...]
    pixels: bool
    examples: int

    @staticmethod
    def require(shape: Shape) -> None:
        """Refuse networks for which there is no door.

        Raises:
            ValueError: if it takes several inputs, or one of another type than float32.
        """
        if not isinstance(shape, tuple) or not all(isinstance(size, int) for size in shape):
            raise ValueError(
                f"a server takes images or one input of numbers, and this network takes {shape}: ask telescopic.Engine"
            )

    @property
    def images(self) -> bool:
        """Whether an image file can be made an example."""
        return self.pixels and len(self.shape) == 3 and self.shape[0] in (1, 3)


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
        raise error if isinstance(error, BodyError) else BodyError(422, "the query has more than wishes") from error


def kind_of(content_type: str, takes: Takes) -> str:
    """What a body is: a content type without what may follow it.

    Raises:
        BodyError: if none is said, or one that this network does not take.
    """
    kind, known = content_type.partition(";")[0].strip().lower(), (JSON, *NPY, *IMAGES)
    if kind not in known:
        found = repr(kind[:50]) if kind else "without a content type"
        raise BodyError(415, f"a request is {', '.join(known)}, not {found}")
    if kind in IMAGES and not takes.images:
        raise BodyError(415, "this network takes no image files: send inputs as JSON or in the format of numpy.save")
    return kind


def read(body: bytes, kind: str, takes: Takes) -> tuple[NDArray[Any], dict[str, Any]]:
    """The inputs of a request that is no image, and what else is in its body.

    Raises:
        BodyError: if it cannot be read.
    """
    if kind != JSON:
        return _npy(body), {}
    try:
        return examples(body, takes.shape, takes.examples)
    except ValueError as error:
        raise BodyError(422, str(error)) from error


def with_predict(description: dict[str, Any]) -> dict[str, Any]:
    """A description in OpenAPI with what a request for a prediction may hold."""
    if "/predict" not in description["paths"]:
        binary = {"schema": {"type": "string", "format": "binary"}}
        kinds: dict[str, Any] = {JSON: {"schema": Body.model_json_schema()}} | dict.fromkeys((*NPY, *IMAGES), binary)
        query = [
            {"name": name, "in": "query", "required": False, "schema": about}
            for name, about in Wishes.model_json_schema()["properties"].items()
        ]
        codes = {"200": "the answer", "401": "without the token", "403": "from another site", "421": "by another name"}
        codes |= {"408": "too slow", "413": "too large", "415": "of an unknown type"}
        codes |= {"422": "not what the network takes", "503": "too much waits"}
        description["paths"]["/predict"] = {
            "post": {
                "summary": "Answer",
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
