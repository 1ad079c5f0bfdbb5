"""`telescopic train`: all sizes of a network together, into the folder of a run."""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.options import command, first_words, group
from telescopic.cli.shown import DataDir, Precision, Seed, Size, function_in, interruptible, one_of, show_table, tell

if TYPE_CHECKING:
    from telescopic.catalogue import Catalogue
    from telescopic.data import Dataset, Preprocess
    from telescopic.nested import Nested
    from telescopic.papers import Paper
    from telescopic.tasks import Task
    from telescopic.train import Recipe

MOST_SHOWN = 50
"""Members of a network that a command prints all of, unasked."""


def _command(paper: "Paper") -> Any:
    method, usual = paper.method or paper.name, paper.at_hand or paper.data[0]
    folder = f"Folder of the run. (default: runs/{method}-<data>)"

    def run(
        options: dict[str, Any],
        data: Annotated[
            str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")
        ] = usual,
        out: Annotated[Path | None, typer.Option(help=folder)] = None,
        seed: Seed = 0,
        resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")] = False,
        size: Size = None,
        data_dir: DataDir = None,
        validation: Annotated[
            int | None, typer.Option(help="Images to choose the epoch on. (default: 5000 or a tenth)")
        ] = None,
        precision: Precision = "auto",
    ) -> None:
        build = paper.train(**options)  # which refuses options before data are read
        how: dict[str, Any] = {"task": None, "size": size, "seed": seed, "resume": resume, "precision": precision}
        if told := _train(method, build, data, data_dir, validation, out=out, **how):
            table, folder = told
            if said := paper.says(folder):
                tell(f"\n{said}")
            go_on(table, folder)

    example = f"Example:  telescopic train {method} {paper.examples[0]}"
    return command(method, paper.train, run, first=("data",), help=first_words(paper.train), epilog=example)


def _own(name: str) -> Any:
    """The command of a function in the user's own file; None if the name is no such one."""
    if ".py:" not in name:
        return None
    app = typer.Typer(add_completion=False)
    app.command(name, epilog=f"Example:  telescopic train {EXAMPLE}")(_family(name))
    return typer.main.get_command(app)


EXAMPLE = "mynet.py:family --data my.npz --task regression --epochs 50 --out runs/mine"


def _family(name: str) -> Callable[..., None]:
    def family(
        data: Annotated[str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")],
        task: Annotated[str, typer.Option(help="classification, multilabel, regression or tokens.")] = "classification",
        epochs: Annotated[int, typer.Option(min=1, help="Passes over the training examples.")] = 20,
        learning_rate: Annotated[float, typer.Option(help="Largest step size of Adam's one-cycle schedule.")] = 0.003,
        batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 64,
        weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's.")] = 0.01,
        distillation: Annotated[
            float, typer.Option(min=0, max=1, help="Share of what smaller members learn from the full one's answers.")
        ] = 0.0,
        out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/<file>-<data>)")] = None,
        seed: Seed = 0,
        resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")] = False,
        size: Size = None,
        data_dir: DataDir = None,
        validation: Annotated[
            int | None, typer.Option(help="Examples to choose the epoch on. (default: 5000 or a tenth)")
        ] = None,
        precision: Precision = "auto",
    ) -> None:
        """Train the family that a function of your own returns: it is called with the data, if it needs an argument."""
        from telescopic.catalogue import measure
        from telescopic.tasks import NAMED
        from telescopic.train import Recipe

        one_of("task", task, tuple(NAMED))
        found = function_in(name)
        assert found is not None
        file, function = found
        values: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size}
        values |= {"weight_decay": weight_decay, "distillation": distillation}
        recipe = Recipe(epochs=epochs, optimizer="adamw", schedule="one-cycle", **values)

        def build(images: "Dataset") -> "tuple[Nested, Recipe]":
            net = _made(name, function, images)
            measure(net, input_shape=images.input_shape)  # what no command could open is refused before it is trained
            return net, replace(recipe, preprocess=usual(images))

        how: dict[str, Any] = {"size": size, "seed": seed, "resume": resume, "precision": precision}
        if told := _train(file.stem, build, data, data_dir, validation, task=NAMED[task], out=out, **how):
            go_on(*told)

    return family


def _made(name: str, function: Callable[..., Any], images: "Dataset") -> "Nested":
    """What the user's function returns, called without arguments if it can be, else with the data.

    Raises:
        ValueError: if it takes more, or returns no family.
    """
    from telescopic.nested import Nested

    for given in ((), (images,)):
        try:
            inspect.signature(function).bind(*given)
        except TypeError:
            continue
        net = function(*given)
        if not isinstance(net, Nested):
            raise ValueError(
                f"{name} returned {type(net).__name__}, not a family: telescopic.Nested(...), or telescopic.nest(...) "
                "of a network; telescopic slim makes widths inside of one"
            )
        return net
    raise ValueError(f"{name} is called without arguments or with the data alone, and it takes more")


def usual(images: "Dataset") -> "Preprocess":
    """Numbers of mean 0 and deviation 1 in each channel; whole numbers, such as of words, and several inputs as is."""
    import torch

    from telescopic.data import Preprocess

    inputs = images.train.inputs
    one = isinstance(inputs, torch.Tensor) and inputs.ndim > 1
    known = one and (inputs.is_floating_point() or inputs.dtype == torch.uint8)
    return Preprocess.fit(images.train) if known else Preprocess()


app = typer.Typer(
    cls=group(lambda listed: listed.method, _command, _own),
    no_args_is_help=True,
    help="Train every size of a network together.",
    epilog=f"A family of your own:  telescopic train {EXAMPLE}",
)


def _train(
    method: str,
    build: "Callable[[Dataset], tuple[Nested, Recipe]]",
    data: str,
    data_dir: Path | None,
    validation: int | None,
    *,
    task: "Task | None",
    size: int | None,
    out: Path | None,
    seed: int,
    resume: bool,
    precision: str,
) -> "tuple[Catalogue, Path] | None":
    """Load the data, train, measure, and show; None in all processes but the first."""
    import torch

    from telescopic.data import load
    from telescopic.denormals import denormals_as_zero
    from telescopic.run import Source
    from telescopic.train import fit
    from telescopic.train.keeper import continued
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    with denormals_as_zero():  # from before torch has threads, which take it over
        images = load(data, data_dir=data_dir, validation=validation, size=size, seed=seed)
        speaks = int(os.environ.get("RANK", "0")) == 0  # under torchrun, one process speaks for all
        if speaks:
            what = "images" if task is None else "examples"
            tell(f"{data}: {len(images.train):,} training {what}, from {images.source}", file=sys.stderr)
        folder = out or Path("runs") / f"{method}-{Path(data).stem}"
        torch.manual_seed(seed)
        net, recipe = build(images)
        before, recipe = recipe, continued(recipe, folder) if resume else recipe
        if speaks and before != recipe:
            tell(f"{folder} goes on with the milestones it began with: {recipe.milestones}", file=sys.stderr)
        # What learns its widths is kept as it is after the last epoch, when it is smallest.
        how: dict[str, Any] = {"precision": precision, "keep": "best" if recipe.shrink is None else "last"}
        with interruptible():
            provenance = {"method": method}
            fit(net, images, recipe, task=task, out=folder, seed=seed, resume=resume, provenance=provenance, **how)
    if not speaks:
        return None
    table = Source.open(str(folder)).catalogue()
    _show(table, folder)
    return table, folder


def go_on(table: "Catalogue", folder: Path) -> None:
    """Say what may be done next."""
    from telescopic.quantities import human

    # Something that a member fits, also where the smallest is not much smaller than the largest.
    some = human(max(0.6 * table[-1].macs, 1.1 * table[0].macs)).replace(" ", "")
    tell(f"\nNext:  telescopic choose {folder} --max-macs {some}    telescopic report {folder}")


def _show(table: "Catalogue", folder: Path) -> None:
    """Print every member; of very many, those on the Pareto front."""
    if len(table) <= MOST_SHOWN or table[0].score is None:
        return show_table(table.table())
    front = table.front()
    show_table(table.table(front))
    tell(
        f"\nThese {len(front)} of {len(table)} members are more accurate on validation images than all that need no "
        f"more MACs.\nAll of them:  telescopic catalogue {folder}"
    )
