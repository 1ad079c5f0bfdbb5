"""Below which number whole-number inputs must lie: a network looks them up in tables, which have no other rows.

Torch refuses what a table has not. Graphs take a negative number for one from the end, so a pack says what to refuse.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from telescopic.inputs import Tensors, named
from telescopic.nested import Nested
from telescopic.subnet import Coordinates

Bounds = dict[str, int | tuple[int, ...]]
"""Input → its bound; or for each number of an example, where 0 stands for any."""

_TELLING = (-1, -100, 255)  # what often stands for a place that has no number
_MOST = 2**16  # numbers of an example that are looked up: a manifest, which is bounded, may name a bound for each


@torch.no_grad()
def bounds(net: Nested, members: Sequence[Coordinates], x: Tensors) -> Bounds:
    """Below which number each input must lie for all of some members, where that is 0 or more and they refuse others.

    Each number of an example becomes one by which it is known again where something is looked up. What is found so is
    tried on each example: the members must take the largest number that there is, and refuse the next one, and those
    that often stand for no number at all, also where masks and other inputs of no fractions are all 0 or all 1. What is
    looked up by some masks only has no bound.

    Args:
        net: in eval mode, on the CPU.
        members: of its grid.
        x: inputs `[batch, ...]` that they take.
    """
    tensors, form = tree_flatten(x)
    found: Bounds = {}

    def runs(given: Sequence[Tensor]) -> bool:
        """Whether all members take the inputs."""
        try:
            for member in members:
                net(tree_unflatten(list(given), form), member)
        except Exception:  # of many kinds
            return False
        return True

    def beside(place: int) -> Iterator[list[Tensor]]:
        """The inputs, and with all other ones that are no fractions 0 and 1, such as masks, if the members take it."""
        yield tensors
        for number in (0, 1):
            alike = [_is_fraction(one) or at == place for at, one in enumerate(tensors)]
            others = [one if same else torch.full_like(one, number) for one, same in zip(tensors, alike, strict=True)]
            if not all(alike) and runs(others):
                yield others

    def holds(place: int, where: Tensor, rows: int) -> bool:
        """Whether they take the largest number there and refuse others, whatever else they are given."""
        ends = torch.iinfo(tensors[place].dtype)

        def with_number(inputs: list[Tensor], number: int) -> list[Tensor]:
            placed = torch.where(where, torch.tensor(number, dtype=inputs[place].dtype), inputs[place])
            return [*inputs[:place], placed, *inputs[place + 1 :]]

        for inputs in beside(place):
            if not runs(with_number(inputs, min(rows - 1, ends.max))):
                return False
            for number in {rows, *_TELLING}:
                if ends.min <= number <= ends.max and not 0 <= number < rows:
                    asked = with_number(inputs, number)
                    if any(runs([one[row : row + 1] for one in asked]) for row in range(len(tensors[place]))):
                        return False
        return True

    for place, (name, tensor) in enumerate(zip(named(x), tensors, strict=True)):
        if _is_fraction(tensor) or tensor.dtype == torch.bool:
            continue
        number = tensor[0].numel()
        start = min(2**30, torch.iinfo(tensor.dtype).max // 2)
        if number > min(start, _MOST):
            continue
        first = [one[:1] for one in tensors]
        first[place] = torch.arange(start, start + number, dtype=tensor.dtype).view_as(first[place])
        with _Lookups(start, number) as seen:
            known = runs(first)
        below = seen.below if known else torch.zeros_like(seen.below)
        for rows in sorted({*below.tolist()} - {0}):
            where = (below == rows).view_as(first[place])
            if not holds(place, where, rows):
                below[where.flatten()] = 0
        numbers = below.tolist()
        if any(numbers):
            found[name] = numbers[0] if len({*numbers}) == 1 else tuple(numbers)
    return found


def _is_fraction(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


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
