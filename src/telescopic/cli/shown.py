"""What commands have in common: options, what is printed, and how a person stops them."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from telescopic.documents import printable
from telescopic.quantities import numbers as numbers
from telescopic.quantities import one_of as one_of

if TYPE_CHECKING:
    from rich.table import Table


def run_code(names: list[str] | None) -> list[str] | None:
    """Import Python files and modules that define and register blocks of the user's own, as the user has asked for.

    Raises:
        ValueError: if there is no such file or module, another one has its name, or it raises something.
    """
    for name in names or ():
        path = Path(name).resolve()
        sys.path.insert(0, str(path.parent if path.suffix == ".py" else Path.cwd()))
        known = getattr(sys.modules.get(path.stem), "__file__", "") if path.suffix == ".py" else None
        if path.suffix == ".py" and not path.is_file():
            raise ValueError(f"--import {name}: there is no such file")
        if known is not None and path.stem in sys.modules and Path(known or "").resolve() != path:
            raise ValueError(f"--import {name}: another module is called {path.stem}, so the file needs another name")
        try:
            importlib.import_module(path.stem if path.suffix == ".py" else name)
        except Exception as error:  # a program may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"--import {name}: {told} ({where.filename}, line {where.lineno})") from error
    return names


def function_in(name: str) -> tuple[Path, Callable[..., Any]] | None:
    """The function of the user's own that `FILE.py:FUNCTION` names, and its file; None for another name.

    Raises:
        ValueError: if the file cannot be run, or has no such function.
    """
    file, colon, function = name.rpartition(":")
    if not (colon and file.endswith(".py")):
        return None
    run_code([file])
    found = getattr(sys.modules[Path(file).stem], function, None)
    if not callable(found):
        raise ValueError(f"{file} has no function {function!r}")
    return Path(file), found


Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        callback=run_code,
        help="A Python file, or a module, to run first: one that registers blocks of your own. May be given twice.",
    ),
]
Data = Annotated[str, typer.Option(help="A data set's name, an .npz file, or a folder of images by class.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the data's files (or environment: TELESCOPIC_DATA).")]
Size = Annotated[int | None, typer.Option(min=1, help="Pixels, to which the images of a folder are brought.")]
Validation = Annotated[int | None, typer.Option(help="Examples to choose the epoch on. (default: 5000 or a tenth)")]
Seed = Annotated[int, typer.Option(min=0, help="Initial weights, order of the images, dropout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after a kill or Ctrl-C.")]
Backend = Annotated[str, typer.Option(help="What runs the graphs: onnxruntime, or openvino.")]
Precision = Annotated[str, typer.Option(help="fp32, bf16, or auto: what a step is faster in.")]


def tell(*texts: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Print, harmlessly: a terminal obeys control characters, and names in files of anyone may hold some."""
    print(*(printable(str(text)) for text in texts), file=file, flush=flush)


def show_table(table: "Table") -> None:
    """Print a table as wide as the terminal allows; what its cells hold is text, brackets and all."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console(markup=False, emoji=False)
    segments = console.render(table)
    console.print(Segments(s if s.control else Segment(printable(s.text), s.style) for s in segments), end="")


def show(thing: object) -> None:
    """Print a table, or a line."""
    from rich.table import Table

    if isinstance(thing, Table):
        show_table(thing)
    else:
        tell(thing)


@contextmanager
def working(on: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show on standard error what is being done: `show(what, done, of)`."""
    from rich.console import Console

    with Console(stderr=True).status(f"{on} ...") as status:
        yield lambda what, done, of: status.update(f"{what}: {done} of {of}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a command with a sentence and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        tell(error if error.args else "stopped", file=sys.stderr)
        raise typer.Exit(130) from error
