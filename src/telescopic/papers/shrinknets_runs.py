"""ShrinkNets' experiments, repeated: Figure 1, what removing dead channels saves, and Figure 2."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any

import torch

from telescopic.data import Dataset
from telescopic.nested import Nested
from telescopic.papers import search, shrinknets
from telescopic.papers.paper import Option, Paper, Run, Runs, Trained, sizes
from telescopic.papers.tables import by_settings, narrow
from telescopic.quantities import human, one_of
from telescopic.report.plots import Plot
from telescopic.report.widths import line_plot
from telescopic.train import Recipe

if TYPE_CHECKING:
    from rich.table import Table

EPOCHS = (1, 5, 20, 100)
_SETTINGS = ("data", "train_images", "units", "precision")


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Train what Figures 1 and 2 show, and print the paper's numbers beside ours. Stop and go on at will.

    All training images are used, as the authors must have done: of 10,000 units with θ uniform in (0, 1], the 2,366
    that are gone after the first epoch are those that 235 steps of Adam can bring to 0, which 60,000 images make.
    """

    only: Annotated[
        list[str] | None,
        Option(
            "An experiment of Figure 1; may be given several times: λ such as 1e-3, or with a way: 1e-3-masked "
            "(nothing is removed), -proximal, -random. (default: the paper's five λ)"
        ),
    ] = None
    figure: Annotated[list[int] | None, Option("1 or 2; may be given twice. (default: 1)")] = None
    units: Annotated[int, Option("Figure 1: hidden units to start with.", least=1)] = 10_000
    network: Annotated[str, Option("Figure 2: mlp or lenet.")] = "mlp"
    models: Annotated[int, Option("Figure 2: random models of each kind.", least=1)] = 50
    epochs: Annotated[
        int | None, Option("Passes over the images. (default: the paper's, 100; of lenet 200)", least=1)
    ] = None
    processes: Annotated[int, Option("Figure 2: models trained at once.", least=1)] = 1

    def __post_init__(self) -> None:
        for number in self.figures:
            one_of("--figure", str(number), ("1", "2"))
        for name in self.names:
            shrinknets.parse(name)

    @property
    def figures(self) -> Sequence[int]:
        """Those that are wanted."""
        return self.figure or (1,)

    @property
    def names(self) -> Sequence[str]:
        """Experiments of Figure 1."""
        return (self.only or ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5"]) if 1 in self.figures else ()

    @property
    def settings(self) -> dict[str, Any]:
        """What a summary says of them."""
        return {"units": self.units, "epochs": self.epochs or shrinknets.EPOCHS["one-layer"]}

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        """Network and recipe of one."""
        return shrinknets.experiment(name, **self.settings, **sizes(images))

    def facts(self, trained: Trained) -> dict[str, Any]:
        """What Figure 1 draws, and what removing dead channels has taken."""
        history, price = trained.history, shrinknets.price(trained.net, trained.recipe, trained.images)
        return {
            "left": [epoch.widths[0] for epoch in history],
            "losses": [round(epoch.loss, 6) for epoch in history],
            "tests": [epoch.test[0] for epoch in history],
            "seconds": [round(epoch.seconds, 3) for epoch in history],
            "compacting": [round(epoch.compacting, 4) for epoch in history],
            "macs": price.macs,
            "params": price.params,
            "peak_bytes": peak_bytes(),
        }


def peak_bytes() -> int | None:
    """Most memory that this process has held so far: on the GPU if there is one, else as the system counts it.

    To compare two experiments by it, run each in a process of its own.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def figure_2(experiments: Experiments, out: Path, *, precision: str, **options: Any) -> "Iterator[Table | Path | str]":
    """Figure 2, which is a random search, if it is wanted: what `search.figure_2` gives."""
    if 2 in experiments.figures:
        yield from search.figure_2(
            str(out / "search.db"),
            network=experiments.network,
            models=experiments.models,
            epochs=experiments.epochs,
            processes=experiments.processes,
            precision="fp32" if precision == "auto" else precision,  # of one search for all hosts
            out=out,
            **options,
        )


def tables(found: Runs) -> "list[Table]":
    """Hidden units after some epochs beside the authors', and how much faster it is to remove the dead ones."""
    tables = [table for group in _groups(found) for table in (_units(group), _times(group))]
    return [table for table in tables if table.rows]


def plots(found: Runs) -> list[Plot]:
    """Figure 1 of runs that agree in their settings."""
    return [plot for group in _groups(found) for plot in figure_1(group)]


def _groups(found: Runs) -> list[list[Run]]:
    """Runs by settings; the paper's way first, λ falling, seeds rising."""

    def place(run: Run) -> tuple[int, float, int]:
        penalty, way = shrinknets.parse(run["experiment"])
        return list(shrinknets.WAYS).index(way), -penalty, run["seed"]

    groups = by_settings(found, _SETTINGS)
    return [sorted((run for some in group.values() for run in some), key=place) for _, group in groups]


def figure_1(runs: Sequence[Run]) -> list[Plot]:
    """ShrinkNets' Figure 1 with ours: hidden units and loss by epoch for each λ. Hollow points are the authors'.

    Args:
        runs: summaries of the same settings of experiments. Those of the paper's way are drawn, one for
            each λ.
    """
    chosen: dict[float, Run] = {}
    for run in runs:
        penalty, way = shrinknets.parse(run["experiment"])
        if not way:
            chosen.setdefault(penalty, run)
    if not chosen:
        return []
    epochs = list(range(1, 1 + max(len(run["left"]) for run in chosen.values())))
    data = runs[0]["data"]
    theirs = _authors(data)
    drawn: dict[str, Run] = {}
    points: dict[str, list[tuple[int, float]]] = {}
    for penalty, run in sorted(chosen.items(), reverse=True):
        label = f"λ {run['experiment']}"
        drawn[label] = run
        points[label] = [(epoch, units) for epoch, units in theirs.get(penalty, {}).items() if epoch <= epochs[-1]]
    return [
        line_plot(
            f"figure1-units-{data}",
            "hidden units left",
            f"Hidden units by epoch on {data}",
            f"Figure 1 on {data}. Hollow: the authors' numbers.",
            epochs,
            {label: run["left"] for label, run in drawn.items()},
            points,
        ),
        line_plot(
            f"figure1-loss-{data}",
            "training loss",
            f"Training loss by epoch on {data}",
            f"Figure 1 on {data}.",
            epochs,
            {label: run["losses"] for label, run in drawn.items()},
        ),
    ]


def _authors(data: str) -> dict[float, dict[int, int]]:
    """Penalty → epoch → hidden units that were left, as the paper has them."""
    return {row.penalty: row.left for row in shrinknets.FIGURE_1 if row.data == data}


def _units(group: Sequence[Run]) -> "Table":
    data, units = group[0]["data"], group[0]["units"]
    columns = [f"epoch\n{epoch}" for epoch in EPOCHS]
    table = narrow(f"Figure 1: hidden units left on {data}", "experiment", *columns, "test\n%", "MACs")
    known = _authors(data)
    for run in group:
        penalty, way = shrinknets.parse(run["experiment"])
        left = run["left"]
        cells = [f"{left[epoch - 1]:,}" if epoch <= len(left) else "–" for epoch in EPOCHS]
        table.add_row(_name(run), *cells, f"{100 * run['tests'][-1]:.2f}", human(run["macs"]))
        if penalty in known and not way:
            theirs = known[penalty]
            table.add_row("  the paper's", *(f"{theirs[epoch]:,}" if epoch in theirs else "–" for epoch in EPOCHS))
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
    parsed = [(*shrinknets.parse(run["experiment"]), run) for run in group]
    masked = {(penalty, run["seed"]): run for penalty, way, run in parsed if way == "masked"}
    extrapolated = False
    for penalty, way, run in parsed:
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


PAPER = Paper(
    name="shrinknets",
    title="ShrinkNets (Leclerc, Fernandez and Madden, a draft)",
    data=("mnist", "fashion-mnist"),
    train=shrinknets.train,
    experiments=Experiments,
    tables=tables,
    plots=plots,
    others=figure_2,
    says=shrinknets.says,
    method="shrinknet",
    validation=0,
    folder="{data}-{name}{seed}",
    examples=("--data mnist --penalty 1e-3 --out runs/shrink", "--only 1e-2 --only 1e-2-masked"),
)
