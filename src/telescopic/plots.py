"""Plots of a trained family: accuracy against cost, and how it learned. Each as SVG, as PNG, and for a page."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from telescopic.catalogue import Catalogue, Member
from telescopic.catalogue.table import CostName
from telescopic.quantities import human
from telescopic.train import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MAX_NAMED = 20
"""Most members that have a colour and a name each."""
MAX_CURVES = 8
"""Most members whose training is drawn."""
COSTS: dict[CostName, str] = {"macs": "MACs of one example", "params": "parameters", "latency_ms": "latency in ms"}
"""What accuracy is plotted against, and how the axis is called."""

# Colours in light mode; a page has a CSS variable for each, which is another colour in dark mode.
INK, MUTED, LINE, PAGE, ACCENT = "#1f2328", "#59636e", "#d5dae0", "#ffffff", "#2563c9"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", PAGE: "--page", ACCENT: "--accent"}
# Teal, blue, violet, magenta, red: alike in lightness, so that text in any of them is legible.
_LIGHT = ("#0b7a75", "#2563c9", "#7048d6", "#b02a93", "#c2341d")
_DARK = ("#3ecfc4", "#74aaff", "#b097ff", "#f07fd8", "#ff9077")

_SIZE = (5.0, 3.6)  # inches of 72 units each: about as wide as a phone, where text then keeps its size
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "text.parse_math"), False),
    **{"font.size": 10, "axes.titlesize": 10, "axes.titlelocation": "left", "ytick.major.size": 0},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.7},
    **{"svg.fonttype": "none", "svg.hashsalt": "telescopic"},
}
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
    return [Colour(f"--r{round(1000 * t)}", _blend(_LIGHT, t), _blend(_DARK, t)) for t in places]


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
        svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))
        # Several plots in one page must not share identifiers.
        svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
        for colour, variable in (VARIABLES | {c.light: c.variable for c in self.colours}).items():
            svg = svg.replace(colour, f"var({variable})")
        return svg


def tradeoff(catalogue: Catalogue, cost: CostName) -> Plot:
    """Accuracy of every member against a cost, with the Pareto front.

    Args:
        catalogue: has accuracy on validation images, which gives the front, or at least on test images.
        cost: one of `COSTS` that was measured.
    """
    front = catalogue.front(cost) if catalogue[0].accuracy is not None else []
    few = len(catalogue) <= MAX_NAMED
    colours = ramp(len(catalogue)) if few else []
    costs = [float(getattr(member, cost)) for member in catalogue]
    scores = [score(member) for member in catalogue]
    tests = [m.test_accuracy for m in catalogue if m.test_accuracy is not None] if few and front else []
    with _figure() as (figure, axes):
        log, corners = _cost_axis(axes, costs), []
        _accuracy_axis(axes, [*scores, *tests])
        axes.set_xlabel(COSTS[cost] + (" (logarithmic)" if log else ""), loc="right")
        axes.set_title(f"{'validation' if front else 'test'} accuracy")
        if front:
            corners = [(float(getattr(m, cost)), score(m)) for m in front]
            corners.append((axes.get_xlim()[1], corners[-1][1]))
            x, y = zip(*corners, strict=True)
            axes.step(x, y, where="post", color=MUTED if few else ACCENT, linewidth=1.1)
        names = []
        for i, member in enumerate(catalogue):
            best = not front or member in front
            colour = colours[i].light if few else ACCENT if best else MUTED
            alpha = 1.0 if best else 0.4
            axes.plot(costs[i], scores[i], "o", ms=7.5 if few else 4, color=colour, mew=0, alpha=alpha, zorder=3)
            if tests:
                axes.plot([costs[i]] * 2, [scores[i], tests[i]], color=colour, linewidth=0.9)
                axes.plot(costs[i], tests[i], "o", ms=5.5, mfc=PAGE, mec=colour, mew=1.2)
            if few or best:
                names.append((member.label, costs[i], scores[i], colour if few else INK))
        points = [*zip(costs, scores, strict=True), *(zip(costs, tests, strict=True) if tests else ())]
        _name_points(axes, names, points if few else [], corners, crowd=not few)
        svg, png = _rendered(figure)
        low = axes.get_ylim()[0]
    caption = "The line is the Pareto front: the best accuracy within each budget." if front else ""
    if front and few and len(front) < len(catalogue):
        caption += " A cheaper member is at least as accurate as the faint ones."
    caption += " Hollow: on test images, which decide nothing." if tests else ""
    caption += f" The axis starts at {human(low, '%')}." if low > 0 else ""
    name = f"accuracy-{cost.removesuffix('_ms')}"
    return Plot(name, f"Accuracy against {COSTS[cost]}", caption.strip(), svg, png, colours)


def curves(history: History, quantity: Literal["accuracy", "loss"]) -> Plot:
    """Accuracy or training loss of the members, epoch by epoch, with the chosen epoch marked.

    Args:
        history: one epoch or more.
        quantity: what is drawn; accuracy is on validation images, or on test images if there are no others.
    """
    number = len(history.labels)
    shown = sorted({round(i * (number - 1) / (MAX_CURVES - 1)) for i in range(MAX_CURVES)})
    colours, chosen = ramp(len(shown)), history.best()
    judged = math.isfinite(chosen.validation[history.full])
    kind = "losses" if quantity == "loss" else "validation" if judged else "test"
    title = {"losses": "training loss", "validation": "validation accuracy", "test": "test accuracy"}[kind]
    epochs = [epoch.epoch for epoch in history]
    lines = [[float(getattr(epoch, kind)[m]) for epoch in history] for m in shown]
    settled = [v for line in lines for v in line[len(line) // 20 :] if math.isfinite(v)] or [0.0]
    full = history.labels[history.full]
    caption = f"Dashed: epoch {chosen.epoch}, in which {full} is best on validation images." if judged else ""
    with _figure(right=0.04 + 0.016 * min(18, max(map(len, history.labels)))) as (figure, axes):
        axes.set_xlim(*((0, epochs[-1]) if len(epochs) > 1 else (epochs[0] - 1, epochs[0] + 1)))
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.set_xlabel("epoch", loc="right")
        if quantity == "accuracy":
            low = _accuracy_axis(axes, settled)
            if any(value < low for line in lines for value in line):
                caption += f" The axis starts at {human(low, '%')}; the first epochs lie below it."
        elif 0 < 4 * min(settled) < max(settled):
            axes.set_yscale("log")
            _log_ticks(axes.yaxis, min(settled), max(settled))
        axes.set_title(title + (" (logarithmic)" if axes.get_yscale() == "log" else ""))
        _mark_rates(axes, history)
        if judged:
            axes.axvline(chosen.epoch, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for line, colour in zip(lines, colours, strict=True):
            axes.plot(epochs, line, color=colour.light, linewidth=1.3)
            at = line[history.epochs.index(chosen)]
            axes.plot(chosen.epoch, at, "o", ms=6, mfc=colour.light, mec=PAGE, mew=1, zorder=4, clip_on=False)
        _name_ends(axes, [history.labels[m] for m in shown], [line[-1] for line in lines], colours)
        svg, png = _rendered(figure)
    caption += f" {len(shown)} of {number} members are drawn." if len(shown) < number else ""
    return Plot(f"training-{quantity}", f"{title.capitalize()} by epoch", caption.strip(), svg, png, colours)


def score(member: Member) -> float:
    """Accuracy on validation images; without them, on test images.

    Raises:
        ValueError: if neither was measured.
    """
    found = member.test_accuracy if member.accuracy is None else member.accuracy
    if found is None:
        raise ValueError(f"accuracy of {member.label} was not measured: measure(net, data)")
    return found


@contextmanager
def _figure(right: float = 0.03) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure that neither depends on the user's settings of matplotlib nor changes them."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(_SIZE, facecolor=PAGE)
        FigureCanvasAgg(figure)
        yield figure, figure.add_axes((0.125, 0.135, 0.875 - right, 0.77))


def _rendered(figure: "Figure") -> tuple[str, bytes]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _cost_axis(axes: "Axes", costs: Sequence[float]) -> bool:
    """Set the horizontal axis: logarithmic, and this is returned, if costs span a decade; else from 0."""
    low, high = min(costs), max(costs)
    if 0 < 12 * low < high:
        margin = (high / low) ** 0.12
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        _log_ticks(axes.xaxis, low, high)
        return True
    axes.set_xlim(0, 1.15 * high or 1)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
    return False


def _accuracy_axis(axes: "Axes", accuracies: Sequence[float]) -> float:
    """Set the vertical axis around the accuracies, and return where it starts."""
    low, high = min(accuracies), max(accuracies)
    margin = 0.1 * (high - low) or 0.005
    axes.set_ylim(max(0, low - margin), high + margin)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
    return float(axes.get_ylim()[0])


def _log_ticks(axis: Any, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1,) if high > 90 * low else (1, 2, 5)))
    axis.set_major_formatter(lambda value, _: _tick(value))
    axis.set_minor_locator(NullLocator())


def _tick(value: float) -> str:
    """A quantity without needless zeros: `10 k`, `2.5 M`, `0.01`."""
    number, _, prefix = human(value).partition(" ")
    return f"{float(number):g} {prefix}".rstrip()


def _mark_rates(axes: "Axes", history: History) -> None:
    """Mark where the learning rate was changed, if that was a few times: the curves bend there."""
    changes = [after for before, after in pairwise(history) if after.learning_rate != before.learning_rate]
    for epoch in changes if len(changes) <= 4 else []:
        axes.axvline(epoch.epoch, color=LINE, linewidth=1)
        text, where = f" rate {epoch.learning_rate:.2g}", axes.get_xaxis_transform()
        axes.text(epoch.epoch, 0.01, text, transform=where, va="bottom", size=8, color=MUTED)


def _name_points(
    axes: "Axes", names: Sequence[tuple[str, float, float, str]], points: _Places, corners: _Places, *, crowd: bool
) -> None:
    """Write names beside points, each where it hides least of them and of a line of steps; in a crowd, hiding none."""
    from matplotlib.transforms import Bbox

    def hidden(box: Bbox) -> float:
        outside = box.width * box.height - _common(box, axes.bbox)
        return 3 * outside + sum(_common(box, other) for other in taken)

    taken = [Bbox([[x - 6, y - 6], [x + 6, y + 6]]) for x, y in map(axes.transData.transform, points)]
    for (x0, y0), (x1, y1) in pairwise(map(axes.transData.transform, corners)):
        taken += [Bbox([[x0, y0 - 2], [x1, y0 + 2]]), Bbox([[x1 - 2, y0], [x1 + 2, y1]])]
    for name, x, y, colour in names:
        note = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", size=9.5, color=colour)
        (px, py), size = axes.transData.transform((x, y)), note.get_window_extent()
        boxes = {
            side: Bbox.from_bounds(
                px + 10 * side[0] + (side[0] - 1) / 2 * size.width,
                py + 9 * side[1] + (side[1] - 1) / 2 * size.height,
                size.width,
                size.height,
            )
            for side in _SIDES
        }
        right, up = min(boxes, key=lambda side: hidden(boxes[side]))
        if crowd and hidden(boxes[right, up]):
            note.remove()
            continue
        note.set(ha=("center", "left", "right")[right], va=("center", "bottom", "top")[up])
        note.xyann = (7.2 * right, 6.5 * up)  # in points, 0.72 of the pixels above
        taken.append(boxes[right, up])


def _common(one: "Bbox", other: "Bbox") -> float:
    """Area that two boxes have in common."""
    width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0, width) * max(0, height))


def _name_ends(axes: "Axes", labels: Sequence[str], ends: Sequence[float], colours: Sequence[Colour]) -> None:
    """Write each line's name at its end."""
    shown = [i for i, end in enumerate(ends) if math.isfinite(end)]
    axes.autoscale_view()
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((1, ends[i])))[1] for i in shown]
    for i, height in zip(shown, spread(heights, 0.055), strict=True):
        where: Any = {"transform": axes.transAxes, "va": "center", "size": 9.5 if len(labels[i]) < 18 else 7.5}
        axes.text(1.02, height, labels[i], color=colours[i].light, **where)


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


def _blend(anchors: Sequence[str], place: float) -> str:
    """The colour at a place from 0 to 1 along a row of colours."""
    first = min(int(place * (len(anchors) - 1)), len(anchors) - 2)
    share = place * (len(anchors) - 1) - first
    pairs = ((int(anchors[first][k : k + 2], 16), int(anchors[first + 1][k : k + 2], 16)) for k in (1, 3, 5))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)
