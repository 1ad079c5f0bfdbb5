"""What laws are tried on, and the means to try them."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from telescopic.cost.macs import Counter
from telescopic.extract import joined
from telescopic.inputs import Tensors, each
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.subnet import Coordinates, Grid
from telescopic.testing.elements import Share, origins, shares

TOLERANCE = 1e-12
"""Largest difference between two ways to compute a number in float64, relative to the larger of its size and 1."""


@dataclass(frozen=True)
class Trial:
    """What a law is tried on.

    Attributes:
        net: a copy of the network in eval mode and float64; a law may change it.
        members: those to check, with all coordinates given.
        x: a random input `[3, ...]`, or a dict or tuple of such.
        rebuild: whether a bundle can describe the network.
        known: what `shares` has found, by the tensors' names; of use to all laws, for each gets a copy of one network.
        traced: what `origins` has found, likewise.
    """

    net: Nested
    members: tuple[Coordinates, ...]
    x: Tensors
    rebuild: bool
    known: dict[Coordinates, dict[str, Share]] = field(default_factory=dict)
    traced: dict[Coordinates, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def answer(self, member: Coordinates, x: Tensors = None) -> Tensor:
        """A member's logits by `net(x, member)`, for a copy of the input."""
        logits: Tensor = self.net(each(torch.clone, self.x if x is None else x), member)
        return logits

    def rows(self, x: Tensors = None) -> Tensor:
        """All members' logits by `net.all(x)`, for a copy of the input."""
        return self.net.all(each(torch.clone, self.x if x is None else x))

    def some(self, take: Callable[[Tensor], Tensor] = torch.clone) -> Tensors:
        """The input, or what is taken of each tensor of it; a copy."""
        return each(lambda x: take(x).clone(), self.x)

    def label(self, member: Coordinates) -> str:
        """What messages call a member."""
        return f"member {self.net.grid.label(member)}"

    def parts(self, member: Coordinates) -> list[nn.Module]:
        """What belongs to a member by definition: not asked of `net.path`, which may be what is broken."""
        stages = list(self.net.stages)[member.entry : member.exit + 1]
        return [self.net.entries[str(member.entry)], *stages, self.net.exits[str(member.exit)]]

    def shares(self, member: Coordinates) -> dict[int, Share]:
        """Which elements of its parts' parameters, and of the buffers that it runs, belong to a member."""
        tensors = named_tensors(self.net)
        if member not in self.known:
            # With statistics per entry a stage's buffers are another module's, which only the path can tell.
            run, parts = [module for _, module in self.net.path(member)], self.parts(member)
            buffers, own = {id(buffer) for module in run for buffer in module.buffers()}, ids(parts)
            how = (self.net.groups, member.width, self.net.causal)
            found = {i: share for i, share in shares(run, *how).items() if i in buffers}
            found |= {i: share for i, share in shares(parts, *how).items() if i in own}
            self.known[member] = {name: found[id(t)] for name, t in tensors.items() if id(t) in found}
        return {id(tensors[name]): share for name, share in self.known[member].items()}

    def origins(self, member: Coordinates) -> list[tuple[Tensor, Tensor]]:
        """Of each parameter of a member taken out, which elements of the network's it comes from, and times what."""
        if member not in self.traced:
            path = [module for _, module in self.net.path(member)]
            self.traced[member] = origins(self.net, lambda net: joined(cast(Nested, net), path, member.width))
        return self.traced[member]


class Some(Grid):
    """Some members of a grid."""

    def __init__(self, grid: Grid, members: Iterable[Coordinates]) -> None:
        super().__init__(grid.entries, grid.exits, grid.widths)
        self._members = tuple(sorted(set(members), key=grid.index))
        self._index = {member: i for i, member in enumerate(self._members)}


def demand(condition: bool, message: str) -> None:
    """Raise AssertionError unless the condition holds; unlike `assert`, under `python -O` too."""
    if not condition:
        raise AssertionError(message)


def demand_same(got: Tensor, want: Tensor, what: str, size: float = 0.0) -> None:
    """Demand that two results agree; `size` is that of the terms of which they are sums, if these are larger."""
    demand(got.shape == want.shape, f"{what}: they have shapes {tuple(got.shape)} and {tuple(want.shape)}")
    difference, allowed = largest(got - want), TOLERANCE * max(1.0, size, largest(want))
    # NaN and infinity fail too.
    numbers = f"they differ by up to {difference:.3g}, and {allowed:.1g} is allowed"
    demand(difference <= allowed < math.inf, f"{what}: {numbers}")


def largest(tensor: Tensor) -> float:
    """The largest absolute value; 0 if there is none."""
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def ids(modules: Iterable[nn.Module]) -> set[int]:
    """Which parameters modules hold."""
    return {id(parameter) for module in modules for parameter in module.parameters()}


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a scalar; zeros where it does not depend on a tensor or the tensor wants none."""
    wanting = [tensor for tensor in tensors if tensor.requires_grad] if loss.requires_grad else []
    found = torch.autograd.grad(loss, wanting, allow_unused=True, materialize_grads=True) if wanting else ()
    given = {id(tensor): gradient for tensor, gradient in zip(wanting, found, strict=True)}
    return [given[id(tensor)] if id(tensor) in given else torch.zeros_like(tensor) for tensor in tensors]


def macs(module: nn.Module, x: Tensors) -> int:
    """Multiply-adds counted while numbers are computed, and not by shape alone."""
    with torch.no_grad(), Counter() as counter:
        module(x)
    return counter.macs


def by_turns(net: nn.Module, calls: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """Make two calls of a network in two threads, each of which lets the other go on before it runs a module."""
    turns, ended, who = [threading.Semaphore(0), threading.Semaphore(0)], [False, False], dict[int, int]()

    def hand_over(*_: object) -> None:
        me = who.get(threading.get_ident())
        if me is not None and not ended[1 - me]:
            turns[1 - me].release()
            turns[me].acquire(timeout=1)  # a module may hold a lock without which the other thread cannot come back

    def run(me: int) -> Tensor:
        who[threading.get_ident()] = me
        turns[me].acquire()
        try:
            with torch.no_grad():  # each thread has its own grad mode
                return calls[me]()
        finally:
            ended[me] = True
            turns[1 - me].release()

    hooks = [module.register_forward_pre_hook(hand_over) for module in net.modules()]
    try:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(run, me) for me in (0, 1)]
            turns[0].release()
            return [future.result() for future in futures]
    finally:
        for hook in hooks:
            hook.remove()
