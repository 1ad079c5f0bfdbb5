"""What members run, in the smallest pieces that matter: parts of the network, or spans of channel groups of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_structure

from telescopic.anytime.rows import Kept, Part
from telescopic.inputs import Tensors, named
from telescopic.layers.causal import prefix
from telescopic.layers.narrowing import flat, last_mixing, narrow, narrow_outputs
from telescopic.nested import Nested
from telescopic.shapes import INPUT
from telescopic.subnet import Coordinates
from telescopic.wrappers import copied

Span = tuple[int, int]
"""Groups known before, and after."""


@dataclass(frozen=True, eq=False)
class Atom:
    """A part, or a span of it.

    Attributes:
        key: name of it, which differs where copies do.
        does: a module; or from features, and what spans before have kept, to its own.
        reads: the blocks of features that it takes, joined along channels.
        writes: the blocks that it gives; one, but for an adapter that is run whole for several widths.
        span: of channel groups.
        statistics: constants that stand in for buffers of the module, by its own names of them.
        takes: what the module is called with, `form` of it, where that is several tensors.
    """

    key: str
    does: nn.Module | Callable[[Tensor, Kept], Tensor | list[Tensor]]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    span: Span
    statistics: Mapping[str, str] = field(default_factory=dict)
    takes: TreeSpec | None = None


class Parts:
    """Parts of members of one width; or of several, each with graphs of its own, if parts are told their width.

    Sharing, a narrow one is what the network runs, which cuts the weights that all widths have; else it has copies.
    """

    def __init__(
        self, net: Nested, members: Sequence[Coordinates], fold_bn: bool, x: Tensors, *, sharing: bool = False
    ) -> None:
        self.net, self.fold_bn, self.sharing = net, fold_bn, sharing
        self.values = {INPUT: x}  # of what passes between parts
        self.done: dict[int, dict[nn.Module, nn.Module]] = {}
        self.constants: dict[str, Tensor] = {}
        widths = {member.width for member in members}
        self.differing = {w: _differing(net, [m for m in members if m.width == w]) for w in widths}
        self.marks = {width: f"[{width}]" if len(widths) > 1 else "" for width in widths}

    def path(self, member: Coordinates) -> list[Atom]:
        """What a member runs, in order, without what does nothing."""
        atoms: list[Atom] = []
        here, mark = INPUT, self.marks[member.width]
        parts = self.net.path(member)
        for number, (name, part) in enumerate(parts):
            whole = self._narrow(name, part, member.width)
            last = number == len(parts) - 1
            if all(type(layer) is nn.Identity for layer in flat(whole)) and not (last and not atoms):
                continue
            after = (f"logits.{member.exit}" if last else f"features.{member.entry + number}") + mark
            statistics: dict[str, str] = {}
            key = name + mark
            if buffers := self.differing[member.width].get(name):
                owner = next(entry for entry, module in buffers.items() if module is part)
                if self.fold_bn:
                    key = f"{key}@{owner}"
                else:
                    statistics = self._statistics(whole, f"{key}@{owner}")
            given = self.values[here]
            if after not in self.values:
                self.values[after] = whole(given)
            takes = None if isinstance(given, Tensor) else tree_structure(given)
            ends = ([*named_blocks(name, self.values[name])] for name in (here, after))
            reads, writes = (tuple(names) for names in ends)
            atoms.append(Atom(key, whole, reads, writes, (0, member.width), statistics, takes))
            here = after
        return atoms

    def _narrow(self, name: str, part: nn.Module, width: int) -> nn.Module:
        net = self.net
        if net.groups == 1 or self.sharing:
            return part
        done = self.done.setdefault(width, {})
        if part not in done and net.causal and name.startswith("entries."):
            done[part] = narrow_outputs(part, width, net.groups)
        return narrow(part, width, done, causal=net.causal)

    def _statistics(self, part: nn.Module, name: str) -> dict[str, str]:
        """Its buffers as constants."""
        found = {}
        for buffer, tensor in part.named_buffers():
            if tensor.is_floating_point():
                found[buffer] = f"{name}.{buffer}"
                self.constants[f"{name}.{buffer}"] = tensor.detach()
        return found


def named_blocks(name: str, value: Tensors) -> dict[str, Tensor]:
    """What passes somewhere, by the names of tensors: `features.1`, or of several `features.1.mask`."""
    several = not isinstance(value, Tensor)
    return {f"{name}.{key}" if several else name: tensor for key, tensor in named(value).items()}


class PartsBySpan:
    """Parts of members of several widths, cut into spans."""

    def __init__(self, net: Nested, members: Sequence[Coordinates]) -> None:
        self.net, self.parts = net, dict[nn.Module, Part]()
        self.constants: dict[str, Tensor] = {}
        self.differing = _differing(net, members)
        last = len(net.stages)
        # Widths of what goes into each stage; those of later places among them, so that blocks only ever join.
        self.places: dict[int, list[int]] = {}
        known: set[int] = set()
        for place in range(last, -1, -1):
            known |= {m.width for m in members if m.entry <= place <= m.exit + 1}
            self.places[place] = sorted(known)
        self.leaving = {
            exit_: sorted({m.width for m in members if m.exit == exit_}) for exit_ in {m.exit for m in members}
        }

    def path(self, member: Coordinates) -> list[Atom]:
        """What a member runs: span by span, each from the adapter to the head."""
        (name, adapter), *stages, (head_name, head) = self.net.path(member)
        found: list[tuple[int, int, Atom]] = []
        every = _spans(self.places[member.entry])
        blocks = tuple(_block(member.entry, span) for span in every)
        if len(every) > 1 and _has_weights_before_its_last_layer(adapter):
            split = _split(adapter, every, self.net.groups)
            found.append((0, -1, Atom(name, split, (INPUT,), blocks, (0, self.net.groups))))
        else:
            for span, block in zip(every, blocks, strict=True):
                if span[1] <= member.width:
                    row = _rows(adapter, *span, self.net.groups)
                    found.append((span[1], -1, Atom(f"{name}{_of(span)}", row, (INPUT,), (block,), span)))
        for number, (name, stage) in enumerate(stages, member.entry):
            part, key = self._part(name, stage), self._key(name, stage)
            widths = self.places[number + 1]
            for span in _spans(widths):
                if span[1] <= member.width:
                    call = part.bind(*span, keep=span[1] < widths[-1])
                    writes = (_block(number + 1, span),)
                    atom = Atom(f"{key}{_of(span)}", call, self._blocks(number, span), writes, span)
                    found.append((span[1], number, atom))
        found += self._head(member, head_name, head)
        return [atom for _, _, atom in sorted(found, key=lambda item: item[:2])]

    def _head(self, member: Coordinates, name: str, head: nn.Module) -> list[tuple[int, int, Atom]]:
        """What turns features into the logits of a member: with those of narrower ones, or all anew."""
        place, widths = member.exit + 1, self.leaving[member.exit]
        key, width, behind = self._key(name, head), member.width, len(self.net.stages)
        try:
            part = self._part(name, head)
            summing = part.sums
        except ValueError:
            summing = False
        found = []
        for span in _spans(widths) if summing else [(0, width)]:
            if span[1] <= width:
                does = part.bind(*span, keep=span[1] < widths[-1]) if summing else narrow(head, width)
                writes = (f"logits.{member.exit}[{span[1]}]",)
                atom = Atom(f"{key}{_of(span)}", does, self._blocks(place, span), writes, span)
                found.append((span[1], behind, atom))
        return found

    def _blocks(self, place: int, span: Span) -> tuple[str, ...]:
        """The blocks of features that a span reads there."""
        return tuple(_block(place, (a, b)) for a, b in _spans(self.places[place]) if span[0] <= a and b <= span[1])

    def _key(self, name: str, module: nn.Module) -> str:
        copies = self.differing.get(name)
        return name if not copies else f"{name}@{next(entry for entry, twin in copies.items() if twin is module)}"

    def _part(self, name: str, module: nn.Module) -> Part:
        if module not in self.parts:
            self.parts[module] = Part(name, module, self.net.groups)
        return self.parts[module]


def _differing(net: Nested, members: Sequence[Coordinates]) -> dict[str, dict[int, nn.Module]]:
    """Parts that entries see with other buffers: name → module of each entry, the first of its owner."""
    seen: dict[str, dict[int, nn.Module]] = {}
    for member in members:
        for name, module in net.path(member):
            known = seen.setdefault(name, {})
            if module not in known.values():
                known[member.entry] = module
    return {name: modules for name, modules in seen.items() if len(modules) > 1}


def _split(adapter: nn.Module, spans: Sequence[Span], groups: int) -> Callable[[Tensor, Kept], list[Tensor]]:
    """An adapter that is run whole, and what it gives cut up."""

    def call(x: Tensor, kept: Kept) -> list[Tensor]:
        y = adapter(x)
        return [y[:, prefix(y.shape[1], groups, a) : prefix(y.shape[1], groups, b)] for a, b in spans]

    return call


def _has_weights_before_its_last_layer(adapter: nn.Module) -> bool:
    layers = flat(adapter)
    return any(True for layer in layers[: last_mixing(layers) or 0] for _ in layer.parameters())


def _rows(adapter: nn.Module, have: int, width: int, groups: int) -> nn.Module:
    """The part of an adapter that gives some groups of channels."""
    layers, whole = flat(narrow_outputs(adapter, width, groups)), flat(adapter)
    last = last_mixing(whole)
    assert last is not None  # or `narrow_outputs` would have refused it
    start = prefix(len(whole[last].weight), groups, have)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:last], *(_behind(layer, start) if have else layer for layer in layers[last:]))


def _behind(layer: nn.Module, start: int) -> nn.Module:
    """A layer without its first channels of output."""
    made = copied(layer)
    for store in (made._parameters, made._buffers):
        for name, tensor in store.items():
            if tensor is not None and tensor.ndim:
                rows = tensor.detach()[start:].clone()
                store[name] = nn.Parameter(rows, False) if store is made._parameters else rows  # type: ignore[assignment]
    return made


def _spans(widths: Sequence[int]) -> list[Span]:
    return list(pairwise([0, *widths]))


def _block(place: int, span: Span) -> str:
    return f"features.{place}{_of(span)}"


def _of(span: Span) -> str:
    return f"[{span[0]}:{span[1]}]"
