"""Random search: what is drawn, what is kept, and how it goes on after everything that may happen to it."""

import csv
import math
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from telescopic.data import Dataset
from telescopic.nested import Nested
from telescopic.papers import search, shrinknets
from telescopic.papers.search import parallel
from telescopic.papers.search import study as studies
from telescopic.papers.search.results import Model, cells, medians

optuna = pytest.importorskip("optuna")
TINY: dict[str, Any] = {"data": "digits", "epochs": 2, "cpu": True}
STORAGES = ("x.db", "x.journal")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MLP that starts with 12, 10 and 8 features, and a quarter of the images to learn from."""
    monkeypatch.setattr(shrinknets, "NETWORKS", {**shrinknets.NETWORKS, "mlp": ((), (12, 10, 8))})
    load = studies.load

    def few(*args: Any, **options: Any) -> Dataset:
        found = load(*args, **options)
        return replace(found, train=found.train[:320]) if options["validation"] else found

    monkeypatch.setattr(studies, "load", few)


def states(storage: str, kind: str = "shrinknets") -> list[str]:
    study = search.known_study(storage, search.study_name("digits", "mlp", kind, 2))
    assert study is not None
    return [trial.state.name for trial in study.get_trials()]


@pytest.mark.parametrize("file", STORAGES)
def test_only_the_missing_models_are_trained(tmp_path: Path, file: str) -> None:
    storage, told = str(tmp_path / "new" / file), list[str]()
    search.search(storage, models=2, told=told.append, **TINY)
    study = search.search(storage, models=3, told=told.append, **TINY)
    again = search.search(storage, models=3, told=told.append, **TINY)
    assert states(storage) == ["COMPLETE"] * 3 and len(again.get_trials()) == 3
    assert len(told) == 3 and "3 of 3 models" in told[-1] and "of the test images" in told[-1]
    for model in search.models(study, "shrinknets"):
        assert 1e-5 <= model.penalty <= 1e-2 and not model.error
        assert 0 < model.validation <= 1 and 0 < model.test <= 1 and model.epoch in (1, 2)
        one, two, three = model.widths
        assert one <= 12 and two <= 10 and three <= 8
        assert model.macs == 64 * one + one * two + two * three + three * 10
        assert model.params == model.macs + one + two + three + 10
        assert (model.epochs, model.precision) == (2, "fp32")
    assert study.best_value == max(model.validation for model in search.models(study, "shrinknets"))


def test_what_is_drawn_depends_on_the_seed_and_the_number_alone(tmp_path: Path) -> None:
    drawn = []
    for name, seed, models in (("a.journal", 0, 3), ("b.journal", 0, 3), ("c.journal", 1, 3)):
        study = search.search(str(tmp_path / name), kind="fixed-l2", models=models, seed=seed, **TINY)
        drawn.append([(model.penalty, model.widths, model.test) for model in search.models(study, "fixed-l2")])
    assert drawn[0] == drawn[1] and not set(drawn[0]) & set(drawn[2])
    assert len({row[0] for row in drawn[0]}) == 3


def test_fixed_widths_are_drawn_from_the_papers_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, list[int]]] = []

    def note(kind: str, network: str, *, penalty: float, widths: list[int], **_: Any) -> Any:
        drawn.append((kind, penalty, widths))
        raise ValueError("seen")

    monkeypatch.setattr(shrinknets, "random_model", note)
    monkeypatch.setattr(studies, "FAILURES", 60)
    with pytest.raises(ValueError, match="60 models in a row failed, the last with ValueError: seen"):
        search.search(str(tmp_path / "x.journal"), network="lenet", kind="fixed", models=1, **TINY)
    channels = [width for _, _, widths in drawn for width in widths[:2]]
    hidden = torch.tensor([widths[2] for _, _, widths in drawn]).float().log2()
    assert {len(widths) for _, _, widths in drawn} == {3} and {penalty for _, penalty, _ in drawn} == {0.0}
    assert 1 <= min(channels) <= 3 and 48 <= max(channels) <= 50 and 20 < sum(channels) / len(channels) < 31
    assert 4 <= hidden.min() < 4.7 and 11.3 < hidden.max() <= 12 and 7 < hidden.mean() < 9


def test_lambda_is_drawn_from_a_wider_range_for_cifar10() -> None:
    assert shrinknets.space("cifar10").penalties == (1e-6, 1e-2) and shrinknets.space("mnist").penalties == (1e-5, 1e-2)


def test_failed_models_are_recorded_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = studies.fit, list[int]()

    def failing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return real(*args, **options)

    monkeypatch.setattr(studies, "fit", failing)
    told: list[str] = []
    study = search.search(str(tmp_path / "x.journal"), models=3, told=told.append, **TINY)
    assert states(str(tmp_path / "x.journal")) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert told[1].endswith("model 1 failed: RuntimeError: out of luck")
    (failed,) = [model for model in search.models(study, "shrinknets") if model.error]
    assert failed.number == 1 and failed.error == "RuntimeError: out of luck" and failed.penalty > 0
    table = search.results(search.models(study, "shrinknets"), "digits", "mlp")
    assert "Failed or stopped: 1." in str(table.caption) and "ShrinkNets 1: RuntimeError" in str(table.caption)


def test_a_search_that_always_fails_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no memory")

    monkeypatch.setattr(studies, "fit", failing)
    with pytest.raises(ValueError, match="3 models in a row failed, the last with RuntimeError: no memory"):
        search.search(str(tmp_path / "x.journal"), models=50, **TINY)
    assert states(str(tmp_path / "x.journal")) == ["FAIL"] * 3


def test_a_stopped_model_is_begun_anew_as_it_was_drawn(tmp_path: Path) -> None:
    storage = str(tmp_path / "x.journal")

    def stop(module: nn.Module, args: object, out: object) -> None:
        if isinstance(module, Nested) or type(module).__name__ == "Objective":
            handle.remove()
            os.kill(os.getpid(), signal.SIGINT)

    handle = nn.modules.module.register_module_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        search.search(storage, models=2, **TINY)
    assert states(storage) == ["FAIL", "WAITING"]
    study = search.search(storage, models=2, **TINY)
    assert states(storage) == ["FAIL", "COMPLETE", "COMPLETE"]
    stopped, again, other = study.get_trials()
    assert stopped.user_attrs["error"] == "stopped"
    assert again.params == stopped.params != other.params


@pytest.mark.parametrize(
    ("facts", "abandoned"),
    [
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, True),
        ({"host": socket.gethostname(), "pid": os.getpid()}, False),
        ({"host": "elsewhere", "pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "pid": 1, "seen": time.time() - 2 * studies.SILENCE}, True),
    ],
)
@pytest.mark.parametrize("file", STORAGES)
def test_models_of_processes_that_are_gone(tmp_path: Path, facts: dict[str, Any], abandoned: bool, file: str) -> None:
    storage = str(tmp_path / file)
    study = search.open_study(storage, search.study_name("digits", "mlp", "shrinknets", 2))
    trial = study.ask()
    trial.suggest_float("penalty", 1e-5, 1e-2, log=True)
    for key, value in facts.items():
        trial.set_user_attr(key, value)
    search.search(storage, models=1, **TINY)
    assert states(storage) == (["FAIL", "COMPLETE"] if abandoned else ["RUNNING"])
    if abandoned:
        first, second = study.get_trials()
        assert first.params == second.params
        (failed, _) = search.models(study, "shrinknets")
        assert failed.error == "its process ended"


def test_several_processes_share_a_storage(tmp_path: Path) -> None:
    """Each is a program of its own; they train each model once."""
    storage = str(tmp_path / "x.db")
    options: dict[str, Any] = {"data": "digits", "network": "mlp", "kind": "fixed", "models": 3, "epochs": 1}
    parallel.search_in_processes(2, storage, told=None, cpu=True, **options)
    study = search.known_study(storage, search.study_name("digits", "mlp", "fixed", 1))
    assert study is not None
    done = search.models(study, "fixed")
    assert len(done) == 3 and not any(model.error for model in done)
    assert len({model.widths for model in done}) == len(done), "no two drew the same"
    assert os.getpid() not in {trial.user_attrs["pid"] for trial in study.get_trials()}


def test_processes_of_a_later_search_see_the_environment_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked has begun with that of the first search, and `TELESCOPIC_DATA` may have changed since."""
    seen: list[str | None] = []
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(parallel, "search", lambda *_, **__: seen.append(os.environ.get("TELESCOPIC_DATA")))
    monkeypatch.setenv("TELESCOPIC_DATA", "of the first")
    now = dict(os.environ)
    parallel._work("", {}, now | {"TELESCOPIC_DATA": "of the second"})
    del now["TELESCOPIC_DATA"]
    parallel._work("", {}, now)
    assert seen == ["of the second", None]


@pytest.mark.parametrize("file", STORAGES)
def test_two_processes_that_begin_the_last_model_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    plain, others, told = studies._missing, list[Any](), list[str]()

    def looked(study: Any, models: int, before: float = math.inf) -> int:
        missing = plain(study, models, before)
        if len(told) == 1 and not others:  # after the first model another process begins the second
            others.append(study.ask())
            for key, value in {"host": socket.gethostname(), "pid": os.getpid()}.items():
                others[0].set_user_attr(key, value)
        return missing

    monkeypatch.setattr(studies, "_missing", looked)
    search.search(str(tmp_path / file), models=2, told=told.append, **TINY)
    assert states(str(tmp_path / file)) == ["COMPLETE", "RUNNING", "PRUNED"] and len(told) == 1


def test_one_process_is_this_one(tmp_path: Path) -> None:
    told: list[str] = []
    options: dict[str, Any] = {"network": "mlp", "kind": "fixed", "models": 1, **TINY}
    parallel.search_in_processes(1, str(tmp_path / "x.journal"), told=told.append, **options)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"network": "vgg"}, "network is one of mlp, lenet, not 'vgg'"), ({"kind": "big"}, "kind is one of fixed, ")],
)
def test_what_there_is_no_search_for(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search.search(str(tmp_path / "x.db"), **TINY, **options)
    assert not (tmp_path / "x.db").exists()


def test_storages_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database, by any means" * 100)
    with pytest.raises(ValueError, match=r"the storage .*x\.db cannot be opened: .*not a database"):
        search.open_study(str(tmp_path / "x.db"), "a")
    with pytest.raises(ImportError, match=r"the storage postgresql://nowhere/x needs a driver that is not installed"):
        search.open_study("postgresql://nowhere/x", "a")
    assert search.known_study(str(tmp_path / "none.db"), "a") is None and not (tmp_path / "none.db").exists()
    search.open_study(str(tmp_path / "y.db"), "a")
    assert search.known_study(str(tmp_path / "y.db"), "b") is None


def found() -> list[Model]:
    made = []
    for place, kind in enumerate(shrinknets.KINDS):
        for number in range(5):
            accuracy, params = 0.9 + 0.01 * number + 0.001 * place, 1000 * (place + 1) * 3**number
            made.append(Model(kind, number, 1e-3, (7, number), accuracy, accuracy, 1, params, params, 2.0, 20))
    return [*made, Model("fixed", 5, 0.0, epochs=20, error="no memory, and more")]


def test_a_table_with_the_papers_medians() -> None:
    table = search.results(found(), "mnist", "mlp")
    rows = [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]
    assert rows[0][:5] == ["fixed widths", "5", "92.00", "94.00", "98.19"]
    assert rows[2][:5] == ["ShrinkNets", "5", "92.20", "94.20", "98.30"] and rows[2][5].startswith("27")
    assert table.title == "mlp on mnist, 20 epochs, fp32"
    coarse = [replace(model, precision="bf16") for model in found()[:2]]
    assert search.results([*found(), *coarse], "mnist", "mlp").title == (
        "mlp on mnist, 20 epochs, fp32 and 20 epochs, bf16"
    )
    assert "Failed or stopped: 1. The last:" in str(table.caption) and "no memory, and more" in str(table.caption)
    assert medians("digits", "mlp") is None and set(cells(found())) == set(shrinknets.KINDS)


def test_a_csv_with_a_row_for_each_model(tmp_path: Path) -> None:
    search.write_csv(tmp_path / "new" / "models.csv", found())
    with (tmp_path / "new" / "models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16 and rows[6]["kind"] == "fixed-l2" and rows[6]["widths"] == "7 1"
    assert float(rows[6]["test"]) == pytest.approx(0.911) and rows[-1]["error"] == "no memory, and more"
    again = search.read_csv(tmp_path / "new" / "models.csv")
    assert list(map(repr, again)) == list(map(repr, found())), "nan is not equal to itself"


def test_plots_of_accuracy_and_of_accuracy_against_size() -> None:
    boxes, sizes = search.plots(found(), "mnist", "mlp")
    assert (boxes.name, sizes.name) == ("figure2-mlp-mnist", "sizes-mlp-mnist")
    for plot in (boxes, sizes):
        assert "ShrinkNets" in plot.svg and "fixed widths" in plot.svg and plot.png.startswith(b"\x89PNG")
    assert "Diamonds: the paper's medians." in boxes.caption and "From 1 k to 243 k parameters" in sizes.caption
    assert "Diamonds" not in search.plots(found(), "digits", "mlp")[0].caption
    assert search.plots([found()[-1]], "mnist", "mlp") == []
    assert "1 model<" in search.plots(found()[:1], "mnist", "mlp")[0].svg, "one model is enough"
