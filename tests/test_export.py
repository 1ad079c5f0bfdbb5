import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn

from telescopic.bundle import Bundle, load
from telescopic.data import Preprocess
from telescopic.export import ExportError, export, parity
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.subnet import Subnet

exporting = sys.modules["telescopic.export"]  # as an attribute of the package it is the function

PREPROCESS = Preprocess((0.2,), (0.4,))


def perceptron() -> nn.Module:
    return extract(mlp(16, (200, 12), 3), Subnet(entry=1))


def convolution() -> nn.Module:
    net = Nested(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        ],
        exits={0: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 1: nn.Sequential(nn.Flatten(), nn.Linear(6, 3))},
        statistics="per-entry",
    )
    net.train().all(torch.randn(8, 1, 4, 4))  # statistics other than the initial ones
    return extract(net)


def onnx(path: Path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


OPEN = {".onnx": onnx, ".pt2": lambda path: torch.export.load(path).module(), ".safetensors": load}


@pytest.mark.parametrize("suffix", OPEN)
@pytest.mark.parametrize("make", [perceptron, convolution])
def test_file_computes_what_the_module_does(make, suffix, tmp_path, capfd) -> None:
    torch.manual_seed(0)
    module, x = make().train(), torch.randn(7, 1, 4, 4)
    facts = {"subnet": "entry=1", "catalogue": {"macs": 228}}
    path = export(module, tmp_path / "new" / f"small{suffix}", x, classes=("a", "b", "c"), card=facts)
    assert capfd.readouterr() == ("", "")
    assert module.training  # and the statistics of a BatchNorm have not moved
    run, module = OPEN[suffix](path), module.eval()
    exact = suffix != ".onnx"
    for batch in (1, 2, 7, 20):  # the batch is open, whatever the example had
        x = torch.randn(batch, 1, 4, 4)
        torch.testing.assert_close(run(x), module(x), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.json"}  # one file, and no more
    assert str(Path(__file__).parents[1]).encode() not in path.read_bytes()  # no paths of this machine
    card = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert card["bytes"] == path.stat().st_size and card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (card["file"], card["format"]) == (path.name, suffix[1:])
    assert card["input"].pop("name", "input") == "input" and card["output"].pop("name", "logits") == "logits"
    assert card["input"] == {"shape": ["batch", 1, 4, 4], "dtype": "float32"}
    assert card["output"] == {"shape": ["batch", 3], "dtype": "float32"}
    assert card["classes"] == ["a", "b", "c"] and card["preprocess"] is None
    assert card["subnet"] == "entry=1" and card["catalogue"] == {"macs": 228}
    assert card["versions"]["torch"] == version("torch") and "telescopic" in card["versions"]
    assert card["parity"]["batches"] == [1, 7] and card["parity"]["relative"] <= (0 if exact else 1e-5)


def test_a_first_sample_of_small_logits_is_no_reason_to_refuse() -> None:
    x = torch.tensor([[1e-6], [1.0]])
    found = parity(lambda x: x + 1e-6, lambda x: x, x)
    assert found["relative"] == found["max_difference"] < 2e-6
    with pytest.raises(ValueError, match=r"of the largest logit; 0\.0001 is allowed"):
        parity(lambda x: x * 1.001, lambda x: x, x)


@pytest.mark.parametrize("suffix", OPEN)
def test_preprocessing_is_folded_in(suffix, tmp_path) -> None:
    torch.manual_seed(0)
    module, images = convolution(), torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    path = export(module, tmp_path / f"small{suffix}", images, preprocess=PREPROCESS)
    card = json.loads(path.with_name(f"{path.name}.json").read_text())
    folded = suffix != ".safetensors"
    run = OPEN[suffix](path)
    x = images if folded else PREPROCESS(images)
    torch.testing.assert_close(run(x), module(PREPROCESS(images)), rtol=1e-5, atol=1e-6)
    assert card["preprocess"] == {"mean": [0.2], "std": [0.4], "folded": folded}
    assert card["input"]["dtype"] == ("uint8" if folded else "float32")
    if not folded:
        assert Bundle.open(path).preprocess == PREPROCESS and Bundle.open(path).input_shape == (1, 4, 4)


def test_other_precisions(tmp_path) -> None:
    torch.manual_seed(0)
    module = perceptron().double()
    images = torch.randint(0, 256, (1, 1, 4, 4), dtype=torch.uint8)  # a single example leaves the batch open, too
    run = onnx(export(module, tmp_path / "double.onnx", images, preprocess=PREPROCESS))
    images = torch.cat([images, 255 - images, images])
    torch.testing.assert_close(run(images), module(PREPROCESS(images).double()), rtol=1e-12, atol=1e-12)
    module, x = module.bfloat16(), torch.randn(3, 16, dtype=torch.bfloat16)
    run = OPEN[".pt2"](export(module, tmp_path / "short.pt2", x))
    assert torch.equal(run(x), module(x)) and run(x).dtype == torch.bfloat16


def test_file_is_as_small_as_the_member(tmp_path) -> None:
    net = mlp(16, (500, 500), 3)
    x = torch.randn(3, 16)
    for suffix in (".pt2", ".onnx"):
        small = export(extract(net, Subnet(entry=2)), tmp_path / f"small{suffix}", x)
        large = export(extract(net), tmp_path / f"large{suffix}", x)
        assert small.stat().st_size < 60_000 and large.stat().st_size > 4 * 500 * 500

    class Luggage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 3)
            self.table = torch.randn(300_000)  # no parameter, but part of the graph

        def forward(self, x):
            return self.head(x) + self.table.max()

    with pytest.raises(ExportError, match=r"the file has 12\d{5} bytes, but the module's tensors only 204"):
        export(Luggage(), tmp_path / "luggage.pt2", x)


class Crooked:
    """Stands for a runtime that computes something else."""

    def __init__(self, suffix: str, change) -> None:
        self.write, self.change = exporting._WRITERS[suffix], change

    def __call__(self, order, file):
        written = self.write(order, file)
        return exporting._Written(lambda x: self.change(written.run(x)), written.num_nodes, written.packages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 1e-3 * y.abs().max(), r"differ .* by up to .*, 0\.001 of the largest logit; 0\.0001 is allowed"),
        (lambda y: y if len(y) == 1 else y.flip(0), "differ from the module's"),
        (lambda y: y if len(y) > 1 else -y, "differ from the module's"),
        (lambda y: y[:, :2], r"gives {'shape': \['batch', 2\]"),
        (lambda y: y * float("nan"), "not finite"),
        (lambda y: y.double(), "float64"),
    ],
)  # fmt: skip
def test_difference_fails_and_leaves_what_was_there(change, message, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    module, x = perceptron(), torch.randn(4, 16)
    path = export(module, tmp_path / "net.safetensors", x)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setitem(exporting._WRITERS, ".safetensors", Crooked(".safetensors", change))
    for name in (path.name, "other.safetensors"):
        with pytest.raises(ExportError, match=message):
            export(module, tmp_path / name, x)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_samples_are_what_is_compared(tmp_path, monkeypatch) -> None:
    module = nn.Sequential(nn.ReLU(), nn.Linear(4, 3, bias=False))
    monkeypatch.setitem(exporting._WRITERS, ".safetensors", Crooked(".safetensors", lambda y: y * 1.1))
    negative = -torch.ones(2, 4)
    export(module, tmp_path / "net.safetensors", negative)  # all logits are 0: nothing to see
    with pytest.raises(ExportError, match="differ from the module's"):
        export(module, tmp_path / "net.safetensors", negative, samples=-negative)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    module, x = perceptron(), torch.randn(4, 16)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)

    class Batchwise(nn.Module):
        def forward(self, x):
            return x.reshape(4, -1)

    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

    for options, message in (
        ({"path": "net.tflite"}, r"the suffix tells the format, one of \.onnx, \.pt2, \.safetensors"),
        ({"module": mlp(16, (4,), 3)}, r"export\(extract\(net, subnet\), \.\.\.\)"),
        ({"example": x[:0]}, r"a tensor \[batch, \.\.\.\] of one or more"),
        ({"samples": x[0]}, r"a tensor \[batch, \.\.\.\] of one or more"),
        ({"example": torch.randn(4, 15)}, "16"),
        ({"classes": ("a", "b")}, "there are 2 classes, but 3 logits"),
        ({"card": {"bytes": 1}}, "the card's bytes is written by export itself"),
        ({"card": {"when": object()}}, "not JSON serializable"),
        (
            {"module": Batchwise(), "path": "net.pt2"},
            r"cannot export to .*net.pt2: .* gives \(4, 4\) for inputs \(1, 16\)",
        ),
        ({"module": Doubled(), "path": "net.safetensors"}, r"register_layer\(.*Doubled\)"),
        ({"module": nn.Threshold(9.0, float("nan")), "path": "net.pt2"}, "not finite"),
    ):
        arguments = {"module": module, "path": "net.pt2", "example": x} | options
        with pytest.raises(ExportError, match=message):
            export(**arguments | {"path": tmp_path / arguments["path"]})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match="onnxruntime is not installed: pip install onnx"):
        export(module, tmp_path / "net.onnx", images, preprocess=PREPROCESS)
    assert list(tmp_path.iterdir()) == []
