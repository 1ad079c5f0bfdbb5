"""What the experiments of CNSN leave behind, and the tables made of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from telescopic.cost import nominal_macs, nominal_params
from telescopic.data import Dataset, Preprocess, Split
from telescopic.papers import cnsn, cnsn_runs, doubly_nested, doubly_nested_runs, nsn, reproduce
from telescopic.papers.doubly_nested_runs import Results
from telescopic.papers.reproduce import runs, summaries, tables
from telescopic.train import CheckpointError, evaluate
from telescopic.train.checkpoint import load_checkpoint

MACS = {"joint": [7_900_000, 17_200_000, 19_900_000], "stem": [8_400_000, 17_300_000, 19_900_000]}
MACS |= {"distilled": MACS["joint"], "stem-distilled": MACS["stem"], "alone-7": MACS["joint"][:1]}
MACS |= {"alone-2": MACS["joint"][1:2], "alone-0": MACS["joint"][2:], "alone-7-stem": MACS["stem"][:1]}


def leave(out: Path, experiment: str, test: list[float], *, seed: int = 0, **facts: Any) -> None:
    """A summary such as an experiment of CNSN leaves; the epochs differ by 0.01, the policies by 0.001."""
    joint = not experiment.startswith("alone")
    protocols = {
        name: {"epoch": number, "test": [value + 0.01 * number for value in test]}
        for number, name in enumerate(("last", "validation", "best_test"))
    }
    summary: dict[str, Any] = {"experiment": experiment, "seed": seed, "data": "cifar10", "train_images": 45_000}
    summary |= {"scale": 0.25, "recipe_name": "short", "epochs": 20, "precision": "bf16", "protocols": protocols}
    summary |= {"members": ["entry=7", "entry=2", "entry=0"] if joint else ["full"], "macs": MACS[experiment]}
    if joint:
        summary["policies"] = {
            name: {
                policy: [value + 0.001 * place for value in protocols[name]["test"]]
                for place, policy in enumerate(("shared", "per-entry", "recalibrated"))
            }
            for name in ("validation", "last")
        }
    folder = out / (experiment if seed == 0 else f"{experiment}-seed{seed}")
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary | facts))


def cells(table: Table) -> list[list[str]]:
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def by_title(out: Path) -> dict[str, Table]:
    every = tables(cnsn_runs.PAPER, out)
    found = {str(table.title): table for table in every}
    assert len(found) == len(every)
    return found


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Two seeds of joint, one of everything else except for `distilled` and `alone-2`."""
    leave(tmp_path, "joint", [0.7, 0.8, 0.9])
    leave(tmp_path, "joint", [0.72, 0.82, 0.93], seed=1)
    leave(tmp_path, "stem-distilled", [0.75, 0.83, 0.91])
    leave(tmp_path, "stem", [0.76, 0.84, 0.92])
    leave(tmp_path, "alone-0", [0.94])
    leave(tmp_path, "alone-7", [0.74])
    leave(tmp_path, "alone-7-stem", [0.78])
    return tmp_path


def test_several_seeds_of_an_experiment(finished: Path) -> None:
    leave(finished, "joint", [0.1, 0.1, 0.1], seed=10)
    leave(finished, "alone-2", [0.2], seed=2)
    found = runs(finished)
    assert [run["seed"] for run in found["joint"]] == [0, 1, 10]
    assert [run["seed"] for run in found["alone-2"]] == [2]
    assert {name: run["seed"] for name, run in summaries(finished).items()} == {
        name: 2 if name == "alone-2" else 0 for name in found
    }
    assert not runs(finished / "nothing") and not summaries(finished / "nothing")


def test_tables_of_nsn_take_the_first_seed(tmp_path: Path) -> None:
    for seed, accuracy in ((0, 0.9), (1, 0.1)):
        protocols = {name: {"epoch": 3, "test": [accuracy]} for name in ("best_test", "validation", "last")}
        (tmp_path / f"ref-model0-{seed}").mkdir()
        facts = {"experiment": "ref-model0", "seed": seed, "models": ["model0"], "protocols": protocols}
        facts |= {"data": "mnist", "epochs": 3, "precision": "fp32"}
        (tmp_path / f"ref-model0-{seed}" / "summary.json").write_text(json.dumps(facts))
    assert cells(tables(nsn.PAPER, tmp_path)[0])[2][2:] == ["0.9000 (epoch 3)"] * 3
    assert all(row[2:] == ["–"] * 3 for row in cells(tables(nsn.PAPER, tmp_path)[0])[:2])


def test_table_1_averages_over_seeds(finished: Path) -> None:
    table = by_title(finished)["Table 1: test accuracy"]
    rows = cells(table)
    assert [row[:6] for row in rows] == [
        ["entry=7", "0.7738", "0.7300", "0.7200", "0.7100", "2"],
        ["entry=2", "0.9115", "0.8300", "0.8200", "0.8100", "2"],
        ["base", "0.9267", "0.9350", "0.9250", "0.9150", "2"],
        ["baseline", "0.9316", "0.9600", "0.9500", "0.9400", "1"],
    ]
    assert [row[6] for row in rows] == ["124 M", "275 M", "314 M", "314 M"]
    assert [row[7] for row in rows] == ["7.90 M", "17.3 M", "20.2 M", "20.2 M"]
    caption = str(table.caption)
    assert "45,000 training images, scale 0.25, short recipe, 20 epochs, bf16" in caption
    assert "Not the paper's setting: cifar10, scale 1, its own recipe, 300 epochs" in caption


def test_at_full_width_the_macs_are_those_printed(tmp_path: Path) -> None:
    leave(tmp_path, "joint", [0.77, 0.91, 0.93], scale=1.0, recipe_name="paper", epochs=300)
    table = by_title(tmp_path)["Table 1: test accuracy"]
    assert [row[6] for row in cells(table)] == [row[7] for row in cells(table)]
    assert "Not the paper's setting" not in str(table.caption) and "300 epochs" in str(table.caption)


def test_members_stand_beside_the_same_networks_alone(finished: Path) -> None:
    found = by_title(finished)
    assert cells(found["Members, and trained alone: last epoch"]) == [
        ["7", "step-down", "7.90 M", "0.7400", "0.7100 ±0.0141", "–"],
        ["7", "stem", "8.40 M", "0.7800", "0.7600", "0.7500"],
        ["2", "step-down", "17.2 M", "–", "0.8100 ±0.0141", "–"],
        ["2", "stem", "17.3 M", "–", "0.8400", "0.8300"],
        ["0", "step-down", "19.9 M", "0.9400", "0.9150 ±0.0212", "–"],
        ["0", "stem", "19.9 M", "0.9400", "0.9200", "0.9100"],
    ]
    validation = found["Members, and trained alone: chosen on validation"]
    assert cells(validation)[0][3:] == ["0.7500", "0.7200 ±0.0141", "–"]
    assert "Seeds: joint 2, stem 1, stem-distilled 1, alone-0 1, alone-7 1, alone-7-stem 1; ±" in str(
        validation.caption
    )


def test_only_what_was_run_has_a_row(tmp_path: Path) -> None:
    leave(tmp_path, "alone-0", [0.94])
    found = by_title(tmp_path)
    assert not [title for title in found if title.startswith("BatchNorm")]
    rows = cells(found["Members, and trained alone: last epoch"])
    assert rows == [["0", "step-down", "19.9 M", "0.9400", "–", "–"]]
    assert "±" not in str(found["Members, and trained alone: last epoch"].caption)


def test_policies_for_batchnorm(finished: Path) -> None:
    leave(finished, "distilled", [0.6, 0.7, 0.8])
    found = by_title(finished)
    assert cells(found["BatchNorm's statistics: chosen on validation"]) == [
        ["joint", "shared", "0.7200 ±0.0141", "0.8200 ±0.0141", "0.9250 ±0.0212"],
        ["joint", "per-entry", "0.7210 ±0.0141", "0.8210 ±0.0141", "0.9260 ±0.0212"],
        ["joint", "recalibrated", "0.7220 ±0.0141", "0.8220 ±0.0141", "0.9270 ±0.0212"],
        ["distilled", "shared", "0.6100", "0.7100", "0.8100"],
        ["distilled", "per-entry", "0.6110", "0.7110", "0.8110"],
        ["distilled", "recalibrated", "0.6120", "0.7120", "0.8120"],
    ]
    last = found["BatchNorm's statistics: last epoch"]
    assert cells(last)[5] == ["distilled", "recalibrated", "0.6020", "0.7020", "0.8020"]
    assert "Seeds: joint 2, distilled 1; ±" in str(last.caption)


def test_runs_of_other_settings_are_never_averaged(finished: Path) -> None:
    leave(finished, "joint", [0.1, 0.1, 0.1], seed=2, epochs=21)
    leave(finished, "joint", [0.2, 0.2, 0.2], seed=3, scale=1.0)
    firsts = [table for table in tables(cnsn_runs.PAPER, finished) if table.title == "Table 1: test accuracy"]
    assert sorted(cells(table)[0][4] for table in firsts) == ["0.1000", "0.2000", "0.7100"]
    assert {"21 epochs" in str(table.caption) for table in firsts} == {True, False}


def test_a_run_of_another_paper_is_left_out(tmp_path: Path) -> None:
    leave(tmp_path, "joint", [0.7, 0.8, 0.9])
    file = tmp_path / "joint" / "summary.json"
    theirs = json.loads(file.read_text())
    del theirs["scale"]
    file.write_text(json.dumps(theirs))
    assert [cells(table)[0][2:6] for table in tables(cnsn_runs.PAPER, tmp_path)] == [["–"] * 4]


def test_the_tables_fit_80_columns(finished: Path) -> None:
    leave(finished, "distilled", [0.6, 0.7, 0.8])
    for experiment in ("distilled", "stem", "stem-distilled", "alone-0", "alone-7"):
        leave(finished, experiment, [0.5, 0.5, 0.5], seed=1)
    console = Console(width=80)
    with console.capture() as captured:
        for table in tables(cnsn_runs.PAPER, finished):
            console.print(table)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in captured.get()
    assert "0.7100 ±0.0141" in captured.get()


# Doubly Nested Network ----------------------------------------------------------------------------------------------

WIDE = {"data": "cifar10", "train_images": 45_000, "groups": 4, "channels": [1, 2], "blocks": 2, "epochs": 9}


def leave_wide(out: Path, experiment: str, test: Callable[[int, int], float], *, seed: int = 0, **facts: Any) -> None:
    """A summary as of an experiment of Doubly Nested: members of exits -1 to 3 and widths 1 to 4 cost exit·10 + width.

    In the last epoch all are 0.01 better than in that chosen; on validation images deeper ones are 0.1 better still.
    """
    exits, widths = ([-1, 0, 1, 2, 3], [1, 2, 3, 4]) if experiment in doubly_nested.WAYS else ([3], [1])
    members = [(exit_, width) for exit_ in exits for width in widths]
    tests = [test(*member) for member in members]
    protocols = {
        name: {
            "epoch": 3,
            "test": [value + more for value in tests],
            "validation": [0.1 * e + t for (e, _), t in zip(members, tests, strict=True)],
        }
        for name, more in (("best_test", 0.02), ("validation", 0.0), ("last", 0.01))
    }
    summary = {"experiment": experiment, "seed": seed, "precision": "fp32", **WIDE, "protocols": protocols}
    summary |= {"exits": exits, "widths": widths, "macs": [(exit_ + 2) * 10 + width for exit_, width in members]}
    folder = out / (experiment if seed == 0 else f"{experiment}-seed{seed}")
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary | facts))


def figures(out: Path) -> dict[str, Table]:
    return {str(table.title): table for table in tables(doubly_nested_runs.PAPER, out)}


@pytest.fixture
def several_ways(tmp_path: Path) -> Path:
    leave_wide(tmp_path, "uniform", lambda exit_, width: 0.1 * exit_ + 0.1 * width)
    leave_wide(tmp_path, "macs", lambda exit_, width: 0.1 * exit_ + 0.1 * width + 0.05)
    leave_wide(tmp_path, "macs", lambda exit_, width: 0.1 * exit_ + 0.1 * width + 0.07, seed=1)
    leave_wide(tmp_path, "depth-only", lambda exit_, width: 0.1 * exit_ + 0.12 * width)
    for name, accuracy in (("alone", 0.9), ("alone-w2", 0.6), ("alone-x1", 0.7), ("dense", 0.95), ("dense-w2", 0.65)):
        leave_wide(tmp_path, name, lambda *_, accuracy=accuracy: accuracy)
    leave_wide(tmp_path, "sliced-w2", lambda *_: 0.3, brute_force=[0.12])
    return tmp_path


def test_ways_to_train_stand_below_networks_by_themselves(several_ways: Path) -> None:
    found = figures(several_ways)
    validation, last = (found[f"Ways to train all members: {name}"] for name in ("chosen on validation", "last epoch"))
    assert [str(column.header) for column in validation.columns] == (
        ["experiment", "full", "w3", "w2", "w1", "x2", "x1", "x0", "seeds"]
    )
    assert cells(validation) == [
        ["each alone", "90.0", "–", "60.0", "–", "–", "70.0", "–", "1"],
        ["uniform", "70.0", "60.0", "50.0", "40.0", "60.0", "50.0", "40.0", "1"],
        ["depth-only", "78.0", "66.0", "54.0", "42.0", "68.0", "58.0", "48.0", "1"],
        ["macs", "76.0 ±1.4", "66.0", "56.0", "46.0", "66.0", "56.0", "46.0", "2"],
    ]
    assert cells(last)[1][:3] == ["uniform", "71.0", "61.0"]
    assert "45,000 training images, 9 epochs, fp32; 5 exits × 4 widths, 4/8 channels. The paper's" in str(last.caption)


def test_figure_4(several_ways: Path) -> None:
    table = figures(several_ways)["Figure 4: networks of some width"]
    assert cells(table) == [
        ["4", "95.0", "–", "–", "70.0", "76.0", "90.0"],
        ["2", "65.0", "12.0", "30.0", "50.0", "56.0", "60.0"],
    ]
    assert "validation accuracy, members weighted by their MACs: macs." in str(table.caption)


def test_the_best_way_is_best_where_it_costs(tmp_path: Path) -> None:
    """Of members that cost exit·10 + width; each alike, the other one would be better."""
    leave_wide(tmp_path, "uniform", lambda exit_, width: 0.5 if exit_ < 2 else 0.7)
    leave_wide(tmp_path, "macs", lambda exit_, width: 0.4 if exit_ < 2 else 0.8)
    assert Results(runs(tmp_path)).best == "macs"


def test_figure_5(several_ways: Path) -> None:
    """A budget of 24 / 68.2 of the full member's 54 multiply-adds: 19.0; 22 would be exit 0 with two groups."""
    found = figures(several_ways)
    assert cells(found["Figure 5: the best members with at most 19.0 MACs"]) == [
        ["trained and cut by depth", "-1", "4", "14", "38.0"],
        ["macs, cut by depth", "-1", "4", "14", "35.0"],
        ["macs, cut both ways", "-1", "4", "14", "35.0"],
    ]
    grid = cells(found["Figure 5: all members of macs with at most 19.0 MACs, %"])
    assert grid[-1] == ["-1", "5", "15", "25", "35"] and grid[0] == ["3", "", "", "", ""]


def test_figure_5_takes_narrow_and_deep_members_if_they_are_better(tmp_path: Path) -> None:
    macs = [exit_ + width for exit_ in (-1, 0, 1, 2, 3) for width in (1, 2, 3, 4)]
    leave_wide(tmp_path, "uniform", lambda exit_, width: 0.1 * exit_ + 0.05 * width + 0.2, macs=[*macs[:-1], 12])
    table = figures(tmp_path)["Figure 5: the best members with at most 4.22 MACs"]
    assert cells(table) == [
        ["uniform, cut by depth", "0", "4", "4", "40.0"],
        ["uniform, cut both ways", "3", "1", "4", "55.0"],
    ]
    assert "exit 13 and width 13 against exit 4" in str(table.caption)


def test_other_settings_make_other_tables(several_ways: Path) -> None:
    leave_wide(several_ways, "drawn-macs", lambda *_: 0.5, epochs=20)
    leave(several_ways, "joint", [0.7, 0.8, 0.9])
    titles = [str(table.title) for table in tables(doubly_nested_runs.PAPER, several_ways)]
    assert (
        titles.count("Ways to train all members: last epoch") == 2
        and titles.count("Figure 4: networks of some width") == 1
    )
    (table,) = (
        table
        for table in tables(doubly_nested_runs.PAPER, several_ways)
        if ", 20 epochs" in str(table.caption) and "last" in str(table.title)
    )
    assert cells(table) == [["drawn-macs", *["51.0"] * 7, "1"]]
    assert not tables(doubly_nested_runs.PAPER, several_ways / "joint")


def test_figures_of_the_papers_network_fit_80_columns(tmp_path: Path) -> None:
    paper = {"groups": 22, "channels": [1, 2, 4], "blocks": 5, "epochs": 150}
    exits, widths = list(range(-1, 15)), list(range(1, 23))
    row = {"epoch": 3, "test": [0.9] * 352, "validation": [0.9] * 352}
    facts = {"exits": exits, "widths": widths, "macs": [100_000 * (1 + place) for place in range(352)]}
    facts["protocols"] = dict.fromkeys(("best_test", "validation", "last"), row)
    for name in doubly_nested.WAYS:
        for seed in (0, 1):
            leave_wide(tmp_path, name, lambda *_: 0.9, seed=seed, **paper, **facts)
    leave_wide(tmp_path, "sliced-w5", lambda *_: 0.8, brute_force=[0.1], **paper)
    console = Console(width=80)
    with console.capture() as captured:
        for table in tables(doubly_nested_runs.PAPER, tmp_path):
            console.print(table)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in captured.get()
    assert "at most 24.0 M MACs" in captured.get() and "The paper's network has" not in captured.get()
    assert re.search(r"balanced-conditioned +90.0 ±0.0", captured.get())


# Running them -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few() -> Dataset:
    def split(num_images: int) -> Split:
        generator = torch.Generator().manual_seed(num_images)
        images = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(num_images) % 4)

    return Dataset("noise", split(40), split(12), split(16), tuple("abcd"), "a generator")


def run(out: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr(reproduce, "load", lambda *args, **kwargs: few)
    settings = {"scale": 0.0625, "recipe": "short", "epochs": 2, "progress": False, "only": ["joint"]} | options
    reproduce.reproduce(cnsn_runs.PAPER, out, **settings)


def test_a_joint_run_measures_every_policy(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, few, monkeypatch)
    run(tmp_path, few, monkeypatch, seed=3)
    assert {path.name for path in tmp_path.iterdir()} == {"joint", "joint-seed3"}
    first, third = runs(tmp_path)["joint"]
    assert first["members"] == ["entry=7", "entry=2", "entry=0"] and (first["seed"], third["seed"]) == (0, 3)
    assert (first["scale"], first["recipe_name"], first["epochs"], first["train_images"]) == (0.0625, "short", 2, 40)
    for protocol in ("validation", "last"):
        assert list(first["policies"][protocol]) == ["shared", "per-entry", "recalibrated"]
        assert first["policies"][protocol]["per-entry"] == first["protocols"][protocol]["test"]
    # The shared statistics are those that the paper's own network would have had.
    checkpoint = load_file(tmp_path / "joint" / "last.safetensors")
    state = {name.removeprefix("net/"): tensor for name, tensor in checkpoint.items() if name.startswith("net/")}
    papers = cnsn.network(scale=0.0625, classes=4)
    papers.load_state_dict(
        {
            name: state[f"shared.{name}" if "running" in name and "stages" in name else name]
            for name in papers.state_dict()
        }
    )
    accuracies = evaluate(papers, [few.test], Preprocess.fit(few.train))[0].tolist()
    assert accuracies == first["policies"]["last"]["shared"]


def test_what_is_done_is_not_done_again(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, few, monkeypatch, only=["alone-7"], epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(reproduce, "fit", lambda *args, **options: pytest.fail("trained again"))
        run(tmp_path, few, monkeypatch, only=["alone-7"], epochs=1)
    with pytest.raises(CheckpointError, match=r"is of another network: .* differ in name or shape"):
        run(tmp_path, few, monkeypatch, only=["alone-7"], epochs=1, scale=0.125)
    with pytest.raises(ValueError, match="CNSN has no experiment 'model0'; there are joint, distilled"):
        run(tmp_path, few, monkeypatch, only=["model0"])


def run_wide(out: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch, *names: str, **options: Any) -> None:
    monkeypatch.setattr(reproduce, "load", lambda *args, **kwargs: few)
    settings = {"groups": 4, "channels": (1, 2), "blocks": 1, "epochs": 1, "progress": False} | options
    reproduce.reproduce(doubly_nested_runs.PAPER, out, only=list(names), **settings)


def test_doubly_nested_notes_every_member(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run_wide(tmp_path, few, monkeypatch, "macs", epochs=2)
    (summary,) = runs(tmp_path)["macs"]
    net, recipe = doubly_nested.experiment("macs", groups=4, channels=(1, 2), blocks=1, classes=4)
    grid = net.grid
    assert (summary["exits"], summary["widths"], summary["epochs"]) == ([-1, 0, 1], [1, 2, 3, 4], 2)
    assert summary["macs"] == nominal_macs(net, (3, 32, 32)) and summary["params"] == nominal_params(net)
    assert "weights" not in summary["recipe"] and summary["recipe"]["learning_rate"] == recipe.learning_rate
    load_checkpoint(tmp_path / "macs" / "last.safetensors", net)
    found = evaluate(net, [few.validation, few.test], Preprocess.fit(few.train)).tolist()
    row = summary["protocols"]["last"]
    assert row["epoch"] == 2 and len(row["test"]) == len(grid)
    assert [row["validation"], row["test"]] == [[round(value, 4) for value in some] for some in found]
    lines = (tmp_path / "macs" / "summary.json").read_text().splitlines()
    assert len(lines) == len(summary) + 2, "one line for each fact"


def test_slices_of_the_dense_network(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"the experiment dense, which comes before, is not in .*dense: run that first"
    ):
        run_wide(tmp_path, few, monkeypatch, "sliced-w2")
    run_wide(tmp_path, few, monkeypatch, "dense", "sliced-w2", seed=5)
    assert {path.name for path in tmp_path.iterdir()} == {"dense-seed5", "sliced-w2-seed5"}
    wide, _ = doubly_nested.experiment("dense", groups=4, channels=(1, 2), blocks=1, classes=4)
    load_checkpoint(tmp_path / "dense-seed5" / "best.safetensors", wide)
    narrow, _ = doubly_nested.experiment("dense-w2", groups=4, channels=(1, 2), blocks=1, classes=4)
    doubly_nested.slice_(narrow, wide)
    (summary,) = runs(tmp_path)["sliced-w2"]
    brute = evaluate(narrow, [few.test], Preprocess.fit(few.train))[0].tolist()
    assert summary["brute_force"] == brute
    assert (summary["epochs"], summary["recipe"]["epochs"]) == (1, 2), "of the dense network, and of the classifier"
    before = dict(narrow.named_parameters())
    tuned, _ = doubly_nested.experiment("dense-w2", groups=4, channels=(1, 2), blocks=1, classes=4)
    load_checkpoint(tmp_path / "sliced-w2-seed5" / "last.safetensors", tuned)
    changed = {name for name, parameter in tuned.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"exits.1.2.weight", "exits.1.2.bias"}
    with pytest.raises(ValueError, match=r"is not in .*dense-seed5"):
        run_wide(tmp_path, few, monkeypatch, "sliced-w2", seed=5, epochs=7)


def test_unasked_all_is_trained_that_figures_4_and_5_need_at_four_widths() -> None:
    names = doubly_nested_runs.Experiments(groups=4).names
    assert names[:5] == ["uniform", doubly_nested.BEST_WAY, "depth-only", "alone", "dense"]
    assert names[5:] == [f"{kind}-w{width}" for kind in ("dense", "sliced") for width in (3, 2, 1)]
    assert doubly_nested_runs.Experiments().names[5:8] == ["dense-w16", "dense-w11", "dense-w5"]


def test_names_are_checked_before_the_first_is_trained(
    tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("loud", "sliced", "sliced-w5"):
        with pytest.raises(ValueError, match=r"has no experiment|has 4 widths"):
            run_wide(tmp_path, few, monkeypatch, "uniform", name)
    assert not list(tmp_path.iterdir())


def test_doubly_nested_is_not_trained_again(tmp_path: Path, few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("alone-x0-w3", "dense", "sliced-w1")
    run_wide(tmp_path, few, monkeypatch, *names)
    monkeypatch.setattr(reproduce, "fit", lambda *args, **options: pytest.fail("trained again"))
    run_wide(tmp_path, few, monkeypatch, *names)
