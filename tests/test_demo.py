import importlib.util
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import results_page
import rich
import torch
from rich.console import Console

import telescopic as tl

ROOT = Path(__file__).parents[1]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What an example prints, run as a program, but in this process: to start torch takes longer than most of them."""

    def run(name: str, *words: str) -> str:
        file = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [file, *words])
        with warnings.catch_warnings(action="default"), torch.random.fork_rng():
            runpy.run_path(file, run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rich, "_console", Console(width=200))
    return run


def test_the_demo_runs_end_to_end(example: Callable[..., str], tmp_path: Path) -> None:
    told = example("demo", "demo", "50")
    assert "entry=1: " in told and "max_macs binds" in told
    assert float(told.split("360 test images: ")[1].split("%")[0]) > 90  # after 300 epochs 95
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "demo" / "small.onnx").stat().st_size < 40_000


def test_ones_own_network_runs_end_to_end(example: Callable[..., str], tmp_path: Path) -> None:
    told = example("own_network", "--epochs", "2")
    found = re.search(r"([\d.]+)% of 360 test images;\s+the\s+network\s+itself:\s+([\d.]+)%", told)
    assert found, told
    file, network = map(float, found.groups())
    assert file == network  # answers differ by rounding only
    assert file > 15  # which member is chosen depends on the machine; one in ten is chance
    assert (tmp_path / "runs" / "own-network" / "member.onnx").stat().st_size > 10_000


def test_ones_own_network_shrinks_in_ones_own_loop(example: Callable[..., str], tmp_path: Path) -> None:
    told = example("shrink_own_network", "--epochs", "5")
    rows = re.findall(r"│ (as it is|shrunk) +│ (.*) │", told)
    assert [name for name, _ in rows] == ["as it is", "shrunk"], told
    cells = [[float(cell.strip(" %").replace(",", "")) for cell in row.split("│")] for _, row in rows]
    whole, shrunk = cells
    assert whole[:2] == [87_370, 381_440]
    assert shrunk[0] < 40_000 and shrunk[1] < 250_000
    assert min(whole[-1], shrunk[-1]) > 90
    left = re.findall(r"left: norm1 (\d+), norm2 (\d+), hidden (\d+)", told)
    assert len(left) == 5 and all(int(n) <= of for n, of in zip(left[-1], (32, 64, 256), strict=True))
    files = [(tmp_path / "runs" / "shrink-own-network" / f"{name}.onnx") for name in ("as-it-is", "shrunk")]
    assert files[1].stat().st_size < files[0].stat().st_size / 2


def test_the_readme_shows_the_results_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["results_page.py", "--check"])
    assert results_page.main() == 0, "the pages are out of date: run python benchmarks/results_page.py"


MAILS = Path(os.environ.get("NODE_PATH", "node_modules")) / "@stdlib" / "datasets-spam-assassin"
JOBS = {"regression": 15, "prices": 1, "series": 8, "two_digits": 3, "mail": 2}


def lacking(job: str) -> str | None:
    """What an example needs that is not here."""
    if job == "two_digits":
        try:
            tl.data.load("mnist", download=False)
        except tl.DataError:
            return "MNIST"
    packages = {"prices": "plotnine", "series": "aeon", "mail": "tokenizers"}
    if job in packages and importlib.util.find_spec(packages[job]) is None:
        return packages[job]
    return f"the mails, which NODE_PATH finds in {MAILS}" if job == "mail" and not MAILS.exists() else None


@pytest.mark.parametrize("job", JOBS)
def test_a_job_runs_end_to_end(job: str, example: Callable[..., str], tmp_path: Path) -> None:
    if missing := lacking(job):
        pytest.skip(f"examples/{job}.py needs {missing}")
    told = example(job, "--epochs", str(JOBS[job]), "--out", "run")
    deployed, network = map(float, re.findall(r"(\S+) (?:right )?on test examples; the network itself: (\S+)", told)[0])
    assert deployed == network > 0.1, "the file's score is the catalogue's"
    assert (tmp_path / "run" / "model.safetensors").exists()
