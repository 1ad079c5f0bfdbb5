"""`telescopic train`: all sizes of a network together, into the folder of a run."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.options import command, first_words, group
from telescopic.cli.shown import Data, DataDir, Precision, Resume, Seed, Size, Validation, function_in, one_of, tell
from telescopic.cli.training import go_on, trained, usual

if TYPE_CHECKING:
    from telescopic.data import Dataset
    from telescopic.nested import Nested
    from telescopic.papers import Paper
    from telescopic.train import Recipe


def _command(paper: "Paper") -> Any:
    method, at_hand = paper.method or paper.name, paper.at_hand or paper.data[0]
    folder = f"Folder of the run. (default: runs/{method}-<data>)"

    def run(
        options: dict[str, Any],
        data: Data = at_hand,
        out: Annotated[Path | None, typer.Option(help=folder)] = None,
        seed: Seed = 0,
        resume: Resume = False,
        size: Size = None,
        data_dir: DataDir = None,
        validation: Validation = None,
        precision: Precision = "auto",
    ) -> None:
        from telescopic.data import load

        build = paper.train(**options)  # which refuses options before data are read
        which: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "size": size, "seed": seed}
        how: dict[str, Any] = {"seed": seed, "resume": resume, "precision": precision, "provenance": {"method": method}}
        if told := trained(lambda: load(data, **which), build, out or _folder(method, data), **how):
            table, folder = told
            if said := paper.says(folder):
                tell(f"\n{said}")
            go_on(table, folder)

    example = f"Example:  telescopic train {method} {paper.examples[0]}"
    return command(method, paper.train, run, first=("data",), help=first_words(paper.train), epilog=example)


def _folder(method: str, data: str) -> Path:
    return Path("runs") / f"{method}-{Path(data).stem}"


def _own(name: str) -> Any:
    """The command of a function in the user's own file; None if the name is no such one."""
    if ".py:" not in name:
        return None
    app = typer.Typer(add_completion=False)
    app.command(name, epilog=f"Example:  telescopic train {EXAMPLE}")(_family(name))
    return typer.main.get_command(app)


EXAMPLE = "mynet.py:family --data my.npz --task regression --epochs 50 --out runs/mine"


def _family(name: str) -> Callable[..., None]:
    def family(
        data: Data,
        task: Annotated[str, typer.Option(help="classification, multilabel, regression or tokens.")] = "classification",
        epochs: Annotated[int, typer.Option(min=1, help="Passes over the training examples.")] = 20,
        learning_rate: Annotated[float, typer.Option(help="Largest step size of Adam's one-cycle schedule.")] = 0.003,
        batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 64,
        weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's.")] = 0.01,
        distillation: Annotated[
            float, typer.Option(min=0, max=1, help="Share of what smaller members learn from the full one's answers.")
        ] = 0.0,
        fit_heads: Annotated[
            bool, typer.Option("--fit-heads", help="Solve for the heads' last layers once all is learned.")
        ] = False,
        out: Annotated[Path | None, typer.Option(help="Folder of the run. (default: runs/<file>-<data>)")] = None,
        seed: Seed = 0,
        resume: Resume = False,
        size: Size = None,
        data_dir: DataDir = None,
        validation: Validation = None,
        precision: Precision = "auto",
    ) -> None:
        """Train the family that a function of your own returns: it is called with the data, if it needs an argument."""
        from telescopic.catalogue import measure
        from telescopic.data import load
        from telescopic.tasks import NAMED
        from telescopic.train import Recipe

        one_of("task", task, tuple(NAMED))
        found = function_in(name)
        assert found is not None
        file, function = found
        values: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size}
        values |= {"weight_decay": weight_decay, "distillation": distillation, "fit_heads": fit_heads}
        recipe = Recipe(epochs=epochs, optimizer="adamw", schedule="one-cycle", **values)

        def build(images: "Dataset") -> "tuple[Nested, Recipe]":
            net = _made(name, function, images)
            measure(net, input_shape=images.input_shape)  # what no command could open is refused before it is trained
            return net, replace(recipe, preprocess=usual(images))

        which: dict[str, Any] = {"data_dir": data_dir, "validation": validation, "size": size, "seed": seed}
        how: dict[str, Any] = {"task": NAMED[task], "seed": seed, "resume": resume, "precision": precision}
        folder = out or _folder(file.stem, data)
        if told := trained(lambda: load(data, **which), build, folder, provenance={"method": file.stem}, **how):
            go_on(*told)

    return family


def _made(name: str, function: Callable[..., Any], images: "Dataset") -> "Nested":
    """What the user's function returns, called without arguments if it can be, else with the data.

    Raises:
        ValueError: if it takes more, or returns no family.
    """
    from telescopic.nested import Nested

    for given in ((), (images,)):
        try:
            inspect.signature(function).bind(*given)
        except TypeError:
            continue
        net = function(*given)
        if not isinstance(net, Nested):
            raise ValueError(
                f"{name} returned {type(net).__name__}, not a family: telescopic.Nested(...), or telescopic.nest(...) "
                "of a network; telescopic slim makes widths inside of one"
            )
        return net
    raise ValueError(f"{name} is called without arguments or with the data alone, and it takes more")


app = typer.Typer(
    cls=group(lambda listed: listed.method, _command, _own),
    no_args_is_help=True,
    help="Train every size of a network together.",
    epilog=f"A family of your own:  telescopic train {EXAMPLE}",
)
