"""Draws Figures 4 and 5 of Doubly Nested Network from what `telescopic reproduce doubly-nested` has left.

Writes docs/papers/figures45.svg:

    python benchmarks/figures45.py [results/doubly-nested [results/doubly-nested-ways]]

The first folder is for Figure 4, the second, by default the same, for Figure 5.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from figure3 import beside

from telescopic.papers.doubly_nested_runs import Results, grid_of
from telescopic.papers.reproduce import runs
from telescopic.report.plots import MUTED, PAGE, Plot, _accuracy_axis, canvas, name_ends, ramp, rendered, tick

ROOT = Path(__file__).parents[1]
SVG = ROOT / "docs" / "papers" / "figures45.svg"
PLACE = (0.14, 0.16, 0.55, 0.74)

Points = Sequence[tuple[float, float]]


def figure_4(results: Results) -> Plot:
    """Test accuracy by width, for each way to a network of that width."""
    last, groups = results.full
    lines: dict[str, dict[int, list[float]]] = {
        "full training": {width: results.single("dense", last, width) for width in range(1, groups + 1)},
        "causal, alone": {width: results.single("alone", last, width) for width in range(1, groups + 1)},
        f"ours, {results.best}": {width: results.tests(results.best, last, width) for width in range(1, groups + 1)},
        "ours, uniform": {width: results.tests("uniform", last, width) for width in range(1, groups + 1)},
        "fine-tuned": {width: results.single("sliced", last, width) for width in range(1, groups)},
        "sliced": {width: results.sliced(width) for width in range(1, groups)},
    }
    # A network that is not cut at all is what both schemes end in.
    for name in ("fine-tuned", "sliced"):
        lines[name][groups] = lines["full training"][groups]
    points = {
        name: [(float(width), sum(found) / len(found)) for width, found in line.items() if found]
        for name, line in lines.items()
    }
    return _lines("figure4", "test accuracy by width", "width", points, groups)


def figure_5(results: Results) -> Plot:
    """Test accuracy of the best members by nominal MACs: cut by depth alone, and both ways."""
    families = {"for depth alone": ("depth-only", False), "ours, by depth": (results.best, False)}
    families["ours, both ways"] = results.best, True
    points = {
        name: front(results.found[way][0], widths) for name, (way, widths) in families.items() if way in results.found
    }
    most = max(x for line in points.values() for x, _ in line)
    return _lines("figure5", "test accuracy by MACs", "MACs of one image, nominal", points, most)


def front(run: Mapping[str, Any], widths: bool) -> Points:
    """Members chosen on validation images, each better than all cheaper ones: MACs and test accuracy."""
    row, full = run["protocols"]["validation"], run["widths"][-1]
    members = [
        (macs, valid, test)
        for member, macs, valid, test in zip(grid_of(run), run["macs"], row["validation"], row["test"], strict=True)
        if widths or member.width == full
    ]
    members.sort(key=lambda member: (member[0], -member[1]))
    bests = accumulate((valid for _, valid, _ in members), max)
    before = [0.0, *bests]
    return [(macs, test) for (macs, valid, test), best in zip(members, before, strict=False) if valid > best]


def _lines(name: str, title: str, across: str, points: Mapping[str, Points], most: float) -> Plot:
    shown = {label: line for label, line in points.items() if line}
    colours = ramp(len(shown))
    with canvas((5.6, 3.3), PLACE) as (figure, axes):
        _accuracy_axis(axes, [y for line in shown.values() for _, y in line])
        axes.set(title=title, xlabel=across, xlim=(0, 1.02 * most))
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(lambda value, _: tick(value) if value else "0")
        for line, colour in zip(shown.values(), colours, strict=True):
            axes.plot(*zip(*line, strict=True), "o-", ms=4, mec=PAGE, mew=0.5, color=colour.light, linewidth=1.3)
        axes.tick_params(colors=MUTED)
        name_ends(axes, list(shown), [line[-1][1] for line in shown.values()], colours)
        svg, png = rendered(figure)
    return Plot(name, title, "", svg, png, colours)


def main() -> None:
    """Draw both beside each other."""
    folders = sys.argv[1:] or [ROOT / "results" / "doubly-nested"]
    one, other = (Results(runs(Path(folder))) for folder in (folders[0], folders[-1]))
    SVG.write_text(beside([figure_4(one), figure_5(other)], "Figures 4 and 5 of Doubly Nested Network"))


if __name__ == "__main__":
    main()
