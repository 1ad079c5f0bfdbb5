"""Which axes of which tensors belong to which channels, and which channels can be removed."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from telescopic.layers.filter import Filter
from telescopic.shrink.flow import FREE

INPUT, OUTPUT = "the network's input", "the network's output"


@dataclass
class Axis:
    """An axis of a parameter or buffer.

    Attributes:
        name: of the tensor.
        tensor: the tensor.
        dim: which of its dimensions.
        ids: the channel of each entry, `[entries]`. If `groups` > 1 each group of a grouped convolution has entries
            of its own along the dimension, and they stand here one after another.
        groups: of a grouped convolution.
        makes: whether these are the channels that a layer gives, not those it takes.
    """

    name: str
    tensor: Tensor
    dim: int
    ids: Tensor
    groups: int = 1
    makes: bool = False


@dataclass
class Channels:
    """What watching a network finds out. Channels are numbers; channel 0 is of a fixed size.

    Attributes:
        axes: of parameters and buffers, by id of the tensor and dimension.
        filters: each filter and its path.
    """

    axes: dict[tuple[int, int], Axis] = field(default_factory=dict)
    filters: dict[str, Filter] = field(default_factory=dict)
    _num: int = 1
    _pairs: list[Tensor] = field(default_factory=list)
    _held: list[tuple[Tensor, str]] = field(default_factory=list)
    _read: list[tuple[Tensor, str]] = field(default_factory=list)
    _equal: list[tuple[Tensor, int]] = field(default_factory=list)
    _leads: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _work: list[tuple[Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hold(torch.zeros(1, dtype=torch.long), "a tensor of fixed size")

    def fresh(self, num: int) -> Tensor:
        """New channels."""
        self._num += num
        return torch.arange(self._num - num, self._num)

    def fixed(self, shape: Sequence[int], reason: str) -> Tensor:
        """Ids for a tensor of which nothing can be removed."""
        ids = self.fresh(1)
        self.hold(ids, reason)
        return ids[0].expand(tuple(shape))

    def axis(self, name: str, tensor: Tensor, dim: int, ids: Tensor | None = None, groups: int = 1) -> Tensor:
        """The channels of an axis; given some, they are the same ones from now on."""
        key = (id(tensor), dim)
        makes = ids is None
        if key not in self.axes:
            size = tensor.shape[dim] * groups
            found = self.fresh(size) if ids is None else ids.clamp(min=0)
            self.axes[key] = Axis(name, tensor, dim, found, groups, makes)
        elif ids is not None:
            self.join(self.axes[key].ids, ids.clamp(min=0))
        axis = self.axes[key]
        axis.makes |= makes
        if groups > 1 and axis.groups != groups:
            self.hold(axis.ids, f"{name}, which is used with {axis.groups} and with {groups} groups")
            return axis.ids.repeat(groups)[: tensor.shape[dim] * groups]
        return axis.ids

    def join(self, one: Tensor, other: Tensor) -> None:
        """Channels that stay or go together, pair by pair."""
        one, other = one.reshape(-1), other.reshape(-1)
        different = (one != other) & (one != FREE) & (other != FREE)
        if different.any():
            self._pairs.append(torch.unique(torch.stack((one[different], other[different])), dim=1))

    def hold(self, ids: Tensor, reason: str) -> None:
        """Channels that stay."""
        self._held.append((torch.unique(ids[ids != FREE]), reason))

    def read(self, ids: Tensor, reason: str) -> None:
        """Channels that something reads while they may be anything but zero."""
        self._read.append((torch.unique(ids[ids != FREE]), reason))

    def equal(self, ids: Tensor, groups: int) -> None:
        """Channels of which each group keeps as many as the others."""
        self._equal.append((ids.clamp(min=0), groups))

    def work(self, ids: Tensor, macs: float) -> None:
        """Multiply-adds of one example that are shared evenly by these channels."""
        self._work.append((ids.clamp(min=0), macs))

    def lead(self, ids: Tensor, to: Tensor) -> None:
        """Something that is not known makes a tensor of these channels from others."""
        self._leads.append((torch.unique(ids[ids != FREE]), to.reshape(-1)[:1]))

    def outer(self) -> Tensor:
        """Channels that have to do with the network's inputs or outputs, with those they go with: which ones."""
        label = self.labels()
        found = self._marked(ids for ids, reason in self._held if reason in (INPUT, OUTPUT))
        for ids, to in reversed(self._leads):
            if found[label[to]].any():
                found[label[ids]] = True
        return found[label]

    def held(self) -> Tensor:
        """Which channels stay, by their labels, `[channels]`."""
        return self._marked(ids for ids, _ in self._held)

    def _marked(self, some: Iterable[Tensor]) -> Tensor:
        """Which labels some channels have, `[channels]`."""
        label, found = self.labels(), torch.zeros(self._num, dtype=torch.bool)
        for ids in some:
            found[label[ids]] = True
        return found

    def labels(self) -> Tensor:
        """For each channel, the smallest of those that stay or go together with it."""
        label = torch.arange(self._num)
        if self._pairs:
            one, other = torch.cat(self._pairs, 1)
            while True:
                least = torch.minimum(label[one], label[other])
                found = label.scatter_reduce(0, one, least, "amin").scatter_reduce(0, other, least, "amin")
                found = torch.minimum(found, found[found])
                if torch.equal(found, label):
                    break
                label = found
        return label

    def alike(self) -> Tensor:
        """For each label of channels, a number that it shares with those it could change places with; -1 if it stays.

        They have as many entries in each axis, and in each group of one.
        """
        label = self.labels()
        kind = torch.zeros(self._num, dtype=torch.long)
        parts = [(axis.ids, axis.groups) for axis in self.axes.values()] + self._equal
        for row in [row for ids, groups in parts for row in ids.view(groups, -1)]:
            entries = torch.bincount(label[row], minlength=self._num)
            kind = torch.unique(kind * (entries.max() + 1) + entries, return_inverse=True)[1]
        kind[self.held()] = -1
        return kind

    def removed(self, multiple_of: int = 1, of: Collection[str] | None = None) -> Tensor:
        """Which channels can be removed, `[channels]`.

        Those of which a filter is dead, and which nothing reads while they are anything but zero. Each axis keeps at
        least one entry: the first. A grouped convolution's groups keep equally many: as many as the one that keeps
        most. With `multiple_of`, each layer gives a multiple of it or as many channels as before; the first ones of
        the dead stay. Given paths of filters, the dead of others do not count.
        """
        paths = self.filters if of is None else of
        dead = self._marked(self.theta(path)[self.filters[path].dead().cpu()] for path in paths)
        used = self._marked(ids for ids, _ in (*self._held, *self._read))
        return self.settled((dead & ~used)[self.labels()], multiple_of)

    def settled(self, removed: Tensor, multiple_of: int = 1) -> Tensor:
        """Those among some channels that can be removed together, `[channels]`: see `removed`."""
        label, removed = self.labels(), removed.clone()
        while True:
            back = self._missed(removed, multiple_of)
            if not len(back):
                return removed
            removed &= ~torch.isin(label, label[back])

    def reason(self, labels: Tensor, *, dead: bool = False) -> str | None:
        """Why channels of some labels stay, also if they are dead; None if nothing holds them."""
        label, places = self.labels(), self._held
        if dead:
            equal = [(ids, "groups that keep equally many channels") for ids, _ in self._equal]
            places = [*places, *self._read, *equal]
        return next((why for ids, why in places if torch.isin(label[ids], labels).any()), None)

    def rows(self) -> list[Tensor]:
        """Labels of channels of which each row keeps as many as the others, `[groups, channels]`."""
        label = self.labels()
        return [label[ids].view(groups, -1) for ids, groups in self._equal if groups > 1]

    def _missed(self, removed: Tensor, multiple_of: int) -> Tensor:
        """Channels that should not have been removed."""
        back = []
        for axis in self.axes.values():
            gone = axis.ids[removed[axis.ids]]
            kept = len(axis.ids) - len(gone)
            if not kept:
                back.append(axis.ids[:1])
            elif axis.makes and kept % multiple_of:
                back.append(gone[: -kept % multiple_of])
        for ids, groups in self._equal:
            gone = removed[ids].view(groups, -1)
            surplus = gone & (gone.cumsum(1) > gone.sum(1).min())
            back.append(ids[surplus.view(-1)])
        return torch.cat(back) if back else torch.zeros(0, dtype=torch.long)

    def reasons(self, removed: Tensor) -> dict[str, str]:
        """For each filter with dead channels that stay because of what reads them: what that is."""
        label, found = self.labels(), {}
        for path, part in self.filters.items():
            ids = self.theta(path)
            if why := self.reason(label[ids[part.dead().cpu() & ~removed[ids]]], dead=True):
                found[path] = why
        return found

    def prices(self) -> Tensor:
        """Parameters and multiply-adds that go with the channels of each label, `[2, channels]`."""
        label = self.labels()
        params, macs = found = torch.zeros(2, self._num, dtype=torch.float64)
        for axis in self.axes.values():
            if isinstance(axis.tensor, torch.nn.Parameter):
                each = axis.tensor.numel() / len(axis.ids)
                params.index_add_(0, label[axis.ids], torch.full((len(axis.ids),), each, dtype=torch.float64))
        for ids, amount in self._work:
            macs.index_add_(0, label[ids], torch.full((len(ids),), amount / len(ids), dtype=torch.float64))
        return found

    def theta(self, path: str) -> Tensor:
        """The channels of a filter."""
        return self.axes[id(self.filters[path].theta), 0].ids
