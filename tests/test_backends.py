import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.engine import OnnxRuntime

from packs import FAMILIES, IMAGE, small_pack, wrong_among_threads


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net, to = FAMILIES["entries"](), tmp_path_factory.mktemp("packs") / "int8"
    net.all(torch.randn(16, *IMAGE))
    return tl.pack(net.eval(), to, members="all", input_shape=IMAGE, int8=torch.randn(32, *IMAGE))


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, *IMAGE), np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_openvino_answers_as_onnx_runtime_does(name: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    one, other = (tl.Engine(packed(name), cache=tmp_path, backend=backend) for backend in ("onnxruntime", "openvino"))
    assert one.runs_on.startswith("ONNX Runtime 1.") and other.runs_on.startswith("OpenVINO 20")
    for batch in (1, 3, 1):
        x = images(batch)
        for member in one.members:
            mine, theirs = (each.run(x, subnet=member.subnet).logits for each in (other, one))
            assert np.abs(theirs).max() > 0.01
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
            assert len(other._runner.members[other.member(member.subnet)].chain) == 1, "whole"
        for answer in other.anytime(x):
            whole = other.run(x, subnet=answer.subnet).logits
            np.testing.assert_allclose(answer.logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
def test_openvino_runs_int8(int8: Path, tmp_path: Path, kept: bool) -> None:
    cache = tmp_path if kept else False
    one, other = (tl.Engine(int8, cache=cache, backend=backend) for backend in ("onnxruntime", "openvino"))
    for member in one.members:
        mine, theirs = (each.run(images(8), subnet=member.subnet).logits for each in (other, one))
        assert np.sqrt(np.mean((mine - theirs) ** 2)) < 0.05 * np.sqrt(np.mean(theirs**2))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_sums_of_int8_products_do_not_overflow(tmp_path: Path, backend: str) -> None:
    """Of 16 products of the largest numbers there are: in pairs in 16 bits, as without VNNI, they would be halved."""
    net = tl.Nested(
        [nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU())],
        {0: nn.Identity()},
        {0: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))},
    ).eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1 / 16 if parameter.ndim > 1 else 0.0)
    net.exits["0"][1].weight.data *= torch.tensor([[1.0], [0.5], [0.25]])
    x = 0.8 + 0.2 * torch.rand(64, 16, 2, 2, generator=torch.manual_seed(0))
    to = tl.pack(net, tmp_path / "int8", members="all", input_shape=(16, 2, 2), int8=x)
    found = tl.Engine(to, cache=False, backend=backend).run(x.numpy()).logits
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=0.04)
    assert found.max() > 3.5


def test_what_was_measured_with_one_is_not_said_of_the_other(packed: Callable[[str], Path], tmp_path: Path) -> None:
    one = tl.Engine(packed("entries"), cache=tmp_path)
    one.calibrate(batches=(1,), seconds=0.001)
    other = tl.Engine(packed("entries"), cache=tmp_path, backend="openvino")
    assert len(one.timings) == len(one.members) and not len(other.timings)
    other.calibrate(batches=(2,), threads=(1, 2), seconds=0.001)
    assert len(tl.Engine(packed("entries"), cache=tmp_path, backend="openvino").timings) == 2 * len(one.members)
    assert len(tl.Engine(packed("entries"), cache=tmp_path).timings) == len(one.members)
    assert len([*tmp_path.glob("*/timings.json")]) == 2 and len([*tmp_path.glob("*/graphs")]) == 2


def test_threads_share_it(packed: Callable[[str], Path]) -> None:
    engine = tl.Engine(packed("residual"), cache=False, backend="openvino")
    assert not wrong_among_threads(engine, [images(1 + i % 3) for i in range(6)], turns=50)


def test_what_cannot_be_is_said(packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no backend 'tensorrt', but onnxruntime and openvino"):
        tl.Engine(packed("entries"), backend="tensorrt")
    broken = shutil.copytree(packed("entries"), tmp_path / "broken")
    file = min(broken.glob("*.onnx"))
    file.write_bytes(b"no graph")
    found = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))
    found["files"][file.name] = {"bytes": 8, "sha256": hashlib.sha256(b"no graph").hexdigest()}
    (broken / "manifest.json").write_text(json.dumps(found), encoding="utf-8")
    for cache in (False, tmp_path / "cache"):
        with pytest.raises(tl.PackError, match=rf"broken: {file.name} is no graph of a pack"):
            tl.Engine(broken, cache=cache, backend="openvino")
    assert not any((tmp_path / "cache").glob("*/graphs*")), "nothing half-made"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is not installed: pip install openvino"):
        tl.Engine(packed("entries"), cache=False, backend="openvino")
    result = CliRunner().invoke(cli.app, ["bench", str(packed("entries")), "--backend", "openvino"])
    assert result.exit_code and isinstance(result.exception, ImportError)


class Reference:
    """ONNX's own interpreter: the smallest backend that there can be."""

    title = "onnx.reference 1"

    def open(self, graph: Path, threads: int) -> ReferenceEvaluator:
        return ReferenceEvaluator(str(graph))

    def bind(
        self, opened: ReferenceEvaluator, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        def call() -> None:
            given = dict(zip(opened.input_names, inputs, strict=True))
            for array, value in zip(outputs, opened.run(None, given), strict=True):
                array[...] = value

        return call


@pytest.mark.parametrize("name", FAMILIES)
def test_a_backend_of_ones_own(name: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    backends = (Reference(), OnnxRuntime())
    own, known = (tl.Engine(packed(name), cache=tmp_path, backend=backend) for backend in backends)
    assert own.runs_on == "onnx.reference 1" and known.runs_on == tl.Engine(packed(name), cache=tmp_path).runs_on
    x = images(2)
    for member in own.members:
        wanted = known.run(x, subnet=member.subnet).logits
        np.testing.assert_allclose(own.run(x, subnet=member.subnet).logits, wanted, rtol=1e-4, atol=1e-5)
    for answer in own.anytime(x):
        np.testing.assert_allclose(answer.logits, own.run(x, subnet=answer.subnet).logits, rtol=1e-6, atol=1e-6)


def test_what_a_backend_of_ones_own_measures_is_its_own(packed: Callable[[str], Path], tmp_path: Path) -> None:
    own = tl.Engine(packed("entries"), cache=tmp_path, backend=Reference())
    own.calibrate(batches=(1,), seconds=0.001)
    assert len(tl.Engine(packed("entries"), cache=tmp_path, backend=Reference()).timings) == len(own.members)
    assert not len(tl.Engine(packed("entries"), cache=tmp_path).timings)
    assert not wrong_among_threads(own, [images(1), images(2)], turns=5)


def test_what_a_backend_of_ones_own_cannot_open_is_named(packed: Callable[[str], Path]) -> None:
    class Broken(Reference):
        def open(self, graph: Path, threads: int) -> ReferenceEvaluator:
            raise RuntimeError("no kernels")

    with pytest.raises(tl.PackError, match=r"onnx.reference 1 cannot open segment\d+.onnx: no kernels"):
        tl.Engine(packed("entries"), cache=False, backend=Broken())


def test_bench_says_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack = small_pack(tmp_path / "small.telescope", IMAGE)
    words = ["bench", str(pack), "--backend", "openvino", "--batch", "1", "--threads", "1", "--seconds", "0.01"]
    told = CliRunner().invoke(cli.app, words).output
    assert "OpenVINO 20" in told and "of all members together" in told and "ONNX Runtime" not in told
