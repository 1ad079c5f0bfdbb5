"""A paper is a value: another one is a file and a line, and has all that the others have."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from rich.table import Table
from typer.testing import CliRunner

from telescopic import cli, papers
from telescopic.data import Dataset
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.papers.paper import Build, Option, Paper, Runs, Trained
from telescopic.papers.reproduce import runs
from telescopic.papers.tables import narrow
from telescopic.run import Source
from telescopic.train import Recipe

# What the file of a fifth paper would hold -------------------------------------------------------------------------


def network(images: Dataset, widths: tuple[int, ...]) -> Nested:
    return mlp(images.train.images[0].numel(), widths, len(images.classes))


def train(
    *,
    widths: Annotated[tuple[int, ...], Option("Units of each hidden layer.", such_as="8,4")] = (8, 8),
    speed: Annotated[float, Option("How fast.", least=0, most=1)] = 0.1,
    epochs: Annotated[int, Option("Passes over the images.", least=1)] = 2,
) -> Build:
    """Train a toy that can lose its first layers.

    This is no help.
    """
    if not widths:
        raise ValueError("a toy has a layer")
    return lambda images: (network(images, widths), Recipe(epochs=epochs, learning_rate=speed))


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Train toys, small and large."""

    only: Annotated[list[str] | None, Option("small or large.")] = None
    epochs: Annotated[int, Option("Passes over the images.", least=1)] = 1

    @property
    def names(self) -> list[str]:
        return self.only or ["small", "large"]

    @property
    def settings(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        if name == "large":
            finished("small")
        return network(images, (4,) if name == "small" else (8, 8)), Recipe(epochs=self.epochs, learning_rate=0.1)

    def facts(self, trained: Trained) -> dict[str, Any]:
        return {"sizes": len(trained.net.grid), "left": "as many as before"}  # a key by which another paper is guessed


def tables(found: Runs) -> list[Table]:
    table = narrow("Toys", "experiment", "sizes", "test, %")
    for name, some in found.items():
        table.add_row(name, str(some[0]["sizes"]), f"{100 * some[0]['protocols']['last']['test'][-1]:.1f}")
    return [table]


PAPER = Paper(
    name="toy",
    title="On Toys (Nobody, 2026)",
    data=("digits",),
    train=train,
    experiments=Experiments,
    tables=tables,
    says=lambda folder: f"A toy lies in {folder}.",
    examples=("--widths 8,4", "--only small"),
)

# -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = papers.Listed("toy", "toy", "Toys that can lose their first layers.", __name__)
    monkeypatch.setattr(papers, "LISTED", (*papers.LISTED, line))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def invoke(*words: str) -> str:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_a_fifth_paper_is_trained_by_the_command_line(tmp_path: Path) -> None:
    assert "A toy lies in runs/toy-digits." in invoke("train", "toy", "--widths", "6,4,2")
    source = Source.open("runs/toy-digits")
    assert [member.stages for member in source.network().grid] == [0, 1, 2, 3]
    assert source.bundle.provenance["method"] == "toy" and source.bundle.provenance["recipe"]["epochs"] == 2
    assert invoke("train", "toy", "--widths", "6,4,2", "--resume", "--epochs", "3")
    assert "toy" in invoke("train", "--help") and "toy" in invoke("reproduce", "--help")


def test_its_options_have_their_help_their_defaults_and_their_bounds() -> None:
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", invoke("train", "toy", "--help")).split())
    for said in ("Train a toy that can lose its first layers.", "--widths <str> Units of each hidden layer.",
                 "[default: 8,8]", "0<=x<=1", "telescopic train toy --widths 8,4"):  # fmt: skip
        assert said in text
    assert "This is no help" not in text and text.index("--data") < text.index("--widths") < text.index("--out")
    assert "On Toys (Nobody, 2026)" in invoke("reproduce", "toy", "--help")
    wrong = CliRunner().invoke(cli.app, ["train", "toy", "--widths", "6;4"])
    assert str(wrong.exception) == "--widths takes whole numbers such as 8,4, not '6;4'"
    assert CliRunner().invoke(cli.app, ["train", "toy", "--speed", "2"]).exit_code == 2


def test_its_experiments_are_repeated_and_shown(tmp_path: Path) -> None:
    printed = invoke("reproduce", "toy", "--seed", "3")
    assert {path.name for path in Path("runs/reproduce-toy").iterdir()} == {"small-seed3", "large-seed3"}
    found = runs(Path("runs/reproduce-toy"), "toy")
    assert [run["sizes"] for some in found.values() for run in some] == [3, 2]
    assert "Toys" in printed and re.search(r"small +2 +\d+\.\d", printed)
    assert printed.endswith(invoke("reproduce", "toy", "--show"))
    again = CliRunner().invoke(cli.app, ["reproduce", "toy", "--out", "elsewhere", "--only", "large"])
    assert "the experiment small, which comes before, is not in elsewhere/small: run that first" in str(again.exception)


def test_a_summary_says_whose_it_is_and_old_ones_are_told_by_their_facts(tmp_path: Path) -> None:
    facts = {"left": [3], "groups": 2, "scale": 1.0, "models": ["model0"], "sizes": 3}
    old = {"shrinknets": "left", "doubly-nested": "groups", "cnsn": "scale", "nsn": "models", "": "sizes"}
    for paper, fact in old.items():
        (tmp_path / (paper or "unknown")).mkdir()
        summary = {"experiment": paper or "unknown", "seed": 0, fact: facts[fact]}
        (tmp_path / (paper or "unknown") / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "summary.json").write_text(json.dumps({"paper": "toy", "experiment": "x", "seed": 0, **facts}))
    assert {name: list(runs(tmp_path, name)) for name in old} == {name: [name or "unknown"] for name in old}
    assert list(runs(tmp_path, "toy")) == ["x"] and len(runs(tmp_path)) == 6


def test_every_paper_is_described_in_full() -> None:
    names = [listed.name for listed in papers.LISTED]
    assert len(set(names)) == len(names)
    for listed in papers.LISTED:
        paper = listed.paper()
        assert (listed.name, listed.method) == (paper.name, paper.method or paper.name)
        assert listed.about.split()[0] in invoke("train", "--help") and listed.name in invoke("reproduce", "--help")
        for words, function in (
            (("train", paper.method or paper.name), paper.train),
            (("reproduce", paper.name), paper.experiments),
        ):
            text = invoke(*words, "--help")
            assert (function.__doc__ or "").split()[0] in text and f"Example:  telescopic {' '.join(words)} --" in text
