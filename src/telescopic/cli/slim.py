"""`telescopic slim`: widths inside a network that is there already."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.shown import DataDir, Import, Precision, Seed, function_in, interruptible, one_of, show_table, tell
from telescopic.quantities import numbers

if TYPE_CHECKING:
    from torch import nn

    from telescopic.data import Dataset, Preprocess


def slim(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a bundle's file, a shipped family; or FILE.py:FUNCTION, which returns a network."
        ),
    ],
    widths: Annotated[str, typer.Option(help="Shares of the channels, the last one 1.")] = "0.25,0.5,0.75,1",
    data: Annotated[
        str | None, typer.Option(help="A data set's name, an .npz file, or a folder. (default: what it learned)")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Largest step size of the one-cycle schedule.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    multiple_of: Annotated[int, typer.Option(min=1, help="Each layer keeps a multiple of this many channels.")] = 8,
    order: Annotated[
        str, typer.Option(help="Which channels come first: those of large weights, or as given.")
    ] = "weights",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/slim-<name>)")] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")] = False,
    data_dir: DataDir = None,
    precision: Precision = "auto",
    code: Import = None,
) -> None:
    """Give a network that is trained already several widths, and train them together: the widest teaches the others."""
    from telescopic import recipes
    from telescopic.data import Augment, Preprocess
    from telescopic.denormals import denormals_as_zero
    from telescopic.run import Source
    from telescopic.slim import slim as make
    from telescopic.train import fit
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    shares = numbers("--widths", widths, float, "numbers such as 0.25,0.5,1")
    with denormals_as_zero():
        net, images, preprocess, name = _opened(source, data, data_dir, seed)
        preprocess = preprocess or Preprocess.fit(images.train)
        family = make(net, preprocess(images.train.images[:8]), shares, multiple_of=multiple_of, order=order)  # type: ignore[arg-type]
        speaks = int(os.environ.get("RANK", "0")) == 0  # under torchrun, one process speaks for all
        if speaks:
            tell(f"channels of each width:\n{vars(family)['narrowing']}\n", file=sys.stderr)
        image = len(images.input_shape) == 3 and images.input_shape[-1] >= 32
        how: dict[str, Any] = {"preprocess": preprocess, "augment": Augment(pad=4, flip=True) if image else Augment()}
        recipe = recipes.slim(epochs, learning_rate=learning_rate, batch_size=batch_size, **how)
        folder = out or Path("runs") / f"slim-{name}"
        with interruptible():
            options: dict[str, Any] = {"precision": precision, "provenance": {"method": "slim"}}
            fit(family, images, recipe, out=folder, seed=seed, resume=resume, **options)
    if speaks:
        show_table(Source.open(str(folder)).catalogue().table())
        tell(f"\nNext:  telescopic choose {folder} --min-accuracy 0.9    telescopic report {folder}")


def _opened(
    source: str, data: str | None, data_dir: Path | None, seed: int
) -> "tuple[nn.Module, Dataset, Preprocess | None, str]":
    """The network, the images, what is done to them before, and a name for the run."""
    from telescopic import data as datasets
    from telescopic.run import Source

    if (own := function_in(source)) is None:
        found = Source.open(source)
        return found.bundle.network(), found.data(data, data_dir), found.preprocess(), Path(source).stem
    if data is None:
        raise ValueError(f"{source} does not say what data it learns: name them with --data")
    file, build = own
    return build(), datasets.load(data, data_dir=data_dir, seed=seed), None, file.stem
