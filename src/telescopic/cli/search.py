"""`telescopic search`: random search over models, by as many processes and hosts as share a storage."""

from pathlib import Path
from typing import Annotated

import typer

from telescopic.cli.shown import Data, DataDir, Seed, interruptible, show

app = typer.Typer(no_args_is_help=True, help="Train random models and compare them (needs Optuna).")


@app.command(
    "shrinknet",
    epilog="Example:  telescopic search shrinknet --data fashion-mnist --models 50 --storage runs/search.db",
)
def shrinknet(
    data: Data = "mnist",
    models: Annotated[int, typer.Option(min=1, help="How many are wanted of each kind; the paper has 50.")] = 50,
    storage: Annotated[
        str,
        typer.Option(help="SQLite file; or for several hosts a .journal file they share, or a URL: postgresql://..."),
    ] = "runs/search.db",
    kind: Annotated[
        list[str] | None,
        typer.Option(help="shrinknets, fixed or fixed-l2; may be given several times. (default: shrinknets)"),
    ] = None,
    network: Annotated[str, typer.Option(help="mlp or lenet, as in the paper.")] = "mlp",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images. (default: the paper's, 100; of lenet 200)")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Models trained at once, with one thread each.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table and the plots. (default: beside the storage)")
    ] = None,
    seed: Seed = 0,
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16, of all models: they are compared, whatever host trained them.")
    ] = "fp32",
    show_only: Annotated[bool, typer.Option("--show", help="Only show what has been trained so far.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Random search with one number instead of all widths (ShrinkNets' Figure 2). Stop and go on at will."""
    from telescopic.papers import search

    with interruptible():
        for thing in search.figure_2(
            storage,
            data=data,
            network=network,
            kinds=kind or ["shrinknets"],
            models=models,
            epochs=epochs,
            processes=processes,
            seed=seed,
            precision=precision,
            show=show_only,
            data_dir=data_dir,
            out=out,
        ):
            show(thing)
