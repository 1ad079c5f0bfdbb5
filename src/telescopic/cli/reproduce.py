"""`telescopic reproduce`: a paper's experiments, repeated, and its tables with ours beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.options import command, first_words, group
from telescopic.cli.shown import DataDir, Precision, Seed, interruptible, one_of, show

if TYPE_CHECKING:
    from telescopic.papers import Paper


def _command(paper: "Paper") -> Any:
    theirs = " or ".join(paper.data)

    def run(
        options: dict[str, Any],
        out: Annotated[
            Path, typer.Option(help="Folder of the runs; those that finished are not trained again.")
        ] = Path(f"runs/reproduce-{paper.name}"),
        data: Annotated[str, typer.Option(help=f"{theirs}, as in the paper, or another data set.")] = paper.data[0],
        seed: Seed = 0,
        precision: Precision = "auto",
        show_only: Annotated[bool, typer.Option("--show", help="Only show what has been trained so far.")] = False,
        data_dir: DataDir = None,
    ) -> None:
        from telescopic.papers import reproduce
        from telescopic.report.plots import write_plots
        from telescopic.train.precision import PRECISIONS

        one_of("precision", precision, PRECISIONS)
        experiments = paper.experiments(**options)
        common: dict[str, Any] = {"data": data, "seed": seed, "precision": precision, "data_dir": data_dir}
        if experiments.names:
            if not show_only:
                with interruptible():
                    reproduce.reproduce(paper, out, **options, **common)
            for thing in (*reproduce.tables(paper, out), *write_plots(out, reproduce.plots(paper, out))):
                show(thing)
        if paper.others is not None:
            with interruptible():
                for thing in paper.others(experiments, out, show=show_only, **common):
                    show(thing)

    about = f"{first_words(paper.experiments)}\n\n{paper.title}"
    example = f"Example:  telescopic reproduce {paper.name} {paper.examples[1]}"
    return command(paper.name, paper.experiments, run, first=("out",), help=about, epilog=example)


app = typer.Typer(
    cls=group(lambda listed: listed.name, _command),
    no_args_is_help=True,
    help="Repeat a paper's experiments and print its tables beside ours.",
)
