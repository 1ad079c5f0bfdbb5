"""The papers' experiments, run one after another; `tables` reads what they leave."""

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from telescopic import documents
from telescopic.cost import cost, machine, nominal_macs, nominal_params
from telescopic.data import Dataset, Preprocess, load
from telescopic.extract import extract
from telescopic.files import replacing
from telescopic.nested import Nested
from telescopic.papers import cnsn, doubly_nested, nsn, shrinknets
from telescopic.papers.policies import by_policy, keep_shared
from telescopic.provenance import commit, versions
from telescopic.shrink.family import fold_family
from telescopic.train import Epoch, History, Recipe, evaluate, fit
from telescopic.train.checkpoint import load_checkpoint, read_facts
from telescopic.train.keeper import BEST, LAST

SUMMARY = "summary.json"


def run_nsn(
    out: Path,
    names: Sequence[str],
    *,
    data: str = "mnist",
    epochs: int = 600,
    seed: int = 0,
    precision: str = "auto",
    data_dir: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Train experiments of NSN, each into a folder of its name, and write what came out to its `summary.json`.

    An experiment that finished is not trained again; one that was stopped goes on. With the precision `auto`, the first
    one trained into the folder decides for all.

    Raises:
        ValueError: if an experiment is unknown.
        CheckpointError: if a folder holds a run of other settings.
    """
    images = load(data, data_dir=data_dir)
    wanted = {"data": data, "seed": seed, "epochs": epochs, "precision": precision}
    inputs = images.train.images[0].numel()

    def more(net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
        return {
            "models": [f"model{member.stages}" for member in net.grid],
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
    precision: str = "auto",
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
    shape, classes = images.image_shape, len(images.classes)
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
        prices = [cost(extract(net, member), shape) for member in net.grid]
        facts |= {"macs": [price.macs for price in prices], "params": [price.params for price in prices]}
        if len(net.grid) > 1:
            best = last = by_policy(net, images, recipe)
            if history.best() is not history[-1]:
                load_checkpoint(folder / LAST, net)
                last = by_policy(net, images, recipe)
            facts["policies"] = {"validation": best, "last": last}
        return facts

    for name in names:
        facts = {"experiment": name, **wanted, "epochs": epochs or build(name)[1].epochs}
        _experiment(out / _folder(name, seed), facts, partial(build, name), images, more, progress)


def run_doubly_nested(
    out: Path,
    names: Sequence[str],
    *,
    data: str = "cifar10",
    groups: int = 22,
    channels: Sequence[int] = doubly_nested.CHANNELS,
    blocks: int = 5,
    epochs: int = 30,
    seed: int = 0,
    precision: str = "auto",
    data_dir: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Train experiments of Doubly Nested Network, into folders called after experiment and seed.

    Names are those of `doubly_nested.experiment`, and `sliced-w8`: the first 8 groups of what the experiment `dense`
    left here in the epoch chosen on validation images, of which then the classifier alone is trained (Figure 4).

    Raises:
        ValueError: if an experiment is unknown, or a dense network is to be sliced that is not there.
        CheckpointError: if a folder holds a run of other settings.
    """
    images = load(data, data_dir=data_dir)
    shape, classes, preprocess = images.image_shape, len(images.classes), Preprocess.fit(images.train)
    wanted = {"data": data, "groups": groups, "channels": list(channels), "blocks": blocks, "epochs": epochs}
    wanted |= {"seed": seed, "precision": precision}

    def build(name: str) -> tuple[Nested, Recipe]:
        return doubly_nested.experiment(
            name,
            groups=groups,
            channels=channels,
            blocks=blocks,
            epochs=epochs,
            preprocess=preprocess,
            input_shape=shape,
            classes=classes,
        )

    def build_sliced(name: str) -> tuple[Nested, Recipe]:
        folder = out / _folder("dense", seed)
        if not _finished(folder, {"experiment": "dense", **wanted}):
            raise ValueError(f"{name} is cut from the experiment dense, which is not in {folder}: run that first")
        wide, how = build("dense")
        load_checkpoint(folder / BEST, wide)
        narrow, _ = build(name.replace("sliced", "dense"))
        doubly_nested.slice_(narrow, wide)
        return narrow, doubly_nested.classifier_only_(narrow, how)

    def more(net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
        return {
            "epochs": epochs,  # of a sliced network, those of the dense one; its own are the recipe's
            "recipe": {key: value for key, value in recipe.to_dict().items() if key != "weights"},  # hundreds
            "exits": net.grid.exits,
            "widths": net.grid.widths,
            "macs": nominal_macs(net, shape),
            "params": nominal_params(net),
            "protocols": {
                protocol: {"epoch": row["epoch"], **_accuracies(history[row["epoch"] - 1])}
                for protocol, row in protocols(history).items()
            },
        }

    def more_of_sliced(name: str, net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
        untouched, _ = build_sliced(name)
        test = evaluate(untouched.eval(), [images.test], recipe.preprocess)[0].tolist()
        return {**more(net, history, folder, recipe), "brute_force": _rounded(test)}

    for name in names:  # all of them before hours are spent on the first
        build(name.replace("sliced-w", "dense-w"))
    for name in names:
        sliced = name.startswith("sliced-w")
        how, what = (build_sliced, partial(more_of_sliced, name)) if sliced else (build, more)
        _experiment(
            out / _folder(name, seed), {"experiment": name, **wanted}, partial(how, name), images, what, progress
        )


def run_shrinknets(
    out: Path,
    names: Sequence[str],
    *,
    data: str = "mnist",
    units: int = 10_000,
    epochs: int = 100,
    seed: int = 0,
    precision: str = "auto",
    data_dir: Path | None = None,
    progress: bool | None = None,
) -> None:
    """Train experiments of ShrinkNets' Figure 1, into folders called after data, experiment and seed.

    All training images are used, as the authors must have done: of 10,000 units with θ uniform in (0, 1], the 2,366
    that are gone after the first epoch are those that 235 steps of Adam can bring to 0, which 60,000 images make.

    Raises:
        ValueError: if an experiment is unknown.
        CheckpointError: if a folder holds a run of other settings.
    """
    images = load(data, data_dir=data_dir, validation=0)
    preprocess, shape = Preprocess.fit(images.train), images.image_shape
    wanted = {"data": data, "units": units, "epochs": epochs, "seed": seed, "precision": precision}
    sizes: dict[str, Any] = {"epochs": epochs, "units": units, "input_shape": shape, "classes": len(images.classes)}

    def more(net: Nested, history: History, folder: Path, recipe: Recipe) -> dict[str, Any]:
        first = next(net.parameters())
        plain = fold_family(net, preprocess(images.train.images[:2].to(first.device)).to(first.dtype))
        price = cost(extract(plain), shape)
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

    for name in names:
        shrinknets.parse(name)
    for name in names:
        _experiment(
            out / _folder(f"{data}-{name}", seed),
            {"experiment": name, **wanted},
            partial(shrinknets.experiment, name, preprocess=preprocess, **sizes),
            images,
            more,
            progress,
        )


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


def _folder(name: str, seed: int) -> str:
    return name if seed == 0 else f"{name}-seed{seed}"


def _accuracies(epoch: Epoch) -> dict[str, list[float]]:
    return {"validation": _rounded(epoch.validation), "test": _rounded(epoch.test)}


def _rounded(values: Sequence[float]) -> list[float]:
    """Of hundreds of members, no more digits than 10,000 images can tell."""
    return [round(value, 4) for value in values]


def _finished(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder has the summary of an experiment with these settings."""
    if not (folder / SUMMARY).exists():
        return False
    done = _summary(folder / SUMMARY)
    return all(done.get(key) == value for key, value in wanted.items() if (key, value) != ("precision", "auto"))


def _experiment(
    folder: Path,
    wanted: dict[str, Any],
    build: Callable[[], tuple[Nested, Recipe]],
    images: Dataset,
    more: Callable[[Nested, History, Path, Recipe], dict[str, Any]],
    progress: bool | None,
) -> None:
    """Train one experiment, or go on with it, and write its summary; nothing is left to do if that is there."""
    if _finished(folder, wanted):
        return
    if wanted["precision"] == "auto":  # as the others here, for the tables compare what was trained alike
        others = (run["precision"] for some in runs(folder.parent).values() for run in some if "precision" in run)
        wanted = wanted | {"precision": next(others, "auto")}
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
        **more(net, history, folder, recipe),
    }
    with replacing(folder / SUMMARY) as temporary:
        facts = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in summary.items())
        temporary.write_text("{\n" + ",\n".join(facts) + "\n}\n")  # a line each, also if it has hundreds of numbers


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
    """Every summary that a paper's run has left below a folder: experiment → its runs by rising seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for file in sorted(out.glob(f"*/{SUMMARY}")):
        summary = _summary(file)
        found.setdefault(summary["experiment"], []).append(summary)
    return {experiment: sorted(some, key=lambda run: int(run["seed"])) for experiment, some in found.items()}


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
    return summary


def summaries(out: Path) -> dict[str, Mapping[str, Any]]:
    """One summary for each experiment below a folder: that of the lowest seed."""
    return {experiment: some[0] for experiment, some in runs(out).items()}
