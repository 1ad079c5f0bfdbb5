"""`telescopic slim`: widths inside a network that is there already."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.shown import (
    DataDir,
    Import,
    Precision,
    Seed,
    Size,
    function_in,
    interruptible,
    one_of,
    show_table,
    tell,
)
from telescopic.cli.train import go_on, usual
from telescopic.quantities import numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from telescopic.data import Dataset, Preprocess, Split


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
    task: Annotated[
        str | None, typer.Option(help="classification, multilabel, regression or tokens. (default: what it learned)")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Largest step size of the one-cycle schedule.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 128,
    multiple_of: Annotated[int, typer.Option(min=1, help="Each layer keeps a multiple of this many channels.")] = 8,
    of: Annotated[
        str,
        typer.Option(help="What the widths are shares of: each layer's channels, or all macs, spread by importance."),
    ] = "channels",
    order: Annotated[
        str,
        typer.Option(
            help="Which channels come first: of large weights, of large gradient × weight (taylor), or as given."
        ),
    ] = "weights",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/slim-<name>)")] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")] = False,
    data_dir: DataDir = None,
    size: Size = None,
    precision: Precision = "auto",
    code: Import = None,
) -> None:
    """Give a network that is trained already several widths, and train them together: the widest teaches the others."""
    from telescopic import recipes
    from telescopic.data import Augment
    from telescopic.denormals import denormals_as_zero
    from telescopic.importance import taylor
    from telescopic.run import Source
    from telescopic.slim import slim as make
    from telescopic.tasks import NAMED
    from telescopic.train import fit
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    if task is not None:
        one_of("task", task, tuple(NAMED))
    one_of("of", of, ("channels", "macs"))
    one_of("order", order, ("weights", "taylor", "given"))
    shares = numbers("--widths", widths, float, "numbers such as 0.25,0.5,1")
    with denormals_as_zero():
        net, images, preprocess, name, learned = _opened(source, data, data_dir, seed, size)
        preprocess = preprocess or usual(images)
        if (task or learned) not in NAMED:
            raise ValueError(f"{source} learned {learned!r:.100}, which no command knows: name a task with --task")
        asked = NAMED[task or learned]
        important: Any = order
        if order == "taylor":

            def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
                return asked.loss(outputs[None], targets).mean()

            important = taylor(net, _some(images.train, preprocess), loss)
        options: dict[str, Any] = {"of": of, "multiple_of": multiple_of, "order": important}
        family = make(net, preprocess(images.train[:8].inputs), shares, **options)
        speaks = int(os.environ.get("RANK", "0")) == 0  # under torchrun, one process speaks for all
        if speaks:
            tell(f"channels of each width:\n{vars(family)['narrowing']}\n", file=sys.stderr)
        shape = images.input_shape
        image = isinstance(shape, tuple) and len(shape) == 3 and isinstance(shape[0], int) and shape[-1] >= 32
        how: dict[str, Any] = {"preprocess": preprocess, "augment": Augment(pad=4, flip=True) if image else Augment()}
        recipe = recipes.slim(epochs, learning_rate=learning_rate, batch_size=batch_size, **how)
        folder = out or Path("runs") / f"slim-{name}"
        with interruptible():
            how = {"precision": precision, "provenance": {"method": "slim", "of": of, "order": order}}
            fit(family, images, recipe, task=asked, out=folder, seed=seed, resume=resume, **how)
    if speaks:
        table = Source.open(str(folder)).catalogue()
        show_table(table.table())
        go_on(table, folder)


def _some(train: "Split", preprocess: "Preprocess") -> "Iterator[tuple[Tensor, Tensor]]":
    """The first thousand training examples, in batches."""
    for first in range(0, min(1000, len(train)), 100):
        some = train[first : first + 100]
        yield preprocess(some.inputs), some.targets


def _opened(
    source: str, data: str | None, data_dir: Path | None, seed: int, size: int | None
) -> "tuple[nn.Module, Dataset, Preprocess | None, str, str]":
    """The network, the data, what is done to inputs before, and names of the run and of the task."""
    from telescopic import data as datasets
    from telescopic.run import Source

    if (own := function_in(source)) is None:
        found = Source.open(source)
        task = found.bundle.provenance.get("task")
        learned = str(task.get("name")) if isinstance(task, dict) else "classification"
        net = found.bundle.network()
        return net, found.data(data, data_dir), found.preprocess(), Path(source).stem, learned
    if data is None:
        raise ValueError(f"{source} does not say what data it learns: name them with --data")
    file, build = own
    loaded = datasets.load(data, data_dir=data_dir, seed=seed, size=size)
    return build(), loaded, None, file.stem, "classification"
