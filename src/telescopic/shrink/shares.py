"""How many channels of each set a width keeps."""

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral

import torch
from torch import Tensor

from telescopic.shrink.channels import Channels
from telescopic.shrink.sets import ChannelSet, Trial, layers_of, place_of

Width = float | Mapping[str, float | int]
"""How wide a member is: a share for all layers; or for some, by their paths, a share or a number of channels."""


def by_share(channels: Channels, sets: Sequence[ChannelSet], width: Width, failing: Mapping[int, str]) -> list[int]:
    """How many labels of each set a width keeps.

    Raises:
        ValueError: if a layer that it names is not there, stays whole, or cannot have so many channels.
    """
    if not isinstance(width, Mapping):
        return [each.rounded(width) for each in sets]
    label = channels.labels()
    kept = [len(each.labels) for each in sets]
    named: dict[int, str] = {}
    for pattern, value in width.items():
        found = False
        for path, axis in layers_of(channels):
            if not fnmatchcase(path, pattern):
                continue
            ids = label[axis.ids]
            place = place_of(sets, ids)
            if place is None:
                if path == pattern:
                    why = channels.reason(ids) or failing.get(int(ids[0]), "what reads it")
                    raise ValueError(f"{path} stays whole, because of {why}")
                continue
            found, each = True, sets[place]
            if isinstance(value, Integral) and not isinstance(value, bool):
                entries = torch.bincount(ids, minlength=len(label))[each.labels]  # of this layer, for each label
                ends = (entries.cumsum(0) == value).nonzero().view(-1) + 1
                fitting = [end for end in ends.tolist() if end % each.least == 0 or end == len(each.labels)]
                if not fitting:
                    unit = each.least * max(1, int(entries.max()))
                    raise ValueError(f"{path} keeps 1 to {len(ids)} channels, in multiples of {unit}, not {value}")
                number = fitting[0]
            elif isinstance(value, float) and 0 < value <= 1:
                number = each.rounded(value)
            else:
                raise ValueError(f"{pattern!r:.100} is to keep a share or a number of its channels, not {value!r:.100}")
            if place in named and kept[place] != number:
                raise ValueError(f"{path} and {named[place]} have the same channels, but would keep different ones")
            kept[place], named[place] = number, path
        if not found:
            narrow = (path for path, axis in layers_of(channels) if place_of(sets, label[axis.ids]) is not None)
            layers = ", ".join(dict.fromkeys(narrow))
            raise ValueError(f"there is no layer {pattern!r:.100} that becomes narrow; those that do: {layers:.500}")
    return kept


def by_macs(trial: Trial, sets: Sequence[ChannelSet], importance: Tensor, shares: Sequence[float]) -> list[list[int]]:
    """How many labels of each set the shares of all multiply-adds keep.

    A signal has to pass all layers, so the product of the shares of importance that sets keep, each to the power of the
    set's importance, is to stay large: step by step that goes which takes the least of what is left in its set, for its
    price. So no layer is worn away alone.

    Raises:
        ValueError: if the narrowest network needs more.
    """
    macs = trial.channels.prices()[1]
    kept = [len(each.labels) for each in sets]
    sizes = [tuple(kept)]

    def last(i: int) -> tuple[float, int]:
        labels = sets[i].labels
        piece = labels[(kept[i] - 1) // sets[i].step * sets[i].step : kept[i]]
        lost = importance[piece].sum() / importance[labels[: kept[i]]].sum().clamp(min=1e-30)
        return float(lost * importance[labels].sum() / macs[piece].sum().clamp(min=1e-30)), i

    heap = [last(i) for i, each in enumerate(sets) if kept[i] > each.step]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        kept[i] = (kept[i] - 1) // sets[i].step * sets[i].step
        sizes.append(tuple(kept))
        if kept[i] > sets[i].step:
            heapq.heappush(heap, last(i))
    least = trial(sets, sizes[-1], prove=False).macs
    if least > shares[0] * trial.macs:
        raise ValueError(
            f"the narrowest member needs {least / trial.macs:.3f} of all multiply-adds, not {shares[0]:g}: "
            "ask for more, or for a smaller multiple_of"
        )
    # The more went, the fewer multiply-adds: the first one that needs no more than the share.
    needed: dict[int, int] = {}

    def saved(place: int) -> float:
        if place not in needed:
            needed[place] = trial(sets, sizes[place], prove=False).macs
        return -needed[place] / trial.macs

    return [list(sizes[bisect_left(range(len(sizes)), -share, key=saved)]) for share in shares]
