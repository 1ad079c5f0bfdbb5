"""Any network in several widths: the widest is the network as it is, others use its most important channels."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.inputs import first_line
from telescopic.layers.cuts import Cut, named_tensors, resize_
from telescopic.layers.filter import Filter
from telescopic.layers.slim import Slim, described
from telescopic.nested import Nested, rebuilt
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import cuts_of, watched
from telescopic.shrink.example import Inputs, Run, examples, unchanged
from telescopic.shrink.family import Every
from telescopic.shrink.log import apply_
from telescopic.shrink.ordering import reorder_
from telescopic.shrink.sizes import following, written
from telescopic.shrink.watch import Unfollowed
from telescopic.subnet import Statistics
from telescopic.wrappers import copied, unwrapped

Order = Literal["weights", "given"]
"""Which channels are important: those of large weights, or the first ones."""


@dataclass(frozen=True)
class Narrowing:
    """What becomes narrow of a network, in channels that go together, and what stays whole.

    Attributes:
        channels: the layers that give the channels of a set, each by its path → how many of them each width has.
        whole: the layers whose channels all stay → the reason.
    """

    channels: Mapping[tuple[str, ...], tuple[int, ...]]
    whole: Mapping[str, str]

    def __str__(self) -> str:
        """A line for each."""
        lines = [f"{', '.join(layers)}: {', '.join(map(str, sizes))}" for layers, sizes in self.channels.items()]
        return "\n".join([*lines, *(f"{layer}: whole, because of {why}" for layer, why in self.whole.items())])


@plain()
def slim(
    net: nn.Module,
    example: Tensor | Inputs,
    widths: int | Sequence[float] = 4,
    *,
    multiple_of: int = 8,
    order: Order = "weights",
) -> Nested:
    """A family of widths inside a network, which may be trained already; and of its entries and exits, if it is nested.

    The network is run on the example, to see which channels belong together: what a layer gives, what norms and
    depthwise convolutions do with it, what reads it, and what is added to it. A narrower member keeps the first of them
    everywhere. Channels that are told apart by their number, such as inputs, outputs, those over which a norm is taken
    and the heads of an attention, stay whole: `family.narrowing` says which, and why.

    The full member answers as the network does. Narrower ones have its weights and its BatchNorm statistics, which are
    not theirs: train the family, or `recalibrate` it.

    Args:
        net: a module from inputs to logits, whose code is left alone; or a `Nested` with one width. It is not changed.
        example: a batch of inputs `[batch, ...]`; see `shrink.add_filters`.
        widths: shares of the channels, the last one 1; or a number of equal steps up to it.
        multiple_of: each layer keeps a multiple of this many channels, rounded up, or all.
        order: which channels come first: those of the `weights` with the largest norms, relative to the others of their
            tensor; or as they are `given`.

    Returns:
        A `Nested` of independent weights, with an attribute `narrowing`. What `telescopic.load` makes of a file has
        none.

    Raises:
        ValueError: if the network has several widths or filters; it cannot be followed; its channels cannot change
            places; or nothing in it can become narrow.
    """
    shares = _shares(widths)
    if type(multiple_of) is not int or multiple_of < 1:
        raise ValueError(f"multiple_of is a whole number of channels, 1 or more, not {multiple_of!r}")
    if order not in ("weights", "given"):
        raise ValueError(f"order is weights or given, not {order!r}")
    base = _base(unwrapped(net))
    whole = Every(base)
    inputs = examples(whole, example)
    try:
        channels = watched(whole, inputs)
    except Unfollowed as error:
        raise ValueError(f"it is not known which channels of this network belong together: {error}") from error
    sets = list(_sets(channels))
    label = channels.labels()
    if order == "weights" and sets:
        importance = torch.full((len(label),), -torch.inf, dtype=torch.float64)
        of_all = _importance(channels, label)
        for labels in sets:
            importance[labels] = of_all[labels]
        reorder_(whole, (), inputs, channels, importance)
    narrowed = partial(_narrowed, whole, inputs, channels, _shapes(whole, inputs), multiple_of=multiple_of)
    sets, failing = _working(narrowed, sets, shares[0])
    cut = [narrowed(sets, share) for share in shares[:-1]]
    narrowing = _narrowing(channels, sets, [removed for removed, _, _ in cut], failing)
    if not any(cuts for _, cuts, _ in cut):
        reasons = [f"{layer}: {why}" for layer, why in narrowing.whole.items()]
        more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        why = f" ({'; '.join(reasons[:4])}{more})" if reasons else ""
        raise ValueError(f"nothing in this network becomes narrow, in multiples of {multiple_of} channels{why}")
    made = _family(base, cut, net.statistics if isinstance(net, Nested) else "shared").train(net.training)
    vars(made)["narrowing"] = narrowing
    return made


def _shares(widths: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(widths, int) and not isinstance(widths, bool) and 2 <= widths <= 64:
        return tuple((step + 1) / widths for step in range(widths))
    shares = () if isinstance(widths, int) else tuple(float(share) for share in widths)
    rising = len(shares) > 1 and shares[0] > 0 and all(a < b for a, b in pairwise(shares))
    if not rising or shares[-1] != 1 or len(shares) > 64:
        raise ValueError(f"widths are 2 to 64 rising shares of the channels, the last one 1, or their number: {widths}")
    return shares


def _base(net: nn.Module) -> Nested:
    """A copy of the network as a family of one width."""
    if any(isinstance(part, Filter) for part in net.modules()):
        raise ValueError("the network has filters, whose θ its channels are multiplied by: fold them first")
    if not isinstance(net, Nested):
        return Nested([copied(net)]).train(net.training)
    if net.groups > 1:
        raise ValueError(f"the network has {net.groups} widths already: give one that has none")
    return rebuilt(copied(net), statistics="shared").train(net.training)


def _sets(channels: Channels) -> Iterator[Tensor]:
    """Channels that layers give and that may go: those of one set go by one share; labels, in order."""
    label = channels.labels()
    held = torch.zeros(len(label), dtype=torch.bool)
    for ids, _ in channels._held:
        held[label[ids]] = True
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
            everything = torch.cat(members)
            yield _in_order(everything, channels.rows())


def _in_order(labels: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Each label once, as they first come; those of rows that keep equally many, by turns."""
    for each in rows:
        if torch.isin(each, labels).any() and bool((each[0] != each[1]).any()):
            labels = torch.cat((each.T.reshape(-1), labels))
    kept, seen = [], set[int]()
    for number in labels.tolist():
        if number not in seen:
            seen.add(number)
            kept.append(number)
    return torch.tensor(kept)


def _importance(channels: Channels, label: Tensor) -> Tensor:
    """Of each channel, by its label: the mean square of its weights, over that of its tensors."""
    total, times = torch.zeros(2, len(label), dtype=torch.float64)
    for axis in channels.axes.values():
        if not isinstance(axis.tensor, nn.Parameter) or axis.tensor.ndim < 2 or axis.groups > 1:
            continue
        others = [dim for dim in range(axis.tensor.ndim) if dim != axis.dim]
        square = axis.tensor.detach().double().square().cpu()
        each = square.mean(others)
        each = each / each.mean().clamp(min=1e-30)
        total.index_add_(0, label[axis.ids], each)
        times.index_add_(0, label[axis.ids], torch.ones_like(each))
    mean: Tensor = total / times.clamp(min=1)
    return mean


_Cut = tuple[Tensor, tuple[Cut, ...], dict[str, dict[str, object]]]
"""Which channels are gone, what is cut, and the sizes that layers without tensors say then."""


def _working(
    narrowed: Callable[[Sequence[Tensor], float], _Cut], sets: list[Tensor], share: float
) -> tuple[list[Tensor], dict[int, str]]:
    """The sets without which the network still runs; and for others, by their first label, what happens."""
    failing: dict[int, str] = {}
    try:
        narrowed(sets, share)
        return sets, failing
    except ValueError:
        for labels in sets:
            try:
                narrowed([labels], share)
            except ValueError as error:
                failing[int(labels[0])] = str(error)
    return [labels for labels in sets if int(labels[0]) not in failing], failing


def _narrowed(
    net: Every,
    inputs: Inputs,
    channels: Channels,
    wanted: list[list[int]],
    sets: Sequence[Tensor],
    share: float,
    multiple_of: int,
) -> _Cut:
    """What a width keeps, of a network that gives outputs of the forms wanted.

    Raises:
        ValueError: if the network does not run so, or gives something of another form.
    """
    label = channels.labels()
    gone = torch.zeros(len(label), dtype=torch.bool)
    for labels in sets:
        groups = [len(rows) for rows in channels.rows() if torch.isin(rows, labels).any()]
        # How many channels of a layer one label stands for, such as one of each group that are shuffled together.
        given = [int((label[axis.ids] == labels[0]).sum()) for axis in channels.axes.values() if axis.makes]
        step = math.lcm(math.lcm(multiple_of, max(given)) // max(given), *groups)
        kept = min(len(labels), math.ceil(round(share * len(labels) / step, 9)) * step)
        gone[labels[max(1, kept) :]] = True
    removed = channels.settled(gone[label])
    cuts = tuple(cuts_of(channels, removed))
    trial = copied(net)
    sizes = written(trial)
    tensors = named_tensors(trial)
    apply_(cuts, tensors, ())
    resize_(trial, {id(tensors[cut.name]) for cut in cuts})
    try:
        with following(trial):
            found = _shapes(trial, inputs)
    except Exception as error:  # it is anyone's code
        raise ValueError(f"the network does not run with fewer of them: {first_line(error)}") from error
    if found != wanted:
        raise ValueError(f"the network would give {found} instead of {wanted}")
    return removed, cuts, {path: now for path, now in written(trial).items() if now != sizes[path]}


@torch.no_grad()
def _shapes(net: nn.Module, inputs: Inputs) -> list[list[int]]:
    """What a network gives in training and in eval mode, by its form."""
    found = []
    for training in (True, False):
        with unchanged(net, training):
            out = Run(net, inputs)()
        found.append(list(out.shape))
    return found


def _narrowing(
    channels: Channels, sets: Sequence[Tensor], removed: Sequence[Tensor], failing: Mapping[int, str]
) -> Narrowing:
    label = channels.labels()
    layers = {axis.name.removeprefix("net."): axis for axis in channels.axes.values() if axis.makes}
    of: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    whole: dict[str, str] = {}
    for name, axis in layers.items():
        ids, layer = label[axis.ids], name.rpartition(".")[0]
        place = next((i for i, labels in enumerate(sets) if torch.isin(ids, labels).any()), None)
        if place is not None:
            sizes = (*(int((~gone[axis.ids]).sum()) for gone in removed), len(ids))
            names = of.setdefault((place, sizes), [])
            names += [layer] * (layer not in names)
        elif (why := channels.reason(ids) or failing.get(int(ids[0]))) is not None:
            whole[layer] = re.sub(r"\bnet\.(stages|entries|exits)\b", r"\1", why)
    return Narrowing({tuple(names): sizes for (_, sizes), names in of.items() if sizes[0] < sizes[-1]}, whole)


def _family(base: Nested, cut: Sequence[_Cut], statistics: Statistics) -> Nested:
    """The network with parts in several widths where something is cut."""

    def part(name: str, module: nn.Module) -> nn.Module:
        start = f"net.{name}."
        cuts = [
            [(n.removeprefix(start), *rest) for n, *rest in map(described, each) if n.startswith(start)]
            for _, each, _ in cut
        ]
        sizes = [
            [
                (p.removeprefix(start), n, v)
                for p, values in each.items()
                if p.startswith(start)
                for n, v in values.items()
            ]
            for _, _, each in cut
        ]
        return Slim(module, cuts, sizes) if any(cuts) or any(sizes) else module  # type: ignore[arg-type]

    stages = [part(f"stages.{i}", stage) for i, stage in enumerate(base.stages)]
    entries = {int(i): part(f"entries.{i}", adapter) for i, adapter in base.entries.items()}
    exits = {int(i): part(f"exits.{i}", head) for i, head in base.exits.items()}
    return Nested(
        stages,
        entries,
        exits,
        dropout=base.dropout,
        statistics=statistics,
        groups=len(cut) + 1,
    )
