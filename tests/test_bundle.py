import hashlib
import importlib.util
import io
import json
import os
import pickle
import random
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import nn

from telescopic import architecture, documents, layers, shrink, tensorfile
from telescopic.architecture import build, describe, register_layer
from telescopic.bundle import Bundle, BundleError, header, load, save, store
from telescopic.catalogue import Catalogue, CatalogueError, Member, measure
from telescopic.data import Preprocess
from telescopic.extract import extract
from telescopic.layers.filter import attach_
from telescopic.layers.slim import Slim
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.slim import slim
from telescopic.subnet import Grid, Subnet
from telescopic.train import CheckpointError

from chance import examples

spec = importlib.util.spec_from_file_location(
    "fuzz_bundle", Path(__file__).parents[1] / "benchmarks" / "fuzz_bundle.py"
)
assert spec is not None and spec.loader is not None
fuzz_bundle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_bundle)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, scale: float = 1.0, *, bias: bool = False) -> None:
        super().__init__()
        self.body, self.scale = body, scale
        self.bias = nn.Parameter(torch.ones(1)) if bias else None

    def forward(self, x):
        y = x + self.scale * self.body(x)
        return y if self.bias is None else y + self.bias


@pytest.fixture
def residual():
    register_layer(Residual)
    yield
    del architecture._LAYERS["Residual"]


def perceptron() -> Nested:
    return mlp(16, (16, 12), 3, dropout=(0.2, 0.5))


def convolutions(statistics="shared") -> Nested:
    """Uneven channels, BatchNorm that has seen data, two entries and two exits."""
    net = Nested(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1)),
        ],
        entries={0: nn.Identity(), 1: nn.Conv2d(1, 4, 1)},
        exits={0: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 1: nn.Sequential(nn.Flatten(), nn.Linear(6, 3))},
        statistics=statistics,
    )
    net.train()
    for _ in range(3):
        net.all(torch.randn(8, 1, 4, 4))
    return net


def residuals() -> Nested:
    block = Residual(nn.Sequential(nn.Linear(16, 16), nn.Tanh()), 0.5, bias=True)
    return Nested(
        [nn.Sequential(nn.Flatten(), block), Residual(nn.Linear(16, 16))],
        exits={0: nn.Linear(16, 3), 1: nn.Linear(16, 3)},
    )


def widths(statistics="per-entry") -> Nested:
    """Three widths, two entries, three exits; channels that are no multiple of the groups."""

    def block(given: int, made: int, stride: int) -> nn.Sequential:
        conv = layers.CausalConv2d(given, made, 3, stride, 1, bias=False, width_groups=3)
        return nn.Sequential(conv, layers.CausalBatchNorm2d(made, width_groups=3), nn.ReLU())

    def head(channels: int, **options: bool) -> nn.Sequential:
        shared = layers.SharedHead(channels, 3, width_groups=3, **options)
        for own in (shared.scale, shared.shift) if shared.conditioned else ():
            nn.init.normal_(own)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers.GradientScale(0.5), shared)

    net = Nested(
        [block(5, 7, 2), layers.Residual(block(7, 7, 1))],
        entries={0: nn.Conv2d(1, 5, 1), 1: layers.step_down((1, 4, 4), (7, 2, 2))},
        exits={-1: head(5), 0: head(7, conditioned=True), 1: head(7, average=True)},
        statistics=statistics,
        groups=3,
    )
    net.train()
    for _ in range(3):
        net.all(torch.randn(8, 1, 4, 4))
    return net


def shrunk() -> Nested:
    """Filters, of tokens too, after some of their channels died and were removed."""
    tokens = nn.Sequential(nn.Linear(4, 5), layers.TokenFilter(5), nn.ReLU(), nn.Linear(5, 4))  # of each row of pixels
    features = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), layers.Filter(6), nn.ReLU())
    net = Nested([tokens, features], exits={1: nn.Linear(6, 3)})
    tokens[1].theta.data[:2] = features[2].theta.data[1:4] = 0
    log = shrink.compact_(net, example=torch.randn(2, 1, 4, 4))
    assert log.left == {"stages.0.1": 3, "stages.1.2": 3}
    return net


NETWORKS = {
    "mlp": perceptron,
    "learned widths": shrunk,
    "one member": lambda: mlp(16, (5,), 3, entries=(0,)),
    "convolutions": convolutions,
    "statistics per entry": lambda: convolutions("per-entry"),
    "registered blocks": residuals,
    "widths": widths,
}


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = architecture.named_tensors(one), architecture.named_tensors(other)
    return list(ours) == list(theirs) and all(
        torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours
    )


def rewritten(path: Path, change) -> Path:
    """The file with its header's document changed in place by `change`."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header["__metadata__"]["telescopic"])
    text = change(document)
    del header["__metadata__"]["checksums"]  # or every change would be damage
    header["__metadata__"]["telescopic"] = text if isinstance(text, str) else json.dumps(document)
    return repacked(path, header, data[8 + length :])


def repacked(path: Path, header, tensors: bytes) -> Path:
    text = json.dumps(header).encode()
    changed = path.with_name("changed.safetensors")
    changed.write_bytes(len(text).to_bytes(8, "little") + text + tensors)
    return changed


# Round trip ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_loaded_equals_what_was_saved(name, dtype, tmp_path, residual) -> None:
    torch.manual_seed(1)
    net = NETWORKS[name]().to(dtype)
    path = save(net, tmp_path / "net.safetensors")
    assert net.training  # saving leaves the network in its mode
    net.eval()
    state = torch.random.get_rng_state()
    loaded = load(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(loaded) is Nested and not any(module.training for module in loaded.modules())
    assert loaded.grid == net.grid and loaded.dropout == net.dropout and loaded.statistics == net.statistics
    assert same_tensors(loaded, net) and all(p.requires_grad for p in loaded.parameters())
    x = torch.randn(5, 1, 4, 4, dtype=dtype)
    assert torch.equal(loaded.all(x), net.all(x))
    for subnet in net.grid:
        member, taken = load(path, subnet), extract(net, subnet)
        assert {id(t) for t in architecture.named_tensors(member).values()}.isdisjoint(map(id, net.parameters()))
        assert not member.training and repr(member) == repr(taken)
        assert same_tensors(member, taken) and torch.equal(member(x), taken(x))
        if net.groups == 1:  # slices of wider features are summed in another order
            assert torch.equal(member(x), net(x, subnet))
        torch.testing.assert_close(member(x), net(x, subnet))


def test_statistics_per_entry_stay_apart_and_parameters_one(tmp_path) -> None:
    torch.manual_seed(0)
    net = load(save(convolutions("per-entry"), tmp_path / "net.safetensors"))
    stage, twin = net.stages[1], net.path(Subnet(entry=1))[1][1]
    assert twin[0].weight is stage[0].weight and twin[1].weight is stage[1].weight
    assert not torch.equal(twin[1].running_mean, stage[1].running_mean)
    member = load(tmp_path / "net.safetensors", Subnet(entry=1))
    assert torch.equal(member[2].running_mean, twin[1].running_mean)


def test_size_is_the_tensors_and_at_most_64_kilobytes(tmp_path) -> None:
    net = perceptron()
    catalogue = measure(net, input_shape=(1, 4, 4))
    path = save(
        net, tmp_path / "net.safetensors", catalogue, classes=("a", "b", "c"), preprocess=Preprocess((0.1,), (0.3,))
    )
    assert len(catalogue) == 3
    assert path.stat().st_size <= sum(p.nbytes for p in net.parameters()) + 4000
    big = convolutions("per-entry")
    path = save(big, tmp_path / "big.safetensors", measure(big, input_shape=(1, 4, 4)))
    assert path.stat().st_size <= sum(t.nbytes for t in architecture.named_tensors(big).values()) + 64_000


def test_a_member_is_read_alone(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    net = perceptron().eval()
    path = save(net, tmp_path / "net.safetensors")
    parts = ("entries.2.1.weight", "entries.2.1.bias", "exits.1.weight", "exits.1.bias")
    sizes = {name: p.nbytes for name, p in net.named_parameters()}
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1):
            read.append(len(data := super().read(size)))
            return data

        def readinto(self, buffer):
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(tensorfile, "FileIO", Counted)
    Bundle.open(path)
    assert sum(read) == start
    member = load(path, Subnet(entry=2))
    assert sum(read) == 3 * start + sum(sizes[name] for name in parts)

    data = bytearray(path.read_bytes())
    for name, spec in json.loads(data[8:start]).items():
        if name not in ("__metadata__", *parts):
            first, last = spec["data_offsets"]
            data[start + first : start + last] = b"\xff" * (last - first)
    path.write_bytes(data)
    x = torch.randn(4, 1, 4, 4)
    assert torch.equal(load(path, Subnet(entry=2))(x), net(x, Subnet(entry=2)))
    with pytest.raises(BundleError, match=r"it is damaged: 'stages\.0\.0\.weight' has another checksum"):
        load(path)
    assert torch.equal(member(x), net(x, Subnet(entry=2)))  # and what was loaded before does not hang on the file


def test_a_member_of_some_width_is_read_from_its_own_parts(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    net = widths("shared").eval()
    path, member = save(net, tmp_path / "net.safetensors"), Subnet(exit=0, width=2)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    for name, spec in json.loads(data[8:start]).items():
        if name != "__metadata__" and not name.startswith(("entries.0.", "stages.0.", "exits.0.")):
            first, last = spec["data_offsets"]
            data[start + first : start + last] = b"\xff" * (last - first)
    path.write_bytes(data)
    x = torch.randn(4, 1, 4, 4)
    taken = load(path, member)
    assert torch.equal(taken(x), net(x, member))
    with pytest.raises(BundleError, match="it is damaged"):
        load(path)
    assert [type(layer) for layer in taken] == [type(layer) for layer in extract(net, member)]
    assert taken[1].weight.shape == (4, 3, 3, 3)  # 2 of 3 groups of 7 and of 5 channels
    other = widths("shared")
    before = {name: tensor.clone() for name, tensor in architecture.named_tensors(other).items()}
    assert torch.equal(load(path, member, into=other)(x), net(x, member))
    assert all(torch.equal(tensor, before[name]) for name, tensor in architecture.named_tensors(other).items())
    for width in (0, 4):
        with pytest.raises(BundleError, match=rf"there is no member width={width}: .* nearest is entry=0,exit=1,width"):
            load(path, Subnet(width=width))


def test_of_a_slim_family_a_narrow_member_reads_its_rows(tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(6, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3)
    x = torch.randn(8, 6)
    net = slim(nn.Sequential(*layers), x, (0.25, 0.5, 1)).eval()
    path, read = save(net, tmp_path / "net.safetensors"), []
    once = tensorfile.TensorFile.read

    def noted(file, name, rows=None):
        tensor = once(file, name, rows)
        read.append(file._file.tell() - file._start - file.places[name].first)
        return tensor

    monkeypatch.setattr(tensorfile.TensorFile, "read", noted)
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    (name,) = (n for n, tensor in architecture.named_tensors(net).items() if tensor.shape == (512, 512))
    numbers = []
    for width in (1, 2, 3):
        read.clear()
        member = load(path, Subnet(width=width))
        numbers.append(max(read))
        assert torch.equal(member(x), net(x, Subnet(width=width)))
        assert len(member[3].weight) == len(member[0].bias) == (128, 256, 512)[width - 1]
    step = tensorfile._STEP
    assert numbers == [2 * step, 3 * step, 2**20]  # a quarter of its rows is a little more than a step
    data = bytearray(path.read_bytes())
    first, last = json.loads(data[8:start])[name]["data_offsets"]
    data[start + first + 2 * step : start + last] = b"\xff" * (last - first - 2 * step)
    path.write_bytes(data)
    assert torch.equal(load(path, Subnet(width=1))(x), net(x, Subnet(width=1)))
    for subnet in (Subnet(width=2), Subnet(), None):
        with pytest.raises(BundleError, match="it is damaged"):
            load(path, subnet)
    save(net, path)
    other = slim(nn.Sequential(*layers), x, (0.25, 0.5, 1))
    assert torch.equal(load(path, Subnet(width=1), into=other)(x), net(x, Subnet(width=1)))


class TwoWays(nn.Module):
    """Channels that are joined, and groups of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 64, 3), nn.Conv2d(2, 64, 3)
        self.joined, self.grouped = nn.Conv2d(128, 64, 3), nn.Conv2d(64, 64, 3, groups=4)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        x = torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
        return self.head(self.grouped(self.joined(x)).relu().mean((2, 3)))


def test_of_a_slim_family_rows_are_told_wherever_channels_lie(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 9, 9)
    register_layer(TwoWays)
    try:
        net = slim(TwoWays(), x, (0.5, 1)).eval()
        path = save(net, tmp_path / "net.safetensors")
        for width in (1, 2):
            assert torch.equal(load(path, Subnet(width=width))(x), net(x, Subnet(width=width)))
    finally:
        del architecture._LAYERS["TwoWays"]


def test_a_catalogue_of_hundreds_of_members_fits(tmp_path) -> None:
    stages = [layers.CausalLinear(22, 22, width_groups=22) for _ in range(15)]
    heads = {i: layers.SharedHead(22, 10, width_groups=22) for i in range(-1, 15)}
    net = Nested(stages, {0: nn.Linear(9, 22)}, heads, groups=22)
    numbers = {"macs": 68_216_832, "params": 456_789, "bytes": 1_827_156, "peak_activation": 1_081_344}
    numbers |= {"largest_feature_map": 360_448}
    numbers |= {"score": 0.9245999999999999, "test_score": 0.9172345678901235}
    members = [Member(subnet=member, label=net.grid.label(member), **numbers) for member in net.grid]
    catalogue = Catalogue(tuple(members), (9,))
    assert len(catalogue) == 352
    path = save(net, tmp_path / "net.safetensors", catalogue, input_shape=(9,))
    tensors = sum(parameter.nbytes for parameter in net.parameters())
    assert path.stat().st_size <= tensors + 64_000 + 300 * len(catalogue) < documents.MAX_BYTES
    assert Bundle.open(path).catalogue == catalogue
    assert same_tensors(load(path, Subnet(exit=3, width=7)), extract(net, Subnet(exit=3, width=7)))


def test_header_tells_everything(tmp_path) -> None:
    net = perceptron()
    catalogue = measure(net, input_shape=(1, 4, 4))
    path = save(
        net,
        tmp_path / "new" / "net.safetensors",
        catalogue,
        preprocess=Preprocess((0,), (1,)),
        classes=("zero", "eins", "två"),
        input_shape=torch.Size((1, 4, 4)),
        provenance={"seed": 7, "commit": "abc"},
    )
    bundle = Bundle.open(path)
    assert bundle.path == path and bundle.grid == net.grid and bundle.catalogue == catalogue
    assert isinstance(bundle.catalogue, Catalogue) and bundle.preprocess == Preprocess()
    assert bundle.classes == ("zero", "eins", "två") and bundle.input_shape == (1, 4, 4)
    assert bundle.provenance["seed"] == 7 and bundle.provenance["commit"] == "abc"
    assert bundle.provenance["versions"]["torch"] == version("torch")
    bare = Bundle.open(save(net, tmp_path / "bare.safetensors"))
    assert (bare.catalogue, bare.preprocess, bare.classes, bare.input_shape) == (None, None, (), None)


def test_plain_module_is_a_bundle_of_one_member(tmp_path) -> None:
    net = perceptron()
    module = extract(net, Subnet(entry=1))
    path = save(module, tmp_path / "member.safetensors")
    x = torch.randn(3, 16)
    for loaded in (load(path), load(path, Subnet())):
        assert type(loaded) is nn.Sequential and torch.equal(loaded(x), module(x))
    assert Bundle.open(path).grid == Grid([0], [0])
    with pytest.raises(BundleError, match="no member entry=1"):
        load(path, Subnet(entry=1))
    row = Catalogue(tuple(measure(net, input_shape=(16,))[1:2]), (16,))
    path = save(module, tmp_path / "member.safetensors", row)
    assert Bundle.open(path).catalogue == row and torch.equal(load(path, Subnet(entry=1))(x), module(x))


def test_families_come_with_the_package(tmp_path, monkeypatch) -> None:
    net = perceptron()
    monkeypatch.setattr(header, "MODELS", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="no file small-mlp; the families that come with telescopic: none"):
        load("small-mlp")
    save(net, tmp_path / "small-mlp.safetensors")
    assert same_tensors(load("small-mlp"), net) and Bundle.open("small-mlp").grid == net.grid
    with pytest.raises(BundleError, match=r"no file smal-mlp; .*: small-mlp"):
        load("smal-mlp")
    Path("folder").mkdir()
    with pytest.raises(BundleError, match="folder is no file"):
        load("folder")


@pytest.mark.parametrize("name", ["nsn-mnist", "doubly-nested-cifar10"])
def test_families_of_the_package_have_checksums(name, tmp_path) -> None:
    whole = Bundle.open(name)
    data = bytearray(whole.path.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(BundleError, match="it is damaged: "):
        load(tmp_path / "damaged")
    text = whole.path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(whole.path.read_bytes()).hexdigest() in text


def test_four_flipped_bytes_are_no_other_network(tmp_path) -> None:
    """As it was: the member was taken out, and compared with the network made of the same wrong bytes."""
    path = save(perceptron(), tmp_path / "net.safetensors", input_shape=(1, 4, 4))
    whole, chance = path.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(50):
        data = bytearray(whole)
        for place in chance.sample(range(start, len(data)), 4):
            data[place] ^= chance.randrange(1, 256)
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"it is damaged: .* has another checksum"):
            load(path)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch) -> None:
    path = save(perceptron(), tmp_path / "net.safetensors")
    before = path.read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def full(tensors, file, metadata) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save(perceptron(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# A network of the user's own ---------------------------------------------------------


def test_into_fills_the_users_network(tmp_path) -> None:
    torch.manual_seed(0)
    net, mine = perceptron().eval(), perceptron()
    path = save(net, tmp_path / "net.safetensors")
    parameters = list(mine.parameters())
    assert load(path, into=mine) is mine and same_tensors(mine, net) and not mine.training
    assert all(p is q for p, q in zip(mine.parameters(), parameters, strict=True))  # an optimizer keeps its parameters
    other = perceptron()
    before = [p.clone() for p in other.parameters()]
    member = load(path, Subnet(entry=1), into=other)
    assert same_tensors(member, extract(net, Subnet(entry=1)))
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))
    for wrong, message in (
        (perceptron().double(), "'F32', but torch.float64 in the network"),
        (mlp(16, (16, 13), 3), r"'stages.1.0.weight' has shape \[12, 16\], but \[13, 16\]"),
        (mlp(16, (16, 12), 3, entries=(0,)), "its grid is .*, but the network's is"),
        (nn.Linear(16, 3), "is only in the"),
    ):
        with pytest.raises(BundleError, match=message):
            load(path, into=wrong)


def test_network_of_unknown_classes(tmp_path) -> None:
    torch.manual_seed(0)
    net = residuals().eval()
    with pytest.raises(BundleError, match=r"stages.0.1 is a Residual, .* telescopic.register_layer\(Residual\)"):
        save(net, tmp_path / "net.safetensors")
    path = save(net, tmp_path / "net.safetensors", architecture=False)
    with pytest.raises(BundleError, match=r"saved without architecture: .* load `into=` it"):
        load(path)
    assert same_tensors(load(path, into=residuals()), net)
    register_layer(Residual)
    path = save(net, path)
    del architecture._LAYERS["Residual"]
    with pytest.raises(BundleError, match=r"a 'Residual', a class unknown here: .*register_layer.* `into=`"):
        load(path)
    assert same_tensors(load(path, into=residuals()), net)


def test_registering_is_checked() -> None:
    with pytest.raises(ValueError, match="takes no argument depth; it takes body, scale, bias"):
        register_layer(Residual, ("body", "depth"))
    with pytest.raises(ValueError, match=r"Linear is already registered, as torch\.nn\.modules\.linear\.Linear"):
        register_layer(type("Linear", (nn.Module,), {}))

    class Forgetful(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()

    class Other(nn.Module):
        def __init__(self, options: object) -> None:
            super().__init__()
            self.options = options

    with pytest.raises(ValueError, match="Forgetful does not keep its argument 'size'"):
        register_layer(Forgetful)
    try:
        register_layer(Other)
        for value in ({"a": 1}, float("nan"), torch.float32, object()):
            with pytest.raises(ValueError, match="cannot be kept: only finite numbers"):
                describe(Other(value))
        with pytest.raises(ValueError, match="holds the tensor options as a plain attribute: make it a buffer"):
            describe(Other(torch.ones(2)))
        first = architecture._LAYERS["Other"].cls
        again = type("Other", (first,), {"__qualname__": first.__qualname__, "__module__": first.__module__})
        register_layer(again)  # a notebook's cell that was run twice
        assert type(build(describe(again(3)))) is again
    finally:
        del architecture._LAYERS["Other"]


class Stored(nn.Module):
    """Keeps `size` in each of the ways in which a class may: which one says `how`."""

    def __init__(self, size: int, how: str = "") -> None:
        super().__init__()
        self.how = how


class Annotated(Stored):
    size: int


class Property(Stored):
    @property
    def size(self) -> int:
        return 3


class Elsewhere(Stored):
    def later(self, size: int) -> None:
        self.size = size


class Buffer(Stored):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("size", torch.tensor(size))


class Handed(Stored):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        vars(self).update(size=size)


class Dictionary(Stored):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.__dict__["si" + "ze"] = size


class Derived(Elsewhere):
    pass


class Many(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = parts


class First(nn.Module):
    def __init__(self, size: int, /) -> None:
        super().__init__()
        self.size = size


class OldStyle(nn.Module):
    def __init__(self, size: int) -> None:
        super(OldStyle, self).__init__()  # noqa: UP008
        self.layer = nn.Linear(size, size)


def test_a_class_is_registered_unless_it_is_known_not_to_be_writable() -> None:
    with pytest.raises(ValueError, match="Stored does not keep its argument 'size'"):
        register_layer(Stored)
    with pytest.raises(ValueError, match="OldStyle does not keep its argument 'size'"):
        register_layer(OldStyle)
    with pytest.raises(ValueError, match="cannot be built without its argument 'size'"):
        register_layer(Stored, ["how"])
    for cls, shown in ((Many, r"\*parts"), (First, "size")):
        with pytest.raises(ValueError, match=rf"{cls.__name__} takes {shown}.*, which cannot be given by its name"):
            register_layer(cls)
    for stranger in (torch.relu, lambda x: x, int, nn.ReLU()):
        with pytest.raises(ValueError, match="register a class of modules, not "):
            register_layer(stranger)
    unread = {"__name__": "made", "nn": nn}  # as typed at a prompt: its text is not at hand
    exec("class Made(nn.Module):\n def __init__(self, size): super().__init__()", unread)
    for cls in (Annotated, Property, Elsewhere, Buffer, Handed, Dictionary, Derived, unread["Made"]):
        register_layer(cls)
        del architecture._LAYERS[cls.__name__]
    assert not {"Stored", "Many", "First"} & architecture._LAYERS.keys()


@pytest.mark.parametrize("name", ["widened", "tied", "frozen weight norm", "complex"])
def test_network_that_its_arguments_do_not_tell_is_refused(name, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if name == "widened":
        net[1].weight = nn.Parameter(torch.ones(5, 4))
    elif name == "tied":
        net[1] = net[0]
    elif name == "complex":
        net = nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64))
    else:
        nn.utils.parametrizations.weight_norm(net[1])
    with pytest.raises(BundleError, match=r"built anew|class that cannot be rebuilt|is torch.complex64"):
        save(net, tmp_path / "net.safetensors")


def test_facts_that_cannot_be_read_again_are_not_written(tmp_path) -> None:
    net, path = perceptron(), tmp_path / "net.safetensors"
    stranger = measure(mlp(16, (16, 16, 16), 3), input_shape=(16,))
    for options, message in (
        ({"provenance": {"when": object()}}, "not JSON serializable"),
        ({"provenance": {"loss": float("nan")}}, "not JSON compliant"),
        ({"classes": (1, 2)}, "its classes is no list of str"),
        ({"input_shape": (0, 3)}, "above 0"),
        ({"catalogue": stranger}, "its catalogue has a member 'entry=3', which its grid"),
        ({"provenance": {"log": "x" * 9_000_000}}, "a header at most"),
    ):
        with pytest.raises(BundleError, match=message):
            save(net, path, **options)
    with pytest.raises(BundleError, match=r"0.weight is torch.complex64"):
        save(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), path)
    assert list(tmp_path.iterdir()) == []


# Descriptions ---------------------------------------------------------


def filtered() -> nn.Module:
    layer = nn.Linear(2, 3)
    attach_(layer, layers.Filter(3))
    return layer


EXAMPLES = [
    layers.Residual(nn.Linear(3, 2), nn.Linear(3, 2), nn.Tanh()),
    Slim(nn.Linear(3, 4), [[("weight", 0, 4, [[[0, 2]]]), ("bias", 0, 4, [[[0, 1], [3, 4]]])]]),
    nn.Linear(3, 2, bias=False),
    nn.Conv1d(2, 4, 3, stride=2, padding="valid", groups=2),
    nn.Conv2d(2, 4, (3, 1), padding=(1, 0), dilation=2, padding_mode="circular"),
    nn.Conv3d(1, 1, 2, bias=False),
    nn.ConvTranspose1d(2, 2, 3, stride=2, output_padding=1),
    nn.ConvTranspose2d(2, 2, 3, groups=2, dilation=3),
    nn.ConvTranspose3d(1, 1, 1, bias=False),
    nn.BatchNorm1d(3, eps=1e-3, momentum=None),
    nn.BatchNorm2d(3, affine=False),
    nn.BatchNorm3d(3, track_running_stats=False),
    nn.InstanceNorm1d(3, affine=True),
    nn.InstanceNorm2d(3, track_running_stats=True),
    nn.InstanceNorm3d(3),
    nn.GroupNorm(2, 4, affine=False),
    nn.LayerNorm((2, 3), bias=False),
    nn.RMSNorm(3, eps=0.1),
    *(cls(inplace=True) for cls in (nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid)),
    *(cls() for cls in (nn.Identity, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softsign)),
    nn.LeakyReLU(0.3),
    nn.ELU(0.5, inplace=True),
    nn.CELU(0.5),
    nn.Hardtanh(-2.0, 3.0),
    nn.PReLU(4, init=0.5),
    nn.GELU("tanh"),
    nn.Softplus(2.0, 10.0),
    nn.Softmax(1),
    nn.LogSoftmax(-1),
    nn.GLU(1),
    nn.Dropout(0.2),
    nn.Dropout1d(0.3, inplace=True),
    nn.Dropout2d(),
    nn.Dropout3d(0.1),
    nn.AlphaDropout(0.9),
    nn.MaxPool1d(2, ceil_mode=True),
    nn.MaxPool2d((3, 2), (2, 1), padding=1, dilation=2),
    nn.MaxPool3d(2, return_indices=True),
    nn.AvgPool1d(2, count_include_pad=False),
    nn.AvgPool2d(3, divisor_override=4),
    nn.AvgPool3d(2, 1, 1),
    nn.AdaptiveAvgPool1d(3),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.AdaptiveAvgPool3d(1),
    nn.AdaptiveMaxPool1d(2, return_indices=True),
    nn.AdaptiveMaxPool2d(2),
    nn.AdaptiveMaxPool3d((1, 2, 3)),
    nn.ZeroPad2d((1, 2, 3, 4)),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d(2),
    nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
    nn.PixelShuffle(2),
    nn.Flatten(2),
    nn.Embedding(3, 4, 1, max_norm=2.0, norm_type=1.0, scale_grad_by_freq=True, sparse=True),
    nn.Unflatten(1, (2, 3)),
    nn.Sequential(nn.ReLU()),
    nn.ModuleList([nn.ReLU(), nn.Linear(2, 2)]),
    nn.ModuleDict({"b": nn.ReLU(), "a": nn.Tanh()}),
    nn.ZeroPad3d((0, 0, 0, 0, 0, 2)),
    layers.CausalConv2d(4, 6, (3, 1), 2, (1, 0), 2, bias=False, width_groups=2),
    layers.CausalConv2d(4, 4, 3, padding="same", width_groups=3, depthwise=True),
    layers.CausalLinear(4, 3, bias=False, width_groups=3),
    layers.CausalBatchNorm1d(4, momentum=None, width_groups=4),
    layers.CausalBatchNorm2d(4, 1e-3, affine=False, track_running_stats=False, width_groups=2),
    layers.GradientScale(0.25),
    layers.GlobalAvgPool2d(),
    layers.SharedHead(4, 3, width_groups=2, average=True),
    layers.SharedHead(4, 3, width_groups=2, conditioned=True),
    layers.SharedHead(4, 3, width_groups=2, separate=True),
    layers.Filter(5),
    layers.TokenFilter(3),
    filtered(),
    Nested([nn.Flatten()], exits={0: nn.Linear(2, 2)}),
    Nested(
        [layers.CausalLinear(4, 4, width_groups=2)],
        {0: nn.Linear(3, 4)},
        {0: layers.SharedHead(4, 2, width_groups=2)},
        groups=2,
    ),
]


def test_every_known_layer_survives_a_description() -> None:
    assert {architecture._name(type(module)) for module in EXAMPLES} == set(architecture._LAYERS)
    for module in EXAMPLES:
        text = json.dumps(describe(module), allow_nan=False)
        built = build(json.loads(text))
        assert type(built) is type(module) and repr(built) == repr(module)
        assert describe(built) == json.loads(text)
        shapes = [[(n, t.shape, t.dtype) for n, t in architecture.named_tensors(m).items()] for m in (module, built)]
        assert shapes[0] == shapes[1] and all(t.is_meta for t in built.parameters())


def test_a_head_is_conditioned_only_if_its_description_says_so() -> None:
    text = {"class": "layers.SharedHead", "in_features": 4, "classes": 3, "width_groups": 2}  # as older files have it
    assert describe(layers.SharedHead(4, 3, width_groups=2)) == text
    assert list(dict(build(text).named_parameters())) == ["weight", "bias"]
    own = {name: tuple(p.shape) for name, p in build(text | {"conditioned": True}).named_parameters()}
    assert own == {"weight": (3, 4), "bias": (3,), "scale": (2, 4), "shift": (2, 3)}


def test_a_class_without_a_constructor_takes_no_arguments(monkeypatch) -> None:
    class Square(nn.Module):
        def forward(self, x):
            return x * x

    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    register_layer(Square)
    assert describe(Square()) == {"class": "Square"} and type(build({"class": "Square"})) is Square
    with pytest.raises(ValueError, match=r"^Square takes no argument args; it takes none$"):
        register_layer(Square, ["args"])


def test_description_is_short_and_keeps_names() -> None:
    net = nn.Sequential()
    net.add_module("first", nn.Linear(3, 2))
    relu = nn.ReLU()
    net.add_module("act", relu)
    net.add_module("again", relu)  # one object in two places is no matter without tensors
    assert describe(net) == {
        "class": "Sequential",
        "children": [
            ["first", {"class": "Linear", "in_features": 3, "out_features": 2}],
            ["act", {"class": "ReLU"}],
            ["again", {"class": "ReLU"}],
        ],
    }
    assert list(dict(build(describe(net)).named_parameters())) == ["first.weight", "first.bias"]


LEAF = {"class": "ReLU"}
MANY_DIMENSIONS = {"class": "Conv2d", "in_channels": 12, "out_channels": 3, "kernel_size": [1] * 10_000}
BATCH_NORM = {"class": "Sequential", "children": [["0", {"class": "BatchNorm1d", "num_features": 1}]]}


def wide(number: int):
    return {"class": "Sequential", "children": [[str(i), BATCH_NORM] for i in range(number)]}


def nested(stages: int, entries: int, exits: int, stage=LEAF, head=None, **options):
    pairs = [[[i, {"class": "Identity"}] for i in range(number)] for number in (entries, exits)]
    if head is not None:
        pairs[1] = [[i, head] for i, _ in pairs[1]]
    return {"class": "Nested", "stages": [stage] * stages, "entries": pairs[0], "exits": pairs[1], **options}


def causal(name: str, **arguments):
    sizes = {"CausalConv2d": {"in_channels": 4, "out_channels": 4, "kernel_size": 1}, "CausalBatchNorm2d": {}}
    sizes |= {"CausalBatchNorm1d": {}, "CausalLinear": {"in_features": 4, "out_features": 4}}
    own = sizes.get(name, {"in_features": 4, "classes": 3}) or {"num_features": 4}
    return {"class": f"layers.{name}", **own, **arguments}


def deep(levels: int, inner=LEAF):
    for _ in range(levels):
        inner = {"class": "Sequential", "children": [["0", inner]]}
    return inner


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class": "ModuleList", "modules": [LEAF] * 20_000}, "more than 10000 modules"),
        (nested(100, 100, 1, BATCH_NORM, statistics="per-entry"), "more than 10000"),
        (nested(100, 100, 1, BATCH_NORM, statistics="recalibrated"), "more than 10000"),
        (nested(1, 90, 1, head=wide(60), statistics="per-entry"), "more than 10000"),
        (nested(90, 2, 1, nested(10, 10, 10, BATCH_NORM, statistics="per-entry"), statistics="per-entry"), "10000"),
        (nested(200, 200, 200), "more than 10000 modules"),
        (deep(60), "more than 100 levels"),
        ({"class": "Linear", "in_features": 10**12, "out_features": 10**12}, "Linear refuses"),
        ({"class": "Linear", "in_features": 10**300, "out_features": 1}, "Linear refuses"),
        ({"class": "Linear", "in_features": -1, "out_features": 1}, "Linear refuses"),
        ({"class": "Linear", "in_features": LEAF, "out_features": 1}, "Linear takes no modules"),
        ({"class": "Linear", "in_features": 1, "out_features": 1, "device": "cpu"}, "takes no argument 'device'"),
        ({"class": "Linear", "in_features": 1}, "missing 1 required positional argument: 'out_features'"),
        ({"class": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 1, "groups": 2}, "divisible"),
        ({"class": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": [10**9] * 4}, "Conv2d refuses"),
        ({"class": "Dropout", "p": float("inf")}, "p is inf, no finite number"),
        ({"class": "os.system", "command": "true"}, "'os.system', a class unknown here"),
        ({"class": "\x1b[2J\ud800"}, r"'\\x1b\[2J\\ud800', a class unknown"),
        ({"class": ["Linear"]}, "no object with a class"),
        ([LEAF], "no object with a class"),
        ({"class": "Sequential", "children": [["a.b", LEAF]]}, "module name can"),
        ({"class": "Sequential", "children": [["forward", LEAF]]}, "attribute 'forward' already exists"),
        ({"class": "Sequential", "children": [["0", 3]]}, "3 is no module"),
        (nested(2, 2, 2, statistics="none"), "one of shared, per-entry, recalibrated, not 'none'"),
        (nested(1, 3, 1), "entry 2 is outside this network"),
        (nested(2, 2, 2, dropout=["high"]), "Nested refuses"),
        (nested(1, 1, 1, groups=10**9), "more than 10000 modules and members"),
        (nested(1, 1, 1, groups=10**300), "more than 10000 modules and members"),
        (nested(50, 50, 50, groups=5), "more than 10000 modules and members"),
        (nested(1, 2, 1, nested(1, 1, 1, groups=4000), groups=4000), "knows nothing of the 4000 channel groups"),
        *((nested(1, 1, 1, groups=groups), r"Nested refuses .*: a network has 1 channel group or more, not ")
          for groups in (0, -(10**9), True, "3", 2.0, None, [2])),
        (nested(1, 1, 1, groups=LEAF), "Nested refuses"),
        (nested(1, 1, 1, causal("CausalLinear", width_groups=4), groups=2), "of 4 channel groups in a network of 2"),
        *((causal(name, width_groups=groups), f"layers.{name} refuses .*: 4 channels make 1 to 4 groups, not ")
          for name in ("CausalConv2d", "CausalLinear", "CausalBatchNorm1d", "CausalBatchNorm2d", "SharedHead")
          for groups in (5, 10**300, 0, -1, True, "2", 2.0, None, [2])),
        (causal("CausalConv2d"), "missing 1 required keyword-only argument: 'width_groups'"),
        (causal("CausalConv2d", width_groups=LEAF), "layers.CausalConv2d takes no modules"),
        (causal("CausalConv2d", in_channels="4", width_groups=2), "layers.CausalConv2d refuses"),
        (causal("CausalConv2d", in_channels=10**12, out_channels=10**12, width_groups=10**12), "CausalConv2d refuses"),
        (causal("CausalConv2d", out_channels=8, width_groups=2, depthwise=True), "as many channels as it takes"),
    ],
)  # fmt: skip
def test_hostile_description_is_refused(description, message) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build(description)
    assert len(str(error.value)) < 400 and str(error.value).isprintable()


# Damage and attack ---------------------------------------------------------


def test_damaged_files(tmp_path) -> None:
    net = perceptron()
    path = save(net, tmp_path / "net.safetensors", measure(net, input_shape=(16,)), preprocess=Preprocess())
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    def changed(name: str, **values):
        other = json.loads(data[8:start])
        other[name].update(values)
        return other

    for number in (0, 1, 7, 8, 100, start - 1, start, len(data) - 1):
        (tmp_path / "part").write_bytes(data[:number])
        with pytest.raises(BundleError, match="part: "):
            load(tmp_path / "part")
    for prefix in (0, 1, start, len(data), 2**24, 2**63, 2**64 - 1):
        (tmp_path / "prefix").write_bytes(prefix.to_bytes(8, "little") + data[8:])
        with pytest.raises(BundleError, match="prefix: "):
            load(tmp_path / "prefix")
    with (tmp_path / "sparse").open("wb") as file:  # 1 TB on paper, with a header of 500 GB
        file.write((2**39).to_bytes(8, "little"))
        file.truncate(2**40)
    with pytest.raises(BundleError, match="its header would take 549755813888 bytes"):
        load(tmp_path / "sparse")
    tail = data[start:]
    without = {name: value for name, value in header.items() if name != "__metadata__"}
    duplicated = json.dumps(header)[:-1] + ', "exits.1.bias": ' + json.dumps(header["exits.1.bias"]) + "}"
    text = duplicated.encode()
    (tmp_path / "twice").write_bytes(len(text).to_bytes(8, "little") + text + tail)
    with pytest.raises(BundleError, match="an object has two values of one name"):
        load(tmp_path / "twice")
    for broken, message in (
        (without, "a safetensors file but no bundle"),
        (header | {"__metadata__": {"format": "pt"}}, "a safetensors file but no bundle"),
        (header | {"__metadata__": ["telescopic"]}, "expected a map"),
        (
            changed("exits.1.weight", shape=[12, 3]),
            r"'exits.1.weight' has shape \[12, 3\], but \[3, 12\] in the network",
        ),
        (changed("exits.1.weight", dtype="I32"), "'exits.1.weight' is 'I32', but torch.float32"),
        (changed("exits.1.weight", dtype="F16"), "invalid shape, data type, or offset"),
        (changed("exits.1.weight", shape=[2**63, 2]), "overflow"),
        (
            {("other" if n == "exits.1.bias" else n): v for n, v in header.items()},
            "'exits.1.bias' is only in the network",
        ),
    ):
        with pytest.raises(BundleError, match=message):
            load(repacked(path, broken, tail))


def test_file_that_changes_while_it_is_read(tmp_path, monkeypatch) -> None:
    path = save(perceptron(), tmp_path / "net.safetensors")
    bundle = Bundle.open(path)

    def cut(description, max_tensors):
        os.truncate(path, path.stat().st_size - 1)
        return build(description, max_tensors)

    monkeypatch.setattr(store, "build", cut)
    with pytest.raises(BundleError, match="it became shorter while it was read"):
        bundle.network()


def test_one_tensor_too_many_or_too_few(tmp_path) -> None:
    path = save(perceptron(), tmp_path / "net.safetensors")
    with pytest.raises(BundleError, match="more than the 8 tensors there are"):
        load(rewritten(path, lambda d: d["architecture"]["stages"].append(d["architecture"]["stages"][0])))
    with pytest.raises(BundleError, match="is only in the file"):
        load(rewritten(path, lambda d: d["architecture"]["exits"].__setitem__(0, [1, LEAF])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "its format is 2, but this version of telescopic reads format 1 only"),
        (lambda d: d.pop("format"), "its format is None"),
        (lambda d: d.update(surprise=1), "has an unknown 'surprise'"),
        (lambda d: d.pop("classes"), "lacks 'classes'"),
        (lambda d: d.update(classes=[1]), "its classes is no list of str"),
        (lambda d: d.update(classes="abc"), "its classes is no list of str"),
        (lambda d: d.update(input_shape=[1.5]), "must be whole numbers above 0"),
        (lambda d: d.update(provenance=[]), "its provenance is no object"),
        (lambda d: d.update(preprocess={"mean": [0.0], "std": [0.0]}), "stds above 0"),
        (lambda d: d.update(preprocess=[1.0]), "its mean is no list of float"),
        (lambda d: d.update(catalogue={"members": []}), "a catalogue is a mapping with"),
        (lambda d: d["grid"].update(entries=[0, 1]), "its grid is .*, but the network's is"),
        (lambda d: d["grid"].update(entries=[]), "at least one value in entries"),
        (lambda d: d["grid"].update(widths=[1, 2]), "its grid is .*, but the network's is"),
        (lambda d: d["grid"].update(widths=[True]), "its widths is no list of int"),
        (lambda d: d["architecture"].update(groups=2), "knows nothing of the 2 channel groups"),
        (lambda d: d["architecture"].update(groups=10**9), "more than 10000 modules and members"),
        (lambda d: d["architecture"].update(groups="2"), "a network has 1 channel group or more, not '2'"),
        (lambda d: d["grid"].update(entries=[*range(5000)], exits=[*range(5000)]), "more than 10000 members"),
        (lambda d: d.update(architecture=nested(2, 1, 2)), "its grid is|is only in the file"),
        (lambda d: d["architecture"].update(entries=[[0, {"class": "Residual"}]]), "a class unknown here"),
        (lambda d: d["architecture"]["stages"].extend([BATCH_NORM] * 5000), "more than the 8 tensors there are"),
        (lambda d: d["architecture"].update(exits=[[1, MANY_DIMENSIONS]]), r"has shape \[3, 12\], but \[3, 12, 1, "),
        (lambda d: "[" * 100_000, "nested too deeply"),
        (lambda d: d.update(provenance={"": [{"": 0}] * 400_000}), "values, or signs that might separate some"),
        (lambda d: d["architecture"].update(entries=[[0, None]]), "None is no module"),
        (lambda d: d["architecture"].update(stages=[None, None]), "None is no module"),
        (lambda d: d["architecture"]["stages"][0].update(children=[["0", None]]), "None is no module"),
        (lambda d: d["architecture"].update(exits=[[1, 3]]), "3 is no module"),
        (lambda d: '{"format": 1, "format": 1}', "two values of one name"),
        (lambda d: '{"format": NaN}', "the number NaN"),
        (lambda d: '{"format": ' + "9" * 5000 + "}", "its header cannot be read"),
        (lambda d: "3", "its format is None"),
        (lambda d: "\ud800", "cannot be read|invalid"),
    ],
)  # fmt: skip
def test_hostile_document(change, message, tmp_path) -> None:
    path = save(perceptron(), tmp_path / "net.safetensors")
    for subnet in (None, Subnet(entry=1)):
        with pytest.raises(BundleError, match=message) as error:
            load(rewritten(path, change), subnet)
        assert len(str(error.value)) < 1000 and str(error.value).isprintable()


def test_loading_executes_nothing(tmp_path) -> None:
    path = save(perceptron(), tmp_path / "net.safetensors")
    load(path)  # what is imported once has been imported
    names = ("os.system", "builtins.eval", "torch.load", "__main__.Nested", "telescopic.nested.Nested", "__import__")
    forbidden = {"exec", "compile", "import", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen"}
    watching, seen = True, []

    def watch(event: str, arguments: tuple) -> None:
        if watching and event in forbidden:
            seen.append((event, arguments))

    sys.addaudithook(watch)  # cannot be removed again, only told to stop watching
    try:
        load(path)
        load(path, Subnet(entry=2))
        for name in names:
            with pytest.raises(BundleError, match="a class unknown here"):
                load(
                    rewritten(
                        path, lambda d, name=name: d["architecture"]["entries"][0].__setitem__(1, {"class": name})
                    )
                )
        path.write_bytes(pickle.dumps(os.getcwd))
        with pytest.raises(BundleError, match="its header would take"):
            load(path)
    finally:
        watching = False
    assert seen == []


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    return fuzz_bundle.families(tmp_path_factory.mktemp("families"))


@examples(few=30, many=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 2), chance=st.randoms(use_true_random=False))
def test_any_file_loads_or_raises_bundle_error(which: int, chance: random.Random, bundles, tmp_path) -> None:
    data, subnet = bundles[which]
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(fuzz_bundle.mutate(data, chance))
    for wanted in (None, subnet):
        assert fuzz_bundle.outcome(path, wanted)[0] in ("loaded", "BundleError")


def test_any_checkpoint_or_catalogue_is_read_or_refused(bundles, tmp_path_factory) -> None:
    folder, chance = tmp_path_factory.mktemp("others"), random.Random(0)
    path, table = folder / "mutated", measure(mlp(16, (16,), 3), input_shape=(16,))
    table.to_json(folder / "table")
    for original, change, read, error in (
        (fuzz_bundle.checkpoint(folder), fuzz_bundle.mutate, fuzz_bundle.resumed, CheckpointError),
        ((folder / "table").read_bytes(), fuzz_bundle.mutate_json, fuzz_bundle.listed, CatalogueError),
    ):
        path.write_bytes(original)
        read(path)
        found = []
        for _ in range(60):
            path.write_bytes(change(original, chance))
            found.append(fuzz_bundle._tried(lambda read=read: read(path), error)[0])
        assert set(found) == {"loaded", error.__name__}
