"""The papers' tables with ours beside them, from what `reproduce` has left in a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from telescopic.cost import cost
from telescopic.extract import extract
from telescopic.papers import cnsn, nsn
from telescopic.papers.reproduce import runs, summaries
from telescopic.quantities import human
from telescopic.subnet import Subnet

if TYPE_CHECKING:
    from rich.table import Table

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]
"""Experiment → its runs, one a seed."""

_SETTINGS = ("data", "train_images", "scale", "recipe_name", "epochs", "precision")
_PAPERS: dict[str, Any] = {"data": "cifar10", "scale": 1.0, "recipe_name": "paper", "epochs": 300}
_FAMILIES = {"step-down": ("joint", "distilled"), "stem": ("stem", "stem-distilled")}
PROTOCOLS = {"validation": "chosen on validation", "last": "last epoch"}
"""Which epoch's accuracies stand in a table, and how its title says so."""


def nsn_tables(out: Path) -> "list[Table]":
    """Tables 1 to 3 with ours beside them, the curve against the authors' run, and the ways to mix gradients.

    Args:
        out: the folder `run_nsn` wrote to; experiments that it lacks show a dash.
    """
    found = summaries(out)
    titles = {1: "Table 1: references", 2: "Table 2: model0-1", 3: "Table 3: model0-1-2"}
    tables = []
    for number, title in titles.items():
        table = _table(title, "model", "paper", "ours, best on test", "ours, chosen on validation", "ours, last epoch")
        for row in (row for row in nsn.ROWS if row.table == number):
            table.add_row(row.model, f"{row.test_accuracy:.4f}", *_ours(found.get(row.experiment), row.hidden))
        tables.append(table)
    main = found.get("model0-1-2")
    if main is not None:
        curve = _table("model0-1-2 while training: test accuracy of model0 / 1 / 2", "epoch", "authors' run", "ours")
        for epoch, theirs in nsn.AUTHORS_RUN.items():
            ours = main["curve"].get(str(epoch))
            curve.add_row(str(epoch), _slashed(theirs), _slashed(ours) if ours else "–")
        tables.append(curve)
    mixes = {name: found[name] for name in ("model0-1-2", "joint", "distilled") if name in found}
    if len(mixes) > 1:
        ways = _table("Ways to share gradients, last epoch", "experiment", "epochs", "model0 / 1 / 2")
        for name, summary in mixes.items():
            ways.add_row(name, str(summary["epochs"]), _slashed(summary["protocols"]["last"]["test"]))
        tables.append(ways)
    return tables


def cnsn_tables(out: Path) -> "list[Table]":
    """Table 1 with ours beside it, members against the same networks trained alone, and BatchNorm's policies.

    Runs are averaged over seeds only if they agree in everything else: other settings make tables of their own.

    Args:
        out: the folder `run_cnsn` wrote to; experiments that it lacks show a dash.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Run]]] = {}
    for experiment, some in runs(out).items():
        for run in some:
            if "scale" in run:  # else it is another paper's
                settings = tuple(run[name] for name in _SETTINGS)
                groups.setdefault(settings, {}).setdefault(experiment, []).append(run)
    if not groups:
        return [_table1({}, None)]
    tables = []
    for settings, found in sorted(groups.items(), key=lambda group: str(group[0])):
        facts = dict(zip(_SETTINGS, settings, strict=True))
        tables.append(_table1(found, facts))
        tables += [table for protocol in PROTOCOLS if (table := _against_alone(found, facts, protocol)).rows]
        tables += [table for protocol in PROTOCOLS if (table := _policies(found, facts, protocol)).rows]
    return tables


def _table1(found: Runs, facts: Mapping[str, Any] | None) -> "Table":
    columns = ("model", "paper", "best\non test", "chosen on\nvalidation", "last\nepoch", "seeds", "MACs,\npaper")
    table = narrow("Table 1: test accuracy", *columns, "MACs,\nours")
    if facts is not None:
        with torch.device("meta"):  # only its shapes matter
            net = cnsn.network(scale=facts["scale"])
        table.caption = (
            f"Ours: {_settings(facts)} Statistics of BatchNorm are per entry; the paper shares them. MACs are counted "
            "as in the paper, with what works element by element: biases, BatchNorm, ReLU, pooling."
        )
    for row in cnsn.ROWS:
        ours = found.get("alone-0" if row.model == "baseline" else "joint", [])
        accuracies = [_tests(ours, name, row.entry) for name in ("best_test", "validation", "last")]
        cells = [f"{mean(values):.4f}" if values else "–" for values in accuracies]
        macs = human(row.gmacs * 1e9), "–"
        if facts is not None:
            price = cost(extract(net, Subnet(entry=row.entry)), (3, 32, 32), elementwise=True)
            macs = macs[0], human(price.macs)
        table.add_row(row.model, f"{row.test_accuracy:.4f}", *cells, str(len(ours) or "–"), *macs)
    return table


def _against_alone(found: Runs, facts: Mapping[str, Any], protocol: str) -> "Table":
    """What sharing costs each member, or gives it."""
    title = f"Members, and trained alone: {PROTOCOLS[protocol]}"
    table = narrow(title, "entry", "family", "MACs", "alone", "joint", "distilled")
    for entry in (7, 2, 0):
        for family, names in _FAMILIES.items():
            # The full network has no adapter, so the same one stands beside both families.
            alone = f"alone-{entry}-stem" if family == "stem" and entry else f"alone-{entry}"
            some = [found.get(name, []) for name in (alone, *names)]
            if not any(some[1:] if family == "stem" and not entry else some):
                continue
            macs = next(run["macs"][_place(run, entry)] for group in some for run in group)
            cells = [spread(_tests(group, protocol, entry)) for group in some]
            table.add_row(str(entry), family, human(macs), *cells)
    table.caption = f"{_settings(facts)} {_seeds(found)} MACs without what works element by element."
    return table


def _policies(found: Runs, facts: Mapping[str, Any], protocol: str) -> "Table":
    """What each policy for BatchNorm's statistics makes of one and the same training."""
    title = f"BatchNorm's statistics: {PROTOCOLS[protocol]}"
    table = narrow(title, "experiment", "policy", *(f"entry={entry}" for entry in (7, 2, 0)))
    shown = {name: found[name] for name in _FAMILIES["step-down"] if name in found}
    for name, some in shown.items():
        for policy in some[0]["policies"][protocol]:
            accuracies = [[run["policies"][protocol][policy][_place(run, e)] for run in some] for e in (7, 2, 0)]
            table.add_row(name, policy, *map(spread, accuracies))
    table.caption = f"{_settings(facts)} {_seeds(shown)}"
    return table


def _settings(facts: Mapping[str, Any]) -> str:
    """How the runs came about; where that is not the paper's way, nobody is to miss it."""
    text = "{data}, {train_images:,} training images, scale {scale:g}, {recipe_name} recipe, {epochs} epochs, "
    text = (text + "{precision}.").format(**facts)
    if any(facts[name] != value for name, value in _PAPERS.items()):
        text += " Not the paper's setting: {data}, scale {scale:g}, its own recipe, {epochs} epochs.".format(**_PAPERS)
    return text


def _seeds(found: Runs) -> str:
    numbers = [f"{name} {len(found[name])}" for name in cnsn.EXPERIMENTS if name in found]
    several = any(len(some) > 1 for some in found.values())
    return f"Seeds: {', '.join(numbers)}{'; ± is their standard deviation' if several else ''}."


def _tests(some: Sequence[Run], protocol: str, entry: int) -> list[float]:
    return [run["protocols"][protocol]["test"][_place(run, entry)] for run in some]


def _place(run: Run, entry: int) -> int:
    """Where a member stands in a run's lists; a network trained alone has one."""
    return int(run["members"].index(f"entry={entry}")) if len(run["members"]) > 1 else 0


def spread(values: Sequence[float]) -> str:
    """The mean over seeds, and their standard deviation."""
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ±{stdev(values):.4f}" if len(values) > 1 else "")


def _ours(summary: Mapping[str, Any] | None, hidden: int) -> list[str]:
    if summary is None:
        return ["–"] * 3
    place = summary["models"].index(f"model{hidden}")
    rows = (summary["protocols"][name] for name in ("best_test", "validation", "last"))
    return [f"{row['test'][place]:.4f} (epoch {row['epoch']})" for row in rows]


def _slashed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.4f}" for value in values)


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def narrow(title: str, *columns: str) -> "Table":
    """A table without lines, so that it fits 80 columns."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 2, 0, 0))
    table.pad_edge = False
    for column in columns:
        words = column in ("model", "family", "experiment", "policy")
        table.add_column(column, justify="left" if words else "right", vertical="bottom", no_wrap=True)
    return table
