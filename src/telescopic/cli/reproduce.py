"""`telescopic reproduce`: a paper's experiments, repeated, and its tables with ours beside them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from telescopic.cli.shown import DataDir, Precision, Seed, interruptible, numbers, one_of, show_table, tell

app = typer.Typer(no_args_is_help=True, help="Repeat a paper's experiments and print its tables beside ours.")

Out = Annotated[Path, typer.Option(help="Folder of the runs; those that finished are not trained again.")]
Only = Annotated[list[str] | None, typer.Option(help="An experiment; may be given several times.")]
Show = Annotated[bool, typer.Option("--show", help="Only show what has been trained so far.")]


@app.command("nsn", epilog="Example:  telescopic reproduce nsn --only model0-1-2 --epochs 600")
def nsn(
    out: Out = Path("runs/reproduce-nsn"),
    only: Only = None,
    data: Annotated[str, typer.Option(help="mnist, as in the paper, or another data set.")] = "mnist",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 600,
    seed: Seed = 0,
    precision: Precision = "auto",
    show: Show = False,
    data_dir: DataDir = None,
) -> None:
    """Train the paper's networks (tables 1 to 3) and print its numbers beside ours. Stop and go on at will."""
    from telescopic.papers import nsn
    from telescopic.papers.reproduce import run_nsn
    from telescopic.papers.tables import nsn_tables
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    names = tuple(only or nsn.EXPERIMENTS[:5])
    for name in names:
        one_of("--only", name, nsn.EXPERIMENTS)
    if not show:
        with interruptible():
            run_nsn(out, names, data=data, epochs=epochs, seed=seed, precision=precision, data_dir=data_dir)
    for table in nsn_tables(out):
        show_table(table)


@app.command("cnsn", epilog="Example:  telescopic reproduce cnsn --only joint --scale 0.25 --recipe short")
def cnsn(
    out: Out = Path("runs/reproduce-cnsn"),
    only: Annotated[
        list[str] | None, typer.Option(help="An experiment; may be given several times. (default: joint, alone-0)")
    ] = None,
    scale: Annotated[float, typer.Option(min=0.01, max=4, help="Share of the paper's channels, e.g. 0.25.")] = 1.0,
    recipe: Annotated[str, typer.Option(help="The paper's (300 epochs), or short (20, one cycle).")] = "paper",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images. (default: the recipe's)")] = None,
    seed: Seed = 0,
    precision: Precision = "auto",
    show: Show = False,
    data_dir: DataDir = None,
) -> None:
    """Train the paper's networks (table 1) and ours, and print its numbers beside ours. Stop and go on at will."""
    from telescopic.papers import cnsn
    from telescopic.papers.reproduce import run_cnsn
    from telescopic.papers.tables import cnsn_tables
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    one_of("recipe", recipe, ("paper", "short"))
    names = tuple(only or ("joint", "alone-0"))
    for name in names:
        one_of("--only", name, cnsn.EXPERIMENTS)
    if not show:
        options: dict[str, Any] = {"epochs": epochs, "seed": seed, "precision": precision, "data_dir": data_dir}
        with interruptible():
            run_cnsn(out, names, scale=scale, short=recipe == "short", **options)
    for table in cnsn_tables(out):
        show_table(table)


@app.command("doubly-nested", epilog="Example:  telescopic reproduce doubly-nested --only uniform --only alone")
def doubly_nested(
    out: Out = Path("runs/reproduce-doubly-nested"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="An experiment; may be given several times: a way to train all members, such as uniform or macs; one "
            "network by itself, such as alone, alone-w8, alone-x7, dense-w8; or sliced-w8, which is cut from dense. "
            "(default: all that Figures 4 and 5 need at four widths)"
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="cifar10 or svhn, as in the paper, or another data set.")] = "cifar10",
    groups: Annotated[int, typer.Option(min=2, help="Channel groups, and so widths; the paper has 22.")] = 22,
    channels: Annotated[str, typer.Option(help="Channels of a group in each part of the network.")] = "1,2,4",
    blocks: Annotated[int, typer.Option(min=1, help="Residual blocks in each part.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    seed: Seed = 0,
    precision: Precision = "auto",
    show: Show = False,
    data_dir: DataDir = None,
) -> None:
    """Train the paper's network, and what Figures 4 and 5 compare it with, and show both. Stop and go on at will."""
    from telescopic.papers.doubly_nested import BEST_WAY
    from telescopic.papers.figures import doubly_nested_tables
    from telescopic.papers.reproduce import run_doubly_nested
    from telescopic.train.precision import PRECISIONS

    one_of("precision", precision, PRECISIONS)
    sizes = numbers("--channels", channels, int, "whole numbers such as 1,2,4")
    if not only:
        quarters = sorted({groups * k // 4 for k in (1, 2, 3)} - {0}, reverse=True)
        only = ["uniform", BEST_WAY, "depth-only", "alone", "dense"]
        only += [f"{kind}-w{width}" for kind in ("dense", "sliced") for width in quarters]
    if not show:
        options: dict[str, Any] = {"epochs": epochs, "seed": seed, "precision": precision, "data_dir": data_dir}
        with interruptible():
            run_doubly_nested(out, only, data=data, groups=groups, channels=sizes, blocks=blocks, **options)
    for table in doubly_nested_tables(out):
        show_table(table)


@app.command("shrinknets", epilog="Example:  telescopic reproduce shrinknets --only 1e-2 --only 1e-2-masked")
def shrinknets(
    out: Out = Path("runs/reproduce-shrinknets"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="An experiment of Figure 1; may be given several times: λ such as 1e-3, or with a way: 1e-3-masked "
            "(nothing is removed), -proximal, -random, -pays. (default: the paper's five λ)"
        ),
    ] = None,
    figure: Annotated[list[int] | None, typer.Option(help="1 or 2; may be given twice. (default: 1)")] = None,
    data: Annotated[str, typer.Option(help="mnist, as in the paper, fashion-mnist, or another data set.")] = "mnist",
    units: Annotated[int, typer.Option(min=1, help="Figure 1: hidden units to start with.")] = 10_000,
    network: Annotated[str, typer.Option(help="Figure 2: mlp or lenet.")] = "mlp",
    models: Annotated[int, typer.Option(min=1, help="Figure 2: random models of each kind.")] = 50,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images. (default: the paper's, 100; of lenet 200)")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Figure 2: models trained at once.")] = 1,
    seed: Seed = 0,
    precision: Precision = "auto",
    show: Show = False,
    data_dir: DataDir = None,
) -> None:
    """Train what Figures 1 and 2 show, and print the paper's numbers beside ours. Stop and go on at will."""
    from telescopic.papers import shrinknets
    from telescopic.papers.reproduce import run_shrinknets
    from telescopic.papers.units import figure_1_runs, shrinknets_tables
    from telescopic.train.precision import PRECISIONS
    from telescopic.widths import figure_1, write_plots

    one_of("precision", precision, PRECISIONS)
    figures = figure or [1]
    for number in figures:
        one_of("--figure", str(number), ("1", "2"))
    if 1 in figures:
        names = only or ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5"]
        if not show:
            options: dict[str, Any] = {"epochs": epochs or shrinknets.EPOCHS["one-layer"], "units": units}
            with interruptible():
                run_shrinknets(out, names, data=data, seed=seed, precision=precision, data_dir=data_dir, **options)
        for table in shrinknets_tables(out):
            show_table(table)
        for path in write_plots(out, [plot for group in figure_1_runs(out) for plot in figure_1(group)]):
            tell(path)
    if 2 in figures:
        from telescopic.cli.search import run_search

        storage = out / "search.db"
        run_search(
            str(storage),
            data=data,
            network=network,
            kinds=list(shrinknets.KINDS),
            models=models,
            epochs=epochs,
            processes=processes,
            seed=seed,
            precision="fp32" if precision == "auto" else precision,  # of one search for all hosts, see its option
            show=show,
            data_dir=data_dir,
            out=out,
        )
