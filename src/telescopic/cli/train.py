"""`telescopic train`: all sizes of a network together, into the folder of a run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.options import command, first_words, group
from telescopic.cli.shown import DataDir, Precision, Seed, interruptible, one_of, show_table, tell

if TYPE_CHECKING:
    from telescopic.catalogue import Catalogue
    from telescopic.papers import Paper

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
        data_dir: DataDir = None,
        validation: Annotated[
            int | None, typer.Option(help="Images to choose the epoch on. (default: 5000 or a tenth)")
        ] = None,
        precision: Precision = "auto",
    ) -> None:
        _train(paper, options, data, out, seed, resume, data_dir, validation, precision)

    example = f"Example:  telescopic train {method} {paper.examples[0]}"
    return command(method, paper.train, run, first=("data",), help=first_words(paper.train), epilog=example)


app = typer.Typer(
    cls=group(lambda paper: paper.method or paper.name, _command),
    no_args_is_help=True,
    help="Train every size of a network together.",
)


def _train(
    paper: "Paper",
    options: dict[str, Any],
    data: str,
    out: Path | None,
    seed: int,
    resume: bool,
    data_dir: Path | None,
    validation: int | None,
    precision: str,
) -> None:
    """Load the images, train, measure, show, and say how to go on."""
    import torch

    from telescopic.data import load
    from telescopic.denormals import denormals_as_zero
    from telescopic.quantities import human
    from telescopic.run import Source
    from telescopic.train import fit
    from telescopic.train.keeper import continued
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    method, build = paper.method or paper.name, paper.train(**options)  # which refuses options before data are read
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
        how: dict[str, Any] = {"precision": precision, "keep": "best" if recipe.shrink is None else "last"}
        with interruptible():
            fit(net, images, recipe, out=folder, seed=seed, resume=resume, provenance={"method": method}, **how)
    if speaks:
        table = Source.open(str(folder)).catalogue()
        _show(table, folder)
        if said := paper.says(folder):
            tell(f"\n{said}")
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
