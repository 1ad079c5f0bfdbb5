"""Why a network that has lost its dead channels no longer runs: where it fails, and what it may have written down."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from telescopic.inputs import first_line

_SHAPING = {"view", "reshape", "unflatten", "expand", "resize"}


class Surprise(ValueError):
    """A network does something else without its dead channels; says what."""


def where(model: nn.Module, error: BaseException) -> str:
    """The innermost module of a network in which an error arose, as messages call it; empty if in none."""
    found, trace = "", error.__traceback__
    while trace is not None:
        found, trace = _running(model, trace.tb_frame) or found, trace.tb_next
    return found


@dataclass(frozen=True)
class _Shaping:
    """A call of a function that is told a shape: its name, where, the numbers, and the shapes it had and gave."""

    name: str
    where: str
    numbers: tuple[int, ...]
    given: tuple[int, ...]
    made: tuple[int, ...] | None


class Shapings(TorchFunctionMode):
    """Notes the shapes that a network asks for while it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.found = model, list[_Shaping]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function; the shape that it is given is noted, whether it can follow it or not."""
        out, name = None, getattr(func, "__name__", "")
        try:
            out = func(*args, **(kwargs or {}))
            return out
        finally:
            numbers = tuple(_numbers((*args[1:], *(kwargs or {}).values())))
            if name in _SHAPING and isinstance(args[0], Tensor) and len(numbers) > 1:
                place = next(filter(None, (_running(self.model, frame) for frame in _frames(sys._getframe(1)))), "")
                made = tuple(out.shape) if isinstance(out, Tensor) else None
                self.found.append(_Shaping(name, place or "the network", numbers, tuple(args[0].shape), made))

    def during(self, run: Callable[[], Any]) -> list[_Shaping]:
        """What a run asks for, until it ends or fails."""
        self.found = []
        try:
            with self:
                run()
        except Exception:  # which is known
            pass
        return self.found


def reason(model: nn.Module, error: Exception, before: list[_Shaping], after: list[_Shaping]) -> str:
    """Why a network failed, as far as it is known.

    Args:
        model: the network.
        error: what it raised without its dead channels.
        before: the shapes that it asked for with them.
        after: and without them.
    """
    for old, new in zip(before, after, strict=False):
        if (old.name, old.where) != (new.name, new.where):
            break
        if old.numbers == new.numbers and old.given != new.given and not _adapts(old, new):
            return (
                f"{old.name}{old.numbers} in {old.where}, whose numbers stay when its input shrinks from "
                f"{list(old.given)} to {list(new.given)}; take them from the input's shape, as flatten(1) does, or "
                "write -1 for the one that is to shrink"
            )
    if isinstance(error, Surprise):
        return str(error)
    return f"{where(model, error) or 'the network'}, which fails with fewer channels: {first_line(error)}"


def _adapts(old: _Shaping, new: _Shaping) -> bool:
    """Whether numbers that stay leave room, by a −1, for the channels and not only for the examples."""
    if new.made is None or old.made is None or -1 not in old.numbers:
        return False
    return old.made[0] != old.given[0] or new.made[0] == new.given[0]


def _numbers(values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, list | tuple):
            yield from _numbers(value)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _running(model: nn.Module, frame: FrameType) -> str:
    """The module whose method a frame runs."""
    owner = frame.f_locals.get("self")
    if isinstance(owner, nn.Module):
        for path, part in model.named_modules():
            if part is owner:
                return f"{path or 'the network'} ({type(part).__name__})"
    return ""
