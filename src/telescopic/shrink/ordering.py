"""The channels of a network are put in order, the most important first, and its outputs stay the same."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telescopic.ambient import plain
from telescopic.layers.filter import Filter
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import change_, watched
from telescopic.shrink.example import Inputs, examples
from telescopic.shrink.failing import Surprise
from telescopic.shrink.log import Cut, Log
from telescopic.shrink.optimizers import checked
from telescopic.wrappers import unwrapped


@plain()
def order_(model: nn.Module, *optimizers: Optimizer, example: Tensor | Inputs | None = None) -> Log:
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
    left = {path: len(part.theta) for path, part in model.named_modules() if isinstance(part, Filter)}
    if not left:
        raise ValueError("the network has no filters, whose θ say what is important: see shrink.add_filters")
    trained_by = checked(model, optimizers)
    inputs = examples(model, example)
    channels = watched(model, inputs)
    moves = tuple(_moves(channels))
    try:
        change_(model, trained_by, inputs, moves)
    except Surprise as error:
        raise ValueError(
            f"with its channels in another order the network would not do the same, because of {error}"
        ) from error
    return Log(moves, left=left, seconds=time.perf_counter() - start)


def _moves(channels: Channels) -> Iterator[Cut]:
    """For each axis, which entry each place gets."""
    label = channels.labels()
    source = _sources(channels, label)
    for axis in channels.axes.values():
        rows = []
        for row in label[axis.ids].view(axis.groups, -1):
            entries = torch.empty_like(row)
            # A channel may have several entries, such as the columns behind a flatten: the first for the first, ...
            entries[source[row].argsort(stable=True)] = row.argsort(stable=True)
            rows.append(entries)
        if any((entries.diff() != 1).any() for entries in rows):
            yield Cut(axis.name, axis.dim, torch.stack(rows) if axis.groups > 1 else rows[0], len(axis.ids))


def _sources(channels: Channels, label: Tensor) -> Tensor:
    """For each channel, by its label, the one that takes its place."""
    kind, theta = channels.alike(), torch.zeros(len(label), dtype=torch.float64)
    filtered = torch.zeros(len(label), dtype=torch.bool)
    for path, part in channels.filters.items():
        ids = label[channels.theta(path)]
        theta.index_add_(0, ids, part.scale().detach().double().cpu())
        filtered[ids] = True
    places = (filtered & (kind >= 0)).nonzero().view(-1)
    ranked = places[theta[places].argsort(descending=True, stable=True)]
    source = torch.arange(len(label))
    source[places[kind[places].argsort(stable=True)]] = ranked[kind[ranked].argsort(stable=True)]
    return source
