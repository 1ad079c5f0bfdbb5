"""Filters in a nested network, whose channels go on every member's path or on none."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.inputs import Tensors
from telescopic.layers.filter import Filter, filters_of
from telescopic.nested import Nested, rebuilt
from telescopic.shrink.adding import add_filters
from telescopic.shrink.example import as_one
from telescopic.shrink.folding import fold
from telescopic.wrappers import copied, unwrapped


class Every(nn.Module):
    """A nested network as a module that gives the logits of all members: what `compact_` needs to see.

    Seen through the full member alone, the adapters of other entries would keep channels that nobody reads any more.
    Dropout is left out: it treats each channel alone, and a dead one stays 0.
    """

    def __init__(self, net: Nested) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `[batch, ...]` to logits `[members, batch, classes]`."""
        dropout, self.net.dropout = self.net.dropout, ()
        try:
            return self.net.all(x)
        finally:
            self.net.dropout = dropout


@plain()
def add_filters_to_family(net: Nested, example: Tensors, *, where: Callable[[str], bool] | None = None) -> Nested:
    """A copy of a nested network with filters in every part: see `add_filters`.

    An adapter's layers get filters of their own. A channel that an adapter and the stage before both give is removed
    once it is dead in both. Streams that keep statistics of their own share θ, and their statistics start anew.

    Args:
        net: the network.
        example: a batch of inputs `[batch, ...]`, or a dict or tuple of several.
        where: which layers get filters, by their path in the network; all by default.

    Raises:
        ValueError: see `add_filters`.
    """
    net = unwrapped(net)
    shared = Every(rebuilt(copied(net), statistics="shared").train(net.training))
    chosen = None if where is None else (lambda path: where(path.removeprefix("net.")))
    made = add_filters(shared, as_one(example), where=chosen).net
    return made if net.statistics == "shared" else rebuilt(made, statistics=net.statistics).train(net.training)


@plain()
def fold_family(net: Nested, example: Tensors) -> Nested:
    """A copy of a nested network without filters, each member of which gives the same logits: see `fold`.

    Args:
        net: the network.
        example: a batch of inputs `[batch, ...]`, or a dict or tuple of several.

    Raises:
        ValueError: see `fold`.
    """
    made = fold(Every(unwrapped(net)), as_one(example)).net
    for key, twin in made.twins.items():  # each was scaled by itself, and is to share the parameters again
        kind = key.partition("-")[2]
        part = made.exits[kind.removeprefix("exit")] if kind.startswith("exit") else made.stages[int(kind)]
        for mine, theirs in zip(twin.modules(), part.modules(), strict=True):
            mine._parameters.update(theirs._parameters)
    return made


def filters(model: nn.Module) -> dict[str, Filter]:
    """The filters of a network by the path of what they follow; those that share θ once."""
    found: dict[int, tuple[str, Filter]] = {}
    for path, part in filters_of(unwrapped(model)).items():
        found.setdefault(id(part.theta), (path.removesuffix(".filter"), part))
    return dict(found.values())


@torch.no_grad()
def living(model: nn.Module) -> tuple[int, ...]:
    """How many channels of each filter are not dead."""
    return tuple(int((~part.dead()).sum()) for part in filters(model).values())
