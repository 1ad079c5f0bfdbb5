import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import telescopic as tl
from telescopic.engine.manifest import Constant, Manifest, Packed, Step
from telescopic.engine.ort import layouts, onnx_runtime
from telescopic.engine.ort.layouts import End, agree, cut, joints, mark
from telescopic.subnet import Subnet

from packs import FAMILIES, IMAGE


def nodes(kept: Path) -> Counter[str]:
    """How many of each kind the optimised graphs have in all."""
    files = [file for file in kept.glob("*/graphs/segment*.onnx")]
    return Counter(node.op_type for file in files for node in onnx.load(file, load_external_data=False).graph.node)


@pytest.mark.parametrize("name", FAMILIES)
def test_members_answer_the_same_with_fewer_changes_of_order(
    name: str, packed: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = packed(name)
    plain, engine = tl.Engine(folder, cache=False), tl.Engine(folder, cache=tmp_path / "blocks")
    x = np.random.default_rng(0).standard_normal((3, *IMAGE), np.float32)
    for member in plain.members:
        mine, theirs = (each.run(x, subnet=member.subnet).logits for each in (engine, plain))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
        assert np.abs(theirs).max() > 0.01
    for answer in engine.anytime(x):
        np.testing.assert_array_equal(answer.logits, engine.run(x, subnet=answer.subnet).logits)
    monkeypatch.setattr(layouts, "joints", lambda manifest: [])
    tl.Engine(folder, cache=tmp_path / "plain")
    before, after = nodes(tmp_path / "plain"), nodes(tmp_path / "blocks")
    if not before["ReorderOutput"]:
        pytest.skip("on this processor convolutions have no blocks")
    assert before["Conv"] == after["Conv"] and after["MaxPool"] == 0, "marks are gone"
    changes = [found["ReorderInput"] + found["ReorderOutput"] for found in (before, after)]
    assert changes[1] < changes[0] and after["ReorderInput"] < before["ReorderInput"]
    assert after["Relu"] <= before["Relu"] and after["Add"] <= before["Add"]


def test_a_chain_changes_the_order_only_for_its_heads(packed: Callable[[str], Path], tmp_path: Path) -> None:
    folder = packed("residual")
    tl.Engine(folder, cache=tmp_path / "cache")
    found = nodes(tmp_path / "cache")
    assert found["ReorderInput"] == 0 and found["ReorderOutput"] in (0, len(tl.Engine(folder, cache=False).members))
    assert found["Add"] == 0, "sums are computed along with convolutions, across the cut"


def test_sums_behind_a_padded_shortcut_stay_in_blocks(packed: Callable[[str], Path], tmp_path: Path) -> None:
    tl.Engine(packed("padded"), cache=tmp_path / "cache")
    found = nodes(tmp_path / "cache")
    if not found["ReorderOutput"]:
        pytest.skip("on this processor convolutions have no blocks")
    assert found["Pad"] == 1 and found["Add"] == 0 and found["ReorderInput"] == 1


# Which ends ----------------------------------------------------------------------------------------------------------


def manifest(chains: Mapping[str, tuple[Step, ...]], tensors: Mapping[str, tuple[int, ...]]) -> Manifest:
    members = tuple(
        Packed(Subnet(entry=number, exit=0, width=1), name, None, None, 1, 1, chain, chain[-1].outputs[0])
        for number, (name, chain) in enumerate(chains.items())
    )
    segments = {step.segment: f"{step.segment}.onnx" for chain in chains.values() for step in chain}
    constants = {"mean": Constant(0, (16,))}
    return Manifest(members, segments, {"input": (3, 8, 8), **tensors}, constants)


def test_ends_that_share_tensors_go_together() -> None:
    shared = Step("last", ("b",), ("logits",))
    found = manifest(
        {
            "deep": (Step("first", ("input",), ("a",)), Step("second", ("a", "mean"), ("b",)), shared),
            "shallow": (Step("adapter", ("input",), ("c",)), Step("last", ("c",), ("logits2",))),
        },
        {"a": (16, 8, 8), "b": (32, 4, 4), "c": (32, 4, 4), "logits": (5,), "logits2": (5,)},
    )
    assert {*joints(found)} == {
        frozenset({End("first", "out0"), End("second", "in0")}),
        frozenset({End("second", "out0"), End("adapter", "out0"), End("last", "in0")}),
    }


@pytest.mark.parametrize("shape", [(24, 4, 4), (16,), (16, 4), (16, 4, 4, 4)])
def test_only_feature_maps_of_whole_blocks(shape: tuple[int, ...]) -> None:
    chain = Step("first", ("input",), ("a",)), Step("second", ("a",), ("logits",))
    assert joints(manifest({"one": chain}, {"a": shape, "logits": (16, 1, 1)})) == []


def test_all_ends_of_a_set_or_none() -> None:
    chain = (
        Step("one", ("input",), ("a", "b")),
        Step("two", ("a", "b"), ("c",)),
        Step("three", ("c",), ("d",)),
        Step("four", ("d",), ("logits",)),
    )
    found = manifest({"it": chain}, {**dict.fromkeys("abcd", (16, 4, 4)), "logits": (5,)})
    costs = {("two", "in1"): -math.inf, ("three", "out0"): -1.0}  # d: saves at its reader, costs at its writer
    calls: list[tuple[str, tuple[str, ...]]] = []

    def optimise(segment: str, ends: frozenset[str]) -> dict[str, float]:
        calls.append((segment, tuple(sorted(ends))))
        return {end: costs.get((segment, end), 1.0) for end in ends}

    agree(found, optimise)
    first, again = calls[:4], calls[4:]
    assert sorted(first) == [
        ("four", ("in0",)),
        ("one", ("out0", "out1")),
        ("three", ("in0", "out0")),
        ("two", ("in0", "in1", "out0")),
    ]
    assert sorted(again) == [("four", ()), ("one", ("out0",)), ("three", ("in0",)), ("two", ("in0", "out0"))]


# Marks ---------------------------------------------------------------------------------------------------------------


def graph(*made: onnx.NodeProto) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 16, 4, 4)) for name in ("in0", "out0")]
    return helper.make_graph(list(made), "segment", values[:1], values[1:])


def in_blocks(kind: str, given: str, made: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, [given], [made], domain="com.microsoft.nchwc", **attributes)


def test_marks_are_cut_off_with_the_changes_beside_them() -> None:
    one = graph(
        in_blocks("ReorderInput", "in0", "a"),
        in_blocks("MaxPool", "a", "b", kernel_shape=[1, 1]),
        in_blocks("Conv", "b", "c"),
        in_blocks("MaxPool", "c", "d", kernel_shape=[1, 1], strides=[2, 2]),  # not a mark
        in_blocks("MaxPool", "d", "e", kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4),
        in_blocks("ReorderOutput", "e", "out0"),
    )
    assert cut(one, frozenset({"in0", "out0"})) == {"in0": 1, "out0": 1}
    assert [(node.op_type, *node.input, *node.output) for node in one.node] == [
        ("Conv", "in0", "c"),
        ("MaxPool", "c", "out0"),
    ]


def test_what_a_mark_costs_where_nothing_is_in_blocks() -> None:
    one = graph(
        in_blocks("ReorderInput", "in0", "a"),
        in_blocks("MaxPool", "a", "b", kernel_shape=[1, 1]),
        in_blocks("ReorderOutput", "b", "c"),
        helper.make_node("Softmax", ["c"], ["d"]),
        in_blocks("ReorderInput", "d", "e"),
        in_blocks("MaxPool", "e", "f", kernel_shape=[1, 1]),
        in_blocks("ReorderOutput", "f", "out0"),
    )
    assert cut(one, frozenset({"in0", "out0"})) == {"in0": -1, "out0": -1}
    assert [node.op_type for node in one.node] == ["ReorderOutput", "Softmax", "ReorderInput"]
    assert one.node[0].input[0] == "in0" and one.node[2].output[0] == "out0"


@pytest.mark.parametrize(
    "made",
    [
        (helper.make_node("MaxPool", ["in0"], ["a"], kernel_shape=[1, 1]), helper.make_node("Relu", ["a"], ["out0"])),
        (in_blocks("ReorderInput", "in0", "a"), in_blocks("Conv", "a", "b"), in_blocks("ReorderOutput", "b", "out0")),
        (  # read by two, one of which does not want blocks
            in_blocks("ReorderInput", "in0", "a"),
            in_blocks("MaxPool", "a", "b", kernel_shape=[1, 1]),
            helper.make_node("Add", ["in0", "b"], ["out0"]),
        ),
        (  # passed through
            in_blocks("ReorderInput", "in0", "a"),
            in_blocks("MaxPool", "a", "b", kernel_shape=[1, 1]),
            in_blocks("MaxPool", "b", "c", kernel_shape=[1, 1]),
            in_blocks("ReorderOutput", "c", "out0"),
        ),
    ],
)
def test_where_a_mark_is_not_as_expected_nothing_is_cut(made: tuple[onnx.NodeProto, ...]) -> None:
    one = graph(*made)
    before = one.SerializeToString()
    assert -math.inf in cut(one, frozenset({"in0", "out0"})).values()
    assert one.SerializeToString() == before


def test_marks_change_no_number() -> None:
    import onnxruntime

    conv = helper.make_node("Conv", ["in0", "w"], ["c"], kernel_shape=[1, 1])
    one = graph(conv, helper.make_node("Add", ["c", "in0"], ["out0"]))
    weight = np.random.default_rng(0).standard_normal((16, 16, 1, 1), np.float32)
    one.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    x, answers = np.random.default_rng(1).standard_normal((2, 16, 4, 4), np.float32), []
    for ends in ((), ("in0", "out0")):
        mark(one, frozenset(ends))
        model = helper.make_model(one, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"in0": x})[0])
    assert [node.op_type for node in one.node] == ["MaxPool", "Conv", "Add", "MaxPool"]
    np.testing.assert_allclose(*answers, rtol=1e-6, atol=1e-6)


def test_int8_segments_pass_plain_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = FAMILIES["residual"]().eval()
    folder = tl.pack(net, tmp_path / "pack", members="all", input_shape=IMAGE, int8=torch.randn(32, *IMAGE))
    wanted: dict[str, frozenset[str]] = {}

    def noted(found: Manifest, optimise: Callable[[str, frozenset[str]], Mapping[str, float]]) -> None:
        def one(segment: str, ends: frozenset[str]) -> Mapping[str, float]:
            wanted[segment] = ends
            return optimise(segment, ends)

        agree(found, one)

    monkeypatch.setattr(onnx_runtime, "agree", noted)
    engine, plain = tl.Engine(folder, cache=tmp_path / "cache"), tl.Engine(folder, cache=False)
    assert json.loads((folder / "manifest.json").read_text())["precision"] == "int8" and len(wanted) > 3
    assert set(wanted.values()) == {frozenset()}
    x = np.random.default_rng(0).standard_normal((3, *IMAGE), np.float32)
    for member in plain.members:
        mine, theirs = (each.run(x, subnet=member.subnet).logits for each in (engine, plain))
        np.testing.assert_array_equal(mine, theirs)
