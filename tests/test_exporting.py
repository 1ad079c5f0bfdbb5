import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import telescopic as tl
from telescopic import exporting
from telescopic.exporting import ExportError, export

PIXELS = torch.randint(256, (7, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
PREPROCESS = tl.Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture
def module() -> nn.Sequential:
    """A small CNN in training mode whose BatchNorm has seen data."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    net(torch.rand(16, 3, 8, 8) * 3)
    return net


def answers(path: Path, x: Tensor) -> Tensor:
    """What the file says, asked without the library that wrote it."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(x).detach()
    return tl.load(path)(x).detach()


@pytest.mark.parametrize("suffix", exporting.SUFFIXES)
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_file_answers_as_the_module_in_eval_mode(
    module: nn.Module, tmp_path: Path, suffix: str, batch: int
) -> None:
    x = torch.rand(7, 3, 8, 8)
    path = export(module, tmp_path / f"m{suffix}", x)
    assert module.training and module[1].training  # left as it was
    torch.testing.assert_close(answers(path, x[:batch]), module.eval()(x[:batch]).detach(), rtol=1e-5, atol=1e-6)
    assert {p.name for p in tmp_path.iterdir()} == {f"m{suffix}", f"m{suffix}.json"}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_preprocessing_can_be_part_of_the_file(module: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = export(module, tmp_path / f"m{suffix}", PIXELS, preprocess=PREPROCESS, classes="abcde")
    expected = module.eval()(
        (PIXELS / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    )
    torch.testing.assert_close(answers(path, PIXELS), expected.detach(), rtol=1e-4, atol=1e-5)
    card = json.loads((tmp_path / f"m{suffix}.json").read_text())
    assert card["preprocess"] == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "inside_the_file": True}
    assert card["input"] == {"shape": ["batch", 3, 8, 8], "dtype": "uint8"}
    assert card["classes"] == ["a", "b", "c", "d", "e"]


def test_the_card_says_what_the_file_is(module: nn.Module, tmp_path: Path) -> None:
    import hashlib

    path = export(module, tmp_path / "m.onnx", torch.rand(4, 3, 8, 8), card={"subnet": "entry=1"})
    card = json.loads((tmp_path / "m.onnx.json").read_text())
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and card["bytes"] == path.stat().st_size
    assert card["subnet"] == "entry=1" and card["output"] == {"shape": ["batch", 5], "dtype": "float32"}
    assert 0 <= card["parity"]["largest_difference"] <= card["parity"]["allowed"] and card["parity"]["inputs"] == 4
    assert card["versions"]["torch"] == torch.__version__


def test_a_member_s_file_is_as_small_as_the_member(tmp_path: Path) -> None:
    net = tl.networks.mlp(784, [784, 784], 10)
    small = export(tl.extract(net, tl.Subnet(entry=2)), tmp_path / "small.onnx", torch.rand(2, 1, 28, 28))
    assert 7_850 * 4 <= small.stat().st_size < 7_850 * 4 + 30_000


@pytest.mark.parametrize("suffix", exporting.SUFFIXES)
def test_a_file_that_answers_otherwise_is_not_kept(module, tmp_path, monkeypatch, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"older file")
    write = exporting._write
    for fault in (lambda a: a * 1.001, lambda a: a * float("nan"), lambda a: a[:, :4]):
        monkeypatch.setattr(exporting, "_write", lambda *args, fault=fault: [fault(a) for a in write(*args)])
        with pytest.raises(ExportError, match=r"not kept"):
            export(module, path, torch.rand(4, 3, 8, 8))
    assert path.read_bytes() == b"older file" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_with_more_than_the_member_is_not_kept(module, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exporting, "SPARE_BYTES", 100)
    with pytest.raises(ExportError, match=r"bytes for .* bytes of weights"):
        export(module, tmp_path / "m.onnx", torch.rand(4, 3, 8, 8))
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_refused_before_any_work(module, tmp_path, monkeypatch) -> None:
    x = torch.rand(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\.onnx, \.pt2, \.safetensors"):
        export(module, tmp_path / "m.h5", x)
    with pytest.raises(ValueError, match="two inputs or more"):
        export(module, tmp_path / "m.onnx", x[:1])
    with pytest.raises(ValueError, match="no folder"):
        export(module, tmp_path / "nowhere" / "m.onnx", x)
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"telescopic\[onnx\]"):
        export(module, tmp_path / "m.onnx", x)
    assert not list(tmp_path.iterdir())


def test_an_exported_program_runs_without_telescopic(module: nn.Module, tmp_path: Path) -> None:
    path = export(module, tmp_path / "m.pt2", PIXELS, preprocess=PREPROCESS)
    np.save(tmp_path / "x.npy", PIXELS.numpy())
    code = (
        "import sys, torch, numpy as np; program = torch.export.load(sys.argv[1]).module()\n"
        "print(program(torch.from_numpy(np.load(sys.argv[2]))).argmax(1).tolist(), 'telescopic' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy")], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"{answers(path, PIXELS).argmax(1).tolist()} False"
