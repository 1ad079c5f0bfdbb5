"""What `train` and `slim` have in common: load data, make a network for them, train it, and show its table."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescopic.cli.shown import interruptible, one_of, show_table, tell

if TYPE_CHECKING:
    from telescopic.catalogue import Catalogue
    from telescopic.data import Dataset, Preprocess
    from telescopic.nested import Nested
    from telescopic.tasks import Task
    from telescopic.train import Recipe

MOST_SHOWN = 50
"""Members of a network that a command prints all of, unasked."""


def usual(images: "Dataset") -> "Preprocess":
    """Numbers of mean 0 and deviation 1 in each channel; whole numbers, such as of words, and several inputs as is."""
    import torch

    from telescopic.data import Preprocess

    inputs = images.train.inputs
    one = isinstance(inputs, torch.Tensor) and inputs.ndim > 1
    known = one and (inputs.is_floating_point() or inputs.dtype == torch.uint8)
    return Preprocess.fit(images.train) if known else Preprocess()


def speaks() -> bool:
    """Whether this process is the one that speaks for all, under `torchrun`."""
    return int(os.environ.get("RANK", "0")) == 0


def trained(
    load: "Callable[[], Dataset]",
    build: "Callable[[Dataset], tuple[Nested, Recipe]]",
    folder: Path,
    *,
    task: "Task | None" = None,
    seed: int,
    resume: bool,
    precision: str,
    provenance: Mapping[str, str],
) -> "tuple[Catalogue, Path] | None":
    """Load the data, train, and show; gives table and folder, or None in all processes but the first."""
    import torch

    from telescopic.denormals import denormals_as_zero
    from telescopic.run import Source
    from telescopic.train import fit
    from telescopic.train.keeper import continued
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    with denormals_as_zero():  # from before torch has threads, which take it over
        images = load()
        if speaks():
            what = "images" if task is None else "examples"
            tell(f"{images.name}: {len(images.train):,} training {what}, from {images.source}", file=sys.stderr)
        torch.manual_seed(seed)
        net, recipe = build(images)
        before, recipe = recipe, continued(recipe, folder) if resume else recipe
        if speaks() and before != recipe:
            tell(f"{folder} goes on with the milestones it began with: {recipe.milestones}", file=sys.stderr)
        # What learns its widths is kept as it is after the last epoch, when it is smallest.
        how: dict[str, Any] = {"precision": precision, "keep": "best" if recipe.shrink is None else "last"}
        with interruptible():
            fit(net, images, recipe, task=task, out=folder, seed=seed, resume=resume, provenance=provenance, **how)
    if not speaks():
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
