"""Plots of networks that learn their widths: one run's channels, and ShrinkNets' Figure 1."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescopic.files import make_folder, replacing
from telescopic.papers import shrinknets
from telescopic.plots import MAX_CURVES, PAGE, Plot, canvas, log_ticks, ramp, rendered, some, spread
from telescopic.train import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def widths(history: History) -> Plot:
    """Living channels of each layer, epoch by epoch.

    Args:
        history: one epoch or more of a network with filters.
    """
    shown = some(range(len(history.filters)), MAX_CURVES)
    lines = {history.filters[i]: [epoch.widths[i] for epoch in history] for i in shown}
    epochs = [epoch.epoch for epoch in history]
    first, last = history[0], history[-1]
    caption = f"{sum(last.widths):,} channels are left of {sum(first.widths):,} after the first epoch."
    if len(shown) < len(history.filters):
        caption += f" {len(shown)} of {len(history.filters)} layers are drawn."
    title = "channels left in each layer"
    return _lines("training-widths", title, "Channels by epoch", caption, epochs, lines)


def figure_1(runs: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """ShrinkNets' Figure 1 with ours: hidden units and loss by epoch for each λ. Hollow points are the authors'.

    Args:
        runs: summaries of the same settings that `run_shrinknets` wrote. Those of the paper's way are drawn, one for
            each λ.
    """
    chosen: dict[float, Mapping[str, Any]] = {}
    for run in runs:
        penalty, way = shrinknets.parse(run["experiment"])
        if not way:
            chosen.setdefault(penalty, run)
    if not chosen:
        return []
    drawn = {f"λ {run['experiment']}": run for _, run in sorted(chosen.items(), reverse=True)}
    epochs = list(range(1, 1 + max(len(run["left"]) for run in drawn.values())))
    data = runs[0]["data"]
    theirs = {row.penalty: row for row in shrinknets.FIGURE_1 if row.data == data}
    points: dict[str, list[tuple[int, float]]] = {}
    for (label, _), penalty in zip(drawn.items(), sorted(chosen, reverse=True), strict=True):
        row = theirs.get(penalty)
        known = {} if row is None else {1: row.epoch_1, 5: row.epoch_5, 100: row.epoch_100}
        points[label] = [(epoch, units) for epoch, units in known.items() if units and epoch <= epochs[-1]]
    return [
        _lines(
            f"figure1-units-{data}",
            "hidden units left",
            f"Hidden units by epoch on {data}",
            f"Figure 1 on {data}. Hollow: the authors' numbers.",
            epochs,
            {label: run["left"] for label, run in drawn.items()},
            points,
        ),
        _lines(
            f"figure1-loss-{data}",
            "training loss",
            f"Training loss by epoch on {data}",
            f"Figure 1 on {data}.",
            epochs,
            {label: run["losses"] for label, run in drawn.items()},
        ),
    ]


def write_plots(folder: Path, plots: Sequence[Plot]) -> list[Path]:
    """Write plots as SVG and PNG files of their names; the paths of the former."""
    paths = []
    for plot in plots:
        make_folder(folder)
        for suffix, content in (("svg", plot.svg.encode()), ("png", plot.png)):
            path = folder / f"{plot.name}.{suffix}"
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        paths.append(folder / f"{plot.name}.svg")
    return paths


def _lines(
    name: str,
    title: str,
    long: str,
    caption: str,
    epochs: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    points: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Plot:
    """Lines with their names at the ends, on logarithmic axes where they span much."""
    colours, points = ramp(len(lines)), points or {}
    values = [v for line in lines.values() for v in line if v > 0] or [1.0]
    values += [v for some in points.values() for _, v in some]
    right = 0.04 + 0.018 * min(18, max(map(len, lines)))
    with canvas(place=(0.14, 0.16, 0.86 - right, 0.74)) as (figure, axes):
        axes.set(xlabel="epoch")
        if points:
            axes.set_xscale("log")
            log_ticks(axes.xaxis, 1, epochs[-1])
            axes.set_xlim(0.9, 1.1 * epochs[-1])
        else:
            axes.set_xlim(0, epochs[-1] + (len(epochs) == 1))
            axes.locator_params(axis="x", integer=True, nbins=6)
        logarithmic = max(values) > 4 * min(values)
        if logarithmic:
            axes.set_yscale("log")
            log_ticks(axes.yaxis, min(values), max(values))
        axes.set(title=title + " (logarithmic)" * logarithmic)
        for (label, line), colour in zip(lines.items(), colours, strict=True):
            drawn = [v if v > 0 or not logarithmic else math.nan for v in line]
            axes.plot(epochs[: len(line)], drawn, color=colour.light, linewidth=1.3)
            if points.get(label):
                x, y = zip(*points[label], strict=True)
                axes.plot(x, y, "o", ms=5.5, mfc=PAGE, mec=colour.light, mew=1.2, zorder=4, clip_on=False)
        _name_ends(axes, lines, [colour.light for colour in colours])
        svg, png = rendered(figure)
    return Plot(name, long, caption, svg, png, colours)


def _name_ends(axes: "Axes", lines: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """Write each line's name beside its end."""
    axes.autoscale_view()
    to_axes = axes.transAxes.inverted()
    ends = [line[-1] if line[-1] > 0 or axes.get_yscale() != "log" else axes.get_ylim()[0] for line in lines.values()]
    heights = [float(to_axes.transform(axes.transData.transform((1, end)))[1]) for end in ends]
    for label, height, colour in zip(lines, spread(heights, 0.055), colours, strict=True):
        axes.text(1.02, height, label, color=colour, transform=axes.transAxes, va="center", size=9)
