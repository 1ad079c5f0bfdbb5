"""Answers under deadlines, tried on images one by one: anytime, and members chosen in advance."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from telescopic.anytime.answers import anytime, step_costs
from telescopic.catalogue import BudgetError, Catalogue
from telescopic.cost.timing import finished
from telescopic.data import Preprocess, Split
from telescopic.extract import extract
from telescopic.fits import check_fits
from telescopic.nested import Nested
from telescopic.subnet import Subnet


@dataclass(frozen=True)
class Trial:
    """How one way to answer did under one deadline.

    Attributes:
        name: what answered.
        deadline: seconds for an image.
        in_time: fraction of the images that were classified rightly and in time.
        right: fraction that were classified rightly, in time or not.
        late: number of images whose answer came late.
        mean: seconds to the last answer, on average.
        p95: 95 % of the images took at most this many seconds.
        number: of images.
    """

    name: str
    deadline: float
    in_time: float
    right: float
    late: int
    mean: float
    p95: float
    number: int


def try_deadlines(
    net: Nested,
    split: Split,
    deadlines: Sequence[float],
    *,
    catalogue: Catalogue,
    path: Sequence[Subnet] | None = None,
    preprocess: Preprocess | None = None,
    number: int = 500,
    percentile: float = 0.9,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trial]:
    """Classify images one by one under deadlines, in three ways that take turns.

    They are `anytime`; always the best member of those whose latency in the catalogue keeps the deadline (the fastest
    if none does); and always the full network. An anytime answer is late if the iterator has not ended in time,
    though an earlier answer was there.

    Args:
        net: the network, in eval mode.
        split: images and labels.
        deadlines: seconds for an image.
        catalogue: with latencies of this machine, for batches of 1.
        path: see `anytime`.
        preprocess: turns uint8 images into what the network sees; not timed.
        number: of images, spread evenly over the split.
        percentile: see `step_costs`.
        clock: what time it is, in seconds.
        progress: called with the number of images done, and of images in all.

    Returns:
        Three trials for each deadline.

    Raises:
        ValueError: as `anytime` does; if the catalogue has no latencies; if there are no images; or if the network does
            not take them, or has no score for a label.
    """
    if not len(split):
        raise ValueError("deadlines are tried on images, and there are none")
    if split.loader is not None:
        raise ValueError("deadlines are tried on data in memory, and these come from a loader")
    check_fits(net, [split], preprocess or Preprocess())
    places = torch.linspace(0, len(split) - 1, min(number, len(split))).round().long()
    first = next(net.parameters())
    pixels = split.images[places].to(first.device)
    inputs, labels = (preprocess or Preprocess())(pixels).to(first.dtype), split.labels[places].tolist()
    chosen = [_chosen(catalogue, deadline) for deadline in deadlines]
    modules = {subnet: extract(net, subnet) for subnet in {*chosen, net.grid.full}}
    step_costs(net, inputs[:1], path=path, percentile=percentile)
    for _ in anytime(net, inputs[:1], path=path):
        pass  # now all is prepared
    for module in modules.values():
        for _ in range(10):
            _alone(module, inputs[:1])
    outcomes: dict[tuple[int, int], list[tuple[bool, float]]] = {}
    for done, label in enumerate(labels):
        x = inputs[done : done + 1]
        for i, deadline in enumerate(deadlines):
            for way, subnet in enumerate((None, chosen[i], net.grid.full)):
                began = clock()
                if subnet is None:
                    for answer in anytime(net, x, path=path, deadline=deadline, clock=clock):
                        logits = answer.logits
                else:
                    logits = _alone(modules[subnet], x)
                took = clock() - began
                outcomes.setdefault((i, way), []).append((int(logits.argmax()) == label, took))
        if progress is not None:
            progress(done + 1, len(labels))
    trials = []
    for (i, way), seen in outcomes.items():
        name = ("anytime", f"always {net.grid.label(chosen[i])}", "always the full one")[way]
        trials.append(_summary(name, deadlines[i], seen))
    return trials


def _chosen(catalogue: Catalogue, deadline: float) -> Subnet:
    """As an engine would: the fastest if none is fast enough."""
    try:
        return catalogue.choose(max_latency_ms=deadline * 1e3).subnet
    except BudgetError:
        return min(catalogue, key=lambda member: member.latency_p95_ms or 0).subnet


@torch.inference_mode()
def _alone(module: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = module(x)
    finished(x.device)
    return logits


def _summary(name: str, deadline: float, seen: Sequence[tuple[bool, float]]) -> Trial:
    number, times = len(seen), sorted(took for _, took in seen)
    return Trial(
        name,
        deadline,
        in_time=sum(right and took <= deadline for right, took in seen) / number,
        right=sum(right for right, _ in seen) / number,
        late=sum(took > deadline for _, took in seen),
        mean=sum(times) / number,
        p95=times[ceil(0.95 * number) - 1],
        number=number,
    )
