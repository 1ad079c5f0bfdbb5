"""How every member of a nested network is measured."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from telescopic.ambient import plain
from telescopic.catalogue.choosing import Member
from telescopic.catalogue.table import CONDITIONS, Catalogue
from telescopic.cost.counting import cost_on_meta, on_meta
from telescopic.cost.timing import latencies
from telescopic.data import Dataset, Preprocess
from telescopic.evaluate import evaluate
from telescopic.extract import extract, joined
from telescopic.inputs import plain_shape
from telescopic.nested import Nested
from telescopic.shapes import Shape
from telescopic.statistics import has_statistics
from telescopic.tasks import CLASSIFICATION, Task


@plain()
def measure(
    net: Nested,
    data: Dataset | None = None,
    *,
    preprocess: Preprocess | None = None,
    task: Task = CLASSIFICATION,
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
        input_shape: shape of one example, without the batch; by default that of the inputs. See `cost`.
        latency: whether to time the members, half a second each; see `measure_latency`.
        batch: examples in a timed pass.
        threads: threads within an operation in a timed pass; None keeps torch's present number.
        progress: called with what is done (`cost`, the score's name, `latency`), and how much of how much.

    Raises:
        ValueError: if there is neither data nor an input shape, they differ, the network does not take it, or its
            outputs and the targets do not fit the task.
    """
    if input_shape is None:
        if data is None:
            raise ValueError("give data, or input_shape of one example without the batch, such as (1, 28, 28)")
        input_shape = data.input_shape
    input_shape = plain_shape(input_shape)
    if data is not None and data.input_shape != input_shape:
        raise ValueError(f"input_shape is {input_shape}, and the inputs of {data.name} are {data.input_shape}")
    report = progress or (lambda what, done, of: None)
    scores: list[list[float]] | None = None
    if data is not None:
        report(task.metric.name, 0, 1)
        scores = evaluate(net, [data.validation, data.test], preprocess or Preprocess(), task=task).tolist()
        report(task.metric.name, 1, 1)
    on_paper = on_meta(net)
    members = []
    for i, subnet in enumerate(net.grid):
        path = [module for _, module in on_paper.path(subnet)]
        member = joined(on_paper, path, subnet.width).eval()  # as `extract` gives it, but not copied
        price = cost_on_meta(member, input_shape)
        members.append(Member(subnet=subnet, label=net.grid.label(subnet), **asdict(price)))
        report("cost", i + 1, len(net.grid))
    statistics = net.statistics if len(net.grid.entries) > 1 and has_statistics(net) else None
    catalogue = Catalogue(tuple(members), input_shape, statistics=statistics)
    catalogue = catalogue if scores is None else catalogue.scored(task.metric, *scores)
    return measure_latency(net, catalogue, batch=batch, threads=threads, progress=progress) if latency else catalogue


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
    if tuple(member.subnet for member in catalogue) != tuple(net.grid):
        raise ValueError(f"this catalogue is of another network: its members are not those of {net.grid}")
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
