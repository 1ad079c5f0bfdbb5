"""Channels of a network that become narrow together, and trials of the network with fewer of them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.cost.macs import Counter
from telescopic.layers.cuts import Cut, named_tensors
from telescopic.shrink.channels import Axis, Channels
from telescopic.shrink.compact import answers, cuts_of, outputs, require_equal
from telescopic.shrink.example import Inputs, Run, unchanged
from telescopic.shrink.failing import Surprise, reason, shapings
from telescopic.shrink.log import cut_
from telescopic.shrink.sizes import following, written
from telescopic.wrappers import copied


@dataclass(frozen=True, eq=False)
class ChannelSet:
    """Channels that become narrow together.

    Attributes:
        labels: in order; the first ones stay.
        step: the number of labels that stay is a multiple of it, or all.
        least: the same, where multiples of channels are not asked for.
    """

    labels: Tensor
    step: int
    least: int

    def rounded(self, share: float) -> int:
        """How many labels a share is."""
        return min(len(self.labels), math.ceil(round(share * len(self.labels) / self.step, 9)) * self.step)


def sets_of(channels: Channels, multiple_of: int) -> list[ChannelSet]:
    """The sets of what layers give and may go, whose layers are to keep a multiple of so many channels."""
    return [_set(channels, labels, multiple_of) for labels in _together(channels)]


def _set(channels: Channels, labels: Tensor, multiple_of: int) -> ChannelSet:
    label = channels.labels()
    labels, least = _by_turns(labels, channels.rows())
    given = [
        torch.bincount(label[axis.ids], minlength=len(label))[labels] for axis in channels.axes.values() if axis.makes
    ]
    numbers = torch.stack([each for each in given if each.any()])
    # A label may stand for several channels of a layer, as in a head; then what has one number for it does not count.
    ends = numbers[((numbers == numbers.amax(0)) & (numbers > 0)).any(1)].cumsum(1)
    fits = (ends % multiple_of == 0) | (ends == ends[:, -1:])
    step = next((n for n in range(least, len(labels), least) if fits[:, n - 1 :: n].all()), len(labels))
    return ChannelSet(labels, step, least)


def _together(channels: Channels) -> Iterator[Tensor]:
    """Channels that layers give and that may go: those of one set go by one share; labels, in order."""
    label, held = channels.labels(), channels.held()
    given = [label[axis.ids] for axis in channels.axes.values() if axis.makes]
    home = torch.arange(len(label))  # label → the smallest one of its set
    changed = True
    while changed:
        changed = False
        for labels in given:
            least = home[labels].min()
            if (home[labels] != least).any():
                home[torch.isin(home, home[labels])] = least
                changed = True
    for root in sorted({int(home[labels[0]]) for labels in given}):
        members = [labels for labels in given if home[labels[0]] == root]
        if not any(held[labels].any() for labels in members):
            # Of layers whose channels stand beside each other in a wider one, each keeps its share.
            places = torch.full((len(label),), torch.inf, dtype=torch.float64)
            for labels in sorted(members, key=len, reverse=True):
                places[labels.flip(0)] = (torch.arange(len(labels), dtype=torch.float64).flip(0) + 0.5) / len(labels)
            everything = torch.cat(members)
            in_order = everything[places[everything].argsort(stable=True)].tolist()
            yield torch.tensor(list(dict.fromkeys(in_order)))


def _by_turns(labels: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Labels so that of each kind the same share comes first; kinds are in other rows of those that keep equally many.

    Returns:
        The labels, and after how many of them, and multiples of it, these shares are the same.
    """
    kinds = torch.stack([(labels[:, None] == row).sum(1) for each in rows for row in each] or [0 * labels], 1)
    which = functional.one_hot(torch.unique(kinds, dim=0, return_inverse=True)[1])
    sizes, place = which.sum(0), (which.cumsum(0) * which).sum(1)
    shares = (place - 0.5) / sizes[which.argmax(1)]
    return labels[shares.argsort(stable=True)], len(labels) // math.gcd(*sizes.tolist())


def layers_of(channels: Channels) -> Iterator[tuple[str, Axis]]:
    """The layers that give channels, by their paths in the family."""
    for axis in channels.axes.values():
        if axis.makes:
            yield axis.name.removeprefix("net.").rpartition(".")[0], axis


def place_of(sets: Sequence[ChannelSet], ids: Tensor) -> int | None:
    """Which set channels of some labels are in."""
    return next((i for i, each in enumerate(sets) if torch.isin(ids, each.labels).any()), None)


def importances(channels: Channels, label: Tensor, elements: Mapping[str, Tensor] | None) -> Tensor:
    """Of each channel, by its label: what its elements sum to; of weights, their squares over those of their tensor."""
    total = torch.zeros(len(label), dtype=torch.float64)
    for axis in channels.axes.values():
        if elements is not None:
            each = elements.get(axis.name)
        else:
            each = axis.tensor.detach() if isinstance(axis.tensor, nn.Parameter) and axis.tensor.ndim > 1 else None
        if each is None:
            continue
        each = each.cpu().double()
        if elements is None:
            each = each.square() / each.square().sum().clamp(min=1e-30)
        rows = torch.unflatten(each, 0, (axis.groups, -1)).movedim(axis.dim + 1, 1)
        sums = rows.reshape(axis.groups, len(axis.ids) // axis.groups, -1).sum(2)
        total.index_add_(0, label[axis.ids], sums.flatten())
    return total


class Cuts(NamedTuple):
    """A width of the network.

    Attributes:
        removed: which channels are gone.
        cuts: what is cut.
        sizes: those that layers without tensors say then, by their paths.
        macs: multiply-adds of the example.
    """

    removed: Tensor
    cuts: tuple[Cut, ...]
    sizes: dict[str, dict[str, object]]
    macs: int


class Trial:
    """Narrows a network, and runs it."""

    def __init__(self, net: nn.Module, inputs: Inputs, channels: Channels) -> None:
        self.net, self.inputs, self.channels = net, inputs, channels
        self.label = channels.labels()
        self.wanted, self.macs = _run(net, inputs)
        self.dtype = answers(net, inputs)[1]
        self.tensors = {name: _moving(tensor, self.dtype) for name, tensor in named_tensors(net).items()}

    def __call__(self, sets: Sequence[ChannelSet], kept: Sequence[int], *, prove: bool = True) -> Cuts:
        """The network with so many of each set.

        Args:
            sets: the sets.
            kept: how many labels of each.
            prove: whether to compare what it computes with what the whole does if nothing comes from the others.

        Raises:
            ValueError: if it does not run so, or gives something else.
        """
        gone = torch.zeros(len(self.label), dtype=torch.bool)
        for each, number in zip(sets, kept, strict=True):
            gone[each.labels[number:]] = True
        wanted = gone[self.label]
        removed = self.channels.settled(wanted)
        if not torch.equal(removed, wanted):
            raise ValueError("a layer or a group of one would keep none, or other numbers of channels than asked for")
        cuts = tuple(cuts_of(self.channels, removed))
        trial = copied(self.net)
        sizes = written(trial)
        cut_(trial, cuts)
        try:
            with following(trial):
                found, macs = _run(trial, self.inputs)
                if found != self.wanted:
                    raise Surprise(f"the network's outputs, which would be {found} instead of {self.wanted}")
                if prove:
                    self._prove(trial, cuts)
        except Exception as error:  # it is anyone's code
            before, after = (shapings(net, Run(net, self.inputs)) for net in (self.net, trial))
            raise ValueError(reason(trial, error, before, after)) from error
        return Cuts(removed, cuts, {path: now for path, now in written(trial).items() if now != sizes[path]}, macs)

    def _prove(self, trial: nn.Module, cuts: Sequence[Cut]) -> None:
        """Compare the narrow network with the whole in which nothing is read of the others, or all of theirs is 0.

        Raises:
            Surprise: if both differ, so that the network depends on how many channels there are.
        """
        reads = {(axis.name, axis.dim) for axis in self.channels.axes.values() if not axis.makes}
        readers = [cut for cut in cuts if (cut.name, cut.dim) in reads and self.tensors[cut.name].ndim > 1]
        few = outputs(trial, self.inputs, self.dtype, self._left(cuts, zeros=False))
        for some in (readers, cuts):
            try:
                return require_equal(few, outputs(self.net, self.inputs, self.dtype, self._left(some, zeros=True)))
            except Surprise as error:
                differing = error
        raise Surprise(f"{differing}: something in it, such as a scale, depends on how many there are") from differing

    def _left(self, cuts: Sequence[Cut], *, zeros: bool) -> dict[str, Tensor]:
        """The network's tensors with what cuts leave of them, alone or with zeros for the rest."""
        found = dict(self.tensors)
        for name in {cut.name for cut in cuts}:
            flat, shape = found[name].reshape(-1), found[name].shape
            at = torch.arange(len(flat), device=flat.device).view(shape)
            for cut in cuts:
                at = cut.of(at) if cut.name == name else at
            found[name] = torch.zeros_like(flat).index_put((at,), flat[at]).view(shape) if zeros else flat[at]
        return found


@torch.no_grad()
def _moving(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A parameter that is not 0 or near it, as many are in a network that has not learned, and hide what others do."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    wide = tensor.to(dtype or tensor.dtype)
    if not isinstance(tensor, nn.Parameter):
        return wide
    noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)).to(wide)
    moved = torch.where(wide == 0, 0.05 * (noise - 0.5), wide * (1 + 0.1 * noise))
    # At least as large as what keeps features as they are: 1 for what is added to each or a factor of it.
    size = moved.float().square().mean().sqrt().clamp(min=1e-15)
    least = (len(tensor) / tensor.numel()) ** 0.5 if tensor.ndim else 1.0
    return moved * (least / size).clamp(min=1).to(moved)


@torch.no_grad()
def _run(net: nn.Module, inputs: Inputs) -> tuple[list[list[int]], int]:
    """The form of what a network gives in training and in eval mode, and its multiply-adds."""
    found = []
    for training in (True, False):
        with unchanged(net, training), Counter() as counter:
            out = Run(net, inputs)()
        found.append(list(out.shape))
    return found, counter.macs


def working(
    sets: list[ChannelSet], attempt: Callable[[list[ChannelSet]], object]
) -> tuple[list[ChannelSet], dict[int, str]]:
    """The sets with which an attempt succeeds, all together or else alone; and for the labels of others, why not."""
    failing: dict[int, str] = {}
    try:
        attempt(sets)
        return sets, failing
    except ValueError:
        for each in sets:
            try:
                attempt([each])
            except ValueError as error:
                failing |= dict.fromkeys(each.labels.tolist(), str(error))
    return [each for each in sets if int(each.labels[0]) not in failing], failing
