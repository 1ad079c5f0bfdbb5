"""`telescopic data`: get data sets, and see what there is."""

from typing import Annotated

import typer

from telescopic.cli.shown import DataDir, Size, tell

app = typer.Typer(no_args_is_help=True, help="Get data sets, and see what there is.")


ABOUT = {
    "digits": "1,797 handwritten digits, 8 × 8; scikit-learn contains them",
    "mnist": "70,000 handwritten digits, 28 × 28",
    "fashion-mnist": "70,000 pieces of clothing, 28 × 28",
    "cifar10": "60,000 photos of 10 kinds of things, 32 × 32 in colour",
    "svhn": "99,289 digits of house numbers, 32 × 32 in colour",
}


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
    """List the data sets known by name. Your own: an .npz of arrays, or a folder of images by class."""
    for name, about in ABOUT.items():
        tell(f"{name:15}{about}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A data set's name, an .npz file, or a folder of images by class.")],
    size: Size = None,
    data_dir: DataDir = None,
) -> None:
    """Read data as training would, and say what is in them: examples, types and shapes, range, classes."""
    from telescopic import data
    from telescopic.data.streams import both
    from telescopic.tasks import facts

    found = data.load(name, data_dir=data_dir, size=size)
    tell(f"{name}: {found.source}")
    tell(
        ", ".join(
            f"{len(split):,} {what}"
            for what, split in zip(("training", "validation", "test"), found.splits, strict=True)
        )
    )
    for what, numbers in both(found.train.inputs, found.train.targets).items():
        tell(f"{what}: {facts(numbers)}, from {numbers.min():.6g} to {numbers.max():.6g}")
    if found.classes:
        tell(f"classes: {', '.join(found.classes)}")
