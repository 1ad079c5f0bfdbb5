"""`telescopic anytime`: accuracy under deadlines, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from telescopic.cli.shown import DataDir, Import, interruptible, one_of, show_table, tell, working
from telescopic.tables import plain

if TYPE_CHECKING:
    from rich.table import Table

    from telescopic.anytime import Trial
    from telescopic.data import Split
    from telescopic.run import Source


def anytime(
    source: Annotated[str, typer.Argument(help="A run's folder, a bundle's file, or a shipped family.")],
    deadline_ms: Annotated[list[float], typer.Option(help="Milliseconds for an image; may be given several times.")],
    images: Annotated[str, typer.Option(help="Which images: test or validation.")] = "test",
    number: Annotated[int, typer.Option(min=1, help="How many of them, spread over all.")] = 500,
    threads: Annotated[int, typer.Option(min=1, help="Threads within an operation.")] = 1,
    percentile: Annotated[
        float, typer.Option(help="Share of a step's measured times that must fit into the time left.")
    ] = 0.9,
    data: Annotated[str | None, typer.Option(help="The data set, or a path. (default: what it was trained on)")] = None,
    deepen: Annotated[
        bool, typer.Option("--deepen", help="Only get deeper, at full width. (default: the best path, measured)")
    ] = False,
    data_dir: DataDir = None,
    code: Import = None,
) -> None:
    """Show how accurate anytime answers are under deadlines, image by image, beside members chosen in advance.

    Beside: always the member that is best of those that fit by the catalogue's latency on this machine, and always the
    full network. An answer that comes late counts as wrong.
    """
    import torch

    from telescopic.anytime import best_path, deepening, try_deadlines
    from telescopic.run import Source

    one_of("--images", images, ("test", "validation"))
    found = Source.open(source)
    split = _images(found, images, data, data_dir)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        net = found.network().eval()
        with interruptible(), working("loading") as show:
            path = deepening(net)
            if len(path) * net.groups == 1:
                raise ValueError(f"{source} has one exit and one width, so there is nothing to refine")
            catalogue = found.timed(batch=1, threads=threads, progress=show)
            if not deepen:
                path = best_path(net, catalogue, progress=lambda done, of: show("timing steps", done, of))
            trials = try_deadlines(
                net,
                split,
                [ms / 1000 for ms in deadline_ms],
                catalogue=catalogue,
                path=path,
                preprocess=found.preprocess(),
                number=number,
                percentile=percentile,
                progress=lambda done, of: show("classifying", done, of),
            )
    finally:
        torch.set_num_threads(before)
    tell("path: " + " → ".join(net.grid.label(member) for member in path))
    show_table(_table(trials, f"{min(number, len(split))} {images} images, batch 1, {threads} threads"))
    tell("in time: classified rightly and in time; late: answers too late; at all: classified rightly, late or not")


def _images(found: "Source", images: str, data: str | None, data_dir: Path | None) -> "Split":
    loaded = found.data(data, data_dir)
    split: Split = getattr(loaded, images)
    if not len(split):
        raise ValueError(f"{loaded.name} has no {images} images")
    return split


def _table(trials: "list[Trial]", caption: str) -> "Table":
    columns = ("deadline", "what answers", "in time", "late", "at all", "mean ms", "p95 ms")
    table = plain(*columns, caption=caption)
    for trial in trials:
        table.add_row(
            f"{trial.deadline * 1e3:g} ms",
            trial.name,
            f"{trial.in_time:.2%}",
            str(trial.late),
            f"{trial.right:.2%}",
            f"{trial.mean * 1e3:.2f}",
            f"{trial.p95 * 1e3:.2f}",
        )
    return table
