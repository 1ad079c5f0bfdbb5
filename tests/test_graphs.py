"""What an engine refuses to open: graphs and manifests that are no pack's, each in little time and memory."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import telescopic as tl
from telescopic.engine import PackError
from telescopic.engine.graphs import OPERATORS

from packs import small_pack

SHAPE = (1, 6, 5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pack(tmp_path_factory.mktemp("packs") / "small.telescope", SHAPE)


@pytest.fixture
def pack(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "pack"))


def rewritten(pack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """With another manifest, whose checksums fit."""
    data = json.loads((pack / "manifest.json").read_text())
    change(data)
    for name, facts in data["files"].items():
        content = (pack / name).read_bytes()
        facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (pack / "manifest.json").write_text(json.dumps(data))


def with_graph(pack: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto | None]) -> None:
    """With another first segment."""
    file = pack / next(iter(json.loads((pack / "manifest.json").read_text())["segments"].values()))
    model = onnx.load(file, load_external_data=False)
    file.write_bytes((change(model) or model).SerializeToString())
    rewritten(pack, lambda data: None)


def front(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes before others."""
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    front(model, constant("yes", np.array(True)), helper.make_node("Loop", ["", "yes"], [], body=body))


def functions(model: onnx.ModelProto) -> None:
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for level in range(41):
        inner = [helper.make_node(f"f{level - 1}", ["x"], [name], domain="own") for name in ("a", "b")]
        nodes = [*inner, helper.make_node("Add", ["a", "b"], ["y"])] if level else [
            helper.make_node("Identity", ["x"], ["y"])
        ]  # fmt: skip
        model.functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    front(model, helper.make_node("f40", ["in0"], ["unused"], domain="own"))


def chain(model: onnx.ModelProto) -> None:
    names = ["in0", *(f"n{number}" for number in range(50_000))]
    front(model, *(helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)))


def of_nothing(model: onnx.ModelProto) -> None:
    size = constant("size", np.array([10**9]))
    front(model, size, helper.make_node("ConstantOfShape", ["size"], ["zeros"]))


def of_a_sum(model: onnx.ModelProto) -> None:
    """The size is computed."""
    parts = constant("size", np.array([10**5])), constant("more", np.array([10**5]))
    product = helper.make_node("Mul", ["size", "more"], ["many"])
    front(model, *parts, product, helper.make_node("ConstantOfShape", ["many"], ["zeros"]))


def of_data(model: onnx.ModelProto) -> None:
    nodes = helper.make_node("ReduceMax", ["in0"], ["most"], keepdims=0), constant("one", np.array([-1]))
    reshaped = helper.make_node("Reshape", ["most", "one"], ["flat"])
    cast = helper.make_node("Cast", ["flat"], ["size"], to=TensorProto.INT64)
    front(model, *nodes, reshaped, cast, helper.make_node("ConstantOfShape", ["size"], ["zeros"]))


def tiled(model: onnx.ModelProto) -> None:
    front(
        model, constant("times", np.array([1, 10**4, 10**4, 10**4])), helper.make_node("Tile", ["in0", "times"], ["t"])
    )


def counting(model: onnx.ModelProto, **numbers: object) -> onnx.NodeProto:
    """Numbers that a graph has, and the length of its input among them."""
    for name, value in {"place": 1, "one": 1, **numbers}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    front(
        model, helper.make_node("Shape", ["in0"], ["shape"]), helper.make_node("Gather", ["shape", "place"], ["last"])
    )
    return helper.make_node("Range", ["one", "limit", "one"], ["zeros"])


def counted(model: onnx.ModelProto) -> None:
    """A range whose end is computed from a size."""
    numbers = counting(model, big=10**12)
    model.graph.node.insert(2, helper.make_node("Mul", ["last", "big"], ["limit"]))
    model.graph.node.insert(3, numbers)


def crossed(model: onnx.ModelProto) -> None:
    """Sums of numbers put beside each other, many times, none of which is a size."""
    numbers = counting(model, row=np.ones((1, 4000)), column=np.ones((4000, 1)), limit=5)
    squares = [helper.make_node("Add", ["row", "column"], [f"square{i}"]) for i in range(2100)]
    for node in (*squares, numbers):
        model.graph.node.insert(2, node)


def of_the_batch(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Nodes that compute `size` from the batch, which is one example here, and as many numbers of nothing."""
    for name, value in {"first": 0, "one": 1, "two": 2, "seven": 7, "far": 2**16 + 1, "huge": 2**20}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 1, 2**40]), "table"))
    shape = helper.make_node("Shape", ["in0"], ["shape"]), helper.make_node("Gather", ["shape", "first"], ["batch"])
    front(model, *shape, *nodes, helper.make_node("ConstantOfShape", ["size"], ["zeros"]))


def of_more_than_one(model: onnx.ModelProto) -> None:
    """One number for one example, a million for two."""
    less = helper.make_node("Sub", ["batch", "one"], ["less"])
    many = helper.make_node("Mul", ["less", "huge"], ["many"])
    of_the_batch(model, less, many, helper.make_node("Add", ["many", "one"], ["size"]))


def of_other_batches(model: onnx.ModelProto) -> None:
    """One number for each of the batches that are looked at, and many for any other."""
    nodes = [helper.make_node("Sub", ["batch", of], [f"less{of}"]) for of in ("one", "two", "far")]
    nodes.append(helper.make_node("Mul", ["lessone", "lesstwo"], ["part"]))
    nodes.append(helper.make_node("Mul", ["part", "lessfar"], ["whole"]))
    of_the_batch(model, *nodes, helper.make_node("Add", ["whole", "one"], ["size"]))


def of_sevenths(model: onnx.ModelProto) -> None:
    """Nothing is left of less than seven."""
    parts = helper.make_node("Div", ["batch", "seven"], ["part"]), helper.make_node("Mul", ["part", "huge"], ["many"])
    of_the_batch(model, *parts, helper.make_node("Add", ["many", "one"], ["size"]))


def of_a_table(model: onnx.ModelProto) -> None:
    of_the_batch(model, helper.make_node("Gather", ["table", "batch"], ["size"]))


def of_a_place(model: onnx.ModelProto) -> None:
    """Which numbers are taken depends on the batch."""
    of_the_batch(model, helper.make_node("Slice", ["table", "batch", "two"], ["size"]))


def squared(model: onnx.ModelProto) -> None:
    """As many numbers as there are pairs of examples, and a few million."""
    wide = helper.make_node("ConstantOfShape", ["size"], ["row"]), helper.make_node("Transpose", ["row"], ["column"])
    square = helper.make_node("MatMul", ["column", "row"], ["square"])
    of_the_batch(model, helper.make_node("Concat", ["one", "batch"], ["size"], axis=0), *wide, square)


def past_each_other(model: onnx.ModelProto) -> None:
    """A range of one number for each of the batches that are looked at, and of 14 million for 17 examples."""
    for name, value in {"three": 3, "nothing": 0, "most": 2**21 * 17 - 1, "many": 2**20, "more": 2**21}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes = [
        helper.make_node("Shape", ["in0"], ["shape"]),
        helper.make_node("Gather", ["shape", "nothing"], ["batch"]),
        helper.make_node("Sub", ["batch", "three"], ["less"]),
        helper.make_node("Mul", ["less", "many"], ["limit"]),
        helper.make_node("Mul", ["batch", "more"], ["twice"]),
        helper.make_node("Sub", ["twice", "most"], ["step"]),
        helper.make_node("Range", ["nothing", "limit", "step"], ["zeros"]),
    ]
    front(model, *nodes)


def backwards(model: onnx.ModelProto) -> None:
    """One number from behind for each of the batches that are looked at, and 8000 for 16 examples."""
    for name, value in {"long": 2**13, "back": -1, "fifteen": 15, "last": 2**13 - 2, "of": 0}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    nodes = [
        helper.make_node("ConstantOfShape", ["long"], ["row"]),
        helper.make_node("Sub", ["batch", "fifteen"], ["later"]),
        helper.make_node("Mul", ["later", "long"], ["start"]),
        helper.make_node("Sub", ["batch", "far"], ["less"]),
        helper.make_node("Mul", ["less", "long"], ["lower"]),
        helper.make_node("Add", ["lower", "last"], ["end"]),
        helper.make_node("Slice", ["row", "start", "end", "of", "back"], ["part"]),
        helper.make_node("Mul", ["one", "one"], ["size"]),
    ]
    of_the_batch(model, *nodes)


def from_behind(model: onnx.ModelProto) -> None:
    """One number for each of the batches that are looked at, and 131069 for three: there the end counts from behind."""
    wide = {"width": [65535], "start": [65534], "turn": [196609], "down": [-65537], "of": [0]}
    for name, value in wide.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes = [
        helper.make_node("Mul", ["batch", "width"], ["length"]),
        helper.make_node("ConstantOfShape", ["length"], ["row"]),
        helper.make_node("Mul", ["batch", "down"], ["lower"]),
        helper.make_node("Add", ["lower", "turn"], ["end"]),
        helper.make_node("Slice", ["row", "start", "end", "of"], ["part"]),
        helper.make_node("Mul", ["one", "one"], ["size"]),
    ]
    of_the_batch(model, *nodes)


def every_second(model: onnx.ModelProto) -> None:
    """One example of one, two and 65 537, and 16 of 32: the first grow, and the last shrink."""
    for name, value in {"from": -32769, "to": 32769, "of": 0, "second": 2}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    front(model, helper.make_node("Slice", ["in0", "from", "to", "of", "second"], ["some"]))


def behind_the_first(model: onnx.ModelProto) -> None:
    """Examples behind the 100 000th; none of few."""
    for name, value in {"many": 100_000, "end": 2**62, "zero": 0}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    front(model, helper.make_node("Slice", ["in0", "many", "end", "zero"], ["rest"]))


def weights(model: onnx.ModelProto, length: int) -> None:
    """So many numbers, said to lie in the pack's own file."""
    tensor = model.graph.initializer.add(name="wide", data_type=TensorProto.FLOAT, dims=[length])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    for name, value in {"from": 0, "behind": length + 5, "to": length + 9, "of": 0}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))


def cut_often(model: onnx.ModelProto) -> None:
    """Narrow weights are cut out of wide ones: as a tensor each, which is not in the file."""
    weights(model, 2**24)
    front(model, *(helper.make_node("Slice", ["wide", "from", "to", "of"], [f"part{i}"]) for i in range(17)))


def cut_behind_the_end(model: onnx.ModelProto) -> None:
    weights(model, 16)
    front(model, helper.make_node("Slice", ["wide", "behind", "to", "of"], ["nothing"]))


def cut_by_data(model: onnx.ModelProto) -> None:
    """How much is cut depends on the input."""
    weights(model, 16)
    most = helper.make_node("ReduceMax", ["in0"], ["most"], keepdims=0)
    flat = helper.make_node("Reshape", ["most", "one"], ["flat"])
    end = helper.make_node("Cast", ["flat"], ["end"], to=TensorProto.INT64)
    cut = helper.make_node("Slice", ["wide", "from", "end", "of"], ["narrow"])
    front(model, constant("one", np.array([1])), most, flat, end, cut)


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add(name="stolen", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "card.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)


def behind(model: onnx.ModelProto) -> None:
    elsewhere(model)
    places = {entry.key: entry for entry in model.graph.initializer[-1].external_data}
    places["location"].value, places["offset"].value = "weights.bin", str(10**12)


def without_inputs(model: onnx.ModelProto) -> None:
    del model.graph.input[:]


def other_type(model: onnx.ModelProto) -> None:
    front(model, helper.make_node("Cast", ["in0"], ["whole"], to=TensorProto.INT64))
    name = model.graph.output[0].name
    last = next(node for node in model.graph.node if name in node.output)
    last.output[list(last.output).index(name)] = "float"
    model.graph.node.append(helper.make_node("Cast", ["float"], [name], to=TensorProto.INT64))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64


def other_shape(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    last = next(node for node in model.graph.node if name in node.output)
    last.output[list(last.output).index(name)] = "narrow"
    model.graph.node.append(helper.make_node("Concat", ["narrow", "narrow"], [name], axis=1))


def custom(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    front(model, helper.make_node("Gelu", ["in0"], ["unused"], domain="com.microsoft"))


GRAPHS: dict[Callable[[onnx.ModelProto], None], str] = {
    loop: "operator 'Loop'",
    functions: "functions",
    chain: "more than 10,000 nodes",
    of_nothing: r"'zeros' is of shape \[1000000000\]",
    of_a_sum: r"'zeros' is of shape|size of 'zeros' does not follow",
    of_data: "size of 'zeros' does not follow",
    tiled: "'t' is of shape",
    counted: "'zeros' is of shape|size of 'zeros' does not follow",
    crossed: "do not follow within 2000 computations",
    of_more_than_one: r"of shape \[1\] for one example, and \[1048577\] for two",
    of_other_batches: "the size of 'zeros'",
    of_sevenths: "the size of 'zeros'",
    of_a_table: "the size of 'zeros'",
    of_a_place: "the size of 'zeros'",
    squared: r"'square' is of shape \[1, 1\] for one example, and \[2, 2\] for two",
    past_each_other: "what Range makes depends on the number of examples",
    backwards: "what Slice makes depends on the number of examples",
    from_behind: "what Slice makes depends on the number of examples",
    every_second: "what Slice makes depends on the number of examples",
    behind_the_first: r"'rest' is of shape \[0, 1, 6, 5\] for one example",
    cut_often: "all of at most 268,435,456 numbers",
    cut_behind_the_end: r"'nothing' is of shape \[0\]",
    cut_by_data: "not bounded|does not follow",
    elsewhere: "lie in 'card.bin', not in weights.bin",
    behind: "end behind the end of weights.bin",
    without_inputs: r"its inputs are \[\], and the manifest says 1",
    other_type: "out0 is not of the type and shape",
    other_shape: "out0 is not of the type and shape|do not follow",
    custom: "domain 'com.microsoft'",
}


@pytest.mark.parametrize("change", GRAPHS, ids=lambda change: change.__name__)
def test_graphs_that_are_no_packs(pack: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    (pack / "card.bin").write_bytes(b"x" * 16)  # a file that the manifest does not list
    with_graph(pack, change)
    began = time.process_time()
    with pytest.raises(PackError, match=GRAPHS[change]):
        tl.Engine(pack, cache=False)
    assert time.process_time() - began < 5  # onnx is loaded in it, too


def test_a_graph_that_is_long_or_torn(pack: Path) -> None:
    file = pack / next(iter(json.loads((pack / "manifest.json").read_text())["segments"].values()))
    for content, reason in ((b"\x3a\x00" * 2**22, "more than 4,194,304 bytes"), (file.read_bytes()[:-7], "cannot be")):
        file.write_bytes(content)
        rewritten(pack, lambda data: None)
        with pytest.raises(PackError, match=reason):
            tl.Engine(pack, cache=False)


def put(*path: str | int) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def to(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(data: dict[str, Any]) -> None:
            held: Any = data
            for key in path[:-1]:
                held = held[key]
            held[path[-1]] = value

        return change

    return to


MANIFESTS = {
    "mean 10**400": put("preprocess", "mean")([10**400]),
    "mean of lists": put("preprocess", "mean")([[1, 2]]),
    "mean NaN": put("preprocess", "mean")([float("nan")]),
    "std of nearly nothing": put("preprocess", "std")([1e-300]),
    "no mean": put("preprocess", "mean")([]),
    "huge input": put("tensors", "input")([2**31]),
    "large input": put("tensors", "input")([2**13, 2**13]),
    "input of nothing": put("tensors", "input")([0]),
    "step without inputs": put("members", 0, "chain", 0, "inputs")([]),
    "a path": put("segments", "x")("../x.onnx"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_contradict_themselves(pack: Path, case: str) -> None:
    rewritten(pack, MANIFESTS[case])
    with pytest.raises(PackError):
        tl.Engine(pack, cache=False)


def test_manifests_of_many_values_are_not_made(pack: Path) -> None:
    for text in (b'{"":0}' + b',{"":0}' * 1_000_000, b"[" * 3000, b" " * 2**23 + b"{}"):
        (pack / "manifest.json").write_bytes(b'{"format": 1, "members": [' + text + b"]}")
        with pytest.raises(PackError, match=r"allowed|nested too deeply|more than 8388608 bytes"):
            tl.Engine(pack, cache=False)


def test_what_packs_have_may_be_there(packed: Callable[[str], Path]) -> None:
    for name in ("residual", "padded", "entries with statistics of their own", "widths"):
        engine = tl.Engine(packed(name), cache=False)
        assert np.isfinite(engine.run(np.zeros((3, *engine.input_shape), np.float32)).logits).all()
    assert not OPERATORS & {"Loop", "If", "Scan", "SequenceMap", "RandomNormal", "NonZero", "Unique", "Compress"}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gru(x)[0]
        return out


def test_sizes_that_are_computed_from_sizes_are_known(tmp_path: Path) -> None:
    # Zeros to begin with, and places that slide over an image, are as many as the exported graph computes.
    blocks = [
        nn.Sequential(nn.Unfold(3, padding=1), nn.Conv1d(9, 5, 1)),
        Recurrent(),
        nn.Sequential(nn.Flatten(), nn.Linear(20, 3)),
    ]
    blocks[0].append(nn.Linear(12, 4))
    net = tl.nest(blocks, exits=[0, 1], input_shape=(1, 3, 4)).eval()
    folder = tl.pack(net, tmp_path / "own.telescope", members="all", input_shape=(1, 3, 4))
    engine, x = tl.Engine(folder, cache=False), torch.randn(5, 1, 3, 4)
    for member in net.grid:
        with torch.inference_mode():
            wanted = net(x, member).numpy()
        np.testing.assert_allclose(engine.run(x.numpy(), subnet=member).logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_file_of_weights_that_was_cut_is_prepared_anew_or_said(whole: Path, pack: Path, tmp_path: Path) -> None:
    # ONNX Runtime maps what is prepared: reading behind the end of such a file would kill the process.
    x = np.ones((1, *SHAPE), np.float32)
    expected = tl.Engine(pack, cache=tmp_path / "cache").run(x).logits
    for file in (tmp_path / "cache").rglob("*.bin"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert np.array_equal(tl.Engine(pack, cache=tmp_path / "cache", verify=False).run(x).logits, expected)
    weights = pack / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(PackError, match="another size"):
        tl.Engine(pack, cache=False, verify=False)
