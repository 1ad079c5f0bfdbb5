"""A process that reads images and long JSON for another one, which must not wait for them nor end with them. No torch.

A few hundred bytes may be seconds of work, in code that lets nothing else of its process go on; and decoders have
faults. So they are at work in a process of their own, which ends itself when something takes too long.

It reads requests from standard input and answers on standard output, until there is nothing more to read.
"""

import contextlib
import faulthandler
import json
import math
import os
import struct
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from telescopic.documents import examples
from telescopic.images import ImageError, TooManyPixels, decode
from telescopic.shapes import Shape

JSON = "json"
_REQUEST, _ANSWER = struct.Struct("<II"), struct.Struct("<II")  # bytes of what is said about what follows, and of that


class DecodeError(ValueError):
    """What cannot be taken; the message says why.

    Attributes:
        large: whether there is too much of it.
    """

    def __init__(self, why: str, large: bool = False) -> None:
        super().__init__(why)
        self.large = large


def command() -> list[str]:
    """What starts the process."""
    return [sys.executable, "-P", "-m", "telescopic.decoder"]


def ask(
    to: IO[bytes], source: IO[bytes], body: bytes, kind: str, inputs: Mapping[str, Shape], *, most: int, seconds: float
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Have something read.

    Args:
        to: the process's input.
        source: its output.
        body: an image file, or JSON.
        kind: Pillow's name of the image's format, or `JSON`.
        inputs: of the network, by name: the shape of each in one example. Who sends an image has one.
        most: pixels of the image, or examples in the JSON.
        seconds: that it may take.

    Returns:
        What `documents.examples` does; of an image, pixels of its middle, resized to the shape.

    Raises:
        DecodeError: if it cannot be taken.
        OSError: if the process has ended, as it does where something takes too long.
    """
    about = json.dumps({"kind": kind, "inputs": inputs, "most": most, "seconds": seconds}).encode()
    to.write(_REQUEST.pack(len(about), len(body)) + about)
    to.write(body)
    to.flush()
    head = source.read(_ANSWER.size)
    if len(head) < _ANSWER.size:
        raise OSError("the process that decodes has ended")
    sizes = _ANSWER.unpack(head)
    about, data = json.loads(source.read(sizes[0])), source.read(sizes[1])
    if "error" in about:
        raise DecodeError(about["error"], about["large"])
    made, start = {}, 0
    for name, (dtype, shape) in about["arrays"].items():
        made[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += made[name].nbytes
    return made, about["more"]


def _answer(source: IO[bytes], to: IO[bytes]) -> None:
    """Read one thing after the other."""
    with open(os.devnull, "w") as nowhere:
        while head := source.read(_REQUEST.size):
            sizes = _REQUEST.unpack(head)
            asked, body = json.loads(source.read(sizes[0])), source.read(sizes[1])
            # A thread of the interpreter's own, which no code that is at work can keep from ending the process.
            faulthandler.dump_traceback_later(asked["seconds"], exit=True, file=nowhere)
            about, data = _read(body, **asked)
            faulthandler.cancel_dump_traceback_later()
            text = json.dumps(about).encode()
            to.write(_ANSWER.pack(len(text), len(data)) + text)
            to.write(data)
            to.flush()


def _read(
    body: bytes, kind: str, inputs: dict[str, list[Any]], most: int, seconds: float
) -> tuple[dict[str, Any], bytes]:
    more: dict[str, Any] = {}
    try:
        if kind == JSON:
            arrays, more = examples(body, inputs, most)
        else:
            ((name, (channels, *size)),) = inputs.items()
            pixels = decode(body, channels=channels, size=(size[0], size[1]), most_pixels=most, formats=(kind,))
            arrays = {name: pixels}
    except TooManyPixels as error:
        return {"error": str(error), "large": True}, b""
    except MemoryError:
        return {"error": "does not fit into the memory that there is for it", "large": True}, b""
    except (ImageError, ValueError) as error:
        return {"error": str(error), "large": False}, b""
    about = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    return {"arrays": about, "more": more}, b"".join(array.tobytes() for array in arrays.values())


def _bounded() -> None:
    """As little as decoding takes: some memory, no files, the processor when others leave it."""
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        os.nice(5)
        import resource

        for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, 2**31)):
            resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    import pydantic_core  # noqa: F401, loaded before anyone waits
    from PIL import Image

    Image.preinit()  # the formats that there are; their modules are loaded before anyone waits
    _bounded()
    _answer(sys.stdin.buffer, sys.stdout.buffer)
