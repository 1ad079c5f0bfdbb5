import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import telescopic as tl
from telescopic import cli
from telescopic.engine import manifest as manifests
from telescopic.engine.manifest import MANIFEST, WEIGHTS, Manifest, PackError
from telescopic.export import TOLERANCES
from telescopic.layers import CausalConv2d, CausalLinear, Residual, SharedHead
from telescopic.neighbours import require_alone
from telescopic.subnet import Subnet

packing = sys.modules["telescopic.packing.pack"] if tl.pack else None
SHAPE = (2, 8, 8)


def block(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def trained(net: tl.Nested, shape: tuple[int, ...] = SHAPE) -> tl.Nested:
    """With BatchNorm statistics that have seen something."""
    net.train()
    net.all(torch.randn(16, *shape))
    return net.eval()


def family() -> tl.Nested:
    """Two entries that see BatchNorm differently, two exits; the parts before and between do nothing."""
    torch.manual_seed(0)
    stages = [block(2, 16), block(16, 16), nn.Identity(), block(16, 24)]
    entries = {0: nn.Identity(), 1: nn.Conv2d(2, 16, 1), 4: nn.Conv2d(2, 24, 1)}
    return trained(tl.Nested(stages, entries, {1: head(16), 3: head(24)}, statistics="per-entry"))


def catalogue_of(net: tl.Nested, accuracies: list[float], latencies: list[float] | None = None) -> tl.Catalogue:
    found = tl.measure(net, input_shape=SHAPE)
    members = [replace(member, score=accuracy) for member, accuracy in zip(found, accuracies, strict=True)]
    if latencies is None:
        return replace(found, members=tuple(members))
    timed = [replace(m, latency_ms=ms, latency_p95_ms=ms) for m, ms in zip(members, latencies, strict=True)]
    return replace(found, members=tuple(timed), machine="this", device="cpu", threads=1, batch=1)


@pytest.fixture(scope="module")
def net() -> tl.Nested:
    return family()


@pytest.fixture(scope="module")
def packed(net: tl.Nested, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "family.telescope"
    classes = tuple("abcde")
    preprocess = tl.Preprocess((0.5, 0.25), (0.5, 2.0))
    return tl.pack(net, folder, members="all", input_shape=SHAPE, preprocess=preprocess, classes=classes)


def assert_same_answers(net: tl.Nested, folder: Path, shape: tuple[int, ...] = SHAPE) -> None:
    engine = tl.Engine(folder, cache=False)
    for batch in (1, 4):
        x = torch.randn(batch, *shape)
        for member in engine.members:
            with torch.no_grad():
                expected = net(x, member.subnet)
            answer = engine.run(x.numpy(), subnet=member.subnet)
            np.testing.assert_allclose(answer.logits, expected.numpy(), rtol=1e-4, atol=1e-5)


def initializers(folder: Path) -> dict[str, list[np.ndarray]]:
    """The weights of each segment."""
    found = {}
    for name, file in Manifest.from_json((folder / MANIFEST).read_text()).segments.items():
        model = onnx.load(folder / file)
        onnx.checker.check_model(model)
        found[name] = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    return found


def test_every_member_gives_torchs_answers(net: tl.Nested, packed: Path) -> None:
    assert_same_answers(net, packed)


def test_each_weight_is_in_one_segment_and_statistics_are_told(net: tl.Nested, packed: Path) -> None:
    stored = [tensor for tensors in initializers(packed).values() for tensor in tensors]
    for name, parameter in net.named_parameters():
        if name.startswith(("stages.0", "twins")):  # BatchNorm is folded where one entry alone passes
            continue
        value = parameter.detach().numpy()
        same = [t for t in stored if sorted(t.shape) == sorted(value.shape) and np.isin(value, t).all()]
        assert len(same) == 1, name
    assert [t.shape for t in stored].count((16, 2, 3, 3)) == 1
    made = Manifest.from_json((packed / MANIFEST).read_text())
    assert len(made.members) == 5 and len(made.segments) == 7  # 3 entries, 2 heads, 2 runs; entry 0 begins with one
    means = {name for name in made.constants if name.endswith("running_mean")}
    assert {name.split(".")[1] for name in means} == {"1@0", "1@1", "3@0", "3@1"}  # seen by two entries
    sizes = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    assert (packed / WEIGHTS).stat().st_size < 1.2 * sizes


def test_weights_are_outside_of_the_graphs(packed: Path) -> None:
    made = Manifest.from_json((packed / MANIFEST).read_text())
    places = []
    for file in made.segments.values():
        assert (packed / file).stat().st_size < 4096
        for tensor in onnx.load(packed / file, load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                assert entries["location"] == WEIGHTS and int(entries["offset"]) % 64 == 0
                places.append((int(entries["offset"]), int(entries["length"])))
    places.sort()
    assert len(places) >= 3 and all(a + n <= b for (a, n), (b, _) in pairwise(places))
    folder = str(Path(__file__).parents[1]).encode()
    assert not [file.name for file in packed.iterdir() if folder in file.read_bytes()]


def test_copies_where_batchnorm_is_folded(net: tl.Nested, packed: Path, tmp_path: Path) -> None:
    members = [Subnet(entry=0, exit=3), Subnet(entry=1, exit=3)]
    folder = tl.pack(net, tmp_path / "copies", members=members, input_shape=SHAPE, fold_bn=True)
    assert_same_answers(net, folder)
    made = Manifest.from_json((folder / MANIFEST).read_text())
    assert not made.constants and [len(member.chain) for member in made.members] == [2, 2]
    assert "2 parts are there more than once" in (folder / "README.md").read_text()
    shapes = [t.shape for tensors in initializers(folder).values() for t in tensors]
    assert shapes.count((24, 16, 3, 3)) == 2


class Largest(nn.Module):
    """A head of any width that is no shared head."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.amax((1, 2, 3)), x.amin((1, 2, 3)), x.mean((1, 2, 3))], 1)


def wide(conditioned: bool = False) -> tl.Nested:
    """Widths, with all that is special: a deep adapter, projections, heads that cannot be summed, flat features."""
    torch.manual_seed(1)

    def conv(given: int, made: int, stride: int = 1) -> CausalConv2d:
        return CausalConv2d(given, made, 3, stride, 1, width_groups=3)

    around = CausalConv2d(6, 12, 1, 2, width_groups=3)
    stages = [
        nn.Sequential(conv(6, 6), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        Residual(nn.Sequential(conv(6, 12, 2), nn.ReLU(), conv(12, 12)), around),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), CausalLinear(48, 9, width_groups=3), nn.ReLU()),
    ]
    deep = nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    entries = {0: deep, 1: nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))}
    shared = SharedHead(9, 3, width_groups=3, average=True, conditioned=conditioned)
    if conditioned:
        nn.init.normal_(shared.scale)
        nn.init.normal_(shared.shift)
    return trained(tl.Nested(stages, entries, {1: Largest(), 2: shared}, groups=3))


@pytest.mark.parametrize("conditioned", [False, True])
def test_widths_are_cut_into_rows(conditioned: bool, tmp_path: Path) -> None:
    net = wide(conditioned)
    cells = [(1, 2, 1), (1, 2, 3)] if conditioned else [(0, 1, 1), (0, 1, 3), (0, 2, 3)]
    members = [Subnet(entry=e, exit=x, width=w) for e, x, w in cells]
    folder = tl.pack(net, tmp_path / "wide", members=members, input_shape=SHAPE)
    assert_same_answers(net, folder)
    shapes = [t.shape for tensors in initializers(folder).values() for t in tensors]
    assert (12, 12, 3, 3) not in shapes
    if not conditioned:  # the first group alone, and then the other two together, which read all
        assert shapes.count((4, 4, 3, 3)) == 1 and shapes.count((8, 12, 3, 3)) == 1
        assert shapes.count((5, 2, 1, 1)) == 1  # the adapter's first layer, run whole
        # behind the last place at which width 1 leaves nothing is cut any more
        assert shapes.count((9, 48)) + shapes.count((48, 9)) == 1


def test_one_narrow_width_is_an_ordinary_network(tmp_path: Path) -> None:
    net = wide()
    torch.set_default_dtype(torch.float64)
    try:  # what a program has set for all of torch does not matter: see test_ambient.py
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), torch.inference_mode():
            folder = tl.pack(net, tmp_path / "narrow", members=[Subnet(entry=1, exit=2, width=2)], input_shape=SHAPE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_answers(net, folder)
    made = Manifest.from_json((folder / MANIFEST).read_text())
    assert len(made.segments) == 1 and made.members[0].chain[0].inputs == ("input",)


class Ways(nn.Module):
    """Channels that are joined, groups of them, a transposed convolution, and what is linear, with norms behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(2, 64), block(2, 64)
        self.joined, self.alone = block(128, 64), nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.grouped = nn.Conv2d(64, 64, 3, groups=2)
        self.up, self.norm = nn.ConvTranspose2d(64, 64, 2, 2), nn.BatchNorm2d(64)
        self.hidden = nn.Sequential(nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.last = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.alone(self.joined(torch.cat([self.a(x), self.b(x)], 1)))).relu()
        logits: Tensor = self.last(self.hidden(self.norm(self.up(x)).relu().mean((2, 3))))
        return logits


@pytest.fixture(scope="module")
def slim() -> tl.Nested:
    torch.manual_seed(0)
    return trained(tl.slim(Ways(), torch.randn(4, *SHAPE), (0.25, 0.5, 1)))


def counted(folder: Path) -> dict[str, list[str]]:
    """The operators in each graph, smallest member first."""
    graphs = (onnx.load(file, load_external_data=False).graph for file in sorted(folder.glob("segment*.onnx")))
    return {graph.name: [node.op_type for node in graph.node] for graph in graphs}


def test_widths_that_are_told_share_the_widest_ones_weights(slim: tl.Nested, tmp_path: Path) -> None:
    folder = tl.pack(slim, tmp_path / "slim", members="all", input_shape=SHAPE)
    assert_same_answers(slim, folder)
    widest = sum(p.nbytes for p in slim.parameters())
    assert widest <= (folder / WEIGHTS).stat().st_size < 1.15 * widest
    narrow, _, wide = counted(folder).values()
    assert narrow.count("Slice") >= 8 and "Slice" not in wide and narrow.count("BatchNormalization") >= 3
    assert "Narrow widths have the weights of the widest" in (folder / "README.md").read_text()
    tl.Engine(folder, cache=tmp_path / "cache")
    for made in counted(next((tmp_path / "cache").rglob("graphs"))).values():  # cut and folded, once
        assert "Slice" not in made and made.count("Concat") == 1  # of features
        assert made.count("BatchNormalization") <= 2  # behind a linear layer and a transposed convolution
    weights = np.fromfile(folder / WEIGHTS, np.uint8)
    weights[weights.size // 2] ^= 1
    weights.tofile(folder / WEIGHTS)
    with pytest.raises(PackError, match="its checksum is another one"):
        tl.Engine(folder, cache=False)


def test_without_the_widest_each_width_has_its_own_weights(slim: tl.Nested, tmp_path: Path) -> None:
    members = [Subnet(width=1), Subnet(width=2)]
    folder = tl.pack(slim, tmp_path / "slim", members=members, input_shape=SHAPE)
    assert_same_answers(slim, folder)
    made = counted(folder).values()
    assert not any({"Slice", "BatchNormalization"} & {*nodes} for nodes in made)
    assert (folder / WEIGHTS).stat().st_size < 0.5 * sum(p.nbytes for p in slim.parameters())


def test_in_int8_each_width_has_its_own_weights(slim: tl.Nested, tmp_path: Path) -> None:
    x, members = torch.randn(200, *SHAPE), [Subnet(width=1), Subnet(width=3)]
    folder = tl.pack(slim, tmp_path / "int8", members=members, input_shape=SHAPE, int8=x, max_loss=1)
    engine = tl.Engine(folder, cache=False)
    for subnet in members:
        with torch.no_grad():
            wanted = slim(x, subnet).numpy()
        apart = np.abs(engine.run(x.numpy(), subnet=subnet).logits - wanted)
        assert np.median(apart.max(1)) < 0.1 * np.abs(wanted).max()
    assert all("BatchNormalization" not in nodes and "Slice" not in nodes for nodes in counted(folder).values())


@pytest.mark.parametrize("fold_bn", [False, True])
def test_widths_that_are_told_behind_entries_with_statistics_of_their_own(fold_bn: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = nn.Sequential(block(2, 64), block(64, 64)), nn.Sequential(block(64, 64), head(64))
    entered = tl.Nested(stages, {0: nn.Identity(), 1: nn.Conv2d(2, 64, 1)}, statistics="per-entry")
    net = trained(tl.slim(entered, torch.randn(4, *SHAPE), (0.5, 1)))
    folder = tl.pack(net, tmp_path / "slim", members="all", input_shape=SHAPE, fold_bn=fold_bn)
    assert_same_answers(net, folder)
    assert (folder / WEIGHTS).stat().st_size < 1.15 * sum(p.nbytes for p in net.parameters())


def test_what_cannot_be_made_wider_is_refused(tmp_path: Path) -> None:
    net = wide()
    net.stages[0] = nn.Sequential(net.stages[0], nn.Softmax(1)).eval()
    with pytest.raises(PackError, match=r"stages\.0 cannot be made wider step by step: .*a Softmax"):
        tl.pack(net, tmp_path / "no", members=[Subnet(width=1), Subnet(width=3)], input_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


def chosen(net: tl.Nested, catalogue: tl.Catalogue, wanted: object) -> list[str]:
    return [member.label for member in packing._chosen(net, catalogue, wanted)[0]]


def test_which_members(net: tl.Nested) -> None:
    labels = [net.grid.label(subnet) for subnet in net.grid]
    # Entry 4 is small; of the others each accuracy is above the one before but the third's.
    better = catalogue_of(net, [0.5, 0.6, 0.55, 0.8, 0.9])
    everybody = tl.measure(net, input_shape=SHAPE)
    macs = [member.macs for member in everybody]
    assert macs == sorted(macs)
    assert chosen(net, everybody, None) == labels
    assert chosen(net, better, None) == [labels[i] for i in (0, 1, 3, 4)]
    assert chosen(net, better, "all") == labels
    assert chosen(net, better, 2) == [labels[0], labels[4]] and chosen(net, better, 1) == [labels[4]]
    assert chosen(net, better, 3) == [labels[0], labels[3], labels[4]] and chosen(net, better, 9) == chosen(
        net, better, 4
    )
    # By measured latency, where there is one: the last is fastest.
    fast = catalogue_of(net, [0.5, 0.6, 0.55, 0.8, 0.9], [3, 1, 2, 5, 4])
    assert chosen(net, fast, None) == [labels[1], labels[4]]
    assert chosen(net, better, [Subnet(entry=1), Subnet(entry=0)]) == [labels[3], labels[4]]
    for wanted in (0, True, "front", 1.5):
        with pytest.raises(ValueError, match="a number of 1 or more, 'all', or a list"):
            chosen(net, better, wanted)
    with pytest.raises(ValueError, match="at least one member"):
        chosen(net, better, [])
    with pytest.raises(ValueError, match="there is no member entry=3"):
        chosen(net, better, [Subnet(entry=3)])


def test_misaligned_widths_are_left_out_and_said() -> None:
    net = tl.networks.causal_resnet(4, (8, 16), blocks=1)
    catalogue = tl.measure(net, input_shape=(3, 8, 8))
    members, left_out = packing._chosen(net, catalogue, None)
    assert {member.subnet.width for member in members} == {2, 4}
    assert {Subnet.parse(label).width for label in left_out} == {1, 3}
    assert set(left_out.values()) == {"its channels are no multiple of 16 in every layer, so wider members are as fast"}
    members, left_out = packing._chosen(net, catalogue, [Subnet(width=1)])
    assert members[0].subnet.width == 1 and not left_out


def test_what_does_not_fit_is_refused_before_anything_is_written(net: tl.Nested, tmp_path: Path) -> None:
    odd = tl.measure(tl.networks.mlp(4, (4,), 2), input_shape=(4,))
    for options, message in (
        ({"net": net.stages[1]}, "a pack is made of a nested network, not of a Sequential"),
        ({"net": family().double()}, r"a pack holds float32, and this network torch.float64: pack net.float\(\)"),
        ({"net": family().train()}, r"call net.eval\(\) first"),
        ({"catalogue": odd}, "this catalogue is of another network"),
        ({"input_shape": None}, "give data, or input_shape"),
        ({"input_shape": (2, 8)}, "failed on an input of shape"),
        (
            {"samples": torch.zeros(2, 3, 8, 8)},
            r"samples are float32 of shape \(2, 8, 8\) .*, not torch.float32 \[2, 3, 8, 8\]",
        ),
        ({"classes": ("a", "b")}, "there are 2 classes, but 5 logits"),
        ({"net": tmp_path / "none.safetensors"}, "none.safetensors"),
    ):
        arguments = {"net": net, "input_shape": SHAPE, "members": [Subnet(entry=4)]} | options
        with pytest.raises(PackError, match=message):
            tl.pack(arguments.pop("net"), tmp_path / "made", **arguments)
    bad = tl.Nested([nn.Conv2d(2, 3, 1)], exits={0: nn.Flatten(0, 1)}).eval()
    with pytest.raises(PackError, match=r"the answer for 3 examples has shape \(9, 8, 8\): it has no batch in front"):
        tl.pack(bad, tmp_path / "made", input_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []


class Mixing(nn.Module):
    """Subtracts from every example what all have in common."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(nn.Module):
    """Gives something else each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (Mixing(), r"stages\.1 \(Mixing\) mixes the examples of a batch"),
        (nn.Softmax(0), r"stages\.1 \(Softmax\) mixes the examples of a batch"),
        (nn.BatchNorm2d(16, track_running_stats=False), r"stages\.1 \(BatchNorm2d\) mixes the examples of a batch"),
        (Counting(), r"stages\.1 \(Counting\) gives something else when it is asked again"),
    ],
)
def test_answers_that_depend_on_more_than_their_example_are_refused(
    stage: nn.Module, says: str, tmp_path: Path
) -> None:
    net = tl.Nested([block(2, 16), stage, block(16, 4)], exits={2: head(4)}).eval()
    with pytest.raises(PackError, match=says):
        tl.pack(net, tmp_path / "made", input_shape=SHAPE)
    with pytest.raises(tl.ExportError, match=rf"layer \d \({type(stage).__name__}\) (mixes|gives something else)"):
        tl.export(tl.extract(net), tmp_path / "net.onnx", torch.randn(4, *SHAPE))
    assert list(tmp_path.iterdir()) == []


class Words(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.table, self.way = nn.Embedding(9, 4), way

    def forward(self, x: Tensor) -> Tensor:
        words = self.table(x).sum(1)
        if self.way == "mean":
            return words - words.mean(0, keepdim=True)
        longest = (x > 0).sum(1).amax(0, keepdim=True) if self.way == "longest" else (x > 0).sum(1)
        return words / longest[:, None]


@pytest.mark.parametrize("samples", [[[1, 1, 1]] * 3, [[1, 2, 3]], [[1, 2, 3], [4, 5, 0]], [[1, 2, 3], [1, 0, 0]]])
def test_whole_numbers_are_asked_alone_too(samples: list[list[int]]) -> None:
    x = torch.tensor(samples if len(samples) > 1 else samples * 2)
    for way in ("mean", "longest"):
        words = Words(way).eval()
        with pytest.raises(ValueError, match=r"words \(Words\) mixes the examples of a batch"):
            require_alone(words, [("words", words)], x, 1e-4)
    words = Words("alone").eval()
    require_alone(words, [("words", words)], x, 1e-4)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tl.networks.mlp(4, (40,), 2).eval()
    to = tmp_path / "new" / "pack"
    tl.pack(net, to, members=[Subnet(entry=1)], input_shape=(4,))
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    with pytest.raises(PackError, match=r"there is a pack at .* already: replace=True \(--replace\)"):
        tl.pack(net, to, members=[Subnet(entry=1)], input_shape=(4,))
    monkeypatch.setitem(TOLERANCES, torch.float32, -1.0)
    with pytest.raises(PackError, match=r"the packed entry=1: .* differ .*; -1 is allowed"):
        tl.pack(net, to, members=[Subnet(entry=1)], input_shape=(4,), replace=True)
    monkeypatch.undo()
    monkeypatch.setattr(packing, "write_graph", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(PackError, match="no space"):
        tl.pack(net, to, members=[Subnet(entry=1)], input_shape=(4,), replace=True)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before
    assert [file.name for file in to.parent.iterdir()] == ["pack"]
    with torch.no_grad():
        net.exits["0"].bias.add_(1)
    tl.pack(net, to, members=[Subnet(entry=1)], input_shape=(4,), replace=True)
    assert_same_answers(net, to, (4,))
    assert [file.name for file in to.parent.iterdir()] == ["pack"]
    (tmp_path / "other").mkdir()
    with pytest.raises(PackError, match=r"something that is no pack at .* already: choose another"):
        tl.pack(net, tmp_path / "other", members=[Subnet(entry=1)], input_shape=(4,), replace=True)


def test_a_manifest_reads_as_it_was_written(packed: Path) -> None:
    text = (packed / MANIFEST).read_text()
    made = Manifest.from_json(text)
    assert made.to_json() == text
    assert made.input_shape == SHAPE and made.classes == tuple("abcde")
    assert made.preprocess == {"mean": [0.5, 0.25], "std": [0.5, 2.0]}
    assert made.provenance["packed_by"]["torch"] == torch.__version__


def changed(text: str, *keys: object, value: object) -> str:
    data = json.loads(text)
    place = data
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("format",), 2, "not of format 1"),
        (("members",), [], "it has no members"),
        (("members",), 3, "3 is no list"),
        (("members", 0, "subnet"), "entry=0", "leaves exit, width open"),
        (("members", 0, "subnet"), "entry=a", "cannot read sub-network"),
        (("members", 0, "score"), 1.5, "is None or a number from 0 to 1, not 1.5"),
        (("members", 0, "metric", "better"), "more", "higher or lower is better, not 'more'"),
        (("members", 0, "metric", "unit"), "mm", "its members' scores have several metrics"),
        (("members", 0, "macs"), -1, "no whole number"),
        (("members", 0, "logits"), "input", "gives no logits"),
        (("members", 0, "chain", 0, "segment"), "x", "runs segment 'x', which is not there"),
        (("members", 0, "chain", 0, "inputs"), ["logits.3"], "reads 'logits.3' before it is there"),
        (("members", 0, "chain", 0, "outputs"), ["x"], "writes 'x', which is no tensor"),
        (("members", 0, "chain", 0, "outputs"), ["input"], "writes 'input' twice"),
        (("members", 0, "more"), 1, "more"),
        (("segments", "exits.1"), "../up.onnx", "'../up.onnx' is no name of a file"),
        (("segments", "exits.1"), "other.onnx", "no checksum of 'other.onnx'"),
        (("members", 0, "chain", 0, "inputs"), [], "without inputs or outputs"),
        (("tensors", "input"), [0, 8, 8], "0 is no size"),
        (("tensors", "input"), [2**31], "is larger than any network's"),
        (("preprocess", "mean"), [10**400, 0], "no number that float32 holds"),
        (("preprocess", "mean"), [float("nan"), 0], "NaN"),
        (("preprocess", "mean"), [[1, 2]], r"\[1, 2\] is no number"),
        (("preprocess", "mean"), "ab", "'ab' is no list"),
        (("constants", "c"), {"offset": 2**40, "shape": [4]}, "constant 'c' lies outside the weights"),
        (("preprocess", "std"), [0.0, 1.0], "do not fit inputs"),
        (("classes",), ["a"], "there are 1 classes, but 5 logits"),
        (("files", WEIGHTS, "bytes"), "1", "no whole number"),
        (("extra",), 1, "extra"),
        (("provenance",), "x", "'x' is no dict"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(keys, value, message, packed: Path) -> None:
    with pytest.raises(PackError, match=message):
        Manifest.from_json(changed((packed / MANIFEST).read_text(), *keys, value=value))


def test_a_damaged_pack_is_refused(tmp_path: Path) -> None:
    net = tl.networks.mlp(4, (100,), 2).eval()
    folder = tl.pack(net, tmp_path / "pack", members=1, input_shape=(4,))
    manifests.read(folder)
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    with pytest.raises(PackError, match=r"weights.bin has changed since it was packed.*Pack it again"):
        tl.Engine(folder)
    tl.Engine(folder, verify=False, cache=False)
    (folder / WEIGHTS).write_bytes(weights[:-1])
    with pytest.raises(PackError, match="missing or of another size"):
        tl.Engine(folder, verify=False)
    (folder / WEIGHTS).write_bytes(weights)
    for text, message in ((b"{", "cannot be used"), (b"\xff", "damaged"), (b"[" * 10**5, "cannot be used")):
        (folder / MANIFEST).write_bytes(text)
        with pytest.raises(PackError, match=message):
            tl.Engine(folder)
    with pytest.raises(PackError, match=r"is no pack: it has no manifest\.json"):
        tl.Engine(tmp_path)


@pytest.mark.parametrize("cache", [True, False])
def test_graphs_that_are_not_as_the_manifest_says_are_refused(packed: Path, tmp_path: Path, cache: bool) -> None:
    wrong = shutil.copytree(packed, tmp_path / "wrong")
    text = (wrong / MANIFEST).read_text()
    made = Manifest.from_json(text)
    last = made.members[0].logits
    text = changed(changed(text, "tensors", last, value=[7]), "classes", value=[])
    (wrong / MANIFEST).write_text(text)
    with pytest.raises(PackError, match=r"segment001\.onnx is no graph of a pack: out0 .* manifest says"):
        tl.Engine(wrong, cache=cache and tmp_path / "cache")


def test_what_a_library_says_of_a_strangers_graph_is_one_harmless_line() -> None:
    assert str(PackError("it cannot be opened: \x1b[31mFail\n\n  see\tbelow\n")) == (
        r"it cannot be opened: \x1b[31mFail    see\tbelow"
    )


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    to = tmp_path / "mnist.telescope"
    runner = CliRunner()
    result = runner.invoke(cli.app, ["pack", "nsn-mnist", "--members", "2", "--to", str(to)])
    assert result.exit_code == 0, result.output
    assert "2 members" in result.output and "each gives the network's answers" in result.output
    result = runner.invoke(cli.app, ["bench", str(to), "--batch", "1,2", "--threads", "1", "--seconds", "0.01"])
    assert result.exit_code == 0, result.output
    assert "entry=2" in result.output and "92.40" in result.output and "1 of" in result.output
    assert tl.Engine(to).timings.threads == (1,)
    for words in (["--members", "2", "--subnet", "entry=1"], ["--members", "some"]):
        result = runner.invoke(cli.app, ["pack", "nsn-mnist", "--to", str(to), *words])
        assert isinstance(result.exception, ValueError)
