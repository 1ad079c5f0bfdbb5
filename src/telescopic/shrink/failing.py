"""Why a network that has lost its dead channels no longer runs: where it fails, and what it may have written down."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from traceback import walk_stack, walk_tb
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from telescopic.inputs import first_line
from telescopic.wrappers import called

_SHAPING = {"view", "reshape", "unflatten", "expand", "resize"}


class Surprise(ValueError):
    """A network does something else without its dead channels; says what."""


def where(model: nn.Module, error: BaseException) -> str:
    """The innermost module of a network in which an error arose, as messages call it; empty if in none."""
    running = [_running(model, frame) for frame, _ in walk_tb(error.__traceback__)]
    return next(filter(None, reversed(running)), "")


@dataclass(frozen=True)
class _Shaping:
    """A call of a function that is told a shape: its name, where, the numbers, and the shapes it had and gave."""

    name: str
    where: str
    numbers: tuple[int, ...]
    given: tuple[int, ...]
    made: tuple[int, ...] | None


class _Shapings(TorchFunctionMode):
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
            given = tree_leaves((args[1:], kwargs))
            numbers = tuple(number for number in given if isinstance(number, int))
            if name in _SHAPING and isinstance(args[0], Tensor) and len(numbers) > 1:
                frames = walk_stack(sys._getframe(1))
                place = next(filter(None, (_running(self.model, frame) for frame, _ in frames)), "")
                made = tuple(out.shape) if isinstance(out, Tensor) else None
                self.found.append(_Shaping(name, place or "the network", numbers, tuple(args[0].shape), made))


def shapings(model: nn.Module, run: Callable[[], Any]) -> list[_Shaping]:
    """What a network asks for in a run, until that ends or fails."""
    mode = _Shapings(model)
    with mode, suppress(Exception):  # which is known
        run()
    return mode.found


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


def _running(model: nn.Module, frame: FrameType) -> str:
    """The module whose method a frame runs."""
    owner = frame.f_locals.get("self")
    if isinstance(owner, nn.Module):
        for path, part in model.named_modules():
            if part is owner:
                return called(path, part)
    return ""
