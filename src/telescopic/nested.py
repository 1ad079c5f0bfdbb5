"""What a nested network is: stages, the places where the input may enter, the places where a prediction is read."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from telescopic.inputs import Tensors, each, leaves, raise_fault
from telescopic.layers.causal import prefix
from telescopic.layers.cuts import call_with
from telescopic.layers.heads import SharedHead
from telescopic.layers.narrowing import in_width, takes_width
from telescopic.layers.sized import require_channels_first, require_sized
from telescopic.quantities import one_of
from telescopic.subnet import Coordinates, Grid, Statistics, Subnet
from telescopic.wrappers import twin

Mix = tuple[tuple[float, ...], ...]
"""Gradient mix, `[members, members]`: `mix[m][o]` scales what member m's loss sends to the parameters owned by o."""


class Nested(nn.Module):
    """One set of weights that contains every member of a grid.

    A member runs the adapter of its entry, the stages from its entry to its exit, and the head of its exit. There is
    no active member: which one runs is an argument of the call, so threads may share one network in eval mode.

    Inputs, and features between stages, are a tensor, or a dict or tuple of several, such as hidden states and a mask:
    what reads them is called with that one value.

    Args:
        stages: modules that map features to features, in order. They are used as they are, not copied.
        entries: stage index → adapter from the raw input to the features which that stage expects. Index
            `len(stages)` enters behind every stage, straight into the head. Default: the raw input enters stage 0.
        exits: stage index → head from that stage's features to logits `[batch, classes]`; index -1 is a head that
            reads the first adapter, before every stage. Default: the last stage gives the logits.
        dropout: probability of dropping a feature after the first, second, ... stage *that a member runs, counted
            from its own entry*, in training mode. One layer may thus be dropped differently in two members
            (NSN section 4). Stages beyond the last given have none. It is part of training: extraction leaves it out.
        statistics: who owns the buffers of stages and heads, such as BatchNorm's running mean: `shared` by all
            members, as in CNSN; or `per-entry`, where each entry's stream keeps its own and only the parameters are
            shared; or `recalibrated`, which is per-entry too, but `fit` computes them anew from training images
            before it evaluates, instead of leaving them as running means (see `recalibrate`). The policy changes no
            weight and no output in training mode, only those in eval mode.
        groups: number of channel groups, and so of widths. With several, either the stages are channel-causal: given
            the first w groups of channels they return the first w groups (see `layers.causal`). Then an adapter is run
            whole, and a member narrows what it gives; heads take any width, as `layers.SharedHead` does; and a layer of
            yours with tensors has a method `narrow(width)` that returns what it is for the first groups. Or some layers
            are told their width, which takes a pass for each: they have, beside `narrow`, a method `in_width(width)`
            that returns what a member runs in their place, with the same parameters and buffers of its own. All else
            is then run as it is.

    Attributes:
        grid: all members, smallest first.
        causal: whether the features of the full width hold those of all others, so that one pass answers for all.

    Raises:
        ValueError: if an index lies outside the network, a dropout is no probability, stages share a parameter, the
            policy for statistics is unknown; or, with several groups, if a part does not know of them (see
            `layers.sized`), or of another number.
    """

    def __init__(
        self,
        stages: Iterable[nn.Module],
        entries: Mapping[int, nn.Module] | None = None,
        exits: Mapping[int, nn.Module] | None = None,
        *,
        dropout: Sequence[float] = (),
        statistics: Statistics = "shared",
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        last = len(self.stages) - 1
        entries = {0: nn.Identity()} if entries is None else entries
        exits = {last: nn.Identity()} if exits is None else exits
        for name, places, low, high in (("entry", entries, 0, last + 1), ("exit", exits, -1, last)):
            for place in places:
                if not low <= place <= high:
                    raise ValueError(
                        f"{name} {place} is outside this network of {last + 1} stages: give {low} to {high}"
                    )
        if not all(0 <= p < 1 for p in dropout):
            raise ValueError(f"dropout {tuple(dropout)} must hold probabilities of dropping, at least 0 and below 1")
        one_of("statistics", statistics, get_args(Statistics))
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"a network has 1 channel group or more, not {groups!r}")
        self.groups = groups
        self.grid = Grid(entries, exits, range(1, groups + 1))
        self.entries = nn.ModuleDict({str(i): entries[i] for i in sorted(entries)})
        self.exits = nn.ModuleDict({str(i): exits[i] for i in sorted(exits)})
        self.dropout = tuple(float(p) for p in dropout)
        self.statistics = statistics
        self._refuse_shared_parameters()
        self.causal = not (groups > 1 and any(takes_width(part) for _, part in self.parts()))
        if groups > 1 and self.causal:
            require_sized(self.parts(), groups)
        # Parts as members see them who enter later or are narrower, where that differs: "<entry>-<part>@<width>".
        self.twins = nn.ModuleDict()
        parts = [(str(i), i, stage) for i, stage in enumerate(self.stages)]
        parts += [(f"exit{exit_}", exit_ + 1, exits[exit_]) for exit_ in self.grid.exits]
        first = self.grid.entries[0]
        for entry in self.grid.entries:
            seen = {f"entry{entry}": entries[entry]} | {name: part for name, place, part in parts if entry <= place}
            for name, part in seen.items():
                own = statistics != "shared" and entry != first and not name.startswith("entry")
                if own and any(True for _ in part.buffers()):
                    part = self.twins[f"{entry}-{name}"] = twin(part)
                if not self.causal and takes_width(part) and (own or name.startswith("entry") or entry == first):
                    for width in range(1, groups):
                        self.twins[f"{entry}-{name}@{width}"] = in_width(part, width)

    def forward(self, x: Tensors, subnet: Subnet | None = None) -> Tensor:
        """Logits of one member, by default the full network.

        Args:
            x: raw input `[batch, ...]`, or a dict or tuple of several.
            subnet: which member; parts left open take the full network's value.

        Returns:
            Logits `[batch, classes]`.

        Raises:
            ValueError: if the grid has no such member, what it runs cannot be as narrow, or the input is no batch of
                what its first layer takes.
        """
        member = self.grid.resolve(subnet)
        (_, adapter), *stages, head = path = self.path(member)
        try:
            features = self._narrowed(adapter, adapter(x), member) if self.causal else adapter(x)
            for step, stage in enumerate(stages):
                features = self._drop(self._narrow_run(*stage, features, member), step)
            logits: Tensor = self._narrow_run(*head, features, member)
            return logits
        except Exception as error:
            raise_fault(x, [[module for _, module in path]], error)
            raise

    def all(self, x: Tensors, mix: Mix | None = None, members: Collection[int] | None = None) -> Tensor:
        """Logits of every member in one pass that computes what members share once.

        Args:
            x: see `forward`.
            mix: how each member's gradient is scaled on parameters it shares, by their owner (see `owners`). It
                changes no output, and gradients still flow in full through a scaled layer to earlier ones. Members
                of one entry that see a layer differently each run it themselves. None: all gradients as they are.
                With a mix, one thread at a time.
            members: places in the grid of those to answer for, if not all; it saves what the others alone run.

        Returns:
            Logits `[members, batch, classes]`, in grid order.

        Raises:
            ValueError: if `mix` is not a table `[members, members]`, or the input is no batch of what the first layers
                take.
        """
        if mix is not None and (len(mix) != len(self.grid) or any(len(row) != len(self.grid) for row in mix)):
            shape = f"{len(mix)} rows of {sorted({len(row) for row in mix})}"
            raise ValueError(f"a gradient mix of this network is {len(self.grid)} × {len(self.grid)}; this has {shape}")
        lanes = self._lanes(mix if torch.is_grad_enabled() else None, members)
        answers: list[Tensor] = []
        order: list[int] = []
        levels = self.groups if self.causal else 1
        every = list(range(levels))

        def branch(x: Tensors, step: int, running: Iterable[_Lane]) -> None:
            """Run one step of lanes that agree so far, once for each way in which they now differ."""
            ways: dict[tuple[nn.Module, float, bool], list[_Lane]] = {}
            for lane in running:
                # One module may be the head of a member and a stage of another, say an activation.
                ways.setdefault((lane.path[step], lane.scales[step], step == len(lane.path) - 1), []).append(lane)
            for (module, scale, last), group in ways.items():
                if last:
                    # Wide features hold the narrow ones, so one pass answers for all widths.
                    rows = _run_head(module, x, scale, levels)
                    for lane in group:
                        answers.append(rows if lane.widths == every else rows[lane.widths])
                        order.extend(lane.members)
                else:
                    out = _run(module, x, scale)
                    if not step and levels > 1:
                        require_channels_first(module, out)
                    branch(self._drop(out, step - 1) if step else out, step + 1, group)

        try:
            branch(x, 0, lanes)
        except Exception as error:
            raise_fault(x, [lane.path for lane in lanes], error)
            raise
        logits = torch.cat(answers)
        place = sorted(range(len(order)), key=order.__getitem__)
        return logits if place == list(range(len(place))) else logits[place]

    def path(self, subnet: Subnet | None = None) -> list[tuple[str, nn.Module]]:
        """What a member runs, in order: its adapter, its stages, its head; each as (name of the part, module).

        Two members run the same part in the same state if and only if both name and module agree: with statistics
        per entry, a stage is one part (one set of parameters) but a module for each entry; and so for each width, if
        it has to be told.
        """
        member = self.grid.resolve(subnet)
        adapter = self._seen_by(member, f"entry{member.entry}", self.entries[str(member.entry)])
        path = [(f"entries.{member.entry}", adapter)]
        for i, stage in list(enumerate(self.stages))[member.entry : member.exit + 1]:
            path.append((f"stages.{i}", self._seen_by(member, str(i), stage)))
        head = self._seen_by(member, f"exit{member.exit}", self.exits[str(member.exit)])
        return [*path, (f"exits.{member.exit}", head)]

    def owners(self) -> dict[str, int]:
        """Part → position in the grid of its owner, the smallest member that runs it."""
        owners: dict[str, int] = {}
        for (first, *_), _ in self._by_path():
            for name, _ in self.path(self.grid[first]):
                owners[name] = min(first, owners.get(name, first))
        return owners

    def _seen_by(self, member: Coordinates, name: str, part: nn.Module) -> nn.Module:
        if not self.twins:
            return part
        entry = self.grid.entries[0] if self.statistics == "shared" and not name.startswith("entry") else member.entry
        key = f"{entry}-{name}" + ("" if self.causal or member.width == self.groups else f"@{member.width}")
        return self.twins[key] if key in self.twins else part  # noqa: SIM401 (a ModuleDict has no get)

    def _lanes(self, mix: Mix | None, asked: Collection[int] | None = None) -> list["_Lane"]:
        """Members that one pass answers for: those that differ in nothing but their width."""
        owners, lanes = self.owners() if mix is not None else {}, list[_Lane]()
        learning = {name: any(p.requires_grad for p in self.get_submodule(name).parameters()) for name in owners}
        for members, widths in self._by_path(asked):
            names, path = zip(*self.path(self.grid[members[0]]), strict=True)
            if mix is None:
                lanes.append(_Lane(path, (1.0,) * len(path), members, widths))
                continue
            owned = [owners[name] if learning[name] else None for name in names]
            alike: dict[tuple[float, ...], _Lane] = {}
            for m, width in zip(members, widths, strict=True):
                scales = tuple(1.0 if owner is None else float(mix[m][owner]) for owner in owned)
                lane = alike.setdefault(scales, _Lane(path, scales, [], []))
                lane.members.append(m)
                lane.widths.append(width)
            lanes += alike.values()
        return lanes

    def _by_path(self, asked: Collection[int] | None = None) -> Iterable[tuple[list[int], list[int]]]:
        """Members that one pass may answer for, which are those of all widths or one: positions, and widths from 0."""
        found: dict[tuple[int, int, int], tuple[list[int], list[int]]] = {}
        for m, member in enumerate(self.grid):
            if asked is not None and m not in asked:
                continue
            width = 0 if self.causal else member.width
            members, widths = found.setdefault((member.entry, member.exit, width), ([], []))
            members.append(m)
            widths.append(member.width - 1 if self.causal else 0)
        return found.values()

    def _narrow_run(self, name: str, part: nn.Module, x: Tensors, member: Coordinates) -> Tensors:
        """Run a stage or head on the groups that a member has; an error says what it must be able to do."""
        try:
            out = part(x)
        except (RuntimeError, ValueError, IndexError) as error:
            if member.width == self.groups or not self.causal:
                raise
            raise _not_causal(name, member.width, self.groups, x, error) from error
        return out

    def _narrowed(self, adapter: nn.Module, x: Tensors, member: Coordinates) -> Tensors:
        """The channel groups that a member uses of what its adapter gives."""
        if self.groups > 1:
            require_channels_first(adapter, x)
        if member.width == self.groups:
            return x
        return x[:, : prefix(x.shape[1], self.groups, member.width)]

    def _drop(self, x: Tensors, step: int) -> Tensors:
        """Dropout behind the stage that a member runs as number `step` (from 0) of its own path.

        Of several tensors the first of floating-point numbers has the features; what goes with them, such as a mask,
        is left as it is.
        """
        features = next((one for one in leaves(x) if one.is_floating_point()), None)
        if self.training and step < len(self.dropout) and features is not None:
            dropped = _dropped(features, self.dropout[step])
            return each(lambda one: dropped if one is features else one, x)
        return x

    def _refuse_shared_parameters(self) -> None:
        """A part has one owner, so a parameter belongs to one part only."""
        home: dict[nn.Parameter, str] = {}
        for name, module in self.parts():
            for parameter in module.parameters():
                if home.setdefault(parameter, name) != name:
                    raise ValueError(
                        f"{home[parameter]} and {name} share a parameter of shape {tuple(parameter.shape)}: each "
                        "belongs to one stage, adapter or head; put what shares it into one stage, or copy it"
                    )

    def parts(self) -> list[tuple[str, nn.Module]]:
        """All stages, adapters and heads, each as (name, module)."""
        parts = [(f"stages.{i}", stage) for i, stage in enumerate(self.stages)]
        parts += [(f"entries.{i}", adapter) for i, adapter in self.entries.items()]
        return parts + [(f"exits.{i}", head) for i, head in self.exits.items()]


@dataclass
class _Lane:
    """Members of one path, with one row of gradient scales: modules, scale at each, positions and widths from 0."""

    path: tuple[nn.Module, ...]
    scales: tuple[float, ...]
    members: list[int]
    widths: list[int]


class _EveryWidth(nn.Module):
    """A head that takes features of full width, and gives the logits of every width."""

    def __init__(self, head: nn.Module, groups: int) -> None:
        super().__init__()
        self.head, self.groups = head, groups

    def forward(self, x: Tensor) -> Tensor:
        return _every_width(self.head, x, self.groups)


def _every_width(head: nn.Module, x: Tensor, groups: int) -> Tensor:
    """Logits of every width `[groups, batch, classes]` from features of full width."""
    layers = list(head) if type(head) is nn.Sequential and len(head) else [head]
    if isinstance(layers[-1], SharedHead):
        for layer in layers[:-1]:
            x = layer(x)
        return layers[-1].every_width(x)
    each: list[Tensor] = []
    for width in range(1, groups + 1):
        features = x[:, : prefix(x.shape[1], groups, width)]
        try:
            each.append(head(features))
        except (RuntimeError, ValueError, IndexError) as error:
            raise _not_causal("a head", width, groups, features, error) from error
    return torch.stack(each)


def _not_causal(name: str, width: int | None, groups: int, x: Tensor, error: Exception) -> ValueError:
    return ValueError(
        f"{name} does not run on the first {width} of {groups} channel groups, features {tuple(x.shape)}: {error}. In "
        "a network with several widths stages are made of channel-causal layers (telescopic.layers.Causal...), heads "
        "end in a SharedHead, and no shortcut appends channels at the end"
    )


def rebuilt(net: Nested, *, stages: Iterable[nn.Module] | None = None, statistics: Statistics) -> Nested:
    """A network of the same adapters and heads, and the same or other stages, with another policy for statistics."""
    entries, exits = ({int(i): part for i, part in parts.items()} for parts in (net.entries, net.exits))
    stages = net.stages if stages is None else stages
    return Nested(stages, entries, exits, dropout=net.dropout, statistics=statistics, groups=net.groups)


def _dropped(x: Tensor, p: float) -> Tensor:
    """Dropout. torch's own draws its mask with Bernoulli numbers, which takes 2.6 times as long on a CPU."""
    # Drawn in float32 also for bf16 features: 8 bits could not tell 0.2 from 0.203.
    kept = torch.rand(x.shape, device=x.device) >= p
    return x * (kept.to(x.dtype) / (1 - p))


def _run(module: nn.Module, x: Tensors, scale: float) -> Tensors:
    """Call a module whose parameters' gradients are scaled; 0 detaches them, so that they cost nothing."""
    if scale == 1:
        return module(x)
    scaled = {id(parameter): _scaled(parameter, scale) for parameter in module.parameters()}
    return call_with(module, scaled, x)


def _run_head(head: nn.Module, x: Tensors, scale: float, groups: int) -> Tensor:
    """Logits of every width `[groups, batch, classes]`, with the head's gradients scaled."""
    # A module made at each step is dear: it has many parts to be collected again.
    if groups > 1 and scale == 1:
        return _every_width(head, x, groups)
    logits: Tensor = _run(head if groups == 1 else _EveryWidth(head, groups), x, scale)
    return logits[None] if groups == 1 else logits


def _scaled(parameter: Tensor, scale: float) -> Tensor:
    if scale == 0 or not parameter.requires_grad:
        return parameter.detach()
    view = parameter.view_as(parameter)
    # A hook on a view, not `scale * p + (1 - scale) * p.detach()`: the value must stay exactly the parameter's.
    view.register_hook(lambda grad: grad * scale)  # type: ignore[no-untyped-call]
    return view
