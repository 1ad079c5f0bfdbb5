"""A path through the grid as plain data: what each of its steps computes beyond the one before, and on what."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.anytime.rows import Kept, Part
from telescopic.cost.macs import Counter
from telescopic.cost.timing import finished
from telescopic.layers.causal import prefix
from telescopic.nested import Nested
from telescopic.subnet import Coordinates, Subnet, require_path

Call = Callable[[Tensor, Kept], Tensor]

_ADAPTED = "entry"  # the whole output of the adapter, among what is kept
_TRACING = threading.Lock()


@dataclass(frozen=True)
class Step:
    """From one member to the next.

    Attributes:
        subnet: the member that it reaches.
        have: number of groups known before.
        widened: the stages known before, which it makes wider, if it does.
        added: the stages that it adds, at the full width of the member.
        head: the head.
        sums: whether the head is given the new groups only, and has kept what it needs of those before.
        keep: whether a wider step follows.
    """

    subnet: Coordinates
    have: int
    widened: tuple[tuple[str, Call], ...]
    added: tuple[tuple[str, Call], ...]
    head: tuple[str, Call]
    sums: bool
    keep: bool


class Plan:
    """What to compute along a path. It holds the network's own weights, not copies, and never changes.

    Args:
        net: the network, in eval mode.
        path: members of one entry, each of which contains the one before; parts left open take the full network's
            value.
        known: parts that have been taken apart for other paths of the same network; those of this one are added.

    Raises:
        ValueError: if it is no such path, the network is in training mode, or a part cannot be made wider step by
            step though the path asks for it.
    """

    def __init__(self, net: Nested, path: Sequence[Subnet], known: "dict[nn.Module, Part] | None" = None) -> None:
        _require_eval(net)
        self.path = checked(net, path)
        self._known = {} if known is None else known
        self.groups = net.groups if net.causal else self.path[-1].width  # which no adapter is cut to
        widening = len({member.width for member in self.path}) > 1
        whole = dict(net.path(self.path[-1])[:-1])
        self.adapter: Callable[[Tensor], Tensor]
        (_, self.adapter), *stages = whole.items()
        parts = {name: self._part(name, module, widening) for name, module in stages}
        heads = dict(net.path(member)[-1] for member in self.path)
        read = {name: self._part(name, head, False) for name, head in heads.items()}
        steps: list[Step] = []
        names = list(parts)
        for number, member in enumerate(self.path):
            before = self.path[number - 1] if number else None
            after = self.path[number + 1] if number + 1 < len(self.path) else None
            entry, exit_, width = member.entry, member.exit, member.width
            depth, have = (before.stages, before.width) if before else (0, 0)
            keep = self.path[-1].width > width
            widened = names[:depth] if have < width else []
            added = names[depth : exit_ - entry + 1]
            head = read[f"exits.{exit_}"]
            sums = before is not None and before.exit == exit_ and isinstance(head, Part) and head.sums
            summed = after is not None and after.exit == exit_
            steps.append(
                Step(
                    member,
                    have,
                    tuple((name, _bound(parts[name], have, width, keep)) for name in widened),
                    tuple((name, _bound(parts[name], 0, width, keep)) for name in added),
                    (f"exits.{exit_}", _bound(head, have if sums else 0, width, summed)),
                    sums,
                    keep,
                )
            )
        self.steps = tuple(steps)
        modules = {**whole, **heads}
        self._remember(net, [modules[name] for name, part in {**parts, **read}.items() if isinstance(part, Part)])
        self.seconds: dict[object, tuple[float, ...]] = {}  # measured costs of the steps, by their conditions
        self._macs: dict[tuple[int, ...], tuple[int, ...]] = {}

    def _remember(self, net: Nested, taken_apart: Sequence[nn.Module]) -> None:
        """Note what the plan took from a network, of some parts layers and views of weights; see `is_of`."""
        # No more than needed: this is looked through before every answer, when all of it has left the caches.
        lists = list(net.children())
        inner = [module for part in taken_apart for module in part.modules()]
        self._parts = [part for some in lists for part in some.children()]
        self._holders = [(m, [*m._modules.values()]) for m in (*lists, *inner) if m._modules]
        homes: list[Any] = [home for module in inner for home in (module._parameters, module._buffers)]
        self._tensors = [
            (home, name, tensor, tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
            for home in homes
            for name, tensor in home.items()
            if tensor is not None and tensor.ndim  # BatchNorm's count of batches has none
        ]
        self._lists = lists

    def is_of(self, net: Nested) -> bool:
        """Whether the network still has the modules and weights that the plan holds, and is in eval mode."""
        if net.training or [*net._modules.values()] != self._lists or any(part.training for part in self._parts):
            return False
        for module, children in self._holders:
            if [*module._modules.values()] != children:
                return False
        for home, name, tensor, place, version in self._tensors:
            if home.get(name) is not tensor or tensor.data_ptr() != place or -1 < version != tensor._version:
                return False
        return True

    def is_priced(self, x: Tensor) -> bool:
        """Whether `macs` is known of inputs of this shape."""
        return tuple(x.shape[1:]) in self._macs

    def macs(self, x: Tensor) -> tuple[int, ...]:
        """Multiply-adds of each step for one example of the shape of these, counted by running them on one."""
        shape = tuple(x.shape[1:])
        if not self.is_priced(x):
            run, counts = Run(self, torch.zeros_like(x[:1]) if len(x) else x.new_zeros((1, *shape))), []
            for _ in self.steps:
                with torch.no_grad(), Counter() as counter:
                    run.advance()
                counts.append(counter.macs)
            self._macs[shape] = tuple(counts)
        return self._macs[shape]

    def _part(self, name: str, module: nn.Module, widening: bool) -> Part | nn.Module:
        """A part that can be made wider; or else as it is, if it need not."""
        if self.groups == 1:
            return module
        try:
            with _TRACING:
                if module not in self._known:
                    self._known[module] = Part(name, module, self.groups)
            return self._known[module]
        except ValueError:
            if widening:
                raise
            return module


class Run:
    """One batch on its way along a path.

    Args:
        plan: of the path.
        x: raw input `[batch, ...]`.
    """

    def __init__(self, plan: Plan, x: Tensor) -> None:
        self.plan, self.x = plan, x
        self.done = 0
        self.kept: Kept = {}
        self.blocks: list[Tensor] = []  # the last stage's output, group by group as it was computed

    def advance(self) -> Tensor:
        """Logits `[batch, classes]` of the next member, from what is known of those before."""
        step, plan = self.plan.steps[self.done], self.plan
        self.done += 1
        width = step.subnet.width
        if step.have < width:
            new = self._adapted(step, width)
            for _, part in step.widened:
                new = part(new, self.kept)
            self.blocks.append(new)
        for _, part in step.added:
            self.blocks = [part(self._features(), self.kept)]
        _, head = step.head
        read = self.blocks[-1] if step.sums else self._features()
        logits = head(read, self.kept)
        if logits.untyped_storage().data_ptr() == read.untyped_storage().data_ptr():
            logits = logits.clone()  # the next stage may write over its input, and the answer has been given
        finished(self.x.device)
        if not step.keep and self.done < len(plan.steps) and plan.steps[self.done].subnet.exit != step.subnet.exit:
            self.kept.clear()
        return logits

    def select(self, index: Tensor) -> None:
        """Go on with some of the examples only, `[number]` int64."""
        self.x = self.x[index]
        self.blocks = [block[index] for block in self.blocks]
        self.kept = {name: tensor[index] for name, tensor in self.kept.items()}

    def _adapted(self, step: Step, width: int) -> Tensor:
        """New groups of what the adapter gives; it is run whole, and once."""
        whole = self.kept[_ADAPTED] if step.have else self.plan.adapter(self.x)
        if step.keep:
            self.kept[_ADAPTED] = whole
        if not step.have and width == self.plan.groups:
            return whole
        first, last = (prefix(whole.shape[1], self.plan.groups, w) for w in (step.have, width))
        return whole[:, first:last]

    def _features(self) -> Tensor:
        """All channels of the last stage's output."""
        if len(self.blocks) > 1:
            self.blocks = [torch.cat(self.blocks, 1)]
        return self.blocks[0]


def _require_eval(net: Nested) -> None:
    for name, module in net.named_modules():
        if module.training:
            raise ValueError(
                f"anytime answers need eval mode, and {name or 'this network'} is in training mode, in which "
                "BatchNorm and dropout depend on the rest of the batch: call net.eval() first"
            )


def checked(net: Nested, path: Sequence[Subnet]) -> tuple[Coordinates, ...]:
    """A path with all coordinates given.

    Raises:
        ValueError: if it is empty, or a member does not contain the one before or enters elsewhere.
    """
    members = tuple(net.grid.resolve(member) for member in path)
    require_path(members)
    if members[0].width != members[-1].width and not net.causal:
        raise ValueError(
            f"{members[-1]} computes nothing with the features of {members[0]}, which is narrower: only channel-causal "
            "networks get wider step by step. Here a path has one width, and gets deeper"
        )
    return members


def _bound(part: Part | nn.Module, have: int, width: int, keep: bool) -> Call:
    return part.bind(have, width, keep=keep) if isinstance(part, Part) else lambda x, kept: part(x)
