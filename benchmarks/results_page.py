"""Writes docs/results.md, and the short table in README.md, from what lies in results/.

python benchmarks/results_page.py [--check]
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from telescopic.papers import PAPERS
from telescopic.papers import search as random_search
from telescopic.papers.reproduce import summaries, tables

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: python benchmarks/results_page.py -->\n", "<!-- end of results -->\n"
HEAD = """# Results

What was measured, with scale, seeds and machine; `python benchmarks/results_page.py` writes this page from `results/`.
Rows that lose stay. Nothing here was run at the papers' full size but NSN's tables and ShrinkNets' Figure 1.
"""


PAGES = (
    ("nsn", "nsn", "## NSN on MNIST", ("Table", "while training")),
    ("nsn", "nsn-fashion", "### On Fashion-MNIST", ("Table 3",)),
    ("nsn", "nsn-mixes", "### Ways to share the gradients, and the references as short", ("Table 1", "Ways")),
    ("cnsn", "cnsn", "## CNSN on CIFAR-10", ("Table 1", "chosen on validation")),
    ("cnsn", "cnsn-small", "## CNSN on CIFAR-10", ("Table 1", "chosen on validation")),
    (
        "doubly-nested",
        "doubly-nested-30",
        "## Doubly Nested Network on CIFAR-10, 30 epochs",
        ("validation", "Figure 4"),
    ),
    ("doubly-nested", "doubly-nested", "### The same, 8 epochs", ("validation", "Figure 4", "best members")),
    (
        "doubly-nested",
        "doubly-nested-ways",
        "### Ways to train all members together, 3 epochs",
        ("validation", "Figure 4", "best members"),
    ),
    ("shrinknets", "shrinknets", "## ShrinkNets", ("",)),
)
"""Paper, folder of its runs, heading, and by what the titles of those of its tables are known that say enough."""


def everything() -> str:
    """All tables as Markdown."""
    papers, text = {paper.name: paper for paper in PAPERS}, ""
    for name, folder, heading, shown in PAGES:
        if (ROOT / "results" / folder).is_dir():
            some = [t for t in tables(papers[name], ROOT / "results" / folder) if any(w in str(t.title) for w in shown)]
            text += f"{heading}\n{''.join(map(_markdown, some))}\n"
    for path in sorted((ROOT / "results" / "shrinknets-search").glob("models-*.csv"), key=lambda path: path.stem[::-1]):
        _, network, data = path.stem.split("-", 2)
        table = random_search.results(random_search.read_csv(path), data, network)
        table.title = f"Figure 2, models drawn at random: {table.title}"
        text += f"{_markdown(table)[1:]}\n"
    text += (
        "## Members and twins\n"
        + _screen("screen")
        + _screen("screen-16")
        + _screen("screen-30")
        + _screen("screen-aligned")
        + _twins("nsn")
        + _twins("cnsn")
        + "\n## Slim\n"
        + _slim()
        + _pretrained()
        + "\n## Speed and survival\n"
        + _speed()
    )
    return text + _speed_of("CNSN", "speed_cnsn") + _speed_of("Doubly Nested Network", "speed_doubly_nested")


def _markdown(table: Table) -> str:
    """A table as the command prints it."""
    head = [" ".join(str(column.header).split()) for column in table.columns]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    return f"\n{table.title}\n\n{_table(head, rows)}" + (f"\n{table.caption}\n" if table.caption else "")


def _screen(name: str) -> str:
    """Ways to train all members together."""
    found = _read(name)
    if found is None:
        return ""
    config, rows = found["config"], []
    last, groups = 3 * config["blocks"] - 1, config["groups"]
    channels = f" of {config['channels']} channels" if "channels" in config else ""
    quarters = dict.fromkeys(groups * part // 4 for part in (4, 3, 2, 1) if groups * part >= 4)
    places = [*((last, width) for width in quarters), (last // 2 + 1, groups)]
    seeds: dict[str, list[dict[str, Any]]] = {}
    for name, one in found["figures"].items():
        seeds.setdefault(name.partition("-seed")[0], []).append(one)
    for way, some in seeds.items():
        cells = [_percent([_of_member(one, exit_, width, groups) for one in some]) for exit_, width in places]
        means = _percent([one["mean"] for one in some])
        lowest = min(
            float(score) for one in some for row in one["test %, narrowest first"].values() for score in row.split()
        )
        known = [one["minutes"] for one in some if not one.get("interrupted")]
        minutes = f"{mean(known):.1f}" if known else "interrupted"
        rows.append([f"`{way}`", *cells, means, f"{lowest:.1f}", str(len(some)), minutes])
    exit_ = f"x{places[-1][0]}"
    head = ("way", "full", *(f"w{w}" for _, w in places[1:-1]), exit_, "mean of all", "lowest", "seeds", "minutes")
    on: dict[str, list[str]] = {}
    for way, one in found["figures"].items():
        on.setdefault(one["machine"], []).append(f"`{way}`")
    usual = max(on, key=lambda name: len(on[name]))
    machines = "; ".join([usual, *(f"{', '.join(on[name])} on {name}" for name in on if name != usual)])
    return (
        f"\nDoubly Nested Network with {groups} groups{channels} and {last + 2} exits, "
        f"{config['images']:,} images of CIFAR-10, "
        f"{config['epochs']} epochs, fp32; test accuracy in % of the epoch chosen on validation, mean over seeds with "
        f"the standard deviation; one thread, beside other work ({machines}). `alone` learns the full member's loss "
        f"only; `slim` is a family of four widths; `-fitted` is the same run after `tl.fit_heads`:\n\n"
        f"{_table(head, rows)}"
    )


def _of_member(one: Mapping[str, Any], exit_: int, width: int, groups: int) -> float | None:
    """Test accuracy of a member of a screen's run, if it has that."""
    by_exit = {name: row.split() for name, row in one["test %, narrowest first"].items()}
    if len(by_exit) > 1 and len(next(iter(by_exit.values()))) == 4 < groups:
        # The slim family has quarters; its first exit is behind the stem, and the last two behind the last block.
        *early, _, end = by_exit.values()
        by_exit, width = {f"exit {number}": row for number, row in enumerate([*early, end], -1)}, width * 4 // groups
    row = by_exit.get(f"exit {exit_}", [])
    return float(row[width - 1]) if width <= len(row) else None


def _percent(scores: Sequence[float | None]) -> str:
    """Their mean, and how far they lie apart."""
    known = [score for score in scores if score is not None]
    return (f"{mean(known):.1f}" + (f" ±{stdev(known):.1f}" if len(known) > 1 else "")) if known else "–"


def _twins(paper: str) -> str:
    """Members of a family beside networks of their sizes trained alone, over seeds."""
    found = _read(f"twins-{paper}")
    if found is None:
        return ""
    config, rows, members = found["config"], [], {}
    for way, one in found["figures"].items():
        minutes = one.pop("minutes")
        members |= dict.fromkeys(one)
        cells = [[float(score) for score in of_seed.values()] for of_seed in one.values()]
        shown = {
            member: f"{mean(some):.2f}" + (f" ±{stdev(some):.2f}" if len(some) > 1 else "")
            for member, some in zip(one, cells, strict=True)
        }
        rows.append((f"`{way}`", shown, str(len(minutes)), f"{mean(minutes.values()):.1f}"))
    return (
        f"\n{paper.upper()}, {config['images']:,} images of {config['data']}, {config['epochs']} epochs, "
        f"{config['precision']}; test accuracy in % of the epoch chosen on validation, mean and standard deviation "
        f"over seeds; one thread, beside other work ({found['machine']}):\n\n"
        + _table(
            ("way", *members, "seeds", "minutes"),
            [[way, *(shown.get(member, "–") for member in members), *rest] for way, shown, *rest in rows],
        )
    )


_SLIM = {
    "slim-delayed": "widest first, then all",
    "slim": "slimmed",
    "slim-by-macs": "slimmed by MACs",
    "slim-from-new": "from new weights",
}


def _slim() -> str:
    """A network of one's own in four widths, beside the same networks got in other ways."""
    found = _read("slim")
    if found is None:
        return ""
    figures, config = found["figures"], found["config"]
    shares, labels = ("0.25", "0.5", "0.75", "1"), [*figures["macs"]]

    def score(run: str, label: str) -> str:
        known = figures.get(run, {}).get("test %", {})
        return f"{known[label]:.2f}" if label in known else "–"

    averaged = {f"{run}, losses averaged": f"{text}, losses averaged" for run, text in _SLIM.items()}
    runs = {run: text for run, text in (_SLIM | averaged).items() if run in figures}
    rows = [
        [
            share,
            f"{figures['macs'][label]:,}",
            score(f"twin-{share}", "full"),
            *(score(run, label) for run in runs),
            score(f"pruned-{share}", "full"),
        ]
        for share, label in zip(shares, labels, strict=True)
    ]
    head = ("width", "MACs", "twin, trained alone", *runs.values(), "Torch-Pruning")
    before, after = config["alone"], config["together"]
    how = (
        f"ResNet-{config['depth']} with dense weights, {config['images']} images of CIFAR-10, one seed, test accuracy "
        f"in % after the last epoch: alone for {before} epochs ({figures['alone']['test %']['full']:.2f}), then "
        f"slimmed and trained on for {after}; twins, and families from new weights, for {before + after}, of which the "
        f"widest may be alone for the first {before}; pruned once for each width, and trained on for {after} "
        f"({found['machine']})"
    )
    return f"\n{how}:\n\n{_table(head, rows)}"


def _pretrained() -> str:
    """A network of someone else in four widths."""
    found = _read("slim-pretrained")
    if found is None:
        return ""
    figures, config = found["figures"], found["config"]
    rows = [
        [label, f"{one['macs']:,}", f"{one['params']:,}", f"{one['ONNX %']:.2f}", f"{one['ONNX Runtime ms']:.2f}"]
        for label, one in figures.items()
        if isinstance(one, dict) and "macs" in one
    ]
    head = ("member", "MACs", "parameters", "ONNX file, test %", "ONNX Runtime, ms")
    return (
        f"\nEfficientNet-lite0, pretrained on ImageNet, on {config['images']} images of CIFAR-10 at 64 × 64 for "
        f"{config['alone']} epochs (plain), then in four shares of its MACs for {config['together']}; tried on "
        f"{config['test']} test images, one image at a time on one thread:\n\n{_table(head, rows)}"
    )


def _speed() -> str:
    """What the other benchmarks found."""
    rows = []
    speed = _read("speed")
    if speed is not None:
        for figure, value in speed["figures"].items():
            if not isinstance(value, dict):
                rows.append([f"training, {speed['config']['threads']} threads: {figure}", str(value)])
    extracted = _read("extracted")
    if extracted is not None:
        for case, figures in extracted["figures"].items():
            same = "identical output" if figures["identical output"] else "OUTPUT DIFFERS"
            rows.append(
                [f"extracted member / the same MLP by hand, {case}", f"{figures['extracted / by hand']}, {same}"]
            )
    kill = _read("kill")
    if kill is not None:
        told = kill["figures"]["identical, nothing left over"]
        rows.append(["killed with -9 and resumed: identical weights, nothing left over", told])
    fuzz = _read("fuzz-bundle")
    if fuzz is not None:
        read = ", ".join(f"{kind} {counts.get('loaded', 0)}" for kind, counts in fuzz["figures"]["outcomes"].items())
        what = f"{fuzz['config']['cases']} mutated files of each kind; read all the same: {read}; all others refused"
        rows.append([what, f"{len(fuzz['figures']['failures'])} failures"])
    where = "" if speed is None else f" ({speed['machine']})"
    return f"\nEach by the program of its name in `benchmarks/`{where}:\n\n" + _table(("what", "measured"), rows)


def _speed_of(method: str, program: str) -> str:
    """What a method's benchmark found, perhaps on another machine."""
    found = _read(program.replace("_", "-"))
    if found is None:
        return ""
    rows = []
    for case, figures in found["figures"].items():
        for name, value in figures.items():
            if isinstance(value, dict) and "identical output" in value:
                same = "identical output" if value["identical output"] else "OUTPUT DIFFERS"
                rows.append([f"{case}: extracted / by hand, {name}", f"{value['extracted / by hand']}, {same}"])
            elif not isinstance(value, dict):
                rows.append([f"{case}: {name}", str(value)])
    where = f"{found['machine']}; {found['config']['threads']} threads where nothing else is said"
    return f"\n{method}, by `benchmarks/{program}.py` ({where}):\n\n" + _table(("what", "measured"), rows)


def _read(name: str) -> Any:
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _how(run: Mapping[str, Any]) -> str:
    return f"{run['epochs']} epochs, {run['precision']}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short() -> str:
    """One row for each paper: what its members reach, beside the same networks trained alone."""
    rows = []
    for paper, name, family, alone, what in (
        ("NSN, MNIST", "nsn", "model0-1-2", ("ref-model2",), "full member"),
        ("CNSN, CIFAR-10", "cnsn-small", "joint", ("alone-0",), "full member"),
        ("Doubly Nested, CIFAR-10", "doubly-nested-30", "balanced-edges-conditioned", ("alone",), "full member"),
    ):
        found = summaries(ROOT / "results" / name)
        ours, theirs = found.get(family), found.get(alone[0])
        if ours is None or theirs is None:
            continue
        scores = [run["protocols"]["validation"]["test"][-1] for run in (ours, theirs)]
        minutes = "–" if ours.get("minutes") is None else f"{ours['minutes']:.0f}"
        rows.append([f"{paper}: {what}", *(f"{100 * score:.1f}" for score in scores), _how(ours), minutes])
    return _table(("members trained together", "test, %", "trained alone, %", "how", "minutes"), rows)


def main() -> int:
    """Write both pages, or only say whether they are up to date."""
    readme, page = ROOT / "README.md", ROOT / "docs" / "results.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = {readme: f"{before}{BEGIN}\n{short()}\n{END}{after}", page: f"{HEAD}\n{everything()}"}
    if "--check" in sys.argv:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != text for path, text in fresh.items()))
    for path, text in fresh.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
