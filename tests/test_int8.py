import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.data import Dataset, Split
from telescopic.engine.manifest import MANIFEST, WEIGHTS, Manifest, PackError
from telescopic.packing import images, judging, quantise
from telescopic.papers import cnsn
from telescopic.quantities import human
from telescopic.subnet import Subnet

IMAGE = (3, 16, 16)


def seen(net: tl.Nested, shape: tuple[int, ...]) -> tl.Nested:
    """With BatchNorm that has seen what it will see, of every entry."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()
    with torch.no_grad():
        net.all(torch.randn(64, *shape))
    return net.eval()


def mlp() -> tl.Nested:
    return tl.networks.mlp(48, (40, 40), 5).eval()


def vgg() -> tl.Nested:
    return seen(cnsn.network(scale=0.125, statistics="per-entry"), (3, 32, 32))


def resnet() -> tl.Nested:
    return seen(tl.networks.causal_resnet(2, (16, 32), blocks=1), IMAGE)


FAMILIES = {
    "mlp": (mlp, (48,), "all"),
    "vgg": (vgg, (3, 32, 32), [Subnet(entry=2), Subnet(entry=0)]),
    "resnet": (resnet, IMAGE, [Subnet(exit=0, width=1), Subnet(exit=1, width=1), Subnet(exit=1, width=2)]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    make, shape, members = FAMILIES[request.param]
    torch.manual_seed(0)
    net = make()
    x = torch.randn(48, *shape)
    folder = tmp_path_factory.mktemp("packs") / "int8"
    tl.pack(net, folder, members=members, input_shape=shape, int8=x)
    return request.param, net, folder, x


def graphs(folder: Path) -> dict[str, onnx.ModelProto]:
    """The graph of each segment, its weights in it."""
    made = Manifest.from_json((folder / MANIFEST).read_text())
    return {name: onnx.load(folder / file) for name, file in made.segments.items()}


def apart(ours: np.ndarray, theirs: torch.Tensor) -> float:
    return float(np.sqrt(np.square(ours - theirs.numpy()).mean() / np.square(theirs.numpy()).mean()))


def test_every_member_answers_almost_as_in_float32(packed) -> None:
    name, net, folder, x = packed
    engine = tl.Engine(folder, cache=False)
    assert engine.precision == "int8"
    # A random network of 13 layers makes more of small errors than a trained one.
    allowed = 0.25 if name == "vgg" else 0.05
    other = torch.randn(48, *x.shape[1:])  # which was not calibrated on
    for inputs in (x, other):
        for member in engine.members:
            with torch.no_grad():
                expected = net(inputs, member.subnet)
            answer = engine.run(inputs.numpy(), subnet=member.subnet).logits
            assert 0 < apart(answer, expected) < allowed, member.label
            # of what is left of an image's own answer when the mean answer is taken away
            assert apart(answer - answer.mean(0), expected - expected.mean(0)) < 4 * allowed, member.label


def test_weights_are_int8_and_there_once(packed) -> None:
    _, net, folder, _ = packed
    stored: list[bytes] = []
    for graph in graphs(folder).values():
        onnx.checker.check_model(graph)
        made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        for node in graph.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                weight = next(n for n in graph.graph.node if n.output[0] == node.input[1])
                assert weight.op_type == "DequantizeLinear"
                values, scales = made[weight.input[0]], made[weight.input[1]]
                assert values.dtype == np.int8
                assert 2 * 255 * np.abs(values.astype(int)).max() < 2**15  # what x86 without VNNI adds in 16 bits
                channels = values.shape[next(a.i for a in weight.attribute if a.name == "axis")]
                assert scales.shape == (channels,)  # each channel has its own
                stored.append(values.tobytes())
        floats = [value for value in made.values() if value.dtype == np.float32]
        assert not [value.shape for value in floats if value.ndim > 1]  # no weight is left behind
    assert len(set(stored)) == len(stored)
    assert (folder / WEIGHTS).stat().st_size < sum(tensor.nbytes for tensor in net.parameters()) / 4 * 1.25 + 4096


def test_onnx_runtime_computes_products_in_int8(packed, tmp_path: Path) -> None:
    name, _, folder, _ = packed
    made = Manifest.from_json((folder / MANIFEST).read_text())
    found: set[str] = set()
    for file in made.segments.values():
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / file), 3
        onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
        found |= {node.op_type for node in onnx.load(tmp_path / file, load_external_data=False).graph.node}
    assert not found & {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    assert found >= {"QGemm"} | ({"QLinearConv"} if name != "mlp" else set())
    if name == "resnet":  # feature maps are added and joined as they are; the logits of widths are added in float32
        assert found >= {"QLinearAdd", "QLinearConcat", "Add"}


def test_statistics_of_entries_stay_as_they_were(packed) -> None:
    name, net, folder, _ = packed
    made = Manifest.from_json((folder / MANIFEST).read_text())
    data = (folder / WEIGHTS).read_bytes()
    for constant in made.constants.values():
        value = np.frombuffer(data, np.float32, math.prod(constant.shape), constant.offset)
        assert sum(np.array_equal(value, buffer.numpy()) for buffer in net.buffers()) == 1
    # mean and variance of 11 layers for each of two entries, of which those without another entry are folded
    assert len(made.constants) == (44 if name == "vgg" else 0)


def test_copies_of_stages_differ_in_their_scales_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def block(given: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(given, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    entries = {0: nn.Identity(), 1: nn.Conv2d(3, 16, 1)}
    net = seen(tl.Nested([block(3), block(16)], entries, {1: head}, statistics="per-entry"), (3, 8, 8))
    x = torch.randn(32, 3, 8, 8)
    folder = tl.pack(net, tmp_path / "int8", members="all", input_shape=(3, 8, 8), fold_bn=True, int8=x)
    engine = tl.Engine(folder, cache=False)
    for member in engine.members:
        with torch.no_grad():
            expected = net(x, member.subnet)
        assert 0 < apart(engine.run(x.numpy(), subnet=member.subnet).logits, expected) < 0.05
    weights, scales = [], []
    for graph in graphs(folder).values():
        made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        weights += [value for value in made.values() if value.shape == (16, 16, 3, 3)]
        scales += [made[name.replace("_quantized", "_scale")] for name in made if made[name].shape == (16, 16, 3, 3)]
    assert len(weights) == 2 and np.abs(weights[0].astype(int) - weights[1]).max() <= 1
    assert not np.allclose(*scales, rtol=0.01)


def test_shared_segments_are_calibrated_on_all_members(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = mlp()
    with torch.no_grad():  # what enters behind the first stage is far larger than what that stage gives
        net.stages[0][0].weight.mul_(0.02)
        net.stages[0][0].bias.zero_()
    x = 3 * torch.randn(70, 48)
    net.entries["1"] = nn.Sequential(nn.Linear(48, 40)).eval()
    shared = []
    with torch.no_grad():
        for member in (Subnet(entry=0), Subnet(entry=1)):
            (_, adapter), *stages = net.path(net.grid.resolve(member))
            features = adapter(x)
            for name, stage in stages:
                if name == "stages.1":
                    shared.append(features)
                features = stage(features)
    largest, other = (float(max(f.max(), 0) - min(f.min(), 0)) for f in shared)
    assert other > 20 * largest
    folder = tl.pack(net, tmp_path / "int8", members=[Subnet(entry=0), Subnet(entry=1)], input_shape=(48,), int8=x)
    graph = graphs(folder)["stages.1"].graph
    scale = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "in0_scale")
    both = torch.cat([features[torch.arange(70) % 4 != 3] for features in shared])  # the others judge
    assert float(scale) == pytest.approx(float(both.max() - both.min()) / 255, rel=1e-5)
    engine = tl.Engine(folder, cache=False)
    with torch.no_grad():
        expected = net(x, Subnet(entry=1))
    assert apart(engine.run(x.numpy(), subnet=Subnet(entry=1)).logits, expected) < 0.05


def test_feature_maps_are_passed_on_as_uint8_with_one_scale(packed) -> None:
    name, _, folder, x = packed
    manifest, found = Manifest.from_json((folder / MANIFEST).read_text()), graphs(folder)
    scales: dict[str, set[float]] = {}
    for member in manifest.members:
        for step in member.chain:
            graph = found[step.segment].graph
            made = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
            for kind, tensors, values in (("in", step.inputs, graph.input), ("out", step.outputs, graph.output)):
                for number, tensor in enumerate(tensors):
                    (value,) = (one for one in values if one.name == f"{kind}{number}")
                    is_uint8 = value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
                    assert is_uint8 == (tensor in manifest.uint8), (step.segment, tensor)
                    beside = [node for node in graph.node if value.name in (*node.input, *node.output)]
                    if is_uint8:
                        assert {node.op_type for node in beside} <= {"QuantizeLinear", "DequantizeLinear"}
                        scales.setdefault(tensor, set()).update(float(made[node.input[1]]) for node in beside)
    assert all(len(one) == 1 for one in scales.values()) and scales.keys() == {*manifest.uint8}
    features = {tensor for tensor, shape in manifest.tensors.items() if len(shape) == 3 and tensor != "input"}
    if name == "resnet":
        assert {*manifest.uint8} == features and len(features) > 3
    engine = tl.Engine(folder, cache=False)
    engine.run(x.numpy())
    lane = engine._runner.lanes.take(len(x))
    assert {tensor for tensor, array in lane._arrays.items() if array.dtype == np.uint8} == {*manifest.uint8}


def test_what_has_another_scale_is_passed_on_as_float32(tmp_path: Path) -> None:
    # A pooling has the scale of what it reads, and the adapter gives more than that.
    torch.manual_seed(0)
    adapter = nn.Sequential(nn.Conv2d(3, 16, 1), nn.AvgPool2d(2))
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    last = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    net = tl.Nested([first, last], {0: nn.Identity(), 1: adapter}, {1: head}).eval()
    x = torch.randn(32, *IMAGE)
    folder = tl.pack(net, tmp_path / "int8", members="all", input_shape=IMAGE, int8=x)
    assert Manifest.from_json((folder / MANIFEST).read_text()).uint8 == frozenset()
    engine = tl.Engine(folder, cache=False)
    for member in engine.members:
        with torch.no_grad():
            expected = net(x, member.subnet)
        assert 0 < apart(engine.run(x.numpy(), subnet=member.subnet).logits, expected) < 0.05


def test_of_two_names_for_one_tensor_neither_becomes_uint8() -> None:
    make = onnx.helper.make_node
    scale, zero = (onnx.numpy_helper.from_array(v, n) for v, n in ((np.float32(0.5), "s"), (np.uint8(3), "z")))
    nodes = [
        make("QuantizeLinear", ["in0", "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["out0"]),
        make("DequantizeLinear", ["q", "s", "z"], ["inside"]),
    ]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("in0", "out0", "out1")]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [scale, zero])
    assert quantise._scales(graph, "in0") == quantise._scales(graph, "out0") == [(0.5, 3)]
    assert quantise._scales(graph, "out1") == [None], "which nothing quantises"
    graph.node.append(make("DequantizeLinear", ["q", "s", "z"], ["out1"]))
    assert quantise._scales(graph, "out0") == quantise._scales(graph, "out1") == [None]


def small_data(shape: tuple[int, int, int] = (1, 4, 12)) -> Dataset:
    """Noise, of which no image is alike, so that a network that is not sure changes its mind in int8."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for number in (300, 130, 210):
        images = torch.randint(256, (number, *shape), generator=generator).to(torch.uint8)
        splits.append(Split(images, torch.randint(5, (number,), generator=generator)))
    return Dataset("noise", *splits, classes=tuple("abcde"), source="")


def unsure() -> tl.Nested:
    """Its logits are close to each other."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU()), nn.Sequential(nn.Linear(40, 40), nn.ReLU())]
    net = tl.Nested(
        stages, {0: nn.Identity(), 1: nn.Sequential(nn.Flatten(), nn.Linear(48, 40))}, {1: nn.Linear(40, 5)}
    )
    with torch.no_grad():
        net.exits["1"].weight.copy_(net.exits["1"].weight.mean(0) + 0.01 * torch.randn(5, 40))
        net.exits["1"].bias.zero_()
    return net.eval()


def counted(engine: tl.Engine, split: Split, prepare: tl.Preprocess) -> list[float]:
    found = []
    for member in engine.members:
        logits = [engine.run(prepare(image[None]).numpy(), subnet=member.subnet).logits for image in split.images]
        found.append(sum(int(np.concatenate(logits)[i].argmax()) == label for i, label in enumerate(split.labels)))
    return [number / len(split) for number in found]


def test_accuracy_is_counted_anew(tmp_path: Path) -> None:
    net, data, prepare = unsure(), small_data(), tl.Preprocess((0.4,), (0.3,))
    catalogue = tl.measure(net, data, preprocess=prepare)
    told: list[tuple[str, int, int]] = []
    folder = tl.pack(
        net,
        tmp_path / "int8",
        members="all",
        catalogue=catalogue,
        preprocess=prepare,
        int8=data,
        progress=lambda *done: told.append(done),
    )
    engine = tl.Engine(folder, cache=False)
    assert [m.accuracy for m in engine.members] == counted(engine, data.validation, prepare)
    assert [m.float_accuracy for m in engine.members] == [m.accuracy for m in catalogue]
    assert [m.accuracy for m in engine.members] != [m.float_accuracy for m in engine.members]
    assert [m.test_accuracy for m in engine.members] == counted(engine, data.test, prepare)
    assert [m.float_test_accuracy for m in engine.members] == [m.test_accuracy for m in catalogue]
    assert engine.run(data.test.images[:2].numpy()).accuracy == engine.members[-1].accuracy
    assert {what: of for what, _, of in told} == {
        "writing": len(graphs(folder)),
        "calibrating": 3,  # 150 of 300 images: every second one
        "quantising": len(graphs(folder)),
        "judging": len(engine.members),
        "counting": 210,
    }
    text = (folder / "README.md").read_text()
    first = engine.members[0]
    assert f"| {first.label} | {human(first.accuracy, '%')} | {human(first.float_accuracy, '%')} |" in text
    assert "became int8, calibrated on 150 training images of noise" in text


def test_without_a_catalogue_float32_is_counted_too(tmp_path: Path) -> None:
    net, data = unsure(), small_data()
    engine = tl.Engine(tl.pack(net, tmp_path / "int8", input_shape=data.input_shape, int8=data), cache=False)
    known = tl.measure(net, data)
    assert [m.float_accuracy for m in engine.members] == [m.accuracy for m in known]
    assert [m.accuracy for m in engine.members] == counted(engine, data.validation, tl.Preprocess())
    assert {m.test_accuracy for m in engine.members} == {None}


def test_of_inputs_alone_no_accuracy_is_known(tmp_path: Path) -> None:
    net, data = unsure(), small_data()
    x = data.train.images[:9] / 255
    folder = tl.pack(net, tmp_path / "int8", catalogue=tl.measure(net, data), members="all", int8=x)
    members = tl.Engine(folder, cache=False).members
    assert {member.accuracy for member in members} == {None} != {member.float_accuracy for member in members}
    assert "calibrated on 7 inputs" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack that nobody changes."""
    return tl.pack(mlp(), tmp_path_factory.mktemp("small") / "int8", input_shape=(48,), int8=torch.randn(8, 48))


def test_what_does_not_fit_is_refused_and_nothing_is_lost(small: Path, tmp_path: Path) -> None:
    net, x = mlp(), torch.randn(8, 48)
    to = Path(shutil.copytree(small, tmp_path / "pack"))
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    infinite = x.clone()
    infinite[3, 4] = torch.inf
    for given, message in (
        ("yes", r"int8 takes a data set, or inputs float32 \[batch, 48\], not a str"),
        (x.double(), r"inputs float32 \[batch, 48\], not torch.float64 \[8, 48\]"),
        (x[:, :7], r"not torch.float32 \[8, 7\]"),
        (x[:0], r"not torch.float32 \[0, 48\]"),
        (small_data(), r"int8 takes images \[batch, 48\], and those of noise are \[1, 4, 12\]"),
        (infinite, "takes inputs of finite numbers, and 1 of 8 have NaN or infinity"),
        (x[:1], "takes 2 inputs or more, some to calibrate on and others to judge by, not 1"),
        (torch.zeros(8, 48), "such as the network will see, and these 8 are 0 everywhere"),
        (x[:1].repeat(8, 1), "these 8 are all alike"),
    ):
        with pytest.raises(PackError, match=message):
            tl.pack(net, to, input_shape=(48,), int8=given, replace=True)
    with pytest.raises(PackError, match="max_loss is a fraction of the examples, from 0 to 1, not 2"):
        tl.pack(net, to, input_shape=(48,), int8=x, max_loss=2, replace=True)
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["pack"]
    tl.pack(net, to, input_shape=(48,), int8=x, replace=True)
    assert tl.Engine(to, cache=False).precision == "int8" and (to / WEIGHTS).read_bytes() != before[WEIGHTS]


def test_a_far_input_does_not_take_the_scale(tmp_path: Path) -> None:
    # 64 inputs, of which one has one number that is thousands of times as large as any other.
    net, x = mlp(), torch.randn(64, 48)
    x[5, 7] = 10_000
    with pytest.warns(UserWarning, match=r"1 of 64 go further than 4 times as far as most: up to 1e\+04"):
        folder = tl.pack(net, tmp_path / "int8", members="all", input_shape=(48,), int8=x)
    engine, others = tl.Engine(folder, cache=False), torch.randn(200, 48)
    for member in engine.members:
        with torch.no_grad():
            expected = net(others, member.subnet)
        ours = engine.run(others.numpy(), subnet=member.subnet).logits
        assert apart(ours, expected) < 0.05, member.label
        assert (ours.argmax(1) == expected.numpy().argmax(1)).mean() > 0.9


def test_of_each_step_its_own_far_examples_are_left_out() -> None:
    lows, highs = np.array([-1, -3, 0, -900, -2], np.float32), np.array([5, 4, 16, 6, 5.5], np.float32)
    assert quantise._usual(lows, highs) == (-3, 16), "16 is not 4 times as far as 5.5"
    assert quantise._usual(lows[:0:-1], -highs[:0:-1])[1] == -4
    dead = np.array([0, 0, 0, 0, 2, 3], np.float32)
    assert quantise._usual(np.zeros(6, np.float32), dead) == (0, 3), "most are dead, and what is alive counts"
    assert quantise._usual(dead[:3], dead[:3]) == (0, 0)


def test_a_broken_member_is_refused_and_nothing_is_lost(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if ranges had been found in inputs that are nothing like the network's.
    net, data = tl.networks.mlp(48, (40, 40), 5).eval(), small_data()
    x = data.train.images[:40].flatten(1) / 255 - 0.5
    to = Path(shutil.copytree(small, tmp_path / "pack"))
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    right = quantise._usual
    monkeypatch.setattr(quantise, "_usual", lambda lows, highs: tuple(1000 * end for end in right(lows, highs)))
    with pytest.raises(
        PackError, match=r"max_loss=0.02 allows: entry=\d: \d+ of 10 examples .* the median error is \d+"
    ):
        tl.pack(net, to, input_shape=(48,), int8=x, members="all", replace=True)
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["pack"]
    tl.pack(net, to, input_shape=(48,), int8=x, members="all", max_loss=1, replace=True)
    assert tl.Engine(to, cache=False).precision == "int8" and (to / WEIGHTS).read_bytes() != before[WEIGHTS]
    assert "| same class |" in (to / "README.md").read_text()


def test_what_is_lost_is_counted_in_examples() -> None:
    def verdict(examples: int, changed: int, right: tuple[int, int] | None, error: float = 0.1) -> judging.Verdict:
        return judging.Verdict("m", examples, 1 - changed / examples, error, right)

    assert verdict(1000, 100, (900, 860)).holds(0.02), "20, and 20 more by chance"
    assert not verdict(1000, 100, (900, 859)).holds(0.02)
    assert verdict(1000, 400, (100, 140)).holds(0.0), "more are right than before"
    assert verdict(1000, 120, None).holds(0.02) and not verdict(1000, 123, None).holds(0.02)
    assert not verdict(1000, 0, None, error=0.51).holds(0.02) and verdict(1000, 900, None, error=3).holds(1)
    assert "37 of 1000 examples held out have another class" in str(verdict(1000, 37, (900, 880)))
    assert "880 are right instead of 900" in str(verdict(1000, 37, (900, 880)))


def test_members_are_judged_by_images_that_were_not_calibrated_on(tmp_path: Path) -> None:
    net, data, prepare = unsure(), small_data(), tl.Preprocess((0.5,), (0.3,))
    folder = tl.pack(
        net, tmp_path / "int8", members="all", input_shape=data.input_shape, preprocess=prepare, int8=data, max_loss=1
    )
    engine, x, lines = (
        tl.Engine(folder, cache=False),
        prepare(data.validation.images),
        (folder / "README.md").read_text(),
    )
    for member in engine.members:
        with torch.no_grad():
            expected = net(x, member.subnet).numpy()
        logits = engine.run(x.numpy(), subnet=member.subnet).logits
        same = float((logits.argmax(1) == expected.argmax(1)).mean())
        errors = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
        (row,) = (
            line for line in lines.split("median error")[1].splitlines() if line.startswith(f"| {member.label} |")
        )
        right = [int((one.argmax(1) == data.validation.labels.numpy()).sum()) for one in (logits, expected)]
        cells = [member.label, human(same, "%"), human(float(np.median(errors)), "%"), *map(str, right)]
        assert row == f"| {' | '.join(cells)} |"
    assert same < 1
    few = Dataset("few", data.train, Split(data.train.images[:0], data.train.labels[:0]), data.test, data.classes, "")
    made = images.Images.of(few, data.input_shape, prepare)
    both = torch.cat([made.inputs, made.held_out])
    assert len(made.inputs) == len(made.held_out) == 150 and len(both.flatten(1).unique(dim=0)) == 300


def test_inputs_that_are_not_like_the_network_s_are_told(tmp_path: Path) -> None:
    data, prepare = small_data(), tl.Preprocess((0.5,), (0.25,))
    pixels, shape = data.train.images[:20].float(), data.input_shape
    with pytest.raises(
        ValueError, match=r"from -2 to 2, and most of these go from 0 to 255: prepare them with Preproc"
    ):
        images.Images.of(pixels, shape, prepare)
    with pytest.warns(UserWarning, match="all are whole numbers up to 255, as pixels that were not prepared"):
        images.Images.of(pixels, shape, None)
    with pytest.warns(UserWarning, match=r"standard deviation is 0\.1\d, where Preprocess.* about 1"):
        images.Images.of(0.4 * pixels / 255, shape, prepare)
    x = prepare(data.train.images[:20])
    x[3], x[4, 0, 0, 0] = 1, 2.5
    with pytest.warns(
        UserWarning, match="1 of 20 have one value everywhere; 1 of 20 have values that no pixel prepared"
    ):
        images.Images.of(x, shape, prepare)
    images.Images.of(prepare(data.train.images[:20]), shape, prepare)  # without a warning


def test_manifests_of_before_and_of_strangers(small: Path) -> None:
    text = (small / MANIFEST).read_text()
    assert Manifest.from_json(text).to_json() == text
    data = json.loads(text)
    assert data.pop("precision") == "int8" and data.pop("uint8") == []
    for member in data["members"]:
        del member["float_accuracy"], member["float_test_accuracy"], member["metric"]
        member["accuracy"], member["test_accuracy"] = member.pop("score"), member.pop("test_score")
    old = Manifest.from_json(json.dumps(data))
    assert old.precision == "float32" and old.members[0].float_accuracy is None
    data["precision"] = "int4"
    with pytest.raises(PackError, match="the precision is float32 or int8, not 'int4'"):
        Manifest.from_json(json.dumps(data))
    data["precision"], data["members"][0]["float_accuracy"] = "int8", 2
    with pytest.raises(PackError, match="a number from 0 to 1, not 2"):
        Manifest.from_json(json.dumps(data))
    data["members"][0]["float_accuracy"] = 0.5
    for name in ("input", data["members"][0]["logits"], "nothing"):
        with pytest.raises(PackError, match=f"'{name}' cannot be uint8"):
            Manifest.from_json(json.dumps(data | {"uint8": [name]}))


def test_the_engine_needs_no_torch_for_int8(small: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # cannot be imported
import numpy as np
import telescopic as tl
engine = tl.Engine({str(small)!r}, cache=False)
print(engine.precision, engine.run(np.zeros((2, 48), np.float32)).logits.shape)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "int8 (2, 5)\n", run.stderr


def test_command(tmp_path: Path) -> None:
    data = tl.data.load("digits", seed=3)
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())]
    net = tl.Nested(
        stages, {0: nn.Identity(), 1: nn.Sequential(nn.Flatten(), nn.Linear(64, 32))}, {0: nn.Linear(32, 10)}
    )
    prepare = tl.Preprocess.fit(data.train)
    bundle, to = tmp_path / "net.safetensors", tmp_path / "int8"
    facts = {"input_shape": data.input_shape, "preprocess": prepare}
    known = tl.measure(net, data, preprocess=prepare)
    tl.save(net, bundle, known, provenance={"data": "digits", "seed": 3}, **facts)
    result = CliRunner().invoke(cli.app, ["pack", str(bundle), "--members", "all", "--to", str(to), "--int8"])
    assert result.exit_code == 0, result.output
    engine = tl.Engine(to, cache=False)
    assert [m.accuracy for m in engine.members] == counted(engine, data.validation, prepare)  # of the run's own split
    assert [m.test_accuracy for m in engine.members] == counted(engine, data.test, prepare)
    for value in (engine.members[0].accuracy, engine.members[0].float_accuracy, known[0].test_accuracy):
        assert f"{value:.2%}"[:-1] in result.output
    assert "almost" in result.output
    result = CliRunner().invoke(cli.app, ["pack", str(bundle), "--to", str(to), "--data", "digits"])
    assert "go with --int8" in str(result.exception)
    tl.save(net, bundle, known, provenance={}, **facts)
    result = CliRunner().invoke(cli.app, ["pack", str(bundle), "--to", str(to), "--replace", "--int8"])
    assert "does not say what data it was trained on: name them with --data" in str(result.exception)
    tl.save(mlp(), bundle, tl.measure(mlp(), input_shape=(48,)), input_shape=(48,), provenance={"data": "digits"})
    result = CliRunner().invoke(cli.app, ["pack", str(bundle), "--to", str(to), "--replace", "--int8"])
    assert result.exit_code != 0
