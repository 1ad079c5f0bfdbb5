"""Any network in several widths: the widest is the network as it is, others use its most important channels."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.inputs import Tensors
from telescopic.layers.filter import filters_of
from telescopic.layers.slim import Slim, described
from telescopic.nested import Nested, rebuilt
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import UNREACHED, watched
from telescopic.shrink.example import Inputs, as_one, examples
from telescopic.shrink.family import Every
from telescopic.shrink.ordering import reorder_, sources
from telescopic.shrink.sets import ChannelSet, Cuts, Trial, importances, layers_of, place_of, sets_of, working
from telescopic.shrink.shares import Width, by_macs, by_share
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
        together: of the layers in `channels` whose channels stay or go several at a time, such as the heads of an
            attention: how many.
    """

    channels: Mapping[tuple[str, ...], tuple[int, ...]]
    whole: Mapping[str, str]
    together: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for layers that become narrow together, and for those that stay whole for one reason."""
        lines = []
        for layers, sizes in self.channels.items():
            number = f", {self.together[layers]} at a time" if layers in self.together else ""
            lines.append(f"{', '.join(layers)}: {', '.join(map(str, sizes))}{number}")
        return "\n".join([*lines, *(f"{layers}: whole, because of {why}" for layers, why in self.reasons())])

    def reasons(self) -> list[tuple[str, str]]:
        """The layers that stay whole for one reason, and that reason."""
        layers: dict[str, list[str]] = {}
        for layer, why in self.whole.items():
            layers.setdefault(why, []).append(layer)
        return [(", ".join(some), why) for why, some in layers.items()]


@plain()
def slim(
    net: nn.Module,
    example: Tensors | Inputs,
    widths: int | Sequence[Width] = 4,
    *,
    of: Literal["channels", "macs"] = "channels",
    multiple_of: int = 8,
    order: Order | Mapping[str, Tensor] = "weights",
) -> Nested:
    """A family of widths inside a network, which may be trained already; and of its entries and exits, if it is nested.

    The network is run on the example, to see which channels belong together: what a layer gives, what norms and
    depthwise convolutions do with it, what reads it, and what is added to it. A narrower member keeps the first of them
    everywhere. The heads of an attention stay or go as a whole, if the code divides channels into heads of a size, not
    into a number of heads. Channels that are told apart by their number, such as inputs, outputs and those over which
    a norm is taken, stay whole: `family.narrowing` says which, and why. What a member computes is compared with what
    the network does if nothing comes from the channels that are gone.

    The full member answers as the network does. Narrower ones have its weights and its BatchNorm statistics, which are
    not theirs: train the family, or `recalibrate` it.

    Args:
        net: a module from inputs to logits, whose code is left alone; or a `Nested` with one width. It is not changed.
        example: a batch of inputs `[batch, ...]`; a dict of several; a tuple of what the network is called with; or a
            function that calls it. See `shrink.add_filters`.
        widths: rising shares, the last one 1; or a number of equal steps up to it. Instead of a share, a mapping from
            paths of layers, as `family.narrowing` has them, or patterns such as `stages.0.*`, to shares or numbers of
            channels (1.0 is all of them, and 1 is one); what it does not name stays whole.
        of: what the shares are of: each layer's `channels`; or all multiply-adds, those of all entries and exits
            together. These are saved where least importance is lost for each, so that layers narrow unevenly.
        multiple_of: each layer keeps a multiple of this many channels, rounded up, or all, unless it is given a number.
        order: which channels are important and come first: those of the `weights` with the largest norms, relative to
            the others of their tensor; as they are `given`; or those whose elements sum to most in a mapping, from
            names of the network's parameters to how important their elements are, 0 or more, such as `taylor` makes.

    Returns:
        A `Nested` of independent weights, with an attribute `narrowing`. What `telescopic.load` makes of a file has
        none.

    Raises:
        ValueError: if the network has several widths or filters; it cannot be followed; its channels cannot change
            places; nothing in it can become narrow; or the widths asked for cannot be.
    """
    asked = _asked(widths, of)
    if type(multiple_of) is not int or multiple_of < 1:
        raise ValueError(f"multiple_of is a whole number of channels, 1 or more, not {multiple_of!r}")
    if not isinstance(order, Mapping) and order not in ("weights", "given"):
        raise ValueError(f"order is weights, given, or importances by the names of parameters, not {order!r:.100}")
    net = unwrapped(net)
    elements = _elements(net, order) if isinstance(order, Mapping) else None
    base = _base(net)
    whole = Every(base)
    inputs = examples(whole, as_one(example) if isinstance(net, Nested) else example)
    try:
        channels = watched(whole, inputs)
    except Unfollowed as error:
        raise ValueError(f"it is not known which channels of this network belong together: {error}") from error
    label = channels.labels()
    sets = sets_of(channels, multiple_of)
    importance = importances(channels, label, elements)
    apart: dict[int, str] = {}
    if order != "given":
        sets, importance, apart = _ordered(whole, inputs, channels, sets, importance)
    trial = Trial(whole, inputs, channels)
    least = [each.step for each in sets]
    if of == "channels":
        least = [*map(min, zip(*(by_share(channels, sets, width, {}) for width in asked[:-1]), strict=True))]
    narrowest = dict(zip(sets, least, strict=True))
    sets, failing = working(sets, lambda some: trial(some, [narrowest[each] for each in some]))
    failing |= apart
    if of == "macs":
        kept = by_macs(trial, sets, importance, asked[:-1]) if sets else [[]] * (len(asked) - 1)  # type: ignore[arg-type]
    else:
        kept = [by_share(channels, sets, width, failing) for width in asked[:-1]]
    if any(a > b for one, other in pairwise(kept) for a, b in zip(one, other, strict=True)):
        raise ValueError("widths rise: no layer of a wider member has fewer channels than that of a narrower one")
    cut = [trial(sets, each) for each in kept]
    narrowing = _narrowing(channels, sets, [each.removed for each in cut], failing)
    if not any(each.cuts for each in cut):
        found = sorted(narrowing.reasons(), key=lambda each: UNREACHED not in each[1])  # which is one for all layers
        reasons = [f"{layers}: {why}" for layers, why in found]
        more = f"; and {len(reasons) - 4} more" if len(reasons) > 4 else ""
        why = f" ({'; '.join(reasons[:4])}{more})" if reasons else ""
        raise ValueError(f"nothing in this network becomes narrow, in multiples of {multiple_of} channels{why}")
    made = _family(base, cut, net.statistics if isinstance(net, Nested) else "shared").train(net.training)
    vars(made)["narrowing"] = narrowing
    return made


def _asked(widths: object, of: str) -> tuple[Width, ...]:
    """The widths, shares as floats.

    Raises:
        ValueError: if they are no widths.
    """
    if of not in ("channels", "macs"):
        raise ValueError(f"widths are shares of channels or macs, not of {of!r:.100}")
    if isinstance(widths, int) and not isinstance(widths, bool) and 2 <= widths <= 64:
        return tuple((step + 1) / widths for step in range(widths))
    each = [*widths] if isinstance(widths, Sequence) and not isinstance(widths, str) else []
    mapped = [isinstance(width, Mapping) for width in each]
    each = [float(one) if isinstance(one, Real) and not isinstance(one, bool) else one for one in each]
    shares = [width for width in each if isinstance(width, float)]
    rising = all(0 < a < b for a, b in pairwise([*shares, math.nextafter(1, 2)]))
    if not 2 <= len(each) <= 64 or len(shares) + sum(mapped) < len(each) or each[-1] != 1 or not rising:
        raise ValueError(
            "widths are 2 to 64 rising shares, or mappings from layers to shares, the last one 1; or a number of "
            f"shares: {widths!r:.200}"
        )
    if of == "macs" and any(mapped):
        raise ValueError("a mapping says how wide each layer is, and no share of all multiply-adds: of='channels'")
    return tuple(each)


def _base(net: nn.Module) -> Nested:
    """A copy of the network as a family of one width."""
    if filters_of(net):
        raise ValueError(
            "the network has filters, whose θ its channels are multiplied by: put it in their order and fold them "
            "(shrink.order_, shrink.fold), and slim it as given"
        )
    if not isinstance(net, Nested):
        return Nested([copied(net)]).train(net.training)
    if net.groups > 1:
        raise ValueError(f"the network has {net.groups} widths already: give one that has none")
    return rebuilt(copied(net), statistics="shared").train(net.training)


def _elements(net: nn.Module, order: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importances by the names that parameters have in `Every`.

    Raises:
        ValueError: if they are not those of the network's parameters.
    """
    shapes = {name: list(parameter.shape) for name, parameter in net.named_parameters()}
    for name, each in order.items():
        if name not in shapes:
            raise ValueError(f"importance is given for {name!r:.100}, which is no parameter of the network")
        if not isinstance(each, Tensor) or list(each.shape) != shapes[name]:
            given = list(each.shape) if isinstance(each, Tensor) else type(each).__name__
            raise ValueError(f"the importance of {name} is a tensor {shapes[name]}, not {given}")
        if not bool((torch.isfinite(each) & (each >= 0)).all()):
            raise ValueError(f"the importance of {name} is not finite and 0 or more everywhere")
    if missing := next((name for name in shapes if name not in order), None):
        raise ValueError(f"no importance is given for {missing}")
    start = "net." if isinstance(net, Nested) else "net.stages.0."
    return {start + name: each for name, each in order.items()}


def _ordered(
    whole: nn.Module, inputs: Inputs, channels: Channels, sets: list[ChannelSet], importance: Tensor
) -> tuple[list[ChannelSet], Tensor, dict[int, str]]:
    """Put the channels of sets in the order of their importance, which then is that of those in their places.

    Returns:
        The sets whose channels can change places, their importance; and for the labels of others, what happens.
    """

    def put(some: Sequence[ChannelSet]) -> None:
        nonlocal importance
        movable = torch.full_like(importance, -torch.inf)
        for each in some:
            movable[each.labels] = importance[each.labels]
        source = sources(channels, movable)
        reorder_(whole, (), inputs, channels, movable)
        importance = importance[source]

    sets, failing = working(sets, put)
    return sets, importance, failing


def _narrowing(
    channels: Channels, sets: Sequence[ChannelSet], removed: Sequence[Tensor], failing: Mapping[int, str]
) -> Narrowing:
    label = channels.labels()
    of: dict[tuple[int, tuple[int, ...], int], list[str]] = {}
    whole: dict[str, str] = {}
    for layer, axis in layers_of(channels):
        ids = label[axis.ids]
        place = place_of(sets, ids)
        if place is not None:
            sizes = (*(int((~gone[axis.ids]).sum()) for gone in removed), len(ids))
            names = of.setdefault((place, sizes, int((ids == ids[0]).sum())), [])
            names += [layer] * (layer not in names)
        elif (why := channels.reason(ids) or failing.get(int(ids[0]))) is not None:
            whole[layer] = re.sub(r"\bnet\.(stages|entries|exits)\b", r"\1", why)
    narrow = {tuple(names): (sizes, number) for (_, sizes, number), names in of.items() if sizes[0] < sizes[-1]}
    together = {names: number for names, (_, number) in narrow.items() if number > 1}
    return Narrowing({names: sizes for names, (sizes, _) in narrow.items()}, whole, together)


def _family(base: Nested, cut: Sequence[Cuts], statistics: Statistics) -> Nested:
    """The network with parts in several widths where something is cut."""

    def part(name: str, module: nn.Module) -> nn.Module:
        start = f"net.{name}."

        def inside(lines: Iterable[tuple[Any, ...]]) -> list[Any]:
            return [(path.removeprefix(start), *rest) for path, *rest in lines if path.startswith(start)]

        cuts = [inside(map(described, one.cuts)) for one in cut]
        sizes = [inside((p, n, v) for p, values in one.sizes.items() for n, v in values.items()) for one in cut]
        return Slim(module, cuts, sizes) if any(cuts) or any(sizes) else module

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
