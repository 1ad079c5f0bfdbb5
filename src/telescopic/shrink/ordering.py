"""The channels of a network are put in order, the most important first, and its outputs stay the same."""

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telescopic.ambient import plain
from telescopic.inputs import Tensors
from telescopic.layers.cuts import Cut
from telescopic.layers.filter import filters_of
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import change_, watched
from telescopic.shrink.example import Inputs, examples
from telescopic.shrink.failing import Surprise
from telescopic.shrink.log import Log
from telescopic.shrink.optimizers import checked
from telescopic.wrappers import unwrapped


@plain()
def order_(model: nn.Module, *optimizers: Optimizer, example: Tensors | Inputs | None = None) -> Log:
    """Put the channels of each filter in the order of falling θ, everywhere: what makes and what reads them too.

    Nothing else changes: the network gives the same outputs, and training goes on as it would have. But "the first w
    channels" of a layer are now those with the largest θ, so that a narrower network can be cut off at any width, and
    the dead stand last.

    Channels that go together, as those that are added in a residual stream, move together, and the sum of their θ
    counts. Those of grouped convolutions stay within their group; channels that something tells apart by their number
    stay where they are.

    Args:
        model: a network with `layers.Filter`s inside.
        optimizers: of its parameters; their states are put in order too.
        example: see `add_filters`; not needed if that got one.

    Returns:
        What was moved. It can be replayed on copies of the network.

    Raises:
        ValueError: if the network has no filters, an optimizer keeps what cannot be put in order, or the network would
            give something else; nothing is changed then.
    """
    start = time.perf_counter()
    model = unwrapped(model)
    left = {path: len(part.theta) for path, part in filters_of(model).items()}
    if not left:
        raise ValueError("the network has no filters, whose θ say what is important: see shrink.add_filters")
    trained_by = checked(model, optimizers)
    inputs = examples(model, example)
    channels = watched(model, inputs)
    label = channels.labels()
    theta = torch.full((len(label),), -torch.inf, dtype=torch.float64)
    for path, part in channels.filters.items():
        ids = label[channels.theta(path)]
        theta[ids] = theta[ids].clamp(min=0)
        theta.index_add_(0, ids, part.scale().detach().double().cpu())
    try:
        moves = reorder_(model, trained_by, inputs, channels, theta)
    except Surprise as error:
        raise ValueError(
            f"with its channels in another order the network would not do the same, because of {error}"
        ) from error
    return Log(moves, left=left, seconds=time.perf_counter() - start)


def reorder_(
    model: nn.Module, optimizers: Sequence[Optimizer], inputs: Inputs, channels: Channels, importance: Tensor
) -> tuple[Cut, ...]:
    """Put channels that could change places in the order of falling importance.

    Args:
        model: the network.
        optimizers: of its parameters, whose states follow.
        inputs: its example.
        channels: what was seen of it.
        importance: of each channel, by its label; what is at -∞ stays where it is.

    Returns:
        What was moved.

    Raises:
        Surprise: if the network would give something else; nothing is changed then.
    """
    moves = tuple(_moves(channels, importance))
    change_(model, optimizers, inputs, moves)
    return moves


def _moves(channels: Channels, importance: Tensor) -> Iterator[Cut]:
    """For each axis, which entry each place gets."""
    label = channels.labels()
    source = sources(channels, importance)
    for axis in channels.axes.values():
        rows = []
        for row in label[axis.ids].view(axis.groups, -1):
            entries = torch.empty_like(row)
            # A channel may have several entries, such as the columns behind a flatten: the first for the first, ...
            entries[source[row].argsort(stable=True)] = row.argsort(stable=True)
            rows.append(entries)
        if any((entries.diff() != 1).any() for entries in rows):
            yield Cut(axis.name, axis.dim, torch.stack(rows) if axis.groups > 1 else rows[0], len(axis.ids))


def sources(channels: Channels, importance: Tensor) -> Tensor:
    """For each channel, by its label, the one that takes its place."""
    kind = channels.alike()
    places = ((importance > -torch.inf) & (kind >= 0)).nonzero().view(-1)
    ranked = places[importance[places].argsort(descending=True, stable=True)]
    source = torch.arange(len(kind))
    source[places[kind[places].argsort(stable=True)]] = ranked[kind[ranked].argsort(stable=True)]
    return source
