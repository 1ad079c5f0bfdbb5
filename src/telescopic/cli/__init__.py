"""The command line: each command calls one public function and prints what it returns."""

import importlib.metadata
import sys
from typing import Annotated

import typer

from telescopic.cli import anytime, data, engine, families, reproduce, search, serve, slim, train
from telescopic.cli.shown import tell

# Everything heavy is imported inside the commands, so that --help answers at once.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train one network; deploy every size of it.",
    epilog="Begin with a network that ships with the package:  [bold]telescopic catalogue nsn-mnist[/bold]",
)


def _version(wanted: bool) -> None:
    if wanted:
        tell(f"telescopic {importlib.metadata.version('telescopic')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(families.catalogue)
app.command(epilog="Example:  telescopic choose nsn-mnist --max-macs 700k")(families.choose)
app.command(epilog="Example:  telescopic extract nsn-mnist --max-macs 700k --to small.onnx")(families.extract)
app.command()(families.report)
app.command(epilog="Example:  telescopic anytime runs/dnn --deadline-ms 2 --deadline-ms 5")(anytime.anytime)
app.command(epilog="Example:  telescopic slim runs/mine --widths 0.25,0.5,1 --epochs 10")(slim.slim)
app.command(epilog="Example:  telescopic pack nsn-mnist --to mnist.telescope")(engine.pack)
app.command(epilog="Example:  telescopic bench mnist.telescope")(engine.bench)
app.command(epilog=f"{serve.OTHERS} Example:  telescopic serve mnist.telescope --slo-ms 20")(serve.serve)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(search.app, name="search")
app.add_typer(reproduce.app, name="reproduce")


def main() -> None:
    """Run the command line; errors that a user can mend are one line on standard error and exit code 1."""
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            from telescopic.export import ExportError
            from telescopic.train import TrainingError

            if not isinstance(error, ExportError | TrainingError):
                raise
        tell(f"error: {error}", file=sys.stderr)
        sys.exit(1)
