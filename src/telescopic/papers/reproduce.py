"""The papers' experiments, run one after another; `tables` reads what they leave."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

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

    def more(net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
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

    def more(net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
        facts: dict[str, Any] = {"members": [net.grid.label(member) for member in net.grid]}
        facts["macs"] = [cost(extract(net, member), shape).macs for member in net.grid]
        facts["params"] = [cost(extract(net, member), shape).params for member in net.grid]
        if len(net.grid) > 1:
            facts["policies"] = {"validation": by_policy(net, images, recipe)}
            load_checkpoint(folder / LAST, net)
            facts["policies"]["last"] = by_policy(net, images, recipe)
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
    more: Callable[[Nested, History, Path, Recipe], dict[str, Any]],
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
        **more(net, history, folder, recipe),
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


def runs(out: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Every summary that `run_nsn` or `run_cnsn` has written below a folder: experiment → its runs by rising seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for file in sorted(out.glob(f"*/{SUMMARY}")):
        summary = json.loads(file.read_text())
        found.setdefault(summary["experiment"], []).append(summary)
    return {experiment: sorted(some, key=lambda run: int(run["seed"])) for experiment, some in found.items()}


def summaries(out: Path) -> dict[str, Mapping[str, Any]]:
    """One summary for each experiment below a folder: that of the lowest seed."""
    return {experiment: some[0] for experiment, some in runs(out).items()}
