"""Which way to go through the grid: the path with the best accuracy over time on this machine."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.anytime.refining import Plan, Run
from telescopic.anytime.rows import Part
from telescopic.catalogue import Catalogue
from telescopic.cost.timing import finished
from telescopic.inputs import dtype_and_device, examples
from telescopic.nested import Nested
from telescopic.subnet import Coordinates, Subnet

_MOST_WIDTHS = 8


@dataclass(frozen=True)
class PartCosts:
    """What the parts of a network cost along paths of one entry, in seconds.

    Attributes:
        entry: the entry.
        stages: groups known before (0 for none) and after → seconds of each stage from the entry on.
        heads: groups → seconds of the head of each exit, by the exit's number.
        adapter: seconds of the adapter.
    """

    entry: int
    stages: Mapping[tuple[int, int], Sequence[float]]
    heads: Mapping[int, Mapping[int, float]]
    adapter: float

    def step(self, small: tuple[int, int] | None, large: tuple[int, int]) -> float:
        """Seconds from one member to another one that contains it, each as (exit, width); None: from nothing."""
        exit_, width = large
        depth = exit_ - self.entry + 1
        fresh = self.stages[0, width]
        if small is None:
            return self.adapter + sum(fresh[:depth]) + self.heads[width][exit_]
        known = small[0] - self.entry + 1
        wider = sum(self.stages[small[1], width][:known]) if small[1] < width else 0.0
        return wider + sum(fresh[known:depth]) + self.heads[width][exit_]


def best_path(
    net: Nested,
    catalogue: Catalogue,
    *,
    batch: int = 1,
    entry: int | None = None,
    widths: Sequence[int] | None = None,
    runs: int = 7,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Coordinates, ...]:
    """The path to the full network that has the best accuracy over time, as measured on this machine.

    Accuracy over time is a staircase: 0 until the first answer, then each answer's accuracy on validation images until
    the next. The path is the one with the largest area beneath it, found exactly, by dynamic programming over all
    paths of the members in question: each step adds `its seconds × (best accuracy of all − accuracy before it)` to
    what is lacking. Every stage is timed for every pair of widths once, and a step costs the sum of its stages.

    Args:
        net: the network, in eval mode.
        catalogue: its catalogue, with accuracies.
        batch: examples in a pass.
        entry: of all members on the path; by default the full network's.
        widths: which widths the path may use beside the largest; by default all, or 8 evenly spaced ones of more.
        runs: passes timed for each pair of widths; the median counts.
        progress: called with the number of pairs timed, and of pairs in all.

    Raises:
        ValueError: if the catalogue is of another network or has no accuracies, or a part cannot be made wider step by
            step: then give `widths=[]`, and the path gets deeper only.
    """
    catalogue.require_of(net.grid)
    accuracy = {(m.subnet.entry, m.subnet.exit, m.subnet.width): m.accuracy for m in catalogue}
    if None in accuracy.values():
        raise ValueError("the best path needs accuracies on validation images: measure(net, data)")
    full = net.grid.resolve(Subnet(entry=entry))
    if widths is None:
        many = net.grid.widths if net.causal else ()
        spaced = {ceil(len(many) * k / _MOST_WIDTHS) - 1 for k in range(1, _MOST_WIDTHS + 1)}
        widths = many if len(many) <= _MOST_WIDTHS else [many[i] for i in spaced]
    chosen = {net.grid.resolve(Subnet(entry=entry, width=width)).width for width in widths} | {full.width}
    dtype, device = dtype_and_device(net)
    x = examples(batch, catalogue.input_shape, dtype, device)
    costs = part_costs(net, x, full, sorted(chosen), runs, progress)
    known = {
        (exit_, width): accuracy[full.entry, exit_, width] or 0.0
        for exit_ in net.grid.exits
        if exit_ >= full.entry - 1
        for width in chosen
    }
    return tuple(
        Coordinates(entry=full.entry, exit=exit_, width=width) for exit_, width in largest_area(known, costs.step)
    )


def largest_area(
    accuracy: Mapping[tuple[int, int], float],
    seconds: Callable[[tuple[int, int] | None, tuple[int, int]], float],
) -> list[tuple[int, int]]:
    """The path to the largest member with the largest area under accuracy over time.

    Args:
        accuracy: member, as (exit, width) → its accuracy.
        seconds: what a step from one (None: from nothing) to another takes.
    """
    most, order = max(accuracy.values()), sorted(accuracy)  # no member stands before one that it contains
    lacking, before = dict.fromkeys(order, inf), dict[tuple[int, int], tuple[int, int] | None]()
    for large in order:
        ways: list[tuple[float, tuple[int, int] | None]] = [(seconds(None, large) * most, None)]
        ways += [
            (lacking[small] + seconds(small, large) * (most - accuracy[small]), small)
            for small in order
            if small != large and small[0] <= large[0] and small[1] <= large[1]
        ]
        lacking[large], before[large] = min(ways, key=lambda way: way[0])
    path, member = [], before[order[-1]]
    path.append(order[-1])
    while member is not None:
        path.append(member)
        member = before[member]
    return path[::-1]


def part_costs(
    net: Nested,
    x: Tensor,
    full: Coordinates,
    widths: Sequence[int],
    runs: int,
    progress: Callable[[int, int], None] | None = None,
) -> PartCosts:
    """Measure what stages and heads cost: from nothing to each width, and from each width to each larger one."""
    exits = [exit_ for exit_ in net.grid.exits if exit_ >= full.entry - 1]
    names = [f"stages.{i}" for i in range(full.entry, full.exit + 1)]
    pairs = [(small, large) for large in widths for small in (0, *widths) if small < large]
    stages: dict[tuple[int, int], list[float]] = {}
    heads: dict[int, dict[int, float]] = {}
    adapters, known = [], dict[nn.Module, Part]()
    for number, (small, large) in enumerate(pairs):
        if small:
            path = [Coordinates(entry=full.entry, exit=full.exit, width=width) for width in (small, large)]
        else:
            path = [Coordinates(entry=full.entry, exit=exit_, width=large) for exit_ in exits]
        times = _times(Plan(net, path, known), x, runs, skip=1 if small else 0)
        stages[small, large] = [times[name] for name in names]
        if not small:
            heads[large] = {exit_: times[f"exits.{exit_}"] for exit_ in exits}
            adapters.append(times["entry"])
        if progress is not None:
            progress(number + 1, len(pairs))
    return PartCosts(full.entry, stages, heads, median(adapters))


@torch.inference_mode()
def _times(plan: Plan, x: Tensor, runs: int, skip: int) -> dict[str, float]:
    """Median seconds of each part, over runs after a first one; the first `skip` steps do not count."""
    times: dict[str, list[float]] = {}

    def timed(part: tuple[str, Callable[..., Tensor]]) -> tuple[str, Callable[..., Tensor]]:
        name, call = part

        def run(*given: Any) -> Tensor:
            start = time.perf_counter()
            out = call(*given)
            finished(x.device)
            times.setdefault(name, []).append(time.perf_counter() - start)
            return out

        return name, run

    _, plan.adapter = timed(("entry", plan.adapter))
    plan.steps = plan.steps[:skip] + tuple(
        replace(
            step,
            widened=tuple(map(timed, step.widened)),
            added=tuple(map(timed, step.added)),
            head=timed(step.head),
        )
        for step in plan.steps[skip:]
    )
    for _ in range(runs + 1):
        run = Run(plan, x.clone())
        for _ in plan.steps:
            run.advance()
    return {name: median(values[1:]) for name, values in times.items()}
