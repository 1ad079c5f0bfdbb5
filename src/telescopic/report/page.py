"""The report of a trained family: one HTML page that needs no network, and its plots as files."""

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape as escape_html
from importlib import resources
from pathlib import Path
from string import Template

from torch import nn

from telescopic.catalogue import Catalogue
from telescopic.documents import printable
from telescopic.files import make_folder, replacing
from telescopic.nested import Nested
from telescopic.quantities import human
from telescopic.report.heatmaps import HEAT, NAMES, heatmaps
from telescopic.report.plots import (
    COSTS,
    MAX_FRONT,
    MAX_NAMED,
    VARIABLES,
    Plot,
    curves,
    ramp,
    some,
    tradeoff,
    write_plots,
)
from telescopic.report.widths import widths
from telescopic.subnet import Grid
from telescopic.train import History

_DARK = {"--ink": "#e6e9ed", "--muted": "#9aa4af", "--line": "#3a424c", "--page": "#14171b", "--accent": "#74aaff"}
PALETTE = {VARIABLES[light]: (light, _DARK[VARIABLES[light]]) for light in VARIABLES}
"""The page's CSS variables, each with its colour in light and in dark mode."""
PALETTE["--panel"] = ("#f3f5f7", "#1d2228")
PALETTE |= {c.variable: (c.light, c.dark) for number in range(1, MAX_NAMED + 1) for c in ramp(number)}
PALETTE |= {c.variable: (c.light, c.dark) for c in HEAT}
_PLOTS = {f"{word}-{cost}" for word in ("accuracy", "score") for cost in ("macs", "params", "latency")}
_PLOTS |= {"training-accuracy", "training-score", "training-loss", *NAMES}
_PLOTS |= {"training-widths"}
_COLUMNS = {
    **{"score": ("validation", ""), "test_score": ("test", ""), "macs": ("MACs", ""), "params": ("params", "")},
    **{"bytes": ("size", "B"), "peak_activation": ("peak", "B"), "largest_feature_map": ("largest map", "B")},
    **{"latency_ms": ("latency", "ms"), "latency_p95_ms": ("p95", "ms")},
}


def write_report(
    folder: Path,
    net: Nested,
    catalogue: Catalogue,
    *,
    history: History | None = None,
    title: str,
    source: str,
    facts: Mapping[str, str] | None = None,
    note: str = "",
) -> Path:
    """Write `report.html`, which needs no network, and its plots as `plots/*.svg` and `plots/*.png`.

    The same arguments give the same files. Text that is passed in is shown as text, whatever it contains.

    Args:
        folder: where; made if it is not there.
        net: the network, for the picture of it.
        catalogue: all its members, measured; without scores the page has no plot of them.
        history: how it was trained, for the curves.
        title: heading of the page.
        source: what to type in a command that takes a member out, such as `runs/nsn-mnist`.
        facts: where the network comes from: recipe, seed, data, versions.
        note: a remark below the summary; an empty line starts a new paragraph.

    Returns:
        The path of the page.

    Raises:
        ValueError: if the catalogue or the history is of another network.
    """
    catalogue.require_of(net.grid)
    if history is not None and history.labels != tuple(member.label for member in catalogue):
        raise ValueError(f"this history is of another network: its members are not those of {net.grid}")
    known = catalogue[0].score is not None or catalogue[0].test_score is not None
    costs = [cost for cost in COSTS if known and getattr(catalogue[0], cost) is not None]
    worth = [tradeoff(catalogue, cost) for cost in costs]
    learned = [curves(history, "loss")] if history else []
    if history and any(map(math.isfinite, (*history[-1].validation, *history[-1].test))):
        learned.insert(0, curves(history, "score"))
    if history and history.filters:
        learned.append(widths(history))
    maps = heatmaps(net.grid, catalogue)
    plots = [*worth, *maps, *learned]
    for name in _PLOTS - {plot.name for plot in plots}:  # of an earlier report, which knew more
        for suffix in ("svg", "png"):
            (folder / "plots" / f"{name}.{suffix}").unlink(missing_ok=True)
    make_folder(folder / "plots")
    write_plots(folder / "plots", plots)
    template = resources.files("telescopic.report").joinpath("report.html").read_text(encoding="utf-8")
    found = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert found is not None
    page = Template(template).substitute(
        # Only the script that belongs to the page may run in it, by the hash of its text.
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode(),
        light=" ".join(f"{name}: {light};" for name, (light, _) in PALETTE.items()),
        dark=" ".join(f"{name}: {dark};" for name, (_, dark) in PALETTE.items()),
        title=escape(title),
        summary=_prose(summary(catalogue)),
        note="".join(f"<p>{escape(text)}</p>" for text in re.split(r"\n\s*\n", note.strip()) if text),
        picture=_picture(net, catalogue),
        plots=_figures("What each size is worth", worth)
        + _figures("Every size by depth and width", maps)
        + _figures("How they learned", learned),
        table=_table(catalogue),
        commands=_commands(catalogue, source),
        facts=_facts(catalogue, history, facts or {}),
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def summary(catalogue: Catalogue) -> str:
    """A family in one sentence: how many sizes, from what cost to what cost, and how good they are."""
    small, large = (human(pick(member.macs for member in catalogue)) for pick in (min, max))
    sizes = "One size" if len(catalogue) == 1 else f"{len(catalogue)} sizes in one set of weights"
    costs = f"{large} MACs" if small == large else f"from {small} to {large} MACs"
    metric = catalogue.metric
    for name, kept in (("test_score", "test"), ("score", "validation")):
        scores = [score for member in catalogue if (score := getattr(member, name)) is not None]
        if scores:
            low, high = (metric.text(pick(scores)) for pick in (min, max))
            span = high if low == high else f"{low} to {high}"
            if metric.word == "accuracy":
                return f"{sizes}: {costs}, {span} of the {kept} images right."
            return f"{sizes}: {costs}, {metric.name} {span} on the {kept} examples."
    return f"{sizes}: {costs}."


def escape(text: str) -> str:
    """Text as it stands in the page, which may have come from a file of anyone."""
    return escape_html(printable(text))


def _prose(text: str) -> str:
    """Text for the page, in which no line ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=[kMGT%])", "&nbsp;", escape(text))


def _figures(heading: str, plots: Sequence[Plot]) -> str:
    captions = {plot.caption for plot in plots}
    common = f'<p class="quiet">{_prose(captions.pop())}</p>' if len(captions) == 1 else ""
    figures = "".join(
        f'<figure><div role="img" aria-label="{escape(plot.title)}">{plot.inline()}</div>'
        f"<figcaption>{'' if common else _prose(plot.caption)}</figcaption></figure>\n"
        for plot in plots
    )
    return f'<section><h2>{heading}</h2>{common}\n<div class="plots">{figures}</div></section>\n' if plots else ""


def _table(catalogue: Catalogue) -> str:
    shown = {name: column for name, column in _COLUMNS.items() if getattr(catalogue[0], name) is not None}
    front = catalogue.front() if catalogue[0].score is not None else []
    colours = ramp(len(catalogue)) if len(catalogue) <= MAX_NAMED else []
    heads = ['<th scope="col" data-key="member">member</th>']
    metric = catalogue.metric
    for name, (header, _) in shown.items():
        judged = name in ("score", "test_score")
        first = ' data-first="descending"' if judged and metric.better == "higher" else ""  # the best first
        header += f" {escape(metric.name)}" if judged and metric.word == "score" else ""
        key = name.replace("score", metric.word)
        heads.append(f'<th scope="col" data-key="{key}"{first}>{header}</th>')
    rows = []
    for i, member in enumerate(catalogue):
        dot = f'<span class="dot" style="--c:var({colours[i].variable})"></span>' if colours else ""
        star = ' <span class="star" role="img" aria-label="on the Pareto front">★</span>' if member in front else ""
        cells = [f'<th scope="row" data-value="{i}">{dot}{escape(member.label)}{star}</th>']
        for name, (_, unit) in shown.items():
            value = getattr(member, name)
            exact = f"{value:,} bytes" if unit == "B" else f"{value:,}"
            text = escape(metric.text(value)) if name in ("score", "test_score") else human(value, unit)
            cells.append(f'<td data-value="{value!r}" title="{exact}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head, body = "".join(heads), "\n".join(rows)
    return f'<table class="members"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'


def _commands(catalogue: Catalogue, source: str) -> str:
    def command(what: str, file: str) -> str:
        text = f"telescopic extract {shlex.quote(source)} {what} --to {file}.onnx"
        return f'<div class="command"><code>{escape(text)}</code></div>\n'

    def one(label: str) -> str:
        return command(f"--subnet {label}", label.replace("=", "").replace(",", "-"))

    few = len(catalogue) <= MAX_NAMED
    front = catalogue.front() if catalogue[0].score is not None and not few else []
    middle = catalogue[len(catalogue) // 2].macs
    step = 10 ** max(0, len(str(middle)) - 2)  # rounded up to two digits, so that this member fits
    budget = human(-(-middle // step) * step).replace(" ", "")
    html = "".join(one(member.label) for member in (catalogue if few else some(front, MAX_FRONT)))
    if not few:
        everyone = "".join(one(member.label) for member in catalogue)
        html += f"<details><summary>All {len(catalogue)} members</summary>{everyone}</details>\n"
    return f"{html}<p>Or the best one within a budget:</p>\n{command(f'--max-macs {budget}', 'chosen')}"


def _facts(catalogue: Catalogue, history: History | None, facts: Mapping[str, str]) -> str:
    rows = dict(facts)
    if history:
        minutes = sum(epoch.seconds for epoch in history) / 60
        time = f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.1f} min"
        rows["training took"] = f"{len(history)} epochs, {time}"
    if catalogue.statistics is not None:
        rows["BatchNorm statistics"] = catalogue.statistics
    if catalogue.machine is not None:
        rows["latency measured on"] = f"{catalogue.machine}; threads {catalogue.threads}, batch {catalogue.batch}"
    html = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in rows.items())
    return f'<section><h2>Where it comes from</h2><dl class="facts">{html}</dl></section>' if html else ""


def _picture(net: Nested, catalogue: Catalogue) -> str:
    """The spine of stages, and below it a row for each member with what it runs; a chart if there are too many."""
    spans, num, widest = Grid(net.grid.entries, net.grid.exits), len(net.stages), net.grid.widths[-1]
    rows = [(m.label, f"{human(m.macs)} MACs", m.subnet) for m in catalogue]
    if len(rows) > MAX_NAMED:  # widths run the same stages, so they may share a row
        also = f"{len(net.grid.widths)} widths"
        rows = [(spans.label(span), also, replace(span, width=widest)) for span in spans]
    if len(rows) > MAX_NAMED:
        return _chart(spans)
    box, gap = (60, 40) if num <= 6 else (38, 30) if num <= 12 else (22, 28)
    left = 12 + 7 * max(len(text) for row in rows for text in row[:2])
    # The gap before stage i has room for both a way in and a head that reads the stage before it.
    gaps = [left + i * (box + gap) for i in range(num + 1)]
    width, height = gaps[-1] + gap + 4, 106 + 40 * len(rows)
    parts = [f'<path class="wire" d="M{gaps[spans.entries[0]] + 11} 49H{gaps[spans.exits[-1] + 1] + gap - 10}"/>']
    parts += [_text(0, 15, "entry"), _text(0, 53, "stage"), _text(0, 93, "exit")]
    for i, stage in enumerate(net.stages):
        x, params = gaps[i] + gap, human(sum(p.numel() for p in stage.parameters()))
        lines = [(45, _name(stage)), (60, params)] if num <= 6 else [(45, str(i)), (60, params)] if num <= 12 else []
        inside = re.sub(r" at 0x[0-9a-f]+", "", str(stage))  # the same page for the same network
        parts.append(f"<g><title>stage {i}, {params} parameters: {escape(inside)}</title>")
        parts.append(f'<rect class="stage" x="{x}" y="28" width="{box}" height="42" rx="6"/>')
        parts += [_text(x + box / 2, y, line, "middle") for y, line in lines or [(53, str(i))]] + ["</g>"]
    for places, y, arrow in ((spans.entries, 15, "20v21"), (spans.exits, 93, "54v22")):
        for place in places:
            x = gaps[place] + 11 if y < 50 else gaps[place + 1] + gap - 10
            parts.append(_text(x, y, str(place), "middle") + f'<path class="wire arrow" d="M{x} {arrow}"/>')
    for (label, also, member), colour, y in zip(rows, ramp(len(rows)), range(126, height, 40), strict=True):
        start, end = gaps[member.entry] + 11, gaps[member.exit + 1] + gap - 10
        parts.append(f'<g style="--c:var({colour.variable})">{_text(0, y - 2, label, "start", "name")}')
        parts.append(f'{_text(0, y + 13, also)}<path class="run" d="M{start} {y}H{end}"/>')
        tall = 8 + 14 * member.width / widest
        for i in range(num):
            runs = member.entry <= i <= member.exit
            kind, tall_i = ("run", tall) if runs else ("ghost", 16)
            where = f'x="{gaps[i] + gap}" y="{y - tall_i / 2:g}" width="{box}" height="{tall_i:g}"'
            parts.append(f'<rect class="{kind}" {where} rx="5"/>')
        parts.append(f'<circle class="in" cx="{start}" cy="{y}" r="5"/>')
        parts.append(f'<path class="run" d="M{end - 7} {y}l7 -7 7 7 -7 7z"/></g>')
    legend = "○ here the input enters · ◆ here a head gives the prediction · dashed stages are left out"
    if len({member.width for _, _, member in rows}) > 1:
        legend += " · thinner: fewer channel groups"
    return _svg(width, height, "Which stages each member runs", parts, legend)


def _chart(spans: Grid) -> str:
    """A square for each pair of entry and exit."""
    side, left = 20, 44
    parts = [_text(0, 15, "exit"), _text(0, 32, "entry")]
    parts += [_text(left + side * (x + 0.5), 15, str(place), "middle") for x, place in enumerate(spans.exits)]
    parts += [_text(left - 8, 46 + side * y, str(place), "end") for y, place in enumerate(spans.entries)]
    for span in spans:
        num = span.exit - span.entry + 1
        x, y = left + side * spans.exits.index(span.exit), 32 + side * spans.entries.index(span.entry)
        shade = 0.12 + 0.88 * num / max(1, spans.exits[-1] - spans.entries[0] + 1)
        where = f'x="{x + 1}" y="{y + 1}" width="{side - 2}" height="{side - 2}"'
        parts.append(f'<rect {where} rx="3" fill="var(--accent)" fill-opacity="{shade:.3f}">')
        parts.append(f"<title>{spans.label(span)}: {num} stages run</title></rect>")
    width, height = left + side * len(spans.exits), 36 + side * len(spans.entries)
    legend = "A square stands for the members of an entry and an exit; the stronger its colour, the more stages run."
    return _svg(width, height, "Members by entry and exit", parts, legend)


def _svg(width: float, height: float, title: str, parts: Sequence[str], legend: str) -> str:
    style = f"min-width: {width}px; width: {max(width, min(1.5 * width, 960)):g}px; max-width: 100%"
    return (
        f'<div class="picture box" tabindex="0" role="region" aria-label="{title}"><svg viewBox="0 0 {width} {height}"'
        f' style="{style}" role="img" aria-label="{title}">{"".join(parts)}</svg></div><p class="quiet">{legend}</p>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "also") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _name(stage: nn.Module) -> str:
    """What a stage is, in 9 letters: of several layers in a row, the first that has parameters."""
    layers = stage.modules() if type(stage) is nn.Sequential else [stage]
    owner = next((layer for layer in layers if next(layer.parameters(recurse=False), None) is not None), stage)
    name = type(owner).__name__
    return name if len(name) <= 9 else f"{name[:8]}…"
