"""`telescopic search`: random search over models, by as many processes and hosts as share a storage."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from telescopic.cli.shown import DataDir, Seed, interruptible, one_of, show_table, tell

app = typer.Typer(no_args_is_help=True, help="Train random models and compare them (needs telescopic[search]).")


@app.command(
    "shrinknet",
    epilog="Example:  telescopic search shrinknet --data fashion-mnist --models 50 --storage runs/search.db",
)
def shrinknet(
    data: Annotated[
        str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")
    ] = "mnist",
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
    show: Annotated[bool, typer.Option("--show", help="Only show what has been trained so far.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Random search with one number instead of all widths (ShrinkNets' Figure 2). Stop and go on at will."""
    kinds = kind or ["shrinknets"]
    run_search(
        storage,
        data=data,
        network=network,
        kinds=kinds,
        models=models,
        epochs=epochs,
        processes=processes,
        seed=seed,
        precision=precision,
        show=show,
        data_dir=data_dir,
        out=out,
    )


def run_search(
    storage: str,
    *,
    data: str,
    network: str,
    kinds: Sequence[str],
    models: int,
    epochs: int | None,
    processes: int,
    seed: int,
    precision: str,
    show: bool,
    data_dir: Path | None,
    out: Path | None,
) -> None:
    """Search, and write and print what has been found."""
    from telescopic import search
    from telescopic.papers import shrinknets
    from telescopic.widths import write_plots

    one_of("network", network, ("mlp", "lenet"))
    for kind in kinds:
        one_of("kind", kind, shrinknets.KINDS)
    one_of("precision", precision, ("fp32", "bf16"))
    long = epochs or shrinknets.EPOCHS[network]
    for kind in () if show else kinds:
        options = {"data": data, "network": network, "kind": kind, "models": models, "epochs": epochs}
        options |= {"seed": seed, "precision": precision, "data_dir": data_dir}
        with interruptible():
            search.search_in_processes(processes, storage, told=_tell, **options)
    found, name = [], Path(data).stem
    for kind in shrinknets.KINDS:
        study = search.known_study(storage, search.study_name(data, network, kind, long, precision))
        found += [] if study is None else search.models(study, kind)
    if not found:
        tell(f"{storage} has no models of {network} on {name} trained for {long} epochs in {precision}")
        return
    show_table(search.results(found, name, network))
    folder = out or (Path("runs") if "://" in storage else Path(storage).parent)
    table = folder / f"models-{network}-{name}.csv"
    search.write_csv(table, found)
    for path in [table, *write_plots(folder, search.plots(found, name, network))]:
        tell(path)


def _tell(sentence: str) -> None:
    tell(sentence, file=sys.stderr, flush=True)
