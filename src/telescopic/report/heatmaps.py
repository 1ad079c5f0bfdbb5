"""Heat maps of a family with widths: a cell for each member, by what it runs and how wide it is."""

import math
import re
from collections.abc import Collection, Sequence
from html import escape
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from telescopic.catalogue import Catalogue
from telescopic.catalogue.table import CostName
from telescopic.quantities import human
from telescopic.report.plots import INK, MUTED, PAGE, SIZE, Colour, Plot, blend, canvas, log_ticks, rendered, tick
from telescopic.subnet import Coordinates, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.markers import MarkerStyle

_LEVELS = 16
# From little to much; in both modes little is near to the page's own colour.
HEAT = [
    Colour(f"--h{i}", blend(("#e3ecf8", "#5b93de", "#12305f"), t), blend(("#1f2d40", "#3a76c9", "#d3e6ff"), t))
    for i, t in enumerate(level / (_LEVELS - 1) for level in range(_LEVELS))
]
# What there is a map of, how it is called ({} is the metric), its unit, and which cost its Pareto front is of.
_QUANTITIES: dict[str, tuple[str, str, CostName | None]] = {
    "score": ("validation {}", "", "macs"),
    "test_score": ("test {}", "", None),
    "latency_ms": ("latency in ms", "ms", "latency_ms"),
    "macs": ("MACs of one example", "", "macs"),
    "params": ("parameters", "", "params"),
    "largest_feature_map": ("largest feature map", "B", None),
}
_FILES = [name.removesuffix("_ms").replace("_", "-") for name in _QUANTITIES]
NAMES = {f"grid-{name.replace('score', word)}" for name in _FILES for word in ("score", "accuracy")}
_LEFT, _RIGHT, _TOP, _BOTTOM, _BAR = 36.0, 14.0, 22.0, 66.0, 7.0  # margins and the bar's height, in points
_CELL, _HEIGHT = 30.0, 460.0  # a cell's largest side, and the most that all rows take
_HEADING = 1.3  # rows that the name of an entry takes


def heatmaps(grid: Grid, catalogue: Catalogue) -> list[Plot]:
    """A map of each quantity that was measured; none for a family of one width, or that varies by width alone.

    Args:
        grid: the network's grid.
        catalogue: its catalogue.
    """
    if len(grid.widths) == 1 or len(grid.widths) == len(grid):
        return []
    plots, metric = [], catalogue.metric
    good = "accurate" if metric.word == "accuracy" else "good"
    for name, (title, unit, cost) in _QUANTITIES.items():
        values = [getattr(member, name) for member in catalogue]
        if values[0] is None or (name == "test_score" and catalogue[0].score is not None):
            continue
        if name in ("score", "test_score"):
            title, unit, name = title.format(metric.name), metric.unit, name.replace("score", metric.word)
        front = catalogue.front(cost) if cost and catalogue[0].score is not None else []
        marked = [member.subnet for member in front]
        means = {"latency_ms": "as fast", "params": "with as few parameters"}.get(str(cost), "with as few MACs")
        caption = f"○ is on the Pareto front: no other member {means} is as {good}." if marked else ""
        plots.append(heatmap(f"grid-{name}", title, grid, values, unit=unit, marked=marked, caption=caption))
    return plots


def heatmap(
    name: str,
    title: str,
    grid: Grid,
    values: Sequence[float],
    *,
    unit: str = "",
    marked: Collection[Coordinates] = (),
    caption: str = "",
) -> Plot:
    """A map of one quantity: widths to the right, exits upwards; each entry has its own block of rows.

    The darker a cell (in dark mode the brighter), the larger the quantity; the scale is logarithmic if the largest is
    more than 30 times the smallest. In the SVG each cell has a title, which browsers show when one points at it.

    Args:
        name: name of the plot, as an identifier.
        title: what is drawn.
        grid: all members.
        values: one of each member, in grid order.
        unit: of the values, as `quantities.human` takes it.
        marked: members with a ring.
        caption: what to say below.
    """
    norm, log = _norm(values)
    shades = [HEAT[min(_LEVELS - 1, int(_LEVELS * place))].light for place in norm(values)]
    rows, headings, tall = _rows(grid)
    cell = min((72 * SIZE[0] - _LEFT - _RIGHT) / len(grid.widths), _HEIGHT / tall, _CELL)
    wide, height = cell * len(grid.widths), cell * tall
    size = (72 * SIZE[0], height + _TOP + _BOTTOM)
    place = (_LEFT / size[0], _BOTTOM / size[1], wide / size[0], height / size[1])
    columns = {width: float(column) for column, width in enumerate(grid.widths)}
    spots = [(columns[member.width], rows[member.entry, member.exit]) for member in grid]
    rings = [spot for member, spot in zip(grid, spots, strict=True) if member in marked]
    with canvas((size[0] / 72, size[1] / 72), place) as (figure, axes):
        axes.set(xlim=(-0.5, len(grid.widths) - 0.5), ylim=(-0.5, tall - 0.5))
        axes.set_title(title + " (logarithmic)" * log, x=(8 - _LEFT) / wide, pad=7)
        _number(axes, grid, rows, cell)
        for entry, row in headings:
            axes.text(-0.5, row, f"entry {entry}", size=8.5, color=MUTED, va="center")
        colours: Any = {"c": shades, "linewidths": 0, "marker": _rounded()}
        axes.scatter(*_apart(spots), (0.92 * cell) ** 2, **colours, gid="cells", clip_on=False)
        if rings:
            colours = {"c": PAGE, "edgecolors": INK, "linewidths": min(1, cell / 12)}
            axes.scatter(*_apart(rings), (0.42 * cell) ** 2, **colours, gid="rings", clip_on=False)
        _draw_scale(figure.add_axes((14 / size[0], 20 / size[1], 160 / size[0], _BAR / size[1])), norm, log, unit)
        svg, png = rendered(figure)
    titles = [f"{grid.label(m)}: {human(value, unit)}" for m, value in zip(grid, values, strict=True)]
    return Plot(name.removesuffix("_ms").replace("_", "-"), title, caption, _titled(svg, titles), png, HEAT)


def _norm(values: Sequence[float]) -> tuple[Any, bool]:
    """From quantities to places between 0 and 1, and back; and whether by logarithms."""
    from matplotlib.colors import LogNorm, Normalize

    low, high = min(values), max(values)
    if low == high:  # the middle of a scale around it
        return Normalize(low - 0.05 * abs(low), high + 0.05 * abs(high) if high else 1.0), False
    log = 0 < 30 * low < high
    return (LogNorm if log else Normalize)(low, high), log


def _draw_scale(bar: "Axes", norm: Any, log: bool, unit: str) -> None:
    """Draw the colours in a row, with round numbers below."""
    from matplotlib.ticker import MaxNLocator

    edges = [float(norm.inverse(i / _LEVELS)) for i in range(_LEVELS + 1)]
    bar.set(xlim=(norm.vmin, norm.vmax), xscale="log" if log else "linear", yticks=[])
    steps = [after - before for before, after in pairwise(edges)]
    bar.bar(edges[:-1], 1, steps, align="edge", color=[colour.light for colour in HEAT])
    bar.spines[:].set_visible(False)
    bar.tick_params(length=2, pad=2, labelsize=8.5)
    if log:
        log_ticks(bar.xaxis, edges[0], edges[-1])
    else:
        bar.xaxis.set_major_locator(MaxNLocator(4))
    bar.xaxis.set_major_formatter(lambda value, _: _with_unit(value, unit))


def _rows(grid: Grid) -> tuple[dict[tuple[int | None, int | None], float], list[tuple[int, float]], float]:
    """The row of each entry and exit from the bottom, each entry with the row of its heading, and how tall all are."""
    if len(grid.exits) == 1:  # entries need no blocks of one row
        entries = sorted({member.entry for member in grid}, reverse=True)
        return {(entry, grid.exits[0]): float(row) for row, entry in enumerate(entries)}, [], len(entries)
    rows: dict[tuple[int | None, int | None], float] = {}
    headings: list[tuple[int, float]] = []
    place = 0.0
    for entry in reversed(grid.entries):
        exits = [exit_ for exit_ in grid.exits if entry <= exit_ + 1]
        rows |= {(entry, exit_): place + i for i, exit_ in enumerate(exits)}
        place += len(exits)
        if exits and len(grid.entries) > 1:
            headings.append((entry, place))
            place += _HEADING
    return rows, headings, place


def _number(axes: "Axes", grid: Grid, rows: dict[tuple[int | None, int | None], float], cell: float) -> None:
    """Write the coordinates along the axes, as many as there is room for."""
    depth = 0 if len(grid.exits) == 1 else 1
    each, every = math.ceil(9 / cell), math.ceil(13 / cell)  # points that a line, and a number, take
    counted = grid.exits[::-1] if depth else grid.entries  # from the full network's
    some = [(place, span[depth]) for span, place in rows.items() if counted.index(span[depth]) % each == 0]
    axes.set_yticks([place for place, _ in some], [str(number) for _, number in some])
    # Widths count from 1: numbers at 1, 3, 5, ... or at 1, 4, 7, ...
    axes.set_xticks(range(0, len(grid.widths), every), [str(width) for width in grid.widths[::every]])
    axes.tick_params(length=0, pad=2, labelsize=8.5)
    axes.set_xlabel("channel groups", size=9.5, labelpad=2)
    axes.text((8 - _LEFT) / cell - 0.5, -0.5 - 11 / cell, ("entry", "exit")[depth], size=9.5, va="center", color=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _apart(spots: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in spots], [y for _, y in spots]


def _with_unit(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.4g} %"
    text = tick(value)  # of milliseconds the title says that they are
    return text + " B" * (unit == "B" and text[-1:].isdigit()) + "B" * (unit == "B" and text[-1:].isalpha())


def _rounded() -> "MarkerStyle":
    """A square with rounded corners. Matplotlib writes it once and refers to it from each cell."""
    from matplotlib.markers import MarkerStyle
    from matplotlib.patches import BoxStyle

    return MarkerStyle(BoxStyle.Round(pad=0, rounding_size=0.14)(-0.5, -0.5, 1, 1, 1))


def _titled(svg: str, titles: Sequence[str]) -> str:
    """Give each cell its title; cells stand in the drawing in the order in which they were drawn."""
    before, cells, after = re.split(r'(<g id="cells">.*?</g>)', svg, maxsplit=1, flags=re.DOTALL)
    assert cells.count("<use ") == len(titles), "a cell, a title"
    number = count()
    named = re.sub(r"(<use [^>]*)/>", lambda m: f"{m[1]}><title>{escape(titles[next(number)])}</title></use>", cells)
    return before + named + after
