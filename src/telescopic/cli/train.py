"""`telescopic train`: all sizes of a network together, into the folder of a run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.shown import DataDir, Precision, Seed, interruptible, numbers, one_of, show_table, tell

if TYPE_CHECKING:
    from telescopic.catalogue import Catalogue
    from telescopic.data import Dataset
    from telescopic.nested import Nested
    from telescopic.train import Recipe

MOST_SHOWN = 50
"""Members of a network that a command prints all of, unasked."""

app = typer.Typer(no_args_is_help=True, help="Train every size of a network together.")

Data = Annotated[str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")]
Validation = Annotated[int | None, typer.Option(help="Images to choose the epoch on. (default: 5000 or a tenth)")]


@app.command("nsn", epilog="Example:  telescopic train nsn --data mnist --epochs 600 --out runs/nsn-mnist")
def nsn(
    data: Data = "digits",
    hidden: Annotated[
        int, typer.Option(min=0, help="Hidden layers of the full network; each may be left out later.")
    ] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images; the paper uses 600.")] = 60,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/nsn-<data>)")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    data_dir: DataDir = None,
    validation: Validation = None,
    precision: Precision = "auto",
) -> None:
    """Train NSN: a multi-layer perceptron that can lose its first layers (Fuengfusin and Tamukoh 2019)."""
    from telescopic import papers

    def build(images: "Dataset") -> "tuple[Nested, Recipe]":
        inputs = images.train.images[0].numel()
        net = papers.nsn.network(hidden, inputs=inputs, classes=len(images.classes))
        return net, papers.nsn.recipe(hidden, epochs=epochs)

    options: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "precision": precision}
    _train("nsn", data, build, out=out, seed=seed, resume=resume, **options)


@app.command("cnsn", epilog="Example:  telescopic train cnsn --data cifar10 --entries 2,7 --scale 0.25 --out runs/cnsn")
def cnsn(
    data: Data = "cifar10",
    entries: Annotated[str, typer.Option(help="How many first convolutions may be left out later.")] = "2,7",
    scale: Annotated[float, typer.Option(min=0.01, max=4, help="Share of the paper's channels, e.g. 0.25.")] = 1.0,
    recipe: Annotated[str, typer.Option(help="short (20 epochs, one cycle), or the paper's (300).")] = "short",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images. (default: the recipe's)")] = None,
    statistics: Annotated[
        str, typer.Option(help="BatchNorm's: shared (the paper), per-entry, or recalibrated.")
    ] = "per-entry",
    adapter: Annotated[str, typer.Option(help="Where images enter: step-down (the paper), or stem.")] = "step-down",
    distillation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a smaller member's loss that the full network teaches.")
    ] = 0.0,
    weights: Annotated[
        str, typer.Option(help="Of the losses: mean, sum, or a number for each member, smallest first.")
    ] = "mean",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/cnsn-<data>)")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    data_dir: DataDir = None,
    validation: Validation = None,
    precision: Precision = "auto",
) -> None:
    """Train CNSN: a VGG-16 that can lose its first convolutions (Fuengfusin and Tamukoh 2021)."""
    from dataclasses import replace
    from typing import get_args

    from telescopic import layers, papers
    from telescopic.data import Preprocess
    from telescopic.nested import Statistics

    recipes = {"paper": papers.cnsn.recipe, "short": papers.cnsn.short_recipe}
    adapters = {"step-down": layers.step_down, "stem": layers.strided_stem}
    one_of("recipe", recipe, tuple(recipes))
    one_of("adapter", adapter, tuple(adapters))
    one_of("statistics", statistics, get_args(Statistics))
    skipped = numbers("--entries", entries, int, "whole numbers such as 2,7")
    shares: tuple[float, ...] | None = None
    if weights not in ("mean", "sum"):
        shares = numbers("--weights", weights, float, "mean, sum, or a number for each member such as 0.2,0.3,0.5")

    def build(images: "Dataset") -> "tuple[Nested, Recipe]":
        channels, height, width = images.image_shape
        if min(height, width) < 32:
            raise ValueError(
                f"the images of {data} are {height} × {width} pixels, and VGG-16 takes 32 × 32 or more: pad them, say "
                "with numpy.pad, and give them as an .npz file; or train nsn, which takes any size"
            )
        net = papers.cnsn.network(
            entries=skipped,
            scale=scale,
            classes=len(images.classes),
            input_shape=(channels, height, width),
            adapter=adapters[adapter],
            statistics=statistics,  # type: ignore[arg-type] # checked above
        )
        length = {} if epochs is None else {"epochs": epochs}
        how = recipes[recipe](**length, preprocess=Preprocess.fit(images.train))
        each = (1.0,) * len(net.grid) if weights == "sum" else shares
        return net, replace(how, weights=each, distillation=distillation)

    options: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "precision": precision}
    _train("cnsn", data, build, out=out, seed=seed, resume=resume, **options)


@app.command("doubly-nested", epilog="Example:  telescopic train doubly-nested --data cifar10 --out runs/dnn")
def doubly_nested(
    data: Data = "cifar10",
    network: Annotated[
        str, typer.Option(help="aligned (2 groups of 16, 32, 64 channels: quick on any processor), or paper.")
    ] = "aligned",
    groups: Annotated[
        int | None, typer.Option(min=2, help="Channel groups, and so widths. (default: the network's)")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels of a group in each part, e.g. 1,2,4. (default: the network's)")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Residual blocks a part. (default: the network's)")] = None,
    way: Annotated[
        str, typer.Option(help="How members learn together: uniform (the paper), macs, ...; a wrong one lists all.")
    ] = "balanced-macs",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/doubly-nested-<data>)")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    data_dir: DataDir = None,
    validation: Validation = None,
    precision: Precision = "auto",
) -> None:
    """Train Doubly Nested: a ResNet that can be cut by depth and by width (Kim et al. 2018)."""
    from telescopic import papers
    from telescopic.data import Preprocess

    doubly_nested = papers.doubly_nested
    one_of("network", network, tuple(doubly_nested.NETWORKS))
    one_of("way", way, tuple(doubly_nested.WAYS))
    sizes: dict[str, Any] = dict(doubly_nested.NETWORKS[network])
    sizes |= {name: size for name, size in (("groups", groups), ("blocks", blocks)) if size is not None}
    if channels is not None:
        sizes["channels"] = numbers("--channels", channels, int, "whole numbers such as 1,2,4")

    def build(images: "Dataset") -> "tuple[Nested, Recipe]":
        preprocess, shape = Preprocess.fit(images.train), images.image_shape
        return doubly_nested.experiment(
            way, **sizes, epochs=epochs, preprocess=preprocess, input_shape=shape, classes=len(images.classes)
        )

    options: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "precision": precision}
    _train("doubly-nested", data, build, out=out, seed=seed, resume=resume, **options)


@app.command("shrinknet", epilog="Example:  telescopic train shrinknet --data mnist --penalty 1e-3 --out runs/shrink")
def shrinknet(
    data: Data = "mnist",
    penalty: Annotated[
        float, typer.Option(min=0, help="λ, which takes the place of all widths: the larger, the smaller the network.")
    ] = 1e-3,
    network: Annotated[
        str, typer.Option(help="one-layer (10,000 units), mlp (500, 500, 500), lenet (50, 50, 5000), resnet20 (16).")
    ] = "one-layer",
    widths: Annotated[
        str | None, typer.Option(help="Widths to start with, e.g. 2000. (default: the network's)")
    ] = None,
    by: Annotated[str, typer.Option(help="What a channel weighs: 1 (channels), its params, or its macs.")] = "channels",
    method: Annotated[
        str, typer.Option(help="gradient (the paper), proximal (exact zeros), or random removal.")
    ] = "gradient",
    collect: Annotated[
        str, typer.Option(help="When dead channels are removed: epoch (the paper), pays, never, or a number of steps.")
    ] = "epoch",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images; the paper takes 100.")] = 20,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/shrinknet-<data>)")] = None,
    seed: Seed = 0,
    resume: Resume = False,
    data_dir: DataDir = None,
    validation: Validation = None,
    precision: Precision = "auto",
) -> None:
    """Train a network that learns its widths and gets faster meanwhile (Leclerc et al., ShrinkNets)."""
    from telescopic import papers
    from telescopic.data import Preprocess

    shrinknets = papers.shrinknets
    one_of("network", network, tuple(shrinknets.NETWORKS))
    sizes = None if widths is None else numbers("--widths", widths, int, "whole numbers such as 500,500,500")
    when: str | int | None = {"never": None}.get(collect, int(collect) if collect.isdecimal() else collect)
    how: dict[str, Any] = {"by": by, "method": method, "collect": when}
    shrinknets.recipe(penalty=penalty, epochs=epochs, **how)  # refuses what it does not know before the data are there

    def build(images: "Dataset") -> "tuple[Nested, Recipe]":
        shape, classes = images.image_shape, len(images.classes)
        net = shrinknets.network(network, input_shape=shape, classes=classes, widths=sizes)
        return net, shrinknets.recipe(penalty=penalty, epochs=epochs, preprocess=Preprocess.fit(images.train), **how)

    options: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "precision": precision}
    _train("shrinknet", data, build, out=out, seed=seed, resume=resume, **options)


def _train(
    method: str,
    data: str,
    build: "Callable[[Dataset], tuple[Nested, Recipe]]",
    *,
    out: Path | None,
    seed: int,
    resume: bool,
    data_dir: Path | None,
    validation: int | None,
    precision: str,
) -> None:
    """What all methods do: load the images, train, measure, show, and say how to go on."""
    import torch

    from telescopic.data import load
    from telescopic.denormals import denormals_as_zero
    from telescopic.quantities import human
    from telescopic.run import Source
    from telescopic.train import fit
    from telescopic.train.keeper import continued
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    with denormals_as_zero():  # from before torch has threads, which take it over
        images = load(data, data_dir=data_dir, validation=validation, seed=seed)
        speaks = int(os.environ.get("RANK", "0")) == 0  # under torchrun, one process speaks for all
        if speaks:
            tell(f"{data}: {len(images.train):,} training images, from {images.source}", file=sys.stderr)
        folder = out or Path("runs") / f"{method}-{Path(data).stem}"
        torch.manual_seed(seed)
        net, recipe = build(images)
        before, recipe = recipe, continued(recipe, folder) if resume else recipe
        if speaks and before != recipe:
            tell(f"{folder} goes on with the milestones it began with: {recipe.milestones}", file=sys.stderr)
        # What learns its widths is kept as it is after the last epoch, when it is smallest.
        options: dict[str, Any] = {"precision": precision, "keep": "best" if recipe.shrink is None else "last"}
        with interruptible():
            fit(net, images, recipe, out=folder, seed=seed, resume=resume, provenance={"method": method}, **options)
    if speaks:
        table = Source.open(str(folder)).catalogue()
        _show(table, folder)
        if method == "shrinknet":
            tell(f"\n{_left(folder)}")
        if method == "cnsn" and len(table) > 1:
            tell(f"\n{_storage(folder, table)}")
        # Something that a member fits, also where the smallest is not much smaller than the largest.
        some = human(max(0.6 * table[-1].macs, 1.1 * table[0].macs)).replace(" ", "")
        tell(f"\nNext:  telescopic choose {folder} --max-macs {some}    telescopic report {folder}")


def _show(table: "Catalogue", folder: Path) -> None:
    """Print every member; of very many, those on the Pareto front."""
    if len(table) <= MOST_SHOWN or table[0].accuracy is None:
        return show_table(table.table())
    front = table.front()
    show_table(table.table(front))
    tell(
        f"\nThese {len(front)} of {len(table)} members are more accurate on validation images than all that need no "
        f"more MACs.\nAll of them:  telescopic catalogue {folder}"
    )


def _left(folder: Path) -> str:
    """What a network has become that learned its widths."""
    from telescopic.run import Source

    history = Source.open(str(folder)).history()
    assert history is not None
    first, last, seconds = history[0], history[-1], sum(epoch.seconds for epoch in history)
    layers = ", ".join(f"{name} {width:,}" for name, width in zip(history.filters, last.widths, strict=True))
    share = 100 * sum(epoch.compacting for epoch in history) / seconds
    return (
        f"Channels left: {layers}. The filters are part of the weights in {folder}: it is an ordinary network.\n"
        f"The last epoch was {last.images_per_s / first.images_per_s:.1f} times as fast as the first; removing "
        f"channels took {share:.1f} % of the time."
    )


def _storage(folder: Path, table: "Catalogue") -> str:
    """What the file of all members takes, against what they would take by themselves (the paper's claim)."""
    from telescopic.quantities import human
    from telescopic.train.result import MODEL

    file, full = (folder / MODEL).stat().st_size, table[-1].bytes
    separate = sum(member.bytes for member in table)
    kept = "" if table.statistics in (None, "shared") else ", their BatchNorm statistics"
    return (
        f"Storage: {human(file, 'B')} for all {len(table)} members in one file; {human(separate, 'B')} if each had "
        f"its own, {human(full, 'B')} for the largest alone.\n"
        f"The {human(file - full, 'B')} beyond the largest are the other entries' adapters{kept}, and a header."
    )
