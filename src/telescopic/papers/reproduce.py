"""A paper's experiments, run one after another, each into a folder with a summary; and what these say."""

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from telescopic import documents
from telescopic.cost import machine
from telescopic.data import Dataset, load
from telescopic.files import replacing
from telescopic.nested import Nested
from telescopic.papers.paper import Experiments, Paper, Run, Trained
from telescopic.provenance import commit, versions
from telescopic.report.plots import Plot
from telescopic.train import History, Recipe, fit
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST

if TYPE_CHECKING:
    from rich.table import Table

SUMMARY = "summary.json"
_KEYS = {"left": "shrinknets", "groups": "doubly-nested", "scale": "cnsn", "models": "nsn"}
"""By what a summary is told to be of a paper that does not name it, as summaries did not at first."""


def reproduce(
    paper: Paper,
    out: Path,
    *,
    data: str | None = None,
    seed: int = 0,
    precision: str = "auto",
    data_dir: Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> None:
    """Train experiments of a paper, each into a folder of its own, and write what came out to its `summary.json`.

    An experiment that finished is not trained again; one that was stopped goes on. With the precision `auto`, the first
    one trained into `out` decides for all.

    Args:
        paper: which.
        out: the folder of all experiments.
        data: what they learn; default: the first of the paper's.
        seed: of initial weights, order of the images, dropout.
        precision: see `fit`.
        data_dir: where the data are.
        progress: see `fit`.
        options: those of `paper.experiments`, such as `only`.

    Raises:
        ValueError: if an experiment or an option is unknown.
        CheckpointError: if a folder holds a run of other settings.
    """
    experiments = paper.experiments(**options)
    if not experiments.names:
        return
    data = data or paper.data[0]
    images = load(data, data_dir=data_dir, validation=paper.validation)
    wanted = {"paper": paper.name, "data": data, **experiments.settings, "seed": seed, "precision": precision}

    def folder(name: str) -> Path:
        return out / paper.folder.format(name=name, data=data, seed=f"-seed{seed}" if seed else "")

    def finished(name: str) -> Path:
        if not _finished(folder(name), {"experiment": name, **wanted}):
            raise ValueError(f"the experiment {name}, which comes before, is not in {folder(name)}: run that first")
        return folder(name)

    for name in experiments.names:
        if not _finished(folder(name), {"experiment": name, **wanted}):
            build = partial(experiments.build, name, images, finished)
            _train(experiments, {"experiment": name, **wanted}, build, images, folder(name), progress)


def _train(
    experiments: Experiments,
    wanted: dict[str, Any],
    build: Callable[[], tuple[Nested, Recipe]],
    images: Dataset,
    folder: Path,
    progress: bool | None,
) -> None:
    """Train one experiment, or go on with it, and write its summary."""
    if wanted["precision"] == "auto":  # as the others here, for the tables compare what was trained alike
        others = (run["precision"] for some in runs(folder.parent).values() for run in some if "precision" in run)
        wanted["precision"] = next(others, "auto")
    torch.manual_seed(wanted["seed"])
    net, recipe = build()
    options: dict[str, Any] = {"precision": wanted["precision"], "progress": progress}
    with warnings.catch_warnings():  # what `keep_shared` adds for the tables is in no description of a network
        warnings.filterwarnings("ignore", "the command line will know only the catalogue")
        history = fit(net, images, recipe, out=folder, resume=True, seed=wanted["seed"], **options)
    summary = {
        **wanted,
        "precision": history.precision,
        "train_images": len(images.train),
        "epochs": len(history),
        "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
        "threads": read_facts(folder / LAST).get("threads", torch.get_num_threads()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "recipe": recipe.to_dict(),
        "protocols": protocols(history),
        **experiments.facts(Trained(wanted["experiment"], net, recipe, history, images, folder, build)),
    }
    with replacing(folder / SUMMARY) as temporary:
        facts = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
        temporary.write_text("{\n" + ",\n".join(facts) + "\n}\n")  # a line each, also if it has hundreds of numbers


def tables(paper: Paper, out: Path) -> "list[Table]":
    """A paper's tables with ours beside them, of what `reproduce` has left; what that lacks shows a dash, or no row."""
    return paper.tables(runs(out, paper.name))


def plots(paper: Paper, out: Path) -> list[Plot]:
    """A paper's plots with ours beside them, of what `reproduce` has left."""
    return paper.plots(runs(out, paper.name))


def protocols(history: History) -> dict[str, dict[str, Any]]:
    """The three ways to say how good a run became: each the test accuracy of all members in one epoch.

    `best_test` is the papers' (the epoch in which the full network is best on the test images), `validation` the
    honest one (best on validation images), `last` needs no choice.
    """
    chosen = {"best_test": history.best("test"), "validation": history.best(), "last": history[-1]}
    return {name: {"epoch": epoch.epoch, "test": epoch.test} for name, epoch in chosen.items()}


def runs(out: Path, paper: str | None = None) -> dict[str, list[Run]]:
    """Every summary that a run has left below a folder, or those of one paper: experiment → its runs by rising seed."""
    found: dict[str, list[Run]] = {}
    for file in sorted(out.glob(f"*/{SUMMARY}")):
        summary = _summary(file)
        if paper in (None, summary["paper"]):
            found.setdefault(summary["experiment"], []).append(summary)
    return {experiment: sorted(some, key=lambda run: int(run["seed"])) for experiment, some in found.items()}


def summaries(out: Path, paper: str | None = None) -> dict[str, Run]:
    """One summary for each experiment below a folder: that of the lowest seed."""
    return {experiment: some[0] for experiment, some in runs(out, paper).items()}


class SummaryError(ValueError):
    """A summary that no run has written."""


def _summary(file: Path) -> dict[str, Any]:
    """What a run has left.

    Raises:
        SummaryError: if it has not left this.
    """
    try:
        summary = documents.read(file, finite=False)
        if not isinstance(summary, dict) or not isinstance(summary.get("experiment"), str):
            raise ValueError("it does not say which experiment it is of")
        int(summary["seed"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise SummaryError(f"{file} is no summary of a run: {documents.printable(str(error))}") from error
    return {"paper": next((paper for key, paper in _KEYS.items() if key in summary), ""), **summary}


def _finished(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder has the summary of an experiment with these settings."""
    if not (folder / SUMMARY).exists():
        return False
    done = _summary(folder / SUMMARY)
    return all(done.get(key) == value for key, value in wanted.items() if (key, value) != ("precision", "auto"))
