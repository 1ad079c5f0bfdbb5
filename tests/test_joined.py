import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import telescopic as tl
from telescopic.engine import joined, runner
from telescopic.engine.backends import Sessions
from telescopic.engine.joined import join
from telescopic.engine.manifest import Packed
from telescopic.engine.ort.onnx_runtime import OnnxRuntime

from packs import FAMILIES, IMAGE


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, *IMAGE), np.float32)


def by_segments(engine: tl.Engine, x: np.ndarray, member: Packed) -> np.ndarray:
    """What a member answers through the chain of its pack."""
    lane = engine._runner.lanes.take(len(x))
    lane.start(x)
    return lane.run(member)


def graph(engine: tl.Engine, name: str) -> onnx.ModelProto:
    """An optimised graph, without weights that have a file of their own."""
    return onnx.load(engine._graphs.folder / engine._graphs.files[name], load_external_data=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_graph_answers_bit_for_bit_as_its_segments_do(
    name: str, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    engine = tl.Engine(packed(name), cache=tmp_path)
    for member, whole in engine._runner.members.items():
        assert len(whole.chain) == 1 < len(member.chain) and whole.logits == member.logits
        for batch in (1, 3):
            x = images(batch)
            np.testing.assert_array_equal(engine.run(x, subnet=member.subnet).logits, by_segments(engine, x, member))


@pytest.mark.parametrize("name", FAMILIES)
def test_joined_graphs_have_no_weights_of_their_own(name: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    engine = tl.Engine(packed(name), cache=tmp_path)

    def places(graphs: list[str]) -> set[tuple[tuple[str, str], ...]]:
        tensors = [tensor for one in graphs for tensor in graph(engine, one).graph.initializer]
        for tensor in tensors:
            assert tensor.external_data or tensor.ByteSize() < 2**12, "what has no file is small"
        return {tuple((e.key, e.value) for e in t.external_data) for t in tensors if t.external_data}

    segments = [*engine._manifest.segments]
    assert places([one for one in engine._graphs.files if one not in segments]) == places(segments)


def mlp_pack(to: Path) -> Path:
    torch.manual_seed(0)
    return tl.pack(tl.networks.mlp(12, (80, 80), 3).eval(), to, members="all", input_shape=(12,))


def test_weights_that_kernels_copy_are_there_once(tmp_path: Path) -> None:
    engine = tl.Engine(mlp_pack(tmp_path / "pack"), cache=tmp_path / "cache")
    held = [
        [*tensor.dims]
        for name in {step.segment for whole in engine._runner.members.values() for step in whole.chain}
        for tensor in graph(engine, name).graph.initializer
    ]
    assert held.count([80, 80]) == 1 and held.count([3, 80]) > 1, "the large one is in one session for all members"
    assert [len(whole.chain) for whole in engine._runner.members.values()] == [1, 3, 3]
    x = np.random.default_rng(0).standard_normal((2, 12), np.float32)
    for member in engine.members:
        np.testing.assert_array_equal(engine.run(x, subnet=member.subnet).logits, by_segments(engine, x, member))


def test_a_pack_of_many_members_stays_in_segments(
    packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telescopic.engine.prepared._MOST", 3)
    engine = tl.Engine(packed("residual"), cache=tmp_path)
    assert len(engine.members) == 4
    assert [whole.chain for whole in engine._runner.members.values()] == [member.chain for member in engine.members]
    assert engine._graphs.files == engine._manifest.segments and engine._graphs.prepared


def test_segments_are_opened_when_they_are_needed(packed: Callable[[str], Path], tmp_path: Path) -> None:
    engine = tl.Engine(packed("residual"), cache=tmp_path)
    opened = engine._runner._sessions._opened
    wholes = {whole.chain[0].segment for whole in engine._runner.members.values()}
    assert {*opened} == wholes and len(wholes) == 4
    first = [answer.logits for answer in engine.anytime(images(1))]
    more = {*opened} - wholes
    assert len(more) == 4, "one graph for each answer of a path"
    assert len(more - {*engine._graphs.files}) == 3, "which are not kept; the last is a segment"
    again = [answer.logits for answer in engine.anytime(images(1))]
    np.testing.assert_array_equal(first, again)
    assert {*opened} == wholes | more


def test_any_path_answers_as_its_members_do(
    packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_MOST_PATHS", 3)
    engine = tl.Engine(packed("widths"), cache=tmp_path)
    cells = [[(-1, 1), (0, 1), (1, 1), (1, 2)], [(-1, 1), (-1, 2), (1, 2)], [(0, 1), (1, 2)], [(0, 1), (0, 2)]]
    x = images(2)
    for number, path in enumerate(cells, 1):
        subnets = [tl.Subnet(entry=0, exit=exit_, width=width) for exit_, width in path]
        for answer in engine.anytime(x, path=subnets):
            np.testing.assert_array_equal(answer.logits, engine.run(x, subnet=answer.subnet).logits)
        assert len(engine._runner._paths) == min(number, 3), "the rest goes segment by segment"


def test_without_onnx_a_path_goes_segment_by_segment(
    packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tl.Engine(packed("residual"), cache=tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    answers = [*engine.anytime(images(1))]
    assert len(answers) == 4 and {*engine._manifest.segments} <= {*engine._runner._sessions._opened}
    for answer in answers:
        np.testing.assert_array_equal(answer.logits, engine.run(images(1), subnet=answer.subnet).logits)


def test_equal_runs_of_segments_have_one_graph(packed: Callable[[str], Path], tmp_path: Path) -> None:
    engine = tl.Engine(packed("residual"), cache=tmp_path)
    folder, manifest, (first, *_, last) = engine._graphs.folder, engine._manifest, engine.members
    graphs, ways = join(manifest, folder, [(last,), (last,), (first, last)], OnnxRuntime().stands_alone)
    assert ways[0][0].chain == ways[1][0].chain and ways[2][1].chain != ways[0][0].chain
    assert len(graphs) == 3 and ways[0][0].chain[0].segment in engine._graphs.files
    both = [step for member in ways[2] for step in member.chain]
    assert [*both[1].inputs] == [name for name in both[0].outputs if name != first.logits], "goes on from what is left"


def test_a_joined_graph_that_cannot_be_opened_is_named(packed: Callable[[str], Path], tmp_path: Path) -> None:
    engine = tl.Engine(packed("residual"), cache=tmp_path)
    sessions = Sessions(engine._graphs, OnnxRuntime(), 1)
    sessions.add({"broken": b"no graph"})
    with pytest.raises(tl.PackError, match=r"graphs: ONNX Runtime .* cannot open broken: "):
        sessions.bind("broken", [], [])


@pytest.mark.parametrize("chains", ["[]", "[[]]", "[[{}]]", "7", '[[{"segment": 1, "inputs": 2, "outputs": 3}]]'])
def test_a_list_that_makes_no_sense_is_made_again(packed: Callable[[str], Path], tmp_path: Path, chains: str) -> None:
    engine = tl.Engine(packed("padded"), cache=tmp_path)
    file = engine._graphs.folder / "graphs.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(data | {"chains": json.loads(chains)}), encoding="utf-8")
    again = tl.Engine(packed("padded"), cache=tmp_path)
    assert again._graphs.chains == engine._graphs.chains
    assert json.loads(file.read_text(encoding="utf-8"))["chains"] == data["chains"]


# Which segments stand alone ------------------------------------------------------------------------------------------


def model(op: str, bytes_: int, domain: str = "", **attributes: object) -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [bytes_ // 4], bytes(bytes_), raw=True)
    node = helper.make_node(op, ["in0", "w"], ["out0"], domain=domain, **attributes)
    return helper.make_model(helper.make_graph([node], "g", [], [], [weight]))


def test_which_segments_stand_alone() -> None:
    large, small = 2**20, 2**10
    alone = OnnxRuntime().stands_alone
    for op in ("Gemm", "MatMul", "FusedMatMul", "QLinearConv", "ConvInteger", "ConvTranspose", "LSTM"):
        assert alone(model(op, large)) and not alone(model(op, small)), op
    for op, domain in (("Conv", "com.microsoft.nchwc"), ("Conv", ""), ("FusedConv", "com.microsoft"), ("Mul", "")):
        assert not alone(model(op, large, domain)), op
    body = helper.make_graph([], "body", [], [])
    assert joined._has_graphs(model("If", small, then_branch=body, else_branch=body))
    assert not joined._has_graphs(model("Gemm", small, transB=1))
