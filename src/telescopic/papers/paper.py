"""What a paper is to the rest: a value, of which its commands, its runs and its tables are made."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from telescopic.data import Dataset, Preprocess
from telescopic.nested import Nested
from telescopic.report.plots import Plot
from telescopic.train import History, Recipe

if TYPE_CHECKING:
    from rich.table import Table

Run = Mapping[str, Any]
"""The summary of an experiment."""
Runs = Mapping[str, Sequence[Run]]
"""Experiment → its runs, one a seed."""
Build = Callable[[Dataset], tuple[Nested, Recipe]]
"""What makes of a data set a network for it, and how it is to be trained."""


def sizes(images: Dataset) -> dict[str, Any]:
    """What networks and recipes for a data set of images are told of it."""
    preprocess = Preprocess.fit(images.train)
    return {"input_shape": images.image_shape, "classes": len(images.classes), "preprocess": preprocess}


def known(paper: str, name: str, experiments: Sequence[str]) -> None:
    """Refuse a name of no experiment."""
    if name not in experiments:
        raise ValueError(f"{paper} has no experiment {name!r}; there are {', '.join(experiments)}")


@dataclass(frozen=True)
class Option:
    """What the command line says of a parameter: `hidden: Annotated[int, Option("Hidden layers.", least=0)] = 2`.

    A parameter may be a number, a text, a tuple of numbers, or a list of either, and may be None by default.

    Attributes:
        help: what it is.
        least: the smallest value.
        most: the largest.
        such_as: an example of a tuple, as it is typed.
    """

    help: str
    least: float | None = None
    most: float | None = None
    such_as: str = ""


@dataclass(frozen=True)
class Trained:
    """An experiment that has been trained.

    Attributes:
        name: which.
        net: the network, as in the epoch chosen on validation images.
        recipe: how it was trained.
        history: what was seen meanwhile.
        images: what it learned.
        folder: where its checkpoints are.
        build: makes network and recipe as they were before training.
    """

    name: str
    net: Nested
    recipe: Recipe
    history: History
    images: Dataset
    folder: Path
    build: Callable[[], tuple[Nested, Recipe]]


class Experiments(Protocol):
    """A paper's experiments, with everything settled that a user may choose; made by `Paper.experiments`."""

    @property
    def names(self) -> Sequence[str]:
        """Those that are wanted."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What their summaries say of them, and has to be the same for a run to be gone on with."""

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        """Network and recipe of one; `finished` gives the folder of another one, which has to be trained already."""

    def facts(self, trained: Trained) -> Mapping[str, Any]:
        """What the summary of one says beside what all do."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: what it is called, how its networks are trained, and what is repeated of it.

    The parameters of `train` and `experiments` are keywords with an `Option` each, and become options of the commands
    `telescopic train` and `telescopic reproduce`; the first paragraphs of their docstrings become the help.

    Attributes:
        name: in commands and folders.
        title: its title, authors, year, and where it is.
        data: what its networks were trained on; the first is what commands take unasked.
        train: options → what makes a network and its recipe. It refuses options before the data are read.
        experiments: options → what is repeated. It refuses names and options, too.
        tables: what it prints, with ours beside it.
        plots: what it draws, with ours beside it.
        others: trains and gives what is no run in a folder: experiments, folder and what all have in common → tables,
            and files that were written.
        says: of a finished run's folder, what is to be told of it.
        method: what its networks are called by `telescopic train`, if that is not its name.
        at_hand: what `telescopic train` takes unasked, if it is not the paper's.
        validation: training images that experiments keep apart; default: see `data.load`.
        folder: of an experiment, with `{name}`, `{data}`, and `{seed}`, which is empty for seed 0.
        examples: options for an example of each of its two commands.
    """

    name: str
    title: str
    data: tuple[str, ...]
    train: Callable[..., Build]
    experiments: Callable[..., Experiments]
    tables: Callable[[Runs], "list[Table]"]
    plots: Callable[[Runs], list[Plot]] = lambda runs: []
    others: "Callable[..., Iterator[Table | Path | str]] | None" = None
    says: Callable[[Path], str] = lambda folder: ""
    method: str = ""
    at_hand: str = ""
    validation: int | None = None
    folder: str = "{name}{seed}"
    examples: tuple[str, str] = ("", "")
