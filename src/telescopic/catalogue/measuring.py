"""How every member of a nested network is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from telescopic.ambient import plain
from telescopic.catalogue.choosing import Member
from telescopic.catalogue.table import CONDITIONS, Catalogue
from telescopic.cost.counting import Cost, costs_on_meta, on_meta
from telescopic.cost.timing import latencies
from telescopic.data import Dataset, Preprocess
from telescopic.evaluate import evaluate as scored
from telescopic.extract import extract
from telescopic.fits import in_eval_mode
from telescopic.inputs import plain_shape
from telescopic.layers.narrowing import narrowed
from telescopic.metric import Metric
from telescopic.nested import Nested
from telescopic.shapes import Shape
from telescopic.statistics import has_statistics
from telescopic.subnet import Coordinates, Subnet
from telescopic.tasks import CLASSIFICATION, Task

Evaluate = Callable[[Nested], Mapping[Subnet, float | Tensor]]


@plain()
def measure(
    net: Nested,
    data: Dataset | None = None,
    *,
    preprocess: Preprocess | None = None,
    task: Task = CLASSIFICATION,
    evaluate: Evaluate | None = None,
    metric: Metric | None = None,
    input_shape: Shape | None = None,
    latency: bool = False,
    batch: int = 1,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Catalogue:
    """Measure every member of a network: its score in one pass over the data, its costs as a module of its own.

    Args:
        net: the network; it is left as it is.
        data: on whose validation and test splits the members are tried; None leaves scores out.
        preprocess: turns inputs into what the network sees; by default bytes into fractions of 255.
        task: what the network has learned, and so how it is scored.
        evaluate: computes scores in your own way, without data: called once with the network in eval mode, without
            gradients, it returns the score of each member of `net.grid`, which counts as that of validation examples.
        metric: what these scores mean; by default `score`, of which the higher is the better.
        input_shape: shape of one example, without the batch; by default that of the inputs. See `cost`.
        latency: whether to time the members, half a second each; see `measure_latency`.
        batch: examples in a timed pass.
        threads: threads within an operation in a timed pass; None keeps torch's present number.
        progress: called with what is done (`cost`, the score's name, `latency`), and how much of how much.

    Raises:
        ValueError: if there is neither data nor an input shape, they differ, the network does not take it, or its
            outputs and the targets do not fit the task; if there are data and `evaluate`; or it returns anything but
            one finite score for each member.
    """
    if evaluate is None and metric is not None:
        raise ValueError("metric says what the scores of evaluate= mean; with data, a task has a metric of its own")
    if evaluate is not None and data is not None:
        raise ValueError("scores come from data or from evaluate, not from both: give input_shape instead of data")
    if input_shape is None:
        if data is None:
            raise ValueError("give data, or input_shape of one example without the batch, such as (1, 28, 28)")
        input_shape = data.input_shape
    input_shape = plain_shape(input_shape)
    if data is not None and data.input_shape != input_shape:
        raise ValueError(f"input_shape is {input_shape}, and the inputs of {data.name} are {data.input_shape}")
    report = progress or (lambda what, done, of: None)
    scores: list[list[float]] | None = None
    metric = metric or (task.metric if evaluate is None else Metric("score"))
    if data is not None or evaluate is not None:
        report(metric.name, 0, 1)
        if data is not None:
            scores = scored(net, [data.validation, data.test], preprocess or Preprocess(), task=task).tolist()
        elif evaluate is not None:
            scores = [_own(net, evaluate, metric), [math.nan] * len(net.grid)]
        report(metric.name, 1, 1)
    paper, prices = on_meta(net), dict[Subnet, Cost]()
    for width, entry in product(net.grid.widths, net.grid.entries):
        prices |= _prices(paper, [m for m in net.grid if (m.width, m.entry) == (width, entry)], input_shape)
        report("cost", len(prices), len(net.grid))
    members = tuple(Member(subnet=m, label=net.grid.label(m), **asdict(prices[m])) for m in net.grid)
    statistics = net.statistics if len(net.grid.entries) > 1 and has_statistics(net) else None
    catalogue = Catalogue(members, input_shape, statistics=statistics)
    catalogue = catalogue if scores is None else catalogue.scored(metric, *scores)
    return measure_latency(net, catalogue, batch=batch, threads=threads, progress=progress) if latency else catalogue


def _own(net: Nested, evaluate: Evaluate, metric: Metric) -> list[float]:
    """Scores that the user's function computes, in grid order.

    Raises:
        ValueError: if they are not those of all members and of nothing else, or one is no such score.
    """
    with in_eval_mode(net), torch.no_grad():
        given = evaluate(net)
    if not isinstance(given, Mapping):
        raise ValueError(f"evaluate returns a score for each member, {{member: score}}, not {type(given).__name__}")
    found = {net.grid.resolve(member): score for member, score in given.items()}
    if missing := [net.grid.label(member) for member in net.grid if member not in found]:
        raise ValueError(f"evaluate returned no {metric.name} for {', '.join(missing[:8])}: it needs every member's")
    if len(found) < len(given):
        raise ValueError(f"evaluate returned {len(given)} scores for {len(found)} members: some of them twice")
    scores = []
    for member in net.grid:
        try:
            scores.append(float(found[member]))
        except (TypeError, ValueError, RuntimeError) as error:
            wrong = f"{metric.name} of {net.grid.label(member)} is one number, not {found[member]!r:.50}"
            raise ValueError(wrong) from error
        metric.require(scores[-1], f"{metric.name} of {net.grid.label(member)}")
    return scores


def _prices(net: Nested, members: Sequence[Coordinates], input_shape: Shape) -> dict[Subnet, Cost]:
    """What members of one entry and one width cost as `extract` gives them, but not copied."""
    if not members:
        return {}
    paths, width = [[part for _, part in net.path(member)] for member in members], members[0].width
    shared = paths[-1][:-1]  # of the deepest
    parts = narrowed([*shared, *(path[-1] for path in paths)], width, net.groups, causal=net.causal)
    trunk, heads = ([part.eval() for part in some] for some in (parts[: len(shared)], parts[len(shared) :]))
    prices = costs_on_meta(trunk, {len(path) - 1: head for path, head in zip(paths, heads, strict=True)}, input_shape)
    return {member: prices[len(path) - 1] for member, path in zip(members, paths, strict=True)}


@plain()
def measure_latency(
    net: Nested,
    catalogue: Catalogue,
    *,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 0.5,
    progress: Callable[[str, int, int], None] | None = None,
) -> Catalogue:
    """The same catalogue with latencies measured here and now, in five rounds over all members.

    Args:
        net: the network.
        catalogue: its catalogue.
        batch: examples in a pass.
        threads: threads within an operation; None keeps torch's present number.
        seconds: time to spend on each member.
        progress: see `measure`.

    Raises:
        ValueError: if the catalogue is of another network.
    """
    catalogue.require_of(net.grid)
    times = latencies(
        [partial(extract, net, member.subnet) for member in catalogue],
        catalogue.input_shape,
        batch=batch,
        threads=threads,
        seconds=seconds,
        progress=partial(progress, "latency") if progress else None,
    )
    members = (
        replace(member, latency_ms=time.median_ms, latency_p95_ms=time.p95_ms)
        for member, time in zip(catalogue, times, strict=True)
    )
    conditions = {name: getattr(times[0], name) for name in CONDITIONS}
    return replace(catalogue, members=tuple(members), **conditions)
