"""The papers' experiments, run one after another, and their tables with ours beside them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from telescopic.cost import cost, machine
from telescopic.data import Dataset, Preprocess, load
from telescopic.extract import extract
from telescopic.files import replacing
from telescopic.nested import Nested
from telescopic.papers import cnsn, nsn
from telescopic.papers.policies import by_policy, keep_shared
from telescopic.provenance import commit, versions
from telescopic.train import Epoch, History, Recipe, fit
from telescopic.train.checkpoint import load_checkpoint, read_facts
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
    inputs = images.train.images[0].numel()

    def more(net: Nested, history: History, folder: Path) -> dict[str, Any]:
        return {
            "models": [f"model{member.exit - member.entry + 1}" for member in net.grid],  # type: ignore[operator]
            "curve": {epoch.epoch: epoch.test for epoch in history if epoch.epoch in nsn.AUTHORS_RUN},
        }

    for name in names:
        _experiment(
            out / name,
            {"experiment": name, **wanted},
            partial(nsn.experiment, name, epochs=epochs, inputs=inputs, classes=len(images.classes)),
            images,
            more,
            progress,
        )


def run_cnsn(
    out: Path,
    names: Sequence[str],
    *,
    data: str = "cifar10",
    scale: float = 1.0,
    short: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] | str = "fp32",
    data_dir: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Train experiments of CNSN in the same way, into folders called after experiment and seed.

    Of joint experiments all policies for BatchNorm's statistics are measured, in the epoch chosen on validation images
    and in the last one.

    Raises:
        ValueError: if an experiment is unknown.
        CheckpointError: if a folder holds a run of other settings.
    """
    images = load(data, data_dir=data_dir)
    preprocess = Preprocess.fit(images.train)
    shape, classes = images.input_shape, len(images.classes)
    wanted = {"data": data, "scale": scale, "recipe_name": "short" if short else "paper", "seed": seed}
    wanted["precision"] = precision

    def build(name: str) -> tuple[Nested, Recipe]:
        net, recipe = cnsn.experiment(
            name, scale=scale, epochs=epochs, short=short, preprocess=preprocess, input_shape=shape, classes=classes
        )
        if len(net.grid) > 1:
            keep_shared(net)
        return net, recipe

    def more(net: Nested, history: History, folder: Path) -> dict[str, Any]:
        facts: dict[str, Any] = {"members": [net.grid.label(member) for member in net.grid]}
        facts["macs"] = [cost(extract(net, member), shape).macs for member in net.grid]
        facts["params"] = [cost(extract(net, member), shape).params for member in net.grid]
        if len(net.grid) > 1:
            facts["policies"] = {"validation": by_policy(net, images, preprocess)}
            load_checkpoint(folder / LAST, net)
            facts["policies"]["last"] = by_policy(net, images, preprocess)
        return facts

    for name in names:
        facts = {"experiment": name, **wanted, "epochs": epochs or build(name)[1].epochs}
        folder = out / (name if seed == 0 else f"{name}-seed{seed}")
        _experiment(folder, facts, partial(build, name), images, more, progress)


def _experiment(
    folder: Path,
    wanted: dict[str, Any],
    build: Callable[[], tuple[Nested, Recipe]],
    images: Dataset,
    more: Callable[[Nested, History, Path], dict[str, Any]],
    progress: bool | None,
) -> None:
    """Train one experiment, or go on with it, and write its summary; nothing is left to do if that is there."""
    if (folder / SUMMARY).exists():
        done = json.loads((folder / SUMMARY).read_text())
        if all(done.get(key) == value for key, value in wanted.items()):
            return
    torch.manual_seed(wanted["seed"])
    net, recipe = build()
    options: dict[str, Any] = {"precision": wanted["precision"], "progress": progress}
    history = fit(net, images, recipe, out=folder, resume=True, seed=wanted["seed"], **options)
    summary = {
        **wanted,
        "train_images": len(images.train),
        "epochs": len(history),
        "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
        "threads": read_facts(folder / LAST).get("threads", torch.get_num_threads()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "recipe": recipe.to_dict(),
        "protocols": protocols(history),
        **more(net, history, folder),
    }
    with replacing(folder / SUMMARY) as temporary:
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
