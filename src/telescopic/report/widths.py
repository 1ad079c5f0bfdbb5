"""Plots of networks that learn their widths."""

import math
from collections.abc import Mapping, Sequence

from telescopic.report.plots import (
    MAX_CURVES,
    PAGE,
    Plot,
    canvas_by_epoch,
    log_if_wide,
    log_ticks,
    name_ends,
    ramp,
    rendered,
    some,
)
from telescopic.train import History


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
    return line_plot("training-widths", title, "Channels by epoch", caption, epochs, lines)


def line_plot(
    name: str,
    title: str,
    long: str,
    caption: str,
    epochs: Sequence[int],
    lines: Mapping[str, Sequence[float]],
    points: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> Plot:
    """Lines by epoch with their names at the ends, on logarithmic axes where they span much.

    Args:
        name: of the plot, as an identifier.
        title: what is drawn.
        long: the same in a sentence of its own.
        caption: what to say below.
        epochs: of the longest line.
        lines: name → its values, one an epoch.
        points: name → epochs and values that stand beside its line, hollow.
    """
    colours, points = ramp(len(lines)), points or {}
    values = [v for line in lines.values() for v in line if v > 0] or [1.0]
    values += [v for some in points.values() for _, v in some]
    with canvas_by_epoch(list(lines), epochs[-1]) as (figure, axes):
        if points:
            axes.set_xscale("log")
            log_ticks(axes.xaxis, 1, epochs[-1])
            axes.set_xlim(0.9, 1.1 * epochs[-1])
        logarithmic = log_if_wide(axes, values)
        axes.set(title=title + " (logarithmic)" * logarithmic)
        for (label, line), colour in zip(lines.items(), colours, strict=True):
            drawn = [v if v > 0 or not logarithmic else math.nan for v in line]
            axes.plot(epochs[: len(line)], drawn, color=colour.light, linewidth=1.3)
            if points.get(label):
                x, y = zip(*points[label], strict=True)
                axes.plot(x, y, "o", ms=5.5, mfc=PAGE, mec=colour.light, mew=1.2, zorder=4, clip_on=False)
        axes.autoscale_view()
        ends = [line[-1] if line[-1] > 0 or not logarithmic else axes.get_ylim()[0] for line in lines.values()]
        name_ends(axes, list(lines), ends, colours)
        svg, png = rendered(figure)
    return Plot(name, long, caption, svg, png, colours)
