"""Plots of a trained family: scores against cost, and how it learned. Each as SVG, as PNG, and for a page."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from telescopic.catalogue import Catalogue
from telescopic.catalogue.table import CostName
from telescopic.extras import needs
from telescopic.files import make_folder, replacing
from telescopic.metric import Metric
from telescopic.quantities import human
from telescopic.train import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED = 20  # members with a colour each, in the plots and in the page
MAX_SURE = 6  # points that are all named; of more, those whose name has room
MAX_FRONT = 10  # members of a long front that are named, or listed
MAX_CURVES = 12  # members whose training is drawn
# What scores are plotted against, and how the axis is called.
COSTS: dict[CostName, str] = {"macs": "MACs of one example", "params": "parameters", "latency_ms": "latency in ms"}

# Colours in light mode; a page has a CSS variable for each, which is another colour in dark mode.
INK, MUTED, LINE, PAGE, ACCENT = "#1f2328", "#59636e", "#d5dae0", "#ffffff", "#2563c9"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAGE: "--page", ACCENT: "--accent"}
# Teal, blue, violet, magenta, red: alike in lightness, so that text in any of them is legible.
_LIGHT = ("#0b7a75", "#2563c9", "#7048d6", "#b02a93", "#c2341d")
_DARK = ("#3ecfc4", "#74aaff", "#b097ff", "#f07fd8", "#ff9077")

DPI = 200  # pixels of a PNG file for each inch
SIZE = (4.4, 3.3)  # inches of 72 units each: about as wide as a phone, where text then keeps its size
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.parse_math"), False),
    **{"font.size": 10.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "ytick.major.size": 0},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.7},
    **{"xaxis.labellocation": "right", "svg.fonttype": "none", "svg.hashsalt": "telescopic"},
}
Thing = TypeVar("Thing")
_Places = Sequence[tuple[float, float]]
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


class Colour(NamedTuple):
    """A member's colour in light and in dark mode, and the CSS variable for it."""

    variable: str
    light: str
    dark: str


def ramp(number: int) -> list[Colour]:
    """Colours for that many members, smallest first."""
    places = [i / (number - 1) for i in range(number)] if number > 1 else [0.25]
    return [Colour(f"--r{round(1000 * t)}", blend(_LIGHT, t), blend(_DARK, t)) for t in places]


@dataclass(frozen=True)
class Plot:
    """A plot in three forms: `svg` and `png` are files of their own, on white; `inline()` is part of a page."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes
    colours: Sequence[Colour]

    def inline(self) -> str:
        """The SVG for an HTML page: colours are the page's CSS variables, text is in the page's font."""
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", self.svg[self.svg.index("<svg") :], flags=re.DOTALL)
        # Several plots in one page must not share identifiers.
        svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
        for colour, variable in (VARIABLES | {c.light: c.variable for c in self.colours}).items():
            svg = svg.replace(colour, f"var({variable})")
        return svg


def tradeoff(catalogue: Catalogue, cost: CostName) -> Plot:
    """Score of every member, such as accuracy, against a cost, with the Pareto front.

    Args:
        catalogue: has scores on validation examples, which give the front, or at least on test examples.
        cost: one of `COSTS` that was measured.
    """
    kind, metric = ("test_score" if catalogue[0].score is None else "score"), catalogue.metric
    assert getattr(catalogue[0], kind) is not None, "a plot of scores needs scores"
    front = catalogue.front(cost) if kind == "score" else []
    examples, good = ("images", "accurate") if metric.word == "accuracy" else ("examples", "good")
    few = len(catalogue) <= MAX_NAMED
    colours = ramp(len(catalogue)) if few else []
    places = [(float(getattr(member, cost)), float(getattr(member, kind))) for member in catalogue]
    tests = [(x, m.test_score) for m, (x, _) in zip(catalogue, places, strict=True) if m.test_score is not None]
    tests, names = tests if few and front else [], []
    with canvas() as (figure, axes):
        log = _cost_axis(axes, [x for x, _ in places])
        low = _score_axis(axes, [y for _, y in [*places, *tests]], metric)
        axes.set(
            xlabel=COSTS[cost] + " (logarithmic)" * log, title=f"{'validation' if front else 'test'} {metric.name}"
        )
        corners = sorted(place for member, place in zip(catalogue, places, strict=True) if member in front)
        if corners:
            corners.append((axes.get_xlim()[1], corners[-1][1]))
            axes.step(*zip(*corners, strict=True), where="post", color=MUTED if few else ACCENT, linewidth=1.1)
        for i, (member, (x, y)) in enumerate(zip(catalogue, places, strict=True)):
            best = not front or member in front
            colour, alpha = colours[i].light if few else ACCENT if best else MUTED, 1.0 if best else 0.4
            axes.plot(x, y, "o", ms=7.5 if few else 4, color=colour, mew=0, alpha=alpha, zorder=3)
            if tests:
                axes.plot([x, x], [y, tests[i][1]], color=colour, linewidth=0.9)
                axes.plot(*tests[i], "o", ms=5.5, mfc=PAGE, mec=colour, mew=1.2)
            if few or best:
                names.append((member.label, x, y, colour if few else INK))
        names = names if few else some(sorted(names, key=lambda name: name[1]), MAX_FRONT)
        _name_points(axes, names, [*places, *tests], corners)
        svg, png = rendered(figure)
    sentences = {
        f"The line is the Pareto front: the best {metric.name} within each budget.": front,
        f"A cheaper member is at least as {good} as the faint ones.": few and 0 < len(front) < len(catalogue),
        f"Hollow: on test {examples}, which decide nothing.": tests,
        f"The axis starts at {100 * low:.3g} %.": low > 0 and metric.unit == "%",
    }
    caption = " ".join(text for text, holds in sentences.items() if holds)
    name = f"{metric.word}-{cost.removesuffix('_ms')}"
    return Plot(name, f"{_capital(metric.name)} against {COSTS[cost]}", caption, svg, png, colours)


def curves(history: History, quantity: Literal["score", "loss"]) -> Plot:
    """Score or training loss of the members, epoch by epoch, with the chosen epoch marked.

    Args:
        history: one epoch or more.
        quantity: what is drawn; scores are on validation examples, or on test examples if there are no others.
    """
    number = len(history.labels)
    shown = some(range(number), MAX_CURVES)
    # What learned its widths is kept as it was at the end.
    colours, chosen = ramp(len(shown)), history[-1] if history.filters else history.best()
    judged = math.isfinite(chosen.validation[history.full])
    metric, kind = history.metric, "losses" if quantity == "loss" else "validation" if judged else "test"
    title = "training loss" if quantity == "loss" else f"{kind} {metric.name}"
    epochs = [epoch.epoch for epoch in history]
    lines = [[float(getattr(epoch, kind)[m]) for epoch in history] for m in shown]
    settled = [v for line in lines for v in line[len(line) // 20 :] if math.isfinite(v)] or [0.0]
    marked, examples = judged and not history.filters, "images" if metric.word == "accuracy" else "examples"
    caption = (
        f"Dashed: epoch {chosen.epoch}, the full network's best on validation {examples}, was kept." if marked else ""
    )
    ends = {epoch.phase: epoch.epoch for epoch in history if epoch.phase}
    caption += "".join(f" Dotted: {name}, until epoch {end}." for name, end in ends.items())
    with canvas_by_epoch(history.labels, epochs[-1]) as (figure, axes):
        if quantity == "score":
            low = _score_axis(axes, settled, metric)
            if metric.unit == "%" and any(value < low for line in lines for value in line):
                caption += f" The axis starts at {100 * low:.3g} %; the first epochs lie below it."
        else:
            log_if_wide(axes, settled)
        axes.set(title=title + " (logarithmic)" * (axes.get_yscale() == "log"))
        _mark_rates(axes, history, *((0.01, "bottom") if quantity == "score" else (0.99, "top")))
        for end in ends.values():
            axes.axvline(end, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        if marked:
            axes.axvline(chosen.epoch, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for line, colour in zip(lines, colours, strict=True):
            axes.plot(epochs, line, color=colour.light, linewidth=1.3)
            axes.plot(
                chosen.epoch,
                line[history.epochs.index(chosen)],
                "o",
                ms=6,
                mfc=colour.light,
                mec=PAGE,
                mew=1,
                zorder=4,
                clip_on=False,
            )
        name_ends(axes, [history.labels[m] for m in shown], [line[-1] for line in lines], colours)
        svg, png = rendered(figure)
    caption = caption.strip()
    caption += f" {len(shown)} of {number} members are drawn." if len(shown) < number else ""
    name = f"training-{metric.word if quantity == 'score' else quantity}"
    return Plot(name, f"{_capital(title)} by epoch", caption.strip(), svg, png, colours)


def write_plots(folder: Path, plots: Sequence[Plot]) -> list[Path]:
    """Write plots as SVG and PNG files of their names into a folder, which is made; the paths of the former."""
    paths = []
    for plot in plots:
        make_folder(folder)
        for suffix, content in (("svg", plot.svg.encode()), ("png", plot.png)):
            path = folder / f"{plot.name}.{suffix}"
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        paths.append(folder / f"{plot.name}.svg")
    return paths


@contextmanager
def canvas(
    size: tuple[float, float] = SIZE, place: tuple[float, float, float, float] = (0.14, 0.16, 0.83, 0.74)
) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure that neither depends on the user's settings of matplotlib nor changes them.

    Args:
        size: width and height in inches.
        place: left, bottom, width and height of the axes, as fractions of the size.
    """
    with needs("train"):
        import matplotlib.style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = FigureCanvasAgg(Figure(size, facecolor=PAGE)).figure
        yield figure, figure.add_axes(place)


@contextmanager
def canvas_by_epoch(names: Sequence[str], last: int) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure with epochs to the right, and room for the names of lines at their ends."""
    right = 0.04 + 0.018 * min(18, max(map(len, names)))
    with canvas(place=(0.14, 0.16, 0.86 - right, 0.74)) as (figure, axes):
        axes.set(xlabel="epoch", xlim=(0, last + (last == 1)))
        axes.locator_params(axis="x", integer=True, nbins=6)
        yield figure, axes


def log_if_wide(axes: "Axes", values: Sequence[float]) -> bool:
    """Whether values span so much that the vertical axis is made logarithmic for them."""
    wide = 0 < 4 * min(values) < max(values)
    if wide:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, min(values), max(values))
    return wide


def rendered(figure: "Figure") -> tuple[str, bytes]:
    """A figure as SVG and as PNG, the same for the same drawing."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _cost_axis(axes: "Axes", costs: Sequence[float]) -> bool:
    """Set the horizontal axis: logarithmic, and this is returned, if costs span a decade; else from 0."""
    low, high = min(costs), max(costs)
    if 0 < 12 * low < high:
        margin = (high / low) ** 0.12
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        log_ticks(axes.xaxis, low, high)
        return True
    axes.set_xlim(0, 1.15 * high or 1)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))
    return False


def _score_axis(axes: "Axes", scores: Sequence[float], metric: Metric) -> float:
    """Set the vertical axis around the scores, and return where it starts."""
    low, high, fraction = min(scores), max(scores), metric.unit == "%"
    margin = 0.1 * (high - low) or 0.005 * (1 if fraction else abs(high) or 1)
    axes.set_ylim(max(0 if fraction else -math.inf, low - margin), min(1.01 if fraction else math.inf, high + margin))
    axes.locator_params(axis="y", nbins=5)
    unit = f" {metric.unit}".rstrip()
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value if fraction else value:.6g}{unit}")
    return float(axes.get_ylim()[0])


def _capital(text: str) -> str:
    """With a capital first letter, and the others as they are, such as those of R2 and MAE."""
    return text[:1].upper() + text[1:]


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Put ticks at round numbers on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1,) if high > 90 * low else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: tick(value))
    axis.minorticks_off()


def tick(value: float) -> str:
    """A quantity without needless zeros: `10 k`, `2.5 M`, `0.01`."""
    number, _, prefix = human(value).partition(" ")
    return f"{float(number):g} {prefix}".rstrip()


def _mark_rates(axes: "Axes", history: History, y: float, side: str) -> None:
    """Mark where the learning rate was changed, if that was a few times: the curves bend there."""
    changes = [after for before, after in pairwise(history) if after.learning_rate != before.learning_rate]
    for epoch in changes if len(changes) <= 4 else []:
        axes.axvline(epoch.epoch, color=LINE, linewidth=1)
        text, where = f" rate {epoch.learning_rate:.2g}", axes.get_xaxis_transform()
        axes.text(epoch.epoch, y, text, transform=where, va=side, size=8, color=MUTED)


def _name_points(axes: "Axes", names: Sequence[tuple[str, float, float, str]], around: _Places, steps: _Places) -> None:
    """Write names beside points, largest first, where they hide least of the points around, a line of steps, names."""
    from matplotlib.transforms import Bbox

    def hidden(box: Bbox) -> float:
        inside, *others = (_shared(box, other) for other in (axes.bbox, *taken))
        return 3 * (box.width * box.height - inside) + sum(others)

    taken = [Bbox([[x - 6, y - 6], [x + 6, y + 6]]) for x, y in map(axes.transData.transform, around)]
    for (x0, y0), (x1, y1) in pairwise(map(axes.transData.transform, steps)):
        taken += [Bbox([[x0, y0 - 2], [x1, y0 + 2]]), Bbox([[x1 - 2, y0], [x1 + 2, y1]])]
    for name, x, y, colour in reversed(names):
        note = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", size=9.5, color=colour)
        (px, py), (w, h), boxes = axes.transData.transform((x, y)), note.get_window_extent().size, {}
        for right, up in _SIDES:
            x0, y0 = px + 10 * right + (right - 1) / 2 * w, py + 9 * up + (up - 1) / 2 * h
            boxes[right, up] = Bbox([[x0, y0], [x0 + w, y0 + h]])
        right, up = min(boxes, key=lambda side: hidden(boxes[side]))
        if len(names) > MAX_SURE and hidden(boxes[right, up]) > 0.02 * w * h:
            note.remove()
            continue
        note.set(ha=("center", "left", "right")[right], va=("center", "bottom", "top")[up])
        note.xyann = (7.2 * right, 6.5 * up)  # in points, 0.72 of the pixels above
        taken.append(boxes[right, up])


def _shared(one: Any, other: Any) -> float:
    """The area that two boxes share, without making a third one: this is asked a hundred thousand times."""
    width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0, width) * max(0, height))


def name_ends(axes: "Axes", labels: Sequence[str], ends: Sequence[float], colours: Sequence[Colour]) -> None:
    """Write each line's name at its end."""
    shown = [i for i, end in enumerate(ends) if math.isfinite(end)]
    axes.autoscale_view()
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((1, ends[i])))[1] for i in shown]
    for i, height in zip(shown, spread(heights, 0.055), strict=True):
        where: Any = {"transform": axes.transAxes, "va": "center", "size": 9.5 if len(labels[i]) < 18 else 7.5}
        axes.text(1.02, height, labels[i], color=colours[i].light, **where)


def some(things: Sequence[Thing], number: int) -> list[Thing]:
    """That many of them, or all if there are fewer: the first, the last, and others evenly between."""
    places = sorted({round(k * (len(things) - 1) / (number - 1)) for k in range(number)}) if things else []
    return [things[i] for i in places]


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places in [0, 1] so that they lie a gap apart or more, in the same order, and still in [0, 1]."""
    order, last = sorted(range(len(places)), key=lambda i: places[i]), len(places) - 1
    up, down = [places[i] for i in order], [places[i] for i in order]
    for k in range(1, len(order)):
        up[k] = max(up[k], up[k - 1] + gap)
        down[last - k] = min(down[last - k], down[last - k + 1] - gap)
    moved = [0.0] * len(places)
    for k, i in enumerate(order):  # the mean of two that keep the gap keeps it, and so do the bounds
        moved[i] = min(max((up[k] + down[k]) / 2, k * gap), 1 - (last - k) * gap)
    return moved


def blend(anchors: Sequence[str], place: float) -> str:
    """The colour at a place from 0 to 1 along a row of colours."""
    first = min(int(place * (len(anchors) - 1)), len(anchors) - 2)
    share = place * (len(anchors) - 1) - first
    pairs = ((int(anchors[first][k : k + 2], 16), int(anchors[first + 1][k : k + 2], 16)) for k in (1, 3, 5))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)
