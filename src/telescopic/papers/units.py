"""ShrinkNets' Figure 1 in numbers, and what removing dead channels saves, from what `reproduce` has left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from telescopic.papers import shrinknets
from telescopic.papers.reproduce import runs
from telescopic.papers.tables import narrow
from telescopic.quantities import human

if TYPE_CHECKING:
    from rich.table import Table

Run = Mapping[str, Any]
EPOCHS = (1, 5, 20, 100)
_SETTINGS = ("data", "train_images", "units", "precision")


def figure_1_runs(out: Path) -> list[list[Run]]:
    """What `run_shrinknets` left below a folder, by settings; the paper's way first, λ falling, seeds rising."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for some in runs(out).values():
        for run in some:
            if "left" in run:  # else it is another paper's
                groups.setdefault(tuple(run[name] for name in _SETTINGS), []).append(run)

    def place(run: Run) -> tuple[int, float, int]:
        penalty, way = shrinknets.parse(run["experiment"])
        return list(shrinknets.WAYS).index(way), -penalty, run["seed"]

    return [sorted(group, key=place) for _, group in sorted(groups.items(), key=lambda item: str(item[0]))]


def shrinknets_tables(out: Path) -> "list[Table]":
    """Hidden units after some epochs beside the authors', and how much faster it is to remove the dead ones.

    Args:
        out: the folder `run_shrinknets` wrote to.
    """
    tables = []
    for group in figure_1_runs(out):
        tables += [_units(group), _times(group)]
    return [table for table in tables if table.rows]


def _units(group: Sequence[Run]) -> "Table":
    data, units = group[0]["data"], group[0]["units"]
    columns = [f"epoch\n{epoch}" for epoch in EPOCHS]
    table = narrow(f"Figure 1: hidden units left on {data}", "experiment", *columns, "test\n%", "MACs")
    known = {row.penalty: row for row in shrinknets.FIGURE_1 if row.data == data}
    for run in group:
        penalty, way = shrinknets.parse(run["experiment"])
        left, row = run["left"], known.get(penalty)
        cells = [f"{left[epoch - 1]:,}" if epoch <= len(left) else "–" for epoch in EPOCHS]
        table.add_row(_name(run), *cells, f"{100 * run['tests'][-1]:.2f}", human(run["macs"]))
        if row is not None and not way:
            theirs = {1: row.epoch_1, 5: row.epoch_5, 100: row.epoch_100}
            table.add_row("  the paper's", *(f"{n:,}" if (n := theirs.get(epoch)) else "–" for epoch in EPOCHS))
    table.caption = (
        f"{group[0]['train_images']:,} training images, {units:,} units to start with. Test accuracy and MACs are "
        "those after the last epoch that was trained."
    )
    return table


def _times(group: Sequence[Run]) -> "Table":
    """A run beside the one that removes nothing, of the same λ and seed."""
    columns = (
        "epochs",
        "minutes",
        "minutes\nmasked",
        "times\nfaster",
        "removing\ntakes, %",
        "at the end,\ntimes faster",
    )
    table = narrow("The point of removing dead channels", "experiment", *columns)
    masked = {
        (shrinknets.parse(run["experiment"])[0], run["seed"]): run
        for run in group
        if shrinknets.parse(run["experiment"])[1] == "masked"
    }
    extrapolated = False
    for run in group:
        penalty, way = shrinknets.parse(run["experiment"])
        whole = masked.get((penalty, run["seed"]))
        if way == "masked":
            continue
        seconds, epochs = sum(run["seconds"]), len(run["seconds"])
        cells = [str(epochs), f"{seconds / 60:.1f}", "–", "–", f"{100 * sum(run['compacting']) / seconds:.2g}", "–"]
        if whole is not None:
            each = mean(whole["seconds"]) if len(whole["seconds"]) < 3 else median(whole["seconds"])
            shorter = len(whole["seconds"]) < epochs
            extrapolated |= shorter
            total = each * epochs if shorter else sum(whole["seconds"][:epochs])
            cells[2:4] = [f"{'≈ ' if shorter else ''}{total / 60:.1f}", f"{total / seconds:.1f}"]
            cells[5] = f"{each / median(run['seconds'][-5:]):.1f}"
        table.add_row(_name(run), *cells)
    table.caption = "Masked: with the same seed, dead channels are multiplied by 0 and never removed."
    if extrapolated:
        table.caption += " ≈: extrapolated from fewer epochs."
    machines = sorted({f"{run['machine']}, {run['threads']} threads" for run in group})
    table.caption += f" Measured on {'; '.join(machines)}."
    return table


def _name(run: Run) -> str:
    return str(run["experiment"]) + (f", seed {run['seed']}" if run["seed"] else "")
