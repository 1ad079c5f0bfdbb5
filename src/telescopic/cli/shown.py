"""What commands have in common: options, what is printed, and how a person stops them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from telescopic.catalogue import Choice

Number = TypeVar("Number", int, float)
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data's files (or environment: TELESCOPIC_DATA).")]
Seed = Annotated[int, typer.Option(min=0, help="Initial weights, order of the images, dropout.")]
Backend = Annotated[str, typer.Option(help="What runs the graphs: onnxruntime, or openvino.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16, or auto: what a step is faster in.")]


def show_table(table: "Table") -> None:
    """Print a table as wide as the terminal allows."""
    from rich.console import Console

    Console().print(table)


def show_choice(choice: "Choice") -> None:
    """Print a member that was chosen, and why."""
    from telescopic.quantities import human

    accuracy = "" if choice.accuracy is None else f", {human(choice.accuracy, '%')} on validation images"
    print(f"{choice.label}: {human(choice.macs)} MACs, {human(choice.params)} parameters{accuracy}\n{choice.why}")


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that an option does not know.

    Raises:
        ValueError: if the value is none of those allowed.
    """
    if value not in allowed:
        raise ValueError(f"{what} is one of {', '.join(allowed)}, not {value!r}")


def numbers(option: str, text: str, kind: type[Number], wanted: str) -> tuple[Number, ...]:
    """Numbers separated by commas.

    Raises:
        ValueError: if the text is anything else.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} takes {wanted}, not {text!r}") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a command with a sentence and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        print(error if error.args else "stopped", file=sys.stderr)
        raise typer.Exit(130) from error
