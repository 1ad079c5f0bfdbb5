"""Below which number whole-number inputs must lie: a network looks them up in tables, which have no other rows.

Torch refuses what a table has not. Graphs take a negative number for one from the end, so a pack says what to refuse.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from telescopic.inputs import Tensors, each, named
from telescopic.nested import Nested
from telescopic.subnet import Coordinates

Bounds = dict[str, int | tuple[int, ...]]
"""Input → its bound; or for each number of an example, where 0 stands for any."""


@torch.no_grad()
def bounds(net: Nested, members: Sequence[Coordinates], x: Tensors) -> Bounds:
    """Below which number each input must lie for all of some members, where that is 0 or more and they refuse others.

    Each number of an example becomes one by which it is known again where something is looked up. What is found so is
    tried: the members must take the largest number that there is, and refuse the next one, and -1.

    Args:
        net: in eval mode, on the CPU.
        members: of its grid.
        x: inputs `[batch, ...]` that they take.
    """
    x = each(lambda one: one[:1], x)
    tensors, form = tree_flatten(x)
    found: Bounds = {}

    def runs(place: int, values: Tensor) -> bool:
        """Whether all members take the inputs with one of them replaced."""
        given = tree_unflatten([*tensors[:place], values, *tensors[place + 1 :]], form)
        try:
            for member in members:
                net(given, member)
        except Exception:  # of many kinds
            return False
        return True

    def takes(place: int, where: Tensor, value: int) -> bool:
        """Whether they do with a number where one of the inputs has others."""
        kind, ends = tensors[place].dtype, torch.iinfo(tensors[place].dtype)
        if not ends.min <= value <= ends.max:
            return False
        return runs(place, torch.where(where, torch.tensor(value, dtype=kind), tensors[place]))

    for place, (name, tensor) in enumerate(zip(named(x), tensors, strict=True)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            continue
        most = torch.iinfo(tensor.dtype).max
        start = min(2**30, most // 2)
        if tensor.numel() > start:
            continue
        with _Lookups(start, tensor.numel()) as seen:
            known = runs(place, torch.arange(start, start + tensor.numel(), dtype=tensor.dtype).view_as(tensor))
        below = seen.below if known else torch.zeros_like(seen.below)
        for rows in sorted({*below.tolist()} - {0}):
            where = (below == rows).view_as(tensor)
            if not takes(place, where, min(rows - 1, most)) or takes(place, where, rows) or takes(place, where, -1):
                below[where.flatten()] = 0
        numbers = below.tolist()
        if any(numbers):
            found[name] = numbers[0] if len({*numbers}) == 1 else tuple(numbers)
    return found


class _Lookups(TorchFunctionMode):
    """Notes which of the numbers from `start` on are looked up, and in how many rows; each finds the first one."""

    def __init__(self, start: int, number: int) -> None:
        super().__init__()
        self.start, self.below = start, torch.zeros(number, dtype=torch.int64)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, given: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        named = named or {}
        if function in (functional.embedding, functional.embedding_bag):
            given = (self._first(given[0], len(given[1])), *given[1:])
        elif function is torch.embedding:
            given = (given[0], self._first(given[1], len(given[0])), *given[2:])
        elif function is functional.one_hot and (rows := named.get("num_classes", [*given, -1][1])) > 0:
            given = (self._first(given[0], rows), *given[1:])
        return function(*given, **named)

    def _first(self, index: Tensor, rows: int) -> Tensor:
        """Zeros in the place of an index."""
        places = index.flatten().long() - self.start
        for place in places[(places >= 0) & (places < len(self.below))].tolist():
            self.below[place] = min(rows, int(self.below[place]) or rows)
        return torch.zeros_like(index)
