import json
import math
import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telescopic.catalogue import Catalogue, measure
from telescopic.nested import Nested
from telescopic.networks import causal_resnet, mlp
from telescopic.report import plots
from telescopic.report.heatmaps import HEAT, heatmap, heatmaps
from telescopic.report.page import _DARK, _picture, summary, write_report
from telescopic.report.plots import VARIABLES, Plot, curves, ramp, some, spread, tradeoff
from telescopic.subnet import Grid
from telescopic.train.history import Epoch, History

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)"> & 'q' "$title" ${x} $\\frac{ ]]> --></title>"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ACCURACIES, TESTS = (0.90, 0.95, 0.97), (0.91, 0.94, 0.96)


@pytest.fixture
def pixels() -> None:
    """Asked for by tests that look at PNG files, or at what is drawn in them."""


@pytest.fixture(autouse=True)
def no_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests read the SVG alone: the same figure is drawn a second time for the PNG, a third of a plot's time."""
    if "pixels" not in request.fixturenames:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, file, **how: file.write(b"not drawn"))


def family(
    accuracies: tuple[float, ...] | None = ACCURACIES,
    tests: tuple[float, ...] | None = TESTS,
    net: Nested | None = None,
    machine: str | None = None,
) -> tuple[Nested, Catalogue]:
    """A network of layers 8 wide with made-up accuracies, which cost as many MACs as it really has."""
    net = net or mlp(8, (8, 8), 4)
    found = measure(net, input_shape=(8,))
    timed = {} if machine is None else {"machine": machine, "device": "cpu", "threads": 1, "batch": 1}
    members = tuple(
        replace(
            member,
            score=accuracies and accuracies[i],
            test_score=tests and tests[i],
            latency_ms=0.5 + i if timed else None,
            latency_p95_ms=0.6 + i if timed else None,
        )
        for i, member in enumerate(found)
    )
    return net, Catalogue(members, found.input_shape, **timed)


def learned(catalogue: Catalogue, epochs: int = 30, *, validation: bool = True, test: bool = True) -> History:
    """Curves that rise to the catalogue's accuracies, best in the epoch before the last, with two lower rates."""
    rows = []
    for e in range(1, epochs + 1):
        rise = [(m.accuracy or 0.9) - 0.5 / e - 0.001 * (e == epochs) for m in catalogue]
        unknown = (math.nan,) * len(catalogue)
        rate = 0.1 / 10 ** (e > 10) / 10 ** (e > 20)
        known = (tuple(rise) if validation else unknown, tuple(rise) if test else unknown)
        rows.append(Epoch(e, 60.0, 1000.0, rate, 1.0, tuple(1 - a for a in rise), *known))
    return History([member.label for member in catalogue], len(catalogue) - 1, rows)


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and text by the tag it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def page(tmp_path: Path, net: Nested, catalogue: Catalogue, **options: object) -> str:
    settings = {"title": "A title", "source": "runs/a"} | options
    return write_report(tmp_path, net, catalogue, **settings).read_text(encoding="utf-8")  # type: ignore[arg-type]


def test_summary() -> None:
    _, catalogue = family()
    text = "3 sizes in one set of weights: from 32 to 160 MACs, 91.00 % to 96.00 % of the test images right."
    assert summary(catalogue) == text
    assert summary(family(tests=None)[1]).endswith(" MACs, 90.00 % to 97.00 % of the validation images right.")
    assert summary(family(None, None)[1]) == "3 sizes in one set of weights: from 32 to 160 MACs."
    one = family((0.5,), (0.25,), mlp(8, (8,), 4, entries=(0,)))[1]
    assert summary(one) == "One size: 96 MACs, 25.00 % of the test images right."


def test_page_says_which_statistics_were_measured(tmp_path: Path) -> None:
    net, catalogue = family()
    found = Page(page(tmp_path, net, replace(catalogue, statistics="per-entry")))
    assert found.texts["dt"][-1] == "BatchNorm statistics" and found.texts["dd"][-1] == "per-entry"
    assert "BatchNorm statistics" not in page(tmp_path, net, catalogue)


def test_page_holds_everything_and_needs_nothing(tmp_path: Path) -> None:
    net, catalogue = family(machine="A machine")
    facts = {"seed": "7", "data": "mnist"}
    html = page(tmp_path, net, catalogue, history=learned(catalogue), facts=facts, note="First.\n\nSecond.")
    found = Page(html)
    assert found.texts["h1"] == ["A title"] and found.texts["title"][0] == "A title"
    assert {"First.", "Second."} <= set(found.texts["p"])
    assert found.texts["dt"][-4:] == ["seed", "data", "training took", "latency measured on"]
    assert found.texts["dd"][-4:] == ["7", "mnist", "30 epochs, 30.0 min", "A machine; threads 1, batch 1"]
    assert found.texts["code"][3:] == [
        "telescopic extract runs/a --subnet entry=2 --to entry2.onnx",
        "telescopic extract runs/a --subnet entry=1 --to entry1.onnx",
        "telescopic extract runs/a --subnet entry=0 --to entry0.onnx",
        "telescopic extract runs/a --max-macs 96 --to chosen.onnx",
    ]
    cells = [cell for cell in found.texts["td"] if cell]
    assert cells[:5] == ["90.00 %", "91.00 %", "32", "36", "144 B"] and cells[-2:] == ["2.50 ms", "2.60 ms"]
    # Nothing is fetched: links and sources stay within the page, styles import nothing, only our script may run.
    for _, attributes in found.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert re.findall(r"url\((?!#)|@import", html) == []
    assert set(re.findall(r"https?://[^\"' )]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    assert {link[1:] for link in re.findall(r"(?:href=\"|url\()(#[^\")]+)", html)} <= set(ids)
    used, defined = set(re.findall(r"var\((--\w+)", html)), set(re.findall(r"(--\w+):", html))
    assert used <= defined


@pytest.mark.usefixtures("pixels")
def test_plots_are_files_too(tmp_path: Path, whole_dpi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, catalogue = family(machine="A machine")
    monkeypatch.setattr(plots, "DPI", whole_dpi)
    page(tmp_path, net, catalogue, history=learned(catalogue))
    names = {"accuracy-macs", "accuracy-params", "accuracy-latency", "training-accuracy", "training-loss"}
    files = {path.name for path in (tmp_path / "plots").iterdir()}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    svg = ElementTree.parse(tmp_path / "plots" / "accuracy-macs.svg").getroot()
    assert {"entry=0", "entry=1", "entry=2", "validation accuracy"} <= {text.text for text in svg.iter() if text.text}
    png = (tmp_path / "plots" / "training-loss.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">2I", png[16:24]) == (880, 660)
    mine = tmp_path / "plots" / "mine.svg"
    mine.touch()
    page(tmp_path, *family())  # without latency and history: what an earlier report drew of them is gone
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"accuracy-macs", "accuracy-params", "mine"}


@pytest.mark.usefixtures("pixels")
def test_same_run_same_files(tmp_path: Path) -> None:
    import matplotlib

    net, catalogue = family()
    before = dict(matplotlib.rcParams)
    page(tmp_path / "a", net, catalogue, history=learned(catalogue))
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        page(tmp_path / "b", *family(), history=learned(catalogue))
    assert dict(matplotlib.rcParams) == before
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / x).rglob("*.*") if p.is_file()} for x in "ab")
    assert len(one) == 9 and one == other


@pytest.mark.usefixtures("pixels")
def test_outside_text_stays_text(tmp_path: Path) -> None:
    net, catalogue = family(machine=HOSTILE)
    html = page(tmp_path, net, catalogue, title=HOSTILE, source=HOSTILE, facts={HOSTILE: HOSTILE}, note=HOSTILE)
    found, plain = Page(html), Page(page(tmp_path, *family(machine="m"), facts={"a": "b"}, note="n"))
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    assert found.texts["title"][0] == found.texts["h1"][0] == HOSTILE
    assert HOSTILE in found.texts["p"] and HOSTILE in found.texts["dt"] and HOSTILE in found.texts["dd"]
    words = shlex.split(found.texts["code"][3])
    assert words == ["telescopic", "extract", HOSTILE, "--subnet", "entry=2", "--to", "entry2.onnx"]


@pytest.mark.usefixtures("pixels")
def test_labels_are_not_formulas() -> None:
    _, catalogue = family()
    history = learned(catalogue)
    history.labels = ("$\\frac{", "a <b>", "$x^2$")
    svg = ElementTree.fromstring(curves(history, "loss").svg)
    assert set(history.labels) <= {text.text for text in svg.iter()}


def test_refuses_another_network(tmp_path: Path) -> None:
    net, catalogue = family()
    other = mlp(8, (8,), 4)
    with pytest.raises(ValueError, match="catalogue is of another network"):
        page(tmp_path, other, catalogue)
    history = learned(family(net=other)[1])
    with pytest.raises(ValueError, match="history is of another network"):
        page(tmp_path, net, catalogue, history=history)


@pytest.mark.parametrize(
    ("sizes", "accuracies", "tests", "expected"),
    [
        ((), (0.5,), (0.5,), {"accuracy-macs", "accuracy-params"}),  # one member without any stage
        ((8, 8), None, None, set()),
        ((8, 8), None, TESTS, {"accuracy-macs", "accuracy-params"}),
        ((8, 8), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), {"accuracy-macs", "accuracy-params"}),
        ((8, 8), (0.0, 0.0, 0.0), None, {"accuracy-macs", "accuracy-params"}),
        ((8,) * 14, (0.9,) * 15, (0.8,) * 15, {"accuracy-macs", "accuracy-params"}),
    ],
)
def test_whatever_was_measured(
    tmp_path: Path, sizes: tuple[int, ...], accuracies: tuple[float, ...], tests: tuple[float, ...], expected: set[str]
) -> None:
    net, catalogue = family(accuracies, tests, mlp(8, sizes, 4))
    html = page(tmp_path, net, catalogue)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == expected
    assert html.count('<th scope="row"') == len(catalogue) and "NaN" not in html and "None" not in html
    assert html.count("★</span>") == (len(catalogue.front()) if accuracies else 0)


def test_tradeoff_says_what_it_shows() -> None:
    _, catalogue = family((0.9, 0.8, 0.97))  # the middle one is worse than the smallest
    plot = tradeoff(catalogue, "macs")
    faint = "A cheaper member is at least as accurate as the faint ones."
    assert faint in plot.caption and "Hollow: on test images" in plot.caption and "starts at 78.3 %" in plot.caption
    assert plot.svg.count("opacity: 0.4") == 1
    rising = tradeoff(family()[1], "macs")
    assert faint not in rising.caption and "opacity: 0.4" not in rising.svg
    only_test = tradeoff(family(None)[1], "macs")
    assert only_test.caption == "The axis starts at 90.5 %." and "test accuracy" in only_test.svg


def test_points_lie_where_the_numbers_are() -> None:
    _, catalogue = family((0.9, 0.9, 0.98), None)
    plot = tradeoff(catalogue, "macs")  # 32, 96, 160 MACs on an axis from 0 to 1.15 · 160
    markers = [
        (float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #', plot.svg)
    ]
    (x0, y0), (x1, y1), (x2, y2) = markers[-3:]
    assert x1 - x0 == pytest.approx(x2 - x1, rel=1e-4) and y0 == y1 > y2  # SVG counts downwards
    width = 0.83 * 4.4 * 72
    assert x1 - x0 == pytest.approx(width * 64 / (1.15 * 160), rel=1e-4)


def test_curves_mark_the_kept_epoch() -> None:
    _, catalogue = family()
    history = learned(catalogue)
    plot = curves(history, "score")
    assert plot.caption.startswith("Dashed: epoch 29, the full network's best on validation images, was kept.")
    assert "rate 0.01" in plot.svg and "rate 0.001" in plot.svg
    assert plot.title == "Validation accuracy by epoch" and "12 of" not in plot.caption
    unseen = curves(learned(catalogue, validation=False), "score")
    assert unseen.title == "Test accuracy by epoch" and "Dashed" not in unseen.caption
    assert curves(learned(catalogue, epochs=1), "loss").caption.startswith("Dashed: epoch 1,")
    many = family((0.9,) * 15, None, mlp(8, (8,) * 14, 4))[1]
    plot = curves(learned(many), "loss")
    assert "12 of 15 members are drawn." in plot.caption and "entry=0" in plot.svg and "entry=14" in plot.svg


def test_run_without_any_accuracy(tmp_path: Path) -> None:
    net, catalogue = family()
    page(tmp_path, net, catalogue, history=learned(catalogue, validation=False, test=False))
    assert not (tmp_path / "plots" / "training-accuracy.svg").exists()
    assert (tmp_path / "plots" / "training-loss.svg").exists()


@settings(deadline=None)  # a busy machine is no error
@given(st.lists(st.floats(-0.2, 1.2), max_size=12))
def test_spread(places: list[float]) -> None:
    moved = spread(places, 0.08)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert all(moved[b] - moved[a] >= 0.08 - 1e-12 for a, b in pairwise(order))
    assert all(-1e-12 <= place <= 1 + 1e-12 for place in moved)
    apart = [k / 12 for k in range(len(places))]
    assert spread(apart, 0.08) == pytest.approx(apart)


def rows(picture: str) -> list[tuple[str, list[str], float, float]]:
    """Of each member's row: its label, what becomes of each stage, where the input enters and the head stands."""
    found = []
    for group in re.findall(r'<g style="--c.*?</g>', picture):
        label, kinds = re.search(r">([^<]+)</text>", group), re.findall(r'<rect class="(\w+)"', group)
        start, head = re.search(r'cx="(\d+)"', group), re.search(r"M(\d+) \d+l7", group)
        assert label and start and head
        found.append((label[1], kinds, float(start[1]), float(head[1]) + 7))
    return found


def test_picture_shows_what_each_member_runs() -> None:
    picture = _picture(*family())
    (small, none, a, b), (_, one, c, _), (_, both, d, e) = rows(picture)
    assert (small, none, one, both) == ("entry=2", ["ghost"] * 2, ["ghost", "run"], ["run"] * 2)
    assert d < c < a < b == e
    stages = [float(x) for x in re.findall(r'class="stage" x="(\d+)"', picture)]
    assert d < stages[0] < c < stages[1] < a  # each enters just before its first stage
    assert "Linear" in picture and ">72</text>" in picture and "thinner" not in picture


def test_picture_of_widths_and_of_many() -> None:
    net = mlp(8, (8,) * 3, 4)
    catalogue = family(None, None, net)[1]

    def drawn(entries: range, exits: range, widths: range) -> tuple[str, Grid]:
        net.grid = Grid(entries, exits, widths)
        members = tuple(replace(catalogue[0], subnet=s, label=net.grid.label(s)) for s in net.grid)
        return _picture(net, Catalogue(members, (8,))), net.grid

    few, _ = drawn(range(1), range(2, 3), range(1, 5))
    assert [h for h in re.findall(r'class="run" x[^>]*height="([\d.]+)"', few)][::3] == ["11.5", "15", "18.5", "22"]
    assert "thinner: fewer channel groups" in few
    shared, grid = drawn(range(1), range(3), range(1, 23))
    assert len(grid) == 66 and [kinds.count("run") for _, kinds, _, _ in rows(shared)] == [1, 2, 3]
    assert [label for label, *_ in rows(shared)] == ["exit=0", "exit=1", "exit=2"] and "22 widths" in shared
    chart, grid = drawn(range(30), range(30), range(1, 2))
    assert len(grid) == 494 == chart.count("<rect") and "entry=3,exit=7: 5 stages run" in chart


def cells(plot: Plot) -> list[tuple[str, float, float, int]]:
    """Of each cell of a heat map: its title, where it lies, and how much its colour stands for, from 0 to 15."""
    drawn = plot.svg[plot.svg.index('<g id="cells">') :].split("</g>")[0]
    levels = [colour.light for colour in HEAT]
    pattern = r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: (#\w+)"><title>([^<]+)</title>'
    return [(title, float(x), float(y), levels.index(fill)) for x, y, fill, title in re.findall(pattern, drawn)]


def wide(grid: Grid | None = None) -> tuple[Grid, Catalogue]:
    """Members by depth and width with made-up figures: the deeper and the wider, the more accurate and the dearer."""
    grid = grid or Grid((0,), (-1, 0, 1), (1, 2, 3, 4))
    members = []
    seed = measure(mlp(8, (), 4, entries=(0,)), input_shape=(8,))[0]
    for member in grid:
        assert member.entry is not None and member.exit is not None and member.width is not None
        deep = member.exit - member.entry + 2
        figures = {"macs": deep * member.width**2, "params": deep * member.width, "largest_feature_map": member.width}
        accuracy = 1 - 0.5 / (deep * member.width)
        members.append(replace(seed, subnet=member, label=grid.label(member), score=accuracy, **figures))
    return grid, Catalogue(tuple(members), (8,))


def test_heat_map_puts_every_member_in_its_place() -> None:
    grid = Grid((0,), (-1, 0, 1), (1, 2, 3, 4))
    values = [float(i) for i in range(12)]
    found = cells(heatmap("a", "a title", grid, values, unit="ms"))
    assert [title.split(":")[0] for title, *_ in found] == [grid.label(member) for member in grid]
    assert (found[1][0], found[11][0]) == ("exit=-1,width=2: 1.00 ms", "exit=1,width=4: 11.0 ms")
    for (_, x, y, _), (_, right, _, _) in pairwise(found[:4]):  # exit -1, widths 1 to 4
        assert right - x == pytest.approx(30) and y == found[0][2]
    for below, above in pairwise(found[::4]):  # width 1, exits -1 to 1; SVG counts downwards
        assert below[2] - above[2] == pytest.approx(30) and below[1] == above[1]
    assert [level for *_, level in found] == [min(15, int(16 * i / 11)) for i in range(12)]


@pytest.mark.parametrize(
    ("values", "levels", "log"),
    [
        ([1.0, 10.0, 10.1, 100.0], [0, 8, 8, 15], True),
        ([0.0, 10.0, 50.0, 100.0], [0, 1, 8, 15], False),  # nothing has no logarithm
        ([4.0, 5.0, 6.0, 120.0], [0, 0, 0, 15], False),  # 30 times is not more than 30 times
        ([7.0] * 4, [8] * 4, False),
        ([0.0] * 4, [0] * 4, False),
    ],
)
def test_scales_of_heat_maps(values: list[float], levels: list[int], log: bool) -> None:
    plot = heatmap("a", "things", Grid((0,), (0, 1), (1, 2)), values)
    assert [level for *_, level in cells(plot)] == levels
    assert ("things (logarithmic)" in plot.svg, "things" in plot.svg) == (log, True)


def test_entries_have_blocks_of_their_own() -> None:
    grid = Grid((0, 2, 3), (0, 1, 2), (1, 2))
    plot = heatmap("a", "b", grid, [1.0] * len(grid))
    places: dict[str, tuple[float, float]] = {title.split(":")[0]: (x, y) for title, x, y, _ in cells(plot)}
    assert len(set(places.values())) == len(grid) == 12
    column = [places[f"entry={e},exit={x},width=1"] for e, x in ((3, 2), (2, 1), (2, 2), (0, 0), (0, 1), (0, 2))]
    steps = [below[1] - above[1] for below, above in pairwise(column)]
    assert steps == pytest.approx([30 * 2.3, 30, 30 * 2.3, 30, 30])  # room for the name of each
    assert all(f"entry {entry}" in plot.svg for entry in grid.entries)
    single = heatmap("a", "b", Grid((0, 1), (1,), (1, 2)), [1.0] * 4)
    assert "entry 0" not in single.svg and "entry" in single.svg
    assert [y for *_, y, _ in cells(single)][::2] == sorted((y for *_, y, _ in cells(single)[::2]), reverse=True)


def test_many_cells_stay_readable() -> None:
    grid = Grid((0,), range(-1, 60), range(1, 101))
    plot = heatmap("a", "b", grid, [1.0] * len(grid))
    found = cells(plot)
    assert len(found) == 6100
    side = found[1][1] - found[0][1]
    assert side == pytest.approx((4.4 * 72 - 50) / 100) and found[-1][1] < 4.4 * 72
    numbers = [text.text for text in ElementTree.fromstring(plot.svg).iter() if text.text and text.text.isdigit()]
    assert {"1", "6", "11", "96"} <= set(numbers) and len(numbers) < 61  # a number needs 13 points, a line 9
    assert "59" in numbers and "58" not in numbers


def test_heat_maps_of_what_was_measured() -> None:
    grid, catalogue = wide()
    maps = {plot.name: plot for plot in heatmaps(grid, catalogue)}
    assert list(maps) == ["grid-accuracy", "grid-macs", "grid-params", "grid-largest-feature-map"]
    assert "exit=1,width=4: 95.83 %" in maps["grid-accuracy"].svg
    assert (
        "exit=1,width=4: 48" in maps["grid-macs"].svg and "exit=1,width=4: 4 B" in maps["grid-largest-feature-map"].svg
    )
    for name, cost, words in (
        ("accuracy", "macs", "with as few MACs"),
        ("macs", "macs", "with as few MACs"),
        ("params", "params", "with as few parameters"),
    ):
        plot = maps[f"grid-{name}"]
        rings = plot.svg[plot.svg.index('<g id="rings">') :].split("</g>")[0]
        marked = {(x, y) for x, y in re.findall(r'<(?:use|path) [^>]*x="([\d.]+)" y="([\d.]+)"', rings)}
        places = {title.split(":")[0]: (x, y) for title, x, y, _ in cells(plot)}
        assert {(float(x), float(y)) for x, y in marked} == {places[m.label] for m in catalogue.front(cost)}  # type: ignore[arg-type]
        assert words in plot.caption
    assert maps["grid-largest-feature-map"].caption == "" and "rings" not in maps["grid-largest-feature-map"].svg
    tested = Catalogue(tuple(replace(m, score=None, test_score=0.5) for m in catalogue), (8,))
    assert next(plot.name for plot in heatmaps(grid, tested)) == "grid-test-accuracy"
    timed = {"latency_ms": 0.25, "latency_p95_ms": 0.5}
    conditions = {"machine": "m", "device": "cpu", "threads": 1, "batch": 1}
    latency = heatmaps(grid, Catalogue(tuple(replace(m, **timed) for m in catalogue), (8,), **conditions))[1]
    assert (latency.name, latency.title) == ("grid-latency", "latency in ms")
    assert "no other member as fast is as accurate" in latency.caption and "width=1: 0.250 ms" in latency.svg


def test_no_heat_maps_without_two_dimensions() -> None:
    for grid in (Grid((0, 1), (1, 2), (1,)), Grid((0,), (1,), (1, 2, 3))):
        assert heatmaps(grid, wide(grid)[1]) == []


def test_page_of_a_family_with_widths(tmp_path: Path) -> None:
    net = causal_resnet(4, (1, 2), blocks=3)
    _, made_up = wide(net.grid)
    html = page(tmp_path, net, made_up, source="runs/dnn")
    found = Page(html)
    assert html.count("<title>exit=5,width=4: ") == 4 and "Every size by depth and width" in found.texts["h2"]
    assert {path.stem for path in (tmp_path / "plots").iterdir() if path.stem.startswith("grid")} == {
        *("grid-accuracy", "grid-macs", "grid-params", "grid-largest-feature-map")
    }
    assert set(re.findall(r"var\((--\w+)", html)) <= set(re.findall(r"(--\w+):", html))
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and sum(name is not None and name.endswith("-cells") for name in ids) == 4
    front = made_up.front()
    listed = [code for code in found.texts["code"] if "--subnet" in code]
    assert len(front) > 10 and len(listed) == 10 + len(net.grid)  # some of the front, and all to unfold
    assert f"--subnet {front[0].label} " in listed[0] and f"--subnet {front[-1].label} " in listed[9]
    named = {text.text for text in ElementTree.parse(tmp_path / "plots" / "accuracy-macs.svg").iter() if text.text}
    assert 1 <= sum(name.startswith("exit=") for name in named) <= 10
    page(tmp_path, *family())  # one width: what an earlier report drew of others is gone
    assert not list((tmp_path / "plots").glob("grid-*"))


def test_heat_rises_in_both_modes() -> None:
    page = {"light": "#ffffff", "dark": _DARK["--page"]}
    for mode, ground in page.items():
        steps = [contrast(getattr(colour, mode), ground) for colour in HEAT]
        assert steps == sorted(steps) and steps[0] < 1.5 and steps[-1] > 10
        assert all(after > 1.08 * before for before, after in pairwise(steps))
    assert len({colour.variable for colour in HEAT}) == 16


def test_some() -> None:
    assert some(range(100), 4) == [0, 33, 66, 99]
    assert some("abc", 4) == ["a", "b", "c"] and some([], 4) == []


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_is_legible_in_light_and_dark() -> None:
    names = {name: light for light, name in VARIABLES.items()}
    for name in ("--ink", "--muted", "--accent"):
        assert contrast(names[name], names["--page"]) >= 4.5 <= contrast(_DARK[name], _DARK["--page"])
    for number in (1, 2, 3, 8, 20):
        colours = ramp(number)
        assert len({c.light for c in colours}) == len({c.variable for c in colours}) == number
        for colour in colours:
            assert contrast(colour.light, "#ffffff") >= 4.5 <= contrast(colour.dark, _DARK["--page"])


HARNESS = """<!doctype html><pre id=out></pre>
<iframe src="page/report.html" width=390 height=800></iframe>
<iframe src="page/report.html#sort=-macs" width=1200 height=800></iframe>
<iframe src="wide/report.html" width=390 height=800></iframe>
<iframe src="control.html" width=100 height=100></iframe>
<script>addEventListener("load", () => {
  const [phone, desk, wide] = [...document.querySelectorAll("iframe")].map((frame) => frame.contentWindow);
  const order = () => [...desk.document.querySelectorAll("tbody th")].map((cell) => cell.textContent.slice(0, 7));
  const sorted = () => [...desk.document.querySelectorAll("[aria-sort]")].map((th) => [th.dataset.key, th.ariaSort]);
  const press = (key) => {
    const button = desk.document.querySelector(`[data-key=${key}] button`);
    button.focus();
    button.click();
    return [order(), sorted(), desk.location.hash, desk.document.activeElement === button];
  };
  const widths = [phone.document.documentElement.scrollWidth, phone.innerWidth];
  const styles = (what) => phone.getComputedStyle(phone.document.querySelector(what));
  const found = { widths, linked: [order(), sorted()], macs: press("macs"), accuracy: press("accuracy") };
  found.again = press("accuracy");
  found.colours = [styles("body").backgroundColor, styles("figure svg text").fill, styles(".run").fill];
  found.copy = [...desk.document.querySelectorAll(".command button")].map((button) => button.textContent);
  found.alerts = phone.document.querySelectorAll("img").length;
  const cells = [...wide.document.querySelectorAll('[id="grid-macs-cells"] use')], last = cells[cells.length - 1];
  const told = last.closest("figure").querySelector("output"), silent = told.textContent;
  last.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  const ring = wide.document.querySelector('[id="grid-macs-rings"]');
  found.heat = [silent, told.textContent, wide.getComputedStyle(last).fill, wide.getComputedStyle(ring).pointerEvents];
  found.wide = [wide.document.documentElement.scrollWidth, wide.innerWidth];
  document.querySelector("#out").textContent = "found:" + JSON.stringify(found) + ":end";
});</script>"""


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages that a browser is to look at."""
    folder = tmp_path_factory.mktemp("looked-at")
    # Nine stages make a picture that is wider than a phone.
    net, catalogue = family((0.9, 0.99, 0.97), TESTS, mlp(8, (8,) * 9, 4, entries=(0, 8, 9)), machine=HOSTILE)
    html = page(folder / "page", net, catalogue, history=learned(catalogue), title=HOSTILE, facts={"long": "x" * 500})
    grown = causal_resnet(4, (1, 2), blocks=3)
    page(folder / "wide", grown, wide(grown.grid)[1])
    # A page with the same policy that does ask the network for something: shows that the browser would tell.
    policy = re.search(r"<meta http-equiv=.*>", html)
    assert policy is not None
    (folder / "control.html").write_text(f'{policy[0]}<img src="https://example.invalid/control.png">')
    (folder / "harness.html").write_text(HARNESS, encoding="utf-8")
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the page with: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(looked_at: Path, tmp_path: Path, scheme: str) -> None:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,900", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom"]
    dom, log = tmp_path / "dom.html", tmp_path / "log.txt"
    with dom.open("w") as out, log.open("w") as err:  # not pipes: processes that outlive a timeout would hold them open
        subprocess.run([*command, (looked_at / "harness.html").as_uri()], stdout=out, stderr=err, timeout=300)
    said = re.search(r"found:(.*):end", dom.read_text())
    assert said is not None, log.read_text()[-2000:]
    found = json.loads(said[1])
    console = [line for line in log.read_text().splitlines() if "CONSOLE" in line]
    assert console and all("control.png" in line for line in console), console  # ours reports nothing
    assert found["widths"] == [390, 390]
    small, middle, large = "entry=9", "entry=8", "entry=0"
    assert found["linked"] == [[large, middle, small], [["macs", "descending"]]]
    assert found["macs"] == [[small, middle, large], [["macs", "ascending"]], "#sort=macs", True]
    assert found["accuracy"] == [[middle, large, small], [["accuracy", "descending"]], "#sort=-accuracy", True]
    assert found["again"] == [[small, large, middle], [["accuracy", "ascending"]], "#sort=accuracy", True]
    light = ["rgb(255, 255, 255)", "rgb(89, 99, 110)", "rgb(11, 122, 117)"]
    assert found["colours"] == (
        light if scheme == "light" else ["rgb(20, 23, 27)", "rgb(154, 164, 175)", "rgb(62, 207, 196)"]
    )
    most = "rgb(18, 48, 95)" if scheme == "light" else "rgb(211, 230, 255)"
    assert found["heat"] == ["", "exit=5,width=4: 112", most, "none"] and found["wide"] == [390, 390]
    assert found["copy"] == ["Copy"] * 4 and found["alerts"] == 0
