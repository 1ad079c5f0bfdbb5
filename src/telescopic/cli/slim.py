"""`telescopic slim`: widths inside a network that is there already."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.shown import DataDir, Import, Precision, Resume, Seed, Size, function_in, one_of, tell
from telescopic.cli.training import go_on, speaks, trained, usual
from telescopic.quantities import numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from telescopic.data import Dataset, Preprocess, Split
    from telescopic.nested import Nested
    from telescopic.train import Recipe


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
    resume: Resume = False,
    data_dir: DataDir = None,
    size: Size = None,
    precision: Precision = "auto",
    code: Import = None,
) -> None:
    """Give a network that is trained already several widths, and train them together: the widest teaches the others."""
    from telescopic import data as datasets
    from telescopic import recipes
    from telescopic.data import Augment
    from telescopic.importance import taylor
    from telescopic.run import Source
    from telescopic.slim import slim as make
    from telescopic.tasks import NAMED

    if task is not None:
        one_of("task", task, tuple(NAMED))
    one_of("of", of, ("channels", "macs"))
    one_of("order", order, ("weights", "taylor", "given"))
    shares = numbers("--widths", widths, float, "numbers such as 0.25,0.5,1")
    found = function_in(source) or Source.open(source)
    known = found.bundle.provenance.get("task") if isinstance(found, Source) else None
    learned = str(known.get("name")) if isinstance(known, dict) else "classification"
    if (task or learned) not in NAMED:
        raise ValueError(f"{source} learned {learned!r:.100}, which no command knows: name a task with --task")
    asked = NAMED[task or learned]

    def load() -> "Dataset":
        if isinstance(found, Source):
            return found.data(data, data_dir)
        if data is None:
            raise ValueError(f"{source} does not say what data it learns: name them with --data")
        return datasets.load(data, data_dir=data_dir, seed=seed, size=size)

    def build(images: "Dataset") -> "tuple[Nested, Recipe]":
        if isinstance(found, Source):
            net, preprocess = found.bundle.network(), found.preprocess()
        else:
            net, preprocess = found[1](), usual(images)
        important: Any = order
        if order == "taylor":
            important = taylor(net, _some(images.train, preprocess), lambda x, y: asked.loss(x[None], y).mean())
        options: dict[str, Any] = {"of": of, "multiple_of": multiple_of, "order": important}
        family = make(net, preprocess(images.train[:8].inputs), shares, **options)
        if speaks():
            tell(f"channels of each width:\n{vars(family)['narrowing']}\n", file=sys.stderr)
        shape = images.input_shape
        image = isinstance(shape, tuple) and len(shape) == 3 and isinstance(shape[0], int) and shape[-1] >= 32
        how: dict[str, Any] = {"preprocess": preprocess, "augment": Augment(pad=4, flip=True) if image else Augment()}
        return family, recipes.slim(epochs, learning_rate=learning_rate, batch_size=batch_size, **how)

    name = Path(source if isinstance(found, Source) else found[0]).stem
    how: dict[str, Any] = {"task": asked, "seed": seed, "resume": resume, "precision": precision}
    how["provenance"] = {"method": "slim", "of": of, "order": order}
    if told := trained(load, build, out or Path("runs") / f"slim-{name}", **how):
        go_on(*told)


def _some(train: "Split", preprocess: "Preprocess") -> "Iterator[tuple[Tensor, Tensor]]":
    """The first thousand training examples, in batches."""
    for first in range(0, min(1000, len(train)), 100):
        some = train[first : first + 100]
        yield preprocess(some.inputs), some.targets
