"""Writes docs/results.md, and the short table in README.md, from what lies in results/.

python benchmarks/results_page.py [--check]
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from telescopic.papers import nsn
from telescopic.papers.figures import doubly_nested_tables
from telescopic.papers.reproduce import summaries
from telescopic.papers.tables import cnsn_tables
from telescopic.papers.units import shrinknets_tables
from telescopic.search import read_csv
from telescopic.search import results as search_results

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results: python benchmarks/results_page.py -->\n", "<!-- end of results -->\n"
HEAD = """# Results

What was measured, with scale, seeds and machine; `python benchmarks/results_page.py` writes this page from `results/`.
Rows that lose stay. Nothing here was run at the papers' full size but NSN's tables and ShrinkNets' Figure 1.
"""


def tables() -> str:
    """All tables as Markdown."""
    found = summaries(ROOT / "results" / "nsn")
    text = "## NSN on MNIST and Fashion-MNIST\n\n"
    text += "Test accuracy; *validation* is the honest choice of the epoch, *best test* the paper's:\n\n"
    rows = []
    for row in nsn.ROWS:
        if (run := found.get(row.experiment)) is not None:
            chosen = [run["protocols"][name]["test"][run["models"].index(row.model.removeprefix("ref-"))]
                      for name in ("best_test", "validation", "last")]  # fmt: skip
            where = f"{row.experiment}: {row.model}" if row.experiment != row.model else row.model
            rows.append([where, f"{row.test_accuracy:.4f}", *(f"{value:.4f}" for value in chosen), _how(run)])
    text += _table(("network", "paper", "best test", "validation", "last epoch", "how"), rows)
    main = found.get("model0-1-2")
    if main is not None:
        rows = [
            [str(epoch), _slashed(theirs), _slashed(main["curve"].get(str(epoch)))]
            for epoch, theirs in nsn.AUTHORS_RUN.items()
        ]
        text += "\nmodel0 / model1 / model2 of model0-1-2 after some epochs:\n\n"
        text += _table(("epoch", "authors' own run", "ours"), rows)
    text += _more("fashion", "NSN on Fashion-MNIST, model0 / model1 / model2:")
    text += _more(
        "mixes", "Ways to share the gradients, on MNIST, model0 / model1 / model2; the references stand below them:"
    )
    for name in ("cnsn", "cnsn-small"):
        if (ROOT / "results" / name).is_dir():
            some = [t for t in cnsn_tables(ROOT / "results" / name) if "last epoch" not in str(t.title)]
            text += "\n## CNSN on CIFAR-10\n" + "".join(map(_markdown, some))
    for name, about in (
        ("doubly-nested-30", "Doubly Nested Network on CIFAR-10, 30 epochs"),
        ("doubly-nested", "The same, 8 epochs"),
        ("doubly-nested-ways", "Ways to train all members together, 3 epochs"),
    ):
        if (ROOT / "results" / name).is_dir():
            tables = doubly_nested_tables(ROOT / "results" / name)
            some = [t for t in tables if not _left_out(str(t.title), name)]
            text += f"\n## {about}\n" + "".join(map(_markdown, some))
    if (ROOT / "results" / "shrinknets").is_dir():
        text += "\n## ShrinkNets\n" + "".join(map(_markdown, shrinknets_tables(ROOT / "results" / "shrinknets")))
    for path in sorted((ROOT / "results" / "shrinknets-search").glob("models-*.csv"), key=lambda path: path.stem[::-1]):
        _, network, data = path.stem.split("-", 2)
        table = search_results(read_csv(path), data, network)
        table.title = f"Figure 2, models drawn at random: {table.title}"
        text += _markdown(table)
    text += "\n## Speed and survival\n" + _speed()
    return text + _speed_of("CNSN", "speed_cnsn") + _speed_of("Doubly Nested Network", "speed_doubly_nested")


def _left_out(title: str, name: str) -> bool:
    """What stands in the paper's page, or says little more; the long runs have nothing that is cut by depth alone."""
    return "last epoch" in title or "all members of" in title or (name.endswith("-30") and "Figure 5" in title)


def _markdown(table: Table) -> str:
    """A table as the command prints it."""
    head = [" ".join(str(column.header).split()) for column in table.columns]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    return f"\n{table.title}\n\n{_table(head, rows)}" + (f"\n{table.caption}\n" if table.caption else "")


def _more(name: str, title: str) -> str:
    found = summaries(ROOT / "results" / f"nsn-{name}")
    if not found:
        return ""
    order = sorted(found, key=nsn.EXPERIMENTS.index)
    rows = []
    for experiment in order:
        protocols = [found[experiment]["protocols"][name]["test"] for name in ("best_test", "validation", "last")]
        rows.append([experiment, *(_slashed(values) for values in protocols), _how(found[experiment])])
    return f"\n{title}\n\n" + _table(("experiment", "best test", "validation", "last epoch", "how"), rows)


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
        read = ", ".join(f"{kind} {counts.get('loaded', 0)}" for kind, counts in fuzz["loads"].items())
        what = f"{fuzz['config']['cases']} mutated files of each kind; read all the same: {read}; all others refused"
        rows.append([what, f"{len(fuzz['failures'])} failures"])
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


def _slashed(values: Sequence[float] | None) -> str:
    return " / ".join(f"{value:.4f}" for value in values) if values else "–"


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
    fresh = {readme: f"{before}{BEGIN}\n{short()}\n{END}{after}", page: f"{HEAD}\n{tables()}"}
    if "--check" in sys.argv:
        return int(any(not path.exists() or path.read_text(encoding="utf-8") != text for path, text in fresh.items()))
    for path, text in fresh.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
