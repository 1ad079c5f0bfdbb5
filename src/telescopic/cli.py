"""The command line: each command calls one public function and prints what it returns."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from telescopic.catalogue import Catalogue
    from telescopic.run import Source

# Everything heavy is imported inside the commands, so that --help answers at once.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train one network; deploy every size of it.",
    epilog="Begin with a network that ships with the package:  [bold]telescopic catalogue nsn-mnist[/bold]",
)
data_app = typer.Typer(no_args_is_help=True, help="Get data sets, and see what there is.")
train_app = typer.Typer(no_args_is_help=True, help="Train every size of a network together.")
reproduce_app = typer.Typer(no_args_is_help=True, help="Repeat a paper's experiments and print its tables beside ours.")
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")
app.add_typer(reproduce_app, name="reproduce")

Where = Annotated[str, typer.Argument(help="A run's folder, a bundle's file, or a shipped family such as nsn-mnist.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data's files. [env: TELESCOPIC_DATA]")]
MaxMacs = Annotated[str | None, typer.Option(help="Most multiply-adds of one example, e.g. 700k.")]
MaxParams = Annotated[str | None, typer.Option(help="Most parameters, e.g. 1M.")]
MaxBytes = Annotated[str | None, typer.Option(help="Most bytes of weights, e.g. 2.5MB.")]
MaxActivation = Annotated[
    str | None, typer.Option("--max-peak-activation", help="Most bytes of live feature maps, e.g. 64kB.")
]
MaxLatency = Annotated[float | None, typer.Option(help="Most milliseconds on this machine, measured if need be.")]
MinAccuracy = Annotated[float | None, typer.Option(help="Least accuracy on validation images, e.g. 0.97.")]


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar10, svhn or digits.")],
    data_dir: DataDir = None,
) -> None:
    """Put a data set's files into the cache of this machine, verified, and say where they came from."""
    from telescopic import data

    fetched = data.fetch(name, data_dir=data_dir)
    print(f"{name}: {fetched.source}" + (f"\nin {fetched.folder}" if fetched.folder else ""))


@data_app.command("list")
def data_list() -> None:
    """List the data sets known by name. Your own: an .npz of images and labels, or a folder of images by class."""
    from telescopic import data

    print("\n".join(data.names()))


@train_app.command("nsn", epilog="Example:  telescopic train nsn --data mnist --epochs 600 --out runs/nsn-mnist")
def train_nsn(
    data: Annotated[
        str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")
    ] = "digits",
    hidden: Annotated[
        int, typer.Option(min=0, help="Hidden layers of the full network; each may be left out later.")
    ] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images; the paper uses 600.")] = 60,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/nsn-<data>]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Initial weights, order of the images, dropout.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")] = False,
    data_dir: DataDir = None,
    validation: Annotated[
        int | None, typer.Option(help="Images to choose the epoch on. [default: 5000 or a tenth]")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 where the processor is faster with it.")] = "fp32",
) -> None:
    """Train NSN: a multi-layer perceptron that can lose its first layers (Fuengfusin and Tamukoh 2019)."""
    import torch

    from telescopic import papers
    from telescopic.data import load
    from telescopic.quantities import human
    from telescopic.run import train

    _one_of("precision", precision, ("fp32", "bf16"))
    images = load(data, data_dir=data_dir, validation=validation, seed=seed)
    speaks = int(os.environ.get("RANK", "0")) == 0  # under torchrun, one process speaks for all
    if speaks:
        print(f"{data}: {len(images.train):,} training images, from {images.source}", file=sys.stderr)
    folder = out or Path("runs") / f"nsn-{Path(data).stem}"
    torch.manual_seed(seed)
    inputs = images.train.images[0].numel()
    net = papers.nsn.network(hidden, inputs=inputs, classes=len(images.classes))
    recipe = papers.nsn.recipe(hidden, epochs=epochs)
    with _interruptible():
        table = train(net, images, recipe, folder, method="nsn", seed=seed, resume=resume, precision=precision)
    if speaks:
        _show(table)
        some = human(0.6 * table[-1].macs).replace(" ", "")
        print(f"\nNext:  telescopic choose {folder} --max-macs {some}    telescopic report {folder}")


@app.command()
def catalogue(
    source: Where,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure latency on this machine, if that is not done.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a timed pass.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads in a timed pass. [default: torch's]")] = None,
    to: Annotated[Path | None, typer.Option(help="Also write the table to a .csv or .json file.")] = None,
) -> None:
    """Show every member: accuracy, MACs, parameters, bytes, peak activation, latency."""
    from telescopic.run import Source

    found = Source.open(source)
    if to is not None:
        _one_of("the suffix of --to", to.suffix, (".csv", ".json"))
    table = _timed(found, batch=batch, threads=threads) if latency else found.catalogue()
    _show(table)
    if to is not None:
        (table.to_csv if to.suffix == ".csv" else table.to_json)(to)
        print(f"written to {to}")


@app.command(epilog="Example:  telescopic choose nsn-mnist --max-macs 700k")
def choose(
    source: Where,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    max_peak_activation: MaxActivation = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
) -> None:
    """Pick the most accurate member within budgets, and say why."""
    from telescopic.run import Source

    found = Source.open(source)
    choice = _choice(found, max_macs, max_params, max_bytes, max_peak_activation, max_latency_ms, min_accuracy)
    _show_choice(choice)
    print(f"\nTake it out:  telescopic extract {source} --subnet {choice.subnet} --to member.onnx")


@app.command(epilog="Example:  telescopic extract nsn-mnist --max-macs 700k --to small.onnx")
def extract(
    source: Where,
    to: Annotated[Path, typer.Option(help="The file to write: .onnx, .pt2 or .safetensors.")],
    subnet: Annotated[str | None, typer.Option(help="Which member, e.g. entry=1; instead of budgets.")] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Let the file take uint8 pixels: preprocessing is part of it.")
    ] = False,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    max_peak_activation: MaxActivation = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    data_dir: DataDir = None,
) -> None:
    """Take one member out as a file of its own; the file is checked against the network on real images."""
    from dataclasses import asdict

    from telescopic.export import export
    from telescopic.run import Source
    from telescopic.subnet import Subnet

    found = Source.open(source)
    budgets = (max_macs, max_params, max_bytes, max_peak_activation, max_latency_ms, min_accuracy)
    if subnet is not None and any(budget is not None for budget in budgets):
        raise ValueError("give --subnet or budgets, not both")
    if subnet is not None:
        table = found.catalogue()
        member: Any = table[found.bundle.grid.index(Subnet.parse(subnet))]
    else:
        member = _choice(found, *budgets)
        _show_choice(member)
    images, what = found.samples(data_dir=None if data_dir is None else str(data_dir))
    facts = {k: v for k, v in asdict(member).items() if k not in ("subnet", "why")}
    card = {"subnet": str(member.subnet), "catalogue": facts, "source": source, "compared_on": what}
    # A .safetensors file is for telescopic, which knows what the preprocessing noted in it means.
    inside = fold or to.suffix == ".safetensors"
    path = export(
        found.bundle.member(member.subnet),
        to,
        images if inside else found.preprocess()(images),
        preprocess=found.preprocess() if inside else None,
        classes=found.bundle.classes,
        card=card,
    )
    print(f"{path}: {path.stat().st_size:,} bytes, gives the same answers as the network on {len(images)} {what}")


@app.command()
def report(
    source: Where,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html. [default: the run's own]")] = None,
) -> None:
    """Write report.html: the network, every size of it, the training curves, in one page that needs no network."""
    from telescopic.report import write_report
    from telescopic.run import Source

    found = Source.open(source)
    page = write_report(
        out or found.folder or Path("."),
        found.network(),
        found.catalogue(),
        history=found.history(),
        title=Path(source).stem,
        source=source,
        facts=found.facts(),
    )
    print(page)


@reproduce_app.command("nsn", epilog="Example:  telescopic reproduce nsn --only model0-1-2 --epochs 600")
def reproduce_nsn(
    out: Annotated[Path, typer.Option(help="Folder of the runs; those that finished are not trained again.")] = Path(
        "runs/reproduce-nsn"
    ),
    only: Annotated[list[str] | None, typer.Option(help="An experiment; may be given several times.")] = None,
    data: Annotated[str, typer.Option(help="mnist, as in the paper, or another data set.")] = "mnist",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Initial weights, order of the images, dropout.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, or bf16 where the processor is faster with it.")] = "fp32",
    show: Annotated[bool, typer.Option("--show", help="Only show what has been trained so far.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Train the paper's networks (tables 1 to 3) and print its numbers beside ours. Stop and go on at will."""
    from telescopic.papers import nsn
    from telescopic.papers.reproduce import nsn_tables, run_nsn

    _one_of("precision", precision, ("fp32", "bf16"))
    names = tuple(only or nsn.EXPERIMENTS[:5])
    for name in names:
        _one_of("--only", name, nsn.EXPERIMENTS)
    if not show:
        with _interruptible():
            run_nsn(out, names, data=data, epochs=epochs, seed=seed, precision=precision, data_dir=data_dir)
    for table in nsn_tables(out):
        _print(table)


def _choice(found: "Source", macs: str | None, params: str | None, size: str | None, activation: str | None,
            latency_ms: float | None, accuracy: float | None) -> Any:  # fmt: skip
    from telescopic.quantities import parse_quantity

    table = found.catalogue() if latency_ms is None else _timed(found)
    texts = {"max_macs": macs, "max_params": params, "max_bytes": size, "max_peak_activation": activation}
    budgets = {name: parse_quantity(text) for name, text in texts.items() if text is not None}
    return table.choose(**budgets, max_latency_ms=latency_ms, min_accuracy=accuracy)


def _timed(found: "Source", *, batch: int = 1, threads: int | None = None) -> "Catalogue":
    from rich.console import Console

    with Console(stderr=True).status("measuring latency ...") as status:
        return found.timed(
            batch=batch,
            threads=threads,
            progress=lambda what, done, of: status.update(f"measuring {what}: {done} of {of}"),
        )


def _show(table: "Catalogue") -> None:
    _print(table.table())


def _show_choice(choice: Any) -> None:
    from telescopic.quantities import human

    accuracy = "" if choice.accuracy is None else f", {human(choice.accuracy, '%')} on validation images"
    print(f"{choice.label}: {human(choice.macs)} MACs, {human(choice.params)} parameters{accuracy}\n{choice.why}")


def _print(what: Any) -> None:
    from rich.console import Console

    Console().print(what)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} is one of {', '.join(allowed)}, not {value!r}")


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        print(error if error.args else "stopped", file=sys.stderr)
        raise typer.Exit(130) from error


def main() -> None:
    """Run the command line; errors that a user can mend are one line on standard error and exit code 1."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        from telescopic.export import ExportError
        from telescopic.train import TrainingError

        if not isinstance(error, ExportError | TrainingError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
