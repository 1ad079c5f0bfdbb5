"""benchmarks/gpu.py is rehearsed: no minute of a GPU is to be lost to a slip."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gpu
import gpu_steps

TWO = ["doubly-nested/uniform", "figure2/mlp-shrinknets"]


def run(*words: str) -> int:
    return gpu.main([*words, "--rehearse"])


def test_what_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "platformdirs" else found(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    told = capsys.readouterr().out
    assert "the package platformdirs is not installed" in told and "sees no GPU" in told and "pip wheel" in told


def test_images_that_are_missing_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "missing", lambda steps, *, gpu: [])
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert gpu.main(["train", "--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert "say where with --data" in capsys.readouterr().out


def test_training_is_rehearsed_in_two_pieces_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within the first one, time is over while the first network is trained: its checkpoint goes on elsewhere."""
    out, back = tmp_path / "out", tmp_path / "back"
    stopped: list[Any] = []

    def stopping_early(given: gpu.Given) -> None:
        from telescopic.train import Objective

        def stop(module: Any, args: object, made: object) -> None:
            if isinstance(module, Objective) and not stopped:
                stopped.append(module)
                os.kill(os.getpid(), signal.SIGINT)

        handle = torch.nn.modules.module.register_module_forward_hook(stop)
        try:
            gpu._nested("uniform", given)
        finally:
            handle.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "jobs", lambda sizes: dict.fromkeys(TWO, stopping_early))
        assert run("train", "--out", str(out), "--back", str(back), "--jobs", TWO[0]) == 0
    assert "stopped in epoch 2" in capsys.readouterr().out
    assert not (out / "doubly-nested" / "uniform" / "summary.json").exists()
    assert {file.name for file in back.iterdir()} == {"results.tar.gz", "state-doubly-nested-uniform-last.tar"}

    shutil.rmtree(out)
    assert run("train", "--out", str(out), "--from", str(back), "--back", str(back), "--jobs", *TWO) == 0
    summary = json.loads((out / "doubly-nested" / "uniform" / "summary.json").read_text())
    assert summary["epochs"] == 2 and len(summary["protocols"]["last"]["test"]) == 16
    rows = (out / "figure2" / "mlp-shrinknets.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("shrinknets,0,")
    assert not (out / "figure2" / "mlp-shrinknets.safetensors").exists()
    told = (out / "tables.txt").read_text()
    assert "Figure 4" in told or "experiment" in told
    assert "ShrinkNets" in told
    before = (out / "doubly-nested" / "uniform" / "summary.json").stat().st_mtime_ns
    assert run("train", "--out", str(out), "--jobs", *TWO) == 0
    assert (out / "doubly-nested" / "uniform" / "summary.json").stat().st_mtime_ns == before


def test_models_that_are_trained_together_go_on_after_a_piece(tmp_path: Path) -> None:
    sizes = gpu.rehearsed(tmp_path / "rehearsal.npz")
    sizes = replace(sizes, search_epochs=2)
    looks = iter([False, True])
    given = gpu.Given(sizes, None, tmp_path, "fp32", torch.device("cpu"), lambda: next(looks))
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 1"):
        gpu._figure_2("mlp", "fixed-l2", given)
    gpu._figure_2("mlp", "fixed-l2", replace(given, late=lambda: False))
    assert len((tmp_path / "figure2" / "mlp-fixed-l2.csv").read_text().splitlines()) == 3


def test_jobs_beside_each_other_share_the_time_and_say_how_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def took_a_minute(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        now[0] += 60
        return subprocess.CompletedProcess(command, 3 if TWO[1] in command else 0)

    now = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(subprocess, "run", took_a_minute)
    monkeypatch.setattr(gpu, "ThreadPoolExecutor", lambda beside: ThreadPoolExecutor(1))
    assert run("train", "--out", str(tmp_path), "--minutes", "8", "--beside", "2", "--jobs", *TWO) == 1
    assert [command[command.index("--minutes") + 1] for command in called] == ["7.90", "6.90"]
    assert f"{TWO[1]} ended with 3" in capsys.readouterr().out


def test_a_second_batch_size_is_another_recipe(tmp_path: Path) -> None:
    from telescopic.data import load
    from telescopic.papers.cnsn_runs import Experiments

    sizes = gpu.rehearsed(tmp_path / "rehearsal.npz")
    images = load(sizes.data)
    recipes = [Experiments(scale=0.05, epochs=1, batch=batch).build("joint", images, Path)[1] for batch in (None, 128)]
    assert [(how.batch_size, how.learning_rate) for how in recipes] == [(32, 0.01), (128, 0.04)]
    assert Experiments(batch=128).settings["recipe_name"] == "paper (batch 128)"
    assert Experiments().settings["recipe_name"] == "paper"


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it reads code to compile it
def test_steps_are_measured_in_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [m for m in gpu_steps.networks(True) if m.name.startswith("mlp")]
    monkeypatch.setattr(gpu_steps, "networks", lambda tiny: iter(every))
    found = dict(gpu_steps.measure(torch.device("cpu"), tiny=True, late=lambda: False, told=lambda _: None))
    assert len(found) == 4
    for row in found.values():
        assert not [key for key in row if key.endswith("failed")], row
        assert min(row["eager ms"], row["graph ms"], row["compiled ms"], row["images/s"]) > 0
        assert row["graph loss / eager"] == row["compiled loss / eager"] == 1
    assert found["mlp shrinknets, fp32"]["times dense"] > 0 and "times dense" not in found["mlp fixed, fp32"]
    late = iter([False, True])
    assert (
        len(list(islice(gpu_steps.measure(torch.device("cpu"), tiny=True, late=lambda: next(late), told=print), 9)))
        == 1
    )


def test_all_that_is_trained_has_a_name() -> None:
    names = list(gpu.jobs(gpu.Sizes()))
    assert names[0] == "cnsn-32/joint" and len(names) == len(set(names)) >= 13
    assert {name.partition("/")[0] for name in names} == {"cnsn-32", "cnsn-128", "doubly-nested", "figure2"}


def test_the_tests_that_need_a_gpu_are_found(tmp_path: Path) -> None:
    assert gpu.check(tmp_path, rehearse=True, seconds=120)
    told = (tmp_path / "check.txt").read_text()
    assert "test_a_step_does_not_wait_for_the_gpu" in told and "test_together_is_alone" in told


def test_an_interruption_comes_when_the_time_is_over() -> None:
    with pytest.raises(KeyboardInterrupt), gpu.stopping(0.2) as late:
        assert not late()
        time.sleep(20)
    with gpu.stopping(60):
        pass
