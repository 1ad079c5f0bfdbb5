"""What members of several widths would cost if no weight were multiplied, or kept, that may not be read.

`cost` prices what an extracted member executes: layers that are dense on the first w groups of channels, although up
to half of their weights are zeros. The paper of Doubly Nested Network counts without these: Σ over the layers of
9·H·W·c_in·c_out·w(w+1)/2, with c channels in a group and an output of H × W pixels. *Nominal* is the same for any
network: what is executed, less what is done with weights from a later group to an earlier one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from telescopic.cost.counting import on_meta
from telescopic.cost.macs import Counter
from telescopic.inputs import Tensors, dtype_and_device, examples, explained
from telescopic.layers.causal import prefix
from telescopic.layers.narrowing import narrow, narrow_outputs, narrowed
from telescopic.nested import Nested
from telescopic.shapes import Shape


def nominal_macs(net: Nested, input_shape: Shape) -> list[int]:
    """Multiply-adds of each member for one example, in grid order, without those by weights that may not be read.

    Counted as `Cost.macs` is, and the same for a network with one width. Parts are run by shape alone, and once for all
    widths wherever they compute nothing but causal layers.

    Args:
        net: the network; it is not changed.
        input_shape: shape of one example, without the batch; see `cost`.

    Raises:
        ValueError: if the network does not take this shape, or a part cannot be made narrower.
    """
    paper = on_meta(net)
    dtype, _ = dtype_and_device(paper)
    x = examples(1, input_shape, dtype, "meta")
    if not paper.causal:
        with torch.no_grad(), torch.device("meta"):
            return [_count(nn.Sequential(*run), x)[0] for run in _runs(paper)]
    prices: dict[str, list[int]] = {}

    def priced(name: str, part: nn.Module, given: Tensors) -> Tensors:
        """Price a part at every width; returns what it gives at full width."""
        places: dict[nn.Module, int] = {}

        def applied(layer: nn.Module, _: object, out: Tensor) -> None:
            places[layer] = places.get(layer, 0) + out.numel() // len(_weight(layer))

        hooks = [layer.register_forward_hook(applied) for layer in _masked(part)]
        others, out = _count(part, given)
        for hook in hooks:
            hook.remove()
        prices[name] = []
        sizes = [(times, [_weights(layer, width) for width in _widths(net)]) for layer, times in places.items()]
        for place, width in enumerate(_widths(net)):
            # What causal layers do follows from the one run; for all else, if there is anything, it takes one more.
            rest = 0
            if others > sum(times * every[-1][0] for times, every in sizes):
                run, taken = _narrow(name, part, width, net.groups), given
                if width is not None and not name.startswith("entries"):
                    taken = given[:, : prefix(given.shape[1], net.groups, width)]
                rest = _count(run, taken)[0] - sum(times * every[place][0] for times, every in sizes)
            prices[name].append(rest + sum(times * every[place][1] for times, every in sizes))
        return out

    with torch.no_grad(), torch.device("meta"):
        features: dict[int, Tensors] = {}  # stage → what it takes
        for entry in paper.grid.entries:
            features[entry] = priced(f"entries.{entry}", paper.entries[str(entry)], x)
        for i in range(paper.grid.entries[0], paper.grid.exits[-1] + 1):
            features[i + 1] = priced(f"stages.{i}", paper.stages[i], features[i])
        for exit_ in paper.grid.exits:
            if exit_ + 1 in features:
                priced(f"exits.{exit_}", paper.exits[str(exit_)], features[exit_ + 1])
    return _of_members(net, prices)


def nominal_params(net: Nested) -> list[int]:
    """Parameters of each member, in grid order, without weights that may not be read; see `nominal_macs`.

    Those of the member when it is extracted: a conditioned head is then as large as any, for its scale and shift are
    part of its weights. What the whole family holds is more: `sum(p.numel() for p in net.parameters())`.

    Raises:
        ValueError: if a part cannot be made narrower.
    """
    paper = on_meta(net)
    if not paper.causal:
        return [sum(p.numel() for p in nn.ModuleList(run).parameters()) for run in _runs(paper)]
    parts = {f"entries.{entry}": adapter for entry, adapter in paper.entries.items()}
    parts |= {f"stages.{i}": stage for i, stage in enumerate(paper.stages)}
    parts |= {f"exits.{exit_}": head for exit_, head in paper.exits.items()}
    sizes = {
        name: [
            sum(parameter.numel() for parameter in _narrow(name, part, width, net.groups).parameters())
            - sum(dense - read for dense, read in (_weights(layer, width) for layer in _masked(part)))
            for width in _widths(net)
        ]
        for name, part in parts.items()
    }
    return _of_members(net, sizes)


def _runs(net: Nested) -> Iterator[list[nn.Module]]:
    """What each member runs, where every weight that it has may be read."""
    for member in net.grid:
        yield narrowed([part for _, part in net.path(member)], member.width, net.groups, causal=False)


def _widths(net: Nested) -> list[int | None]:
    """All widths, smallest first; None where parts stay as they are."""
    return [*range(1, net.groups + 1)] if net.groups > 1 else [None]


def _of_members(net: Nested, prices: dict[str, list[int]]) -> list[int]:
    """The sum over the parts of each member, from the prices of each part at every width."""
    totals = []
    for member in net.grid:
        totals.append(sum(prices[name][member.width - 1] for name, _ in net.path(member)))
    return totals


def _narrow(name: str, part: nn.Module, width: int | None, groups: int) -> nn.Module:
    """A part as `extract` takes it out."""
    if width is None:
        return part
    return narrow_outputs(part, width, groups) if name.startswith("entries") else narrow(part, width)


def _count(part: nn.Module, given: Tensors) -> tuple[int, Tensors]:
    """Multiply-adds, and what the part gives."""
    with explained(part, given), Counter() as counter:
        out = part(given)
    return counter.macs, out


def _masked(part: nn.Module) -> list[nn.Module]:
    """The layers with weights that say which of them a width uses."""
    said = [layer for layer in part.modules() if callable(getattr(layer, "used", None))]
    return [layer for layer in said if "weight" in layer._parameters and _weight(layer).ndim > 1]


def _weight(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight


def _weights(layer: nn.Module, width: int | None) -> tuple[int, int]:
    """Weights of a layer in some width (or at its widest): of an ordinary one, and those among them that are read."""
    weight = _weight(layer)
    with torch.device("cpu"):
        used = layer.used(layer.width_groups if width is None else width)["weight"]  # type: ignore[operator]
    used = used.view(used.shape[:2]).expand(weight.shape[:2])
    each = weight[0, 0].numel()
    return int(used.any(1).sum() * used.any(0).sum()) * each, int(used.sum()) * each
