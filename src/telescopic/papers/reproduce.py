"""The papers' experiments, run one after another, and their tables with ours beside them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from telescopic.data import load
from telescopic.files import replacing
from telescopic.papers import nsn
from telescopic.provenance import commit, versions
from telescopic.train import Epoch, History, fit
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST

if TYPE_CHECKING:
    from rich.table import Table

SUMMARY = "summary.json"


def run_nsn(
    out: Path,
    names: Sequence[str],
    *,
    data: str = "mnist",
    epochs: int = 600,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] | str = "fp32",
    data_dir: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Train experiments of NSN, each into a folder of its name, and write what came out to its `summary.json`.

    An experiment that finished is not trained again; one that was stopped goes on.

    Raises:
        ValueError: if an experiment is unknown.
        CheckpointError: if a folder holds a run of other settings.
    """
    images = load(data, data_dir=data_dir)
    wanted = {"data": data, "seed": seed, "epochs": epochs, "precision": precision}
    for name in names:
        done = summaries(out).get(name, {})
        if all(done.get(key) == value for key, value in wanted.items()):
            continue
        torch.manual_seed(seed)
        inputs = images.train.images[0].numel()
        net, recipe = nsn.experiment(name, epochs=epochs, inputs=inputs, classes=len(images.classes))
        options: dict[str, Any] = {"precision": precision, "progress": progress}
        history = fit(net, images, recipe, out=out / name, resume=True, seed=seed, **options)
        models = [f"model{member.exit - member.entry + 1}" for member in net.grid]  # type: ignore[operator]
        summary = {
            "experiment": name,
            "data": data,
            "train_images": len(images.train),
            "seed": seed,
            "epochs": len(history),
            "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
            "precision": precision,
            "threads": read_facts(out / name / LAST).get("threads", torch.get_num_threads()),
            "versions": versions(),
            "commit": commit(),
            "recipe": recipe.to_dict(),
            "models": models,
            "protocols": protocols(history),
            "curve": {epoch.epoch: epoch.test for epoch in history if epoch.epoch in nsn.AUTHORS_RUN},
        }
        with replacing(out / name / SUMMARY) as temporary:
            temporary.write_text(json.dumps(summary, indent=1))


def protocols(history: History) -> dict[str, dict[str, Any]]:
    """The three ways to say how good a run became: each the test accuracy of all members in one epoch.

    `best_test` is the papers' (the epoch in which the full network is best on the test images), `validation` the
    honest one (best on validation images), `last` needs no choice.
    """

    def row(epoch: Epoch) -> dict[str, Any]:
        return {"epoch": epoch.epoch, "test": epoch.test}

    chosen = {"best_test": history.best("test"), "validation": history.best(), "last": history[-1]}
    return {name: row(epoch) for name, epoch in chosen.items()}


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


def summaries(out: Path) -> dict[str, Mapping[str, Any]]:
    """What `run_nsn` has written below a folder, by experiment."""
    files = sorted(out.glob(f"*/{SUMMARY}"))
    return {summary["experiment"]: summary for summary in (json.loads(file.read_text()) for file in files)}


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
