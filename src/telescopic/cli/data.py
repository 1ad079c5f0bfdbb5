"""`telescopic data`: get data sets, and see what there is."""

from typing import Annotated

import typer

from telescopic.cli.shown import DataDir, tell

app = typer.Typer(no_args_is_help=True, help="Get data sets, and see what there is.")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10, svhn or digits.")],
    data_dir: DataDir = None,
) -> None:
    """Put a data set's files into the cache of this machine, verified, and say where they came from."""
    from telescopic import data

    fetched = data.fetch(name, data_dir=data_dir)
    tell(f"{name}: {fetched.source}" + (f"\nin {fetched.folder}" if fetched.folder else ""))


@app.command("list")
def names() -> None:
    """List the data sets known by name. Your own: an .npz of images and labels, or a folder of images by class."""
    from telescopic import data

    tell("\n".join(data.names()))
