"""A family of the user's own on data and a task of any kind, from the command line."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sklearn.metrics import r2_score
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.catalogue import Catalogue
from telescopic.run import Source
from telescopic.serve import application

FAMILY = """
import telescopic as tl
from torch import nn

def family(data):
    width, outputs = data.input_shape[0], data.train.targets[0].numel()
    blocks = [nn.Sequential(nn.Linear(n, 16), nn.ReLU()) for n in (width, 16)]
    return tl.Nested(blocks, exits={0: nn.Linear(16, outputs), 1: nn.Linear(16, outputs)})

def fixed(hidden=8):
    assert hidden == 8
    return tl.Nested([nn.Linear(5, 8), nn.ReLU()], exits={0: nn.Linear(8, 2), 1: nn.Linear(8, 2)})

def plain():
    return nn.Linear(5, 2)

def two(data, more):
    pass

def words():
    return tl.Nested([nn.Linear(6, 8), nn.Tanh()], exits={0: nn.Linear(8, 6), 1: nn.Linear(8, 6)})

def embedded():
    return tl.Nested([nn.Linear(8, 8)], entries={0: nn.Embedding(6, 8)}, exits={0: nn.Linear(8, 6)})

class OwnRead(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.ages = nn.Embedding(6, 8), nn.Linear(1, 8)

    def forward(self, x):
        return (self.words(x["ids"]) * x["mask"][..., None]).sum(1) + self.ages(x["age"])

def several():
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)]
    return tl.Nested(blocks, entries={0: OwnRead()}, exits={0: nn.Linear(8, 2), 1: nn.Linear(8, 2)})

tl.register_layer(OwnRead, [])
number = 3
"""


def invoke(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's file, named as no module is, and data: two numbers that depend on five, and which is the larger."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "a_family_of_mine.py").write_text(FAMILY)
    x = np.random.default_rng(0).normal(3, 2, (300, 5))
    y = np.stack([x[:, 0] - x[:, 1], x[:, 2] * x[:, 3]], 1)
    y = (y - y.mean(0)) / y.std(0)
    np.savez(folder / "numbers.npz", inputs=x, targets=y)
    np.savez(folder / "signs.npz", inputs=x, targets=y > 0, test_inputs=x[:40], test_targets=y[:40] > 0)
    words = np.random.default_rng(1).integers(0, 6, (90, 4))
    np.savez(folder / "words.npz", inputs=np.eye(6)[words], targets=(words + 1) % 6)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    words = ("--task", "regression", "--epochs", 40, "--learning-rate", 0.02, "--batch-size", 32, "--precision", "fp32")
    name = f"{folder / 'a_family_of_mine.py'}:family"
    result = invoke("train", name, "--data", folder / "numbers.npz", *words, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert "216 training examples" in result.output and f"telescopic choose {folder / 'run'}" in result.output
    return folder / "run"


def test_a_regression_is_trained_chosen_extracted_and_packed(run: Path, folder: Path, tmp_path: Path) -> None:
    catalogue, data = Catalogue.from_json(run / "catalogue.json"), tl.data.load(folder / "numbers.npz")
    assert catalogue.metric.name == "R2" and catalogue[1].score is not None and catalogue[1].score > 0.8
    source = Source.open(str(run))
    x = source.preprocess()(data.test.inputs)
    assert x.std() == pytest.approx(1, abs=0.2), "inputs are brought to a deviation of 1"
    answers = source.network()(x).detach().numpy()
    assert catalogue[1].test_score == pytest.approx(r2_score(data.test.targets, answers), abs=1e-5)
    shown = invoke("choose", run, "--min-score", 0.8)
    assert shown.exit_code == 0 and "on validation examples" in shown.output and "R2 0." in shown.output
    assert "give min_score, not max_score" in str(invoke("choose", run, "--max-score", 0.5).exception)
    done = invoke("extract", run, "--min-score", 0.8, "--to", tmp_path / "member.onnx")
    assert done.exit_code == 0 and "on 60 test examples of" in done.output, done.output
    assert "not both" in str(invoke("extract", run, "--subnet", "exit=1", "--max-score", 1, "--to", "x.onnx").exception)
    assert invoke("report", run, "--out", tmp_path).exit_code == 0 and "R2" in (tmp_path / "report.html").read_text()
    assert invoke("pack", run, "--members", "all", "--to", tmp_path / "my.telescope").exit_code == 0
    engine = tl.Engine(tmp_path / "my.telescope", cache=False)
    assert engine.task == "regression"
    np.testing.assert_allclose(engine.run(x.numpy(), subnet=source.network().grid.full).logits, answers, atol=1e-5)
    assert [m.score for m in engine.members] == pytest.approx([m.score for m in catalogue])
    assert engine.members[0].accuracy is None
    assert "| validation R2 |" in (tmp_path / "my.telescope" / "README.md").read_text()
    with TestClient(application(engine, slo_ms=60_000), base_url="http://localhost") as client:
        told = client.post("/predict", json={"inputs": x.tolist()[:3], "subnet": "exit=1"}).json()
    np.testing.assert_allclose(told["outputs"], answers[:3], atol=1e-5)
    shown = invoke("bench", tmp_path / "my.telescope", "--batch", 1, "--threads", 1, "--seconds", 0.01)
    assert shown.exit_code == 0 and "valid R2" in shown.output and f"{catalogue[1].score:.4g}" in shown.output
    refused = invoke("pack", run, "--int8", "--to", tmp_path / "q.telescope")
    assert "int8 is judged by classes" in str(refused.exception) and not (tmp_path / "q.telescope").exists()


def test_it_goes_on_and_keeps_its_task(run: Path, folder: Path) -> None:
    words = ["train", f"{folder / 'a_family_of_mine.py'}:family", "--data", folder / "numbers.npz", "--out", run]
    assert "already holds a run" in str(invoke(*words, "--task", "regression").exception)
    options = ("--epochs", 40, "--learning-rate", 0.02, "--batch-size", 32, "--precision", "fp32", "--resume")
    assert invoke(*words, "--task", "regression", *options).exit_code == 0
    assert "labels are 0 or 1" in str(invoke(*words, "--task", "multilabel", *options).exception)


def test_several_inputs_go_all_the_way(folder: Path, tmp_path: Path) -> None:
    """From an .npz with an array for each to a server: the answers are the network's."""
    draw = np.random.default_rng(2)
    ids, mask, age = draw.integers(0, 6, (300, 4)), draw.random((300, 4)) < 0.6, draw.standard_normal((300, 1))
    targets = (((ids == 3) & mask).any(1) ^ (age[:, 0] > 1)).astype(np.int64)
    data, out, packed = tmp_path / "several.npz", tmp_path / "run", tmp_path / "several.telescope"
    np.savez(
        data, **{"inputs.ids": ids, "inputs.mask": mask, "inputs.age": age}, targets=targets, classes=["no", "yes"]
    )
    shown = invoke("data", "show", data)
    assert "ids: int64 [216, 4], from 0 to 5" in shown.output and "mask: bool [216, 4], from 0 to 1" in shown.output
    name = f"{folder / 'a_family_of_mine.py'}:several"
    words = ("--epochs", 30, "--learning-rate", 0.05, "--batch-size", 32, "--precision", "fp32", "--out", out)
    result = invoke("train", name, "--data", data, *words)
    assert result.exit_code == 0, result.output
    code = ("--import", folder / "a_family_of_mine.py")
    source, loaded = Source.open(str(out)), tl.data.load(data)
    assert source.catalogue().input_shape == {"age": (1,), "ids": ("int64", 4), "mask": ("bool", 4)}
    answers = source.network()(loaded.test.inputs).softmax(1).detach().numpy()
    full = source.catalogue()[1]
    assert full.test_score == (answers.argmax(1) == loaded.test.targets.numpy()).mean() > 0.8
    assert re.search("latency +p95", invoke("catalogue", out, "--latency", *code).output)
    done = invoke("extract", out, "--subnet", "exit=1", "--to", tmp_path / "member.onnx", *code)
    assert done.exit_code == 0 and "on 60 test examples of" in done.output, done.output
    assert invoke("report", out, "--out", tmp_path, *code).exit_code == 0
    done = invoke("pack", out, "--members", "all", "--to", packed, *code)
    assert done.exit_code == 0, done.output
    assert invoke("bench", packed, "--batch", 1, "--threads", 1, "--seconds", 0.01).exit_code == 0
    engine = tl.Engine(packed, cache=False)
    with TestClient(application(engine, slo_ms=60_000), base_url="http://localhost") as client:
        asked = {name: some[:20].tolist() for name, some in loaded.test.inputs.items()}
        told = client.post("/predict", json={"inputs": asked, "subnet": "exit=1"}).json()
        refused = client.post("/predict", json={"inputs": asked | {"ids": [[0, 0, 0, 6]] * 20}})
    np.testing.assert_allclose(told["probabilities"], answers[:20], atol=1e-5)
    assert [one["class"] for one in told["predictions"]] == [("no", "yes")[k] for k in answers[:20].argmax(1)]
    assert refused.status_code == 422 and "the network takes 0 to 5 there" in refused.json()["error"]


@pytest.mark.parametrize(("function", "task", "data"), [("fixed", "multilabel", "signs"), ("words", "tokens", "words")])
def test_other_tasks(function: str, task: str, data: str, folder: Path, tmp_path: Path) -> None:
    name, out = f"{folder / 'a_family_of_mine.py'}:{function}", tmp_path / "run"
    options = ("--task", task, "--epochs", 30, "--learning-rate", 0.05, "--distillation", 0.2, "--precision", "fp32")
    fitted = ("--fit-heads",) if function == "fixed" else ()
    result = invoke("train", name, "--data", folder / f"{data}.npz", *options, *fitted, "--out", out)
    assert result.exit_code == 0, result.output
    assert tl.Bundle.open(out / "model.safetensors").provenance["recipe"]["fit_heads"] == (function == "fixed")
    catalogue = Catalogue.from_json(out / "catalogue.json")
    assert catalogue[-1].test_score is not None and catalogue[-1].test_score > 0.7
    assert invoke("extract", out, "--to", tmp_path / "member.onnx").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a_family_of_mine.py:plain",), "returned Linear, not a family: telescopic.Nested"),
        (("a_family_of_mine.py:two",), "called without arguments or with the data alone, and it takes more"),
        (("a_family_of_mine.py:number",), "has no function 'number'"),
        (("a_family_of_mine.py:fixed", "--task", "ranking"), "task"),
        (("a_family_of_mine.py:fixed",), r"labels are classes, int64 \[n\], not float32 \[\d+, 2\]"),
        (("a_family_of_mine.py:embedded",), "float32 .* Embedding, takes whole numbers"),
        (("nowhere.py:family",), "there is no such file"),
    ],
)
def test_what_is_refused(words, message, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["telescopic", "train", *words, "--data", "numbers.npz", "--out", "no"])
    with pytest.raises(SystemExit):
        cli.main()
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert re.search(message, error), error
    assert not Path("no").exists()


def test_data_are_shown(folder: Path) -> None:
    shown = invoke("data", "show", folder / "numbers.npz").output.splitlines()
    assert shown[0].endswith("numbers.npz") and shown[1] == "216 training, 24 validation, 60 test"
    assert shown[2].startswith("inputs: float32 [216, 5], from -") and shown[3].startswith(
        "targets: float32 [216, 2], "
    )
    assert [line.split()[0] for line in invoke("data", "list").output.splitlines()] == [*tl.data.names()]
    digits = invoke("data", "show", "digits").output.splitlines()
    assert "uint8 [1294, 1, 8, 8], from 0 to 255" in digits[2] and digits[4].endswith("7, 8, 9")


def test_a_network_of_ones_own_is_slimmed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a_network_to_slim.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), "
        "nn.ReLU(), nn.Linear(32, 2))\n"
    )
    words = ("--data", folder / "numbers.npz", "--task", "regression", "--epochs", 2, "--precision", "fp32")
    how = ("--widths", "0.5,1", "--of", "macs", "--order", "taylor")
    result = invoke("slim", f"{tmp_path / 'a_network_to_slim.py'}:net", *words, *how, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    narrow, full = Catalogue.from_json(tmp_path / "run" / "catalogue.json")
    assert 0.35 * full.macs < narrow.macs <= 0.5 * full.macs
    # What it learned is known, and a family of several widths is not slimmed once more.
    again = invoke("slim", tmp_path / "run", "--epochs", 1, "--out", tmp_path / "again")
    assert "2 widths already" in str(again.exception)
    for option, value in (("--of", "params"), ("--order", "random"), ("--task", "chess")):
        refused = invoke("slim", f"{tmp_path / 'a_network_to_slim.py'}:net", *words[:2], option, value)
        assert value in str(refused.exception)
