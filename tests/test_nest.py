import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from telescopic import (
    Nested,
    Preprocess,
    Subnet,
    architecture,
    export,
    extract,
    load,
    nest,
    recalibrate,
    register_layer,
    save,
)  # fmt: skip
from telescopic.data import Split
from telescopic.layers import pooled_head, step_down, strided_stem
from telescopic.networks import resnet, vgg
from telescopic.papers import cnsn
from telescopic.testing import check_nested

IMAGE = (3, 8, 8)


class Depthwise(nn.Module):
    """A MobileNet's block: each channel by itself, then a mixture of them at each pixel."""

    def __init__(self, given: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.given, self.made, self.stride = given, made, stride
        self.each = nn.Conv2d(given, given, 3, stride, padding=1, groups=given, bias=False)
        self.mixed = nn.Conv2d(given, made, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(given), nn.BatchNorm2d(made)])

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip((self.each, self.mixed), self.norms, strict=True):
            x = norm(conv(x)).clamp(0, 6)
        return x


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class above can be kept in bundles, in this test."""
    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    register_layer(Depthwise)


class Backwards(nn.Sequential):
    """A Sequential only by inheritance."""

    def forward(self, x: Tensor) -> Tensor:
        for part in reversed(self):
            x = part(x)
        return x


class Twins(nn.Module):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def block(given: int, made: int, inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(inplace), nn.MaxPool2d(2))


def small() -> nn.Sequential:
    """Blocks whose features are 4 × 4 × 4, 6 × 2 × 2, 24, 5; the last one is the logits."""
    torch.manual_seed(0)
    return nn.Sequential(
        block(3, 4), block(4, 6), nn.Sequential(nn.Flatten(), nn.Linear(24, 24), nn.ReLU()), nn.Linear(24, 5)
    )


def flat(inplace: bool = False) -> nn.Sequential:
    """Layer by layer, as people write them: no block but torch's own layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.ReLU(inplace),
        nn.Linear(8, 5),
    )


def trained(network: nn.Sequential, shape: tuple[int, ...] = IMAGE) -> nn.Sequential:
    """A network whose BatchNorm has seen data."""
    for _ in range(3):
        network.train()(torch.randn(8, *shape, dtype=next(network.parameters()).dtype) * 2 + 1)
    return network.eval()


def members(net: Nested) -> set[tuple[int | None, int | None]]:
    return {(member.entry, member.exit) for member in net.grid}


# What stays and what is added ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["shared", "per-entry", "recalibrated"])
@pytest.mark.parametrize("make", [small, flat, lambda: list(small()), lambda: nn.ModuleList(small())])
def test_the_full_member_is_the_network_given(make: Callable[[], Any], statistics: Any) -> None:
    network = make()
    trained(nn.Sequential(*network))
    before = copy.deepcopy(nn.ModuleList(network).state_dict())
    net = nest(network, input_shape=IMAGE, entries=(1, 2), exits=(0, 1), statistics=statistics)
    assert all(ours is theirs for ours, theirs in zip(net.stages, network, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.stages.state_dict().items())
    x = torch.randn(4, *IMAGE)
    theirs = nn.Sequential(*network)(x)
    assert torch.equal(net(x), theirs)
    assert torch.equal(net.all(x)[-1], theirs)
    assert torch.equal(extract(net)(x), theirs)
    assert net.statistics == statistics


def test_entries_by_exits() -> None:
    net = nest(small(), input_shape=IMAGE, entries=(2, 1), exits=[1])
    # Entry 2 with exit 1 runs no block: its adapter feeds the head.
    assert members(net) == {(0, 1), (0, 3), (1, 1), (1, 3), (2, 1), (2, 3)}
    x = torch.randn(4, *IMAGE)
    net.eval()
    nothing = net(x, Subnet(entry=2, exit=1))
    assert torch.equal(nothing, net.exits["1"](net.entries["2"](x)))
    between = net(x, Subnet(entry=1, exit=1))
    assert torch.equal(between, net.exits["1"](net.stages[1](net.entries["1"](x))))
    assert members(nest(small(), input_shape=IMAGE)) == {(0, 3)}
    assert members(nest(small(), input_shape=IMAGE, entries=[0], exits=[3, 0])) == {(0, 0), (0, 3)}
    # Entry 3 and exit 0 are both there, but too far apart to be a member together.
    assert members(nest(small(), input_shape=IMAGE, entries=[3], exits=[0])) == {(0, 0), (0, 3), (3, 3)}


def test_adapters_and_heads_fit_their_places() -> None:
    net = nest(small(), input_shape=IMAGE, entries=(1, 2, 3), exits=(0, 1, 2))
    assert [type(net.entries[str(place)][0]) for place in (1, 2, 3)] == [nn.Conv2d, nn.Conv2d, nn.Flatten]
    assert [net.entries[str(place)][0].stride for place in (1, 2)] == [(2, 2), (4, 4)]
    assert [net.exits[str(place)][-1].in_features for place in (0, 1, 2)] == [4, 6, 24]
    assert {net.exits[str(place)][-1].out_features for place in (0, 1, 2)} == {5}
    assert type(net.entries["0"]) is type(net.exits["3"]) is nn.Identity
    stems = nest(small(), input_shape=IMAGE, entries=(2,), adapter=strided_stem)
    assert [layer.stride for layer in stems.entries["2"] if isinstance(layer, nn.Conv2d)] == [(2, 2), (2, 2)]


def test_your_own_functions_and_modules() -> None:
    asked: list[tuple[Any, ...]] = []

    def adapter(given: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
        asked.append((given, wanted))
        return step_down(given, wanted, norm=False)

    def head(given: tuple[int, ...], classes: int) -> nn.Module:
        asked.append((given, classes))
        return nn.Sequential(nn.AdaptiveMaxPool2d(1), pooled_head(given, classes))

    net = nest(small(), input_shape=IMAGE, entries=(1, 3), exits=(0,), adapter=adapter, head=head)
    assert asked == [(IMAGE, (4, 4, 4)), (IMAGE, (24,)), ((4, 4, 4), 5)]
    own = {1: nn.Conv2d(3, 4, 2, 2), 0: nn.Tanh()}
    heads = {0: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), 3: nn.Linear(5, 5)}
    net = nest(small(), input_shape=IMAGE, entries=own, exits=heads).eval()
    assert all(net.entries[str(place)] is adapter for place, adapter in own.items())
    assert all(net.exits[str(place)] is head for place, head in heads.items())
    x = torch.randn(2, *IMAGE)
    by_hand = heads[3](net.stages[3](net.stages[2](net.stages[1](own[1](x)))))
    assert torch.equal(net(x, Subnet(entry=1)), by_hand)
    assert torch.equal(net(x, Subnet(exit=0)), heads[0](net.stages[0](x.tanh())))


def test_a_sequential_in_a_sequential_is_one_block_until_it_is_laid_open() -> None:
    parts = small()
    network = nn.Sequential(parts[:2], parts[2:])
    assert members(nest(network, input_shape=IMAGE, entries=[1], exits=[0])) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    opened = nest([*network[0], *network[1]], input_shape=IMAGE, entries=[3])
    assert len(opened.stages) == 4
    x = torch.randn(3, *IMAGE)
    assert torch.equal(opened.eval()(x), network(x))
    assert len(nest((part for part in parts), input_shape=IMAGE).stages) == 4


def test_one_layer_without_weights_may_stand_in_many_places() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu, nn.Linear(6, 3))
    net = nest(network, input_shape=(6,), entries=(1, 2, 3, 4), exits=(0, 1, 2, 3))
    check_nested(net, (6,), members=8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_new_parts_have_the_type_of_the_network(dtype: torch.dtype) -> None:
    own = nn.Conv2d(3, 4, 2, 2)
    net = nest(small().to(dtype), input_shape=IMAGE, entries={1: own}, exits=(0, 1))
    assert net.entries["1"] is own
    assert {tensor.dtype for tensor in net.state_dict().values() if tensor.is_floating_point()} == {dtype}
    assert net.eval().all(torch.randn(2, *IMAGE, dtype=dtype)).dtype == dtype


def test_a_family_may_be_planned_without_memory() -> None:
    with torch.device("meta"):
        network = small()
    net = nest(network, input_shape=IMAGE, entries=(1,), exits=(0,))
    assert all(tensor.is_meta for tensor in net.state_dict().values())


def test_shapes_are_found_without_data() -> None:
    network = trained(small())[:2].append(pooled_head((6, 1, 1), 5))
    before = copy.deepcopy(network.state_dict())
    head, random = pooled_head((4, 1, 1), 5), torch.get_rng_state()
    net = nest(network, input_shape=(3, 2**17, 2**17), exits={0: head})  # a batch of two would fill 412 GB
    assert members(net) == {(0, 0), (0, 2)}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.stages.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_the_mode_is_that_of_the_network() -> None:
    net = nest(small().eval(), input_shape=IMAGE, entries=(1,), exits=(0,))
    assert not any(module.training for module in net.modules())
    network = small()
    network[0].eval()  # frozen by its owner
    net = nest(network, input_shape=IMAGE, entries=(1,))
    assert (net.training, net.stages[0].training, net.stages[1].training) == (True, False, True)
    assert net.entries["1"].training


# Statistics of a pretrained network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["shared", "per-entry", "recalibrated"])
def test_the_statistics_of_a_pretrained_network_stay(statistics: Any) -> None:
    network = trained(small())
    norms = [part[1] for part in network[:2]]
    means = [norm.running_mean.clone() for norm in norms]
    net = nest(network, input_shape=IMAGE, entries=(1,), statistics=statistics)
    x = torch.randn(16, *IMAGE)
    before = network(x)
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, means, strict=True))
    net.train()(x, Subnet(entry=1))
    net.eval()
    assert torch.equal(norms[0].running_mean, means[0])
    # Entry 1 runs block 1 too: it leaves the network's record alone unless that is shared.
    assert torch.equal(norms[1].running_mean, means[1]) == (statistics != "shared")
    assert torch.equal(net(x), before) == (statistics != "shared")


def test_recalibration_gives_each_entry_its_own_statistics() -> None:
    net = nest(trained(small()), input_shape=IMAGE, entries=(1,))
    split = Split(torch.randint(256, (32, *IMAGE), dtype=torch.uint8), torch.zeros(32, dtype=torch.int64))
    made = recalibrate(net, split, batch_size=32)
    x = Preprocess()(split.images)
    for entry, first in ((0, net.stages[0].train()), (1, net.entries["1"].train())):
        _, stage, *_ = (module for name, module in made.path(Subnet(entry=entry)) if name != "stages.0")
        conv, norm = stage[0], stage[1]
        torch.testing.assert_close(norm.running_mean, conv(first(x)).mean((0, 2, 3)))


# Families of every kind keep the laws -------------------------------------------------------------------------------


def separable() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU6()),
        Depthwise(4, 8, stride=2),
        Depthwise(8, 8),
        Depthwise(8, 12, stride=2),
        pooled_head((12, 2, 2), 5),
    )


def signal() -> list[nn.Module]:
    """A network of 1-d data."""
    return [
        nn.Sequential(nn.Conv1d(2, 4, 5, stride=2, padding=2), nn.BatchNorm1d(4), nn.ELU()),
        nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), nn.GELU(), nn.AvgPool1d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(24, 7), nn.Tanh()),
        nn.Linear(7, 3),
    ]


def shorter(**options: Any) -> Nested:
    """As CNSN makes one of VGG-16, of VGG-11."""
    return nest(vgg(11, scale=1 / 32), input_shape=(3, 32, 32), entries=(1, 4), **options)


FAMILIES: dict[str, tuple[Callable[[], Nested], tuple[int, ...], int | None]] = {
    "vgg, shared": (lambda: cnsn.network(scale=1 / 32), (3, 32, 32), None),
    "vgg, per entry": (lambda: shorter(statistics="per-entry"), (3, 32, 32), None),
    "vgg, recalibrated": (lambda: shorter(statistics="recalibrated"), (3, 32, 32), None),
    "vgg, stems": (lambda: shorter(adapter=strided_stem), (3, 32, 32), None),
    "resnet": (
        lambda: nest(resnet(8, width=4), input_shape=IMAGE, entries=(2, 3), exits=(1, 2, 3)), IMAGE, 6
    ),
    "flat": (lambda: nest(flat(), input_shape=IMAGE, entries=(1, 4, 8), exits=(3, 5, 9)), IMAGE, 6),
    "flat, in place": (lambda: nest(flat(inplace=True), input_shape=IMAGE, entries=(4, 8), exits=(6,)), IMAGE, None),
    "separable": (lambda: nest(separable(), input_shape=IMAGE, entries=(1, 3), exits=(2, 3)), IMAGE, 6),
    "signal": (lambda: nest(signal(), input_shape=(2, 16), entries=(1, 2, 3), exits=(0, 1, 2)), (2, 16), None),
    "float64": (lambda: nest(small().double(), input_shape=IMAGE, entries=(2,), exits=(1,)), IMAGE, None),
}  # fmt: skip


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_keep_the_laws(name: str) -> None:
    torch.manual_seed(0)
    make, shape, number = FAMILIES[name]
    check_nested(make(), shape, members=number)


@pytest.mark.usefixtures("registered")
def test_a_family_of_ones_own_blocks_is_saved_and_loaded(tmp_path: Any) -> None:
    net = nest(trained(separable()), input_shape=IMAGE, entries=(3,), exits=(2,))
    save(net, tmp_path / "net.safetensors", input_shape=IMAGE)
    x = torch.randn(2, *IMAGE)
    for member in net.grid:
        assert torch.equal(load(tmp_path / "net.safetensors", member)(x), net.eval()(x, member))


# Where the channels are ---------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Tokens with places that are learned."""

    def __init__(self, tokens: int, given: int, made: int) -> None:
        super().__init__()
        self.place, self.linear = nn.Parameter(torch.randn(tokens, made)), nn.Linear(given, made)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.place


class First(nn.Module):
    """Logits from the first token."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(given, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[:, 0])


class Around(nn.Module):
    """x + body(x), which no layer gives as it is."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Turned(nn.Module):
    """Mixes tokens: a linear layer over dimension 1."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2)).transpose(1, 2)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def encoder(norm_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=norm_first)


TOKENS: dict[str, Callable[[], list[nn.Module]]] = {
    "encoder": lambda: [Words(5, 4, 8), encoder(False), First(8, 3)],
    "encoder, norm first": lambda: [Words(5, 4, 8), encoder(True), First(8, 3)],
    "block of one's own": lambda: [nn.Linear(4, 8), Around(nn.LayerNorm(8), nn.Linear(8, 8)), First(8, 3)],
    "mixer": lambda: [Words(5, 4, 8), Around(nn.LayerNorm(8), Turned(5)), nn.Sequential(nn.LayerNorm(8), First(8, 3))],
    "activation between": lambda: [nn.Linear(4, 8), nn.Sequential(nn.GELU(), nn.Dropout()), First(8, 3)],
    "recurrent": lambda: [nn.Linear(4, 8), Around(Outputs(8)), First(8, 3)],
    "as many tokens as channels": lambda: [Words(5, 4, 5), Around(nn.LayerNorm(5), nn.Linear(5, 5)), nn.Sequential(
        nn.LayerNorm(5), First(5, 3))],
}  # fmt: skip


class Outputs(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, size, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@pytest.mark.parametrize("name", TOKENS)
def test_heads_of_tokens_read_the_mean_of_the_tokens(name: str) -> None:
    torch.manual_seed(0)
    net = nest(TOKENS[name](), input_shape=(5, 4), exits=[0, 1]).eval()
    x = torch.randn(2, 5, 4)
    for exit_ in (0, 1):
        features = net.stages[0](x) if exit_ == 0 else net.stages[1](net.stages[0](x))
        want = net.exits[str(exit_)][-1](features.mean(1))
        torch.testing.assert_close(net(x, Subnet(exit=exit_)), want)
    check_nested(net, (5, 4), rebuild=False)


def test_images_with_channels_last() -> None:
    blocks = [
        nn.Linear(3, 6),
        nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 7)),
        nn.Sequential(nn.Flatten(), nn.Linear(112, 2)),
    ]
    net, x = nest(blocks, input_shape=(4, 4, 3), exits=[0]).eval(), torch.randn(2, 4, 4, 3)
    torch.testing.assert_close(net(x, Subnet(exit=0)), net.exits["0"][-1](blocks[0](x).mean((1, 2))))


def test_heads_of_series_read_the_mean_over_time() -> None:
    blocks = [
        nn.Conv1d(5, 6, 1),
        nn.ReLU(),
        Around(nn.BatchNorm1d(6), nn.Conv1d(6, 6, 1)),
        nn.Flatten(),
        nn.Linear(24, 3),
    ]
    net, x = nest(blocks, input_shape=(5, 4), exits=[0, 1, 2], entries=[2]).eval(), torch.randn(2, 5, 4)
    features = nn.Sequential(*blocks[:3])(x)
    torch.testing.assert_close(net(x, Subnet(entry=0, exit=2)), net.exits["2"][-1](features.mean(2)))


@pytest.mark.parametrize(("member", "suffix"), [(Subnet(exit=0), ".onnx"), (Subnet(exit=1), ".pt2")])
def test_heads_of_tokens_leave_with_an_open_batch(member: Subnet, suffix: str, tmp_path: Any) -> None:
    net = nest(TOKENS["block of one's own"](), input_shape=(5, 4), exits=[0, 1]).eval()
    export(extract(net, member), tmp_path / f"net{suffix}", torch.randn(3, 5, 4))  # which compares 1 and 3


TELLS = r"are \[channels, length\] or \[tokens, channels\], and no layer that makes or reads them says which"


@pytest.mark.parametrize(
    ("blocks", "places", "says"),
    [
        (
            [Doubled(), nn.Flatten(), nn.Linear(20, 3)],
            {"exits": [0]},
            rf"head of exit 0: features of shape \(5, 4\) {TELLS}",
        ),
        (
            [nn.Conv1d(5, 6, 1), nn.Linear(4, 4), nn.Flatten(), nn.Linear(24, 3)],  # contradict each other
            {"exits": [0]},
            rf"head of exit 0: features of shape \(6, 4\) {TELLS}",
        ),
        (
            [nn.Linear(4, 8), nn.Linear(8, 8), First(8, 3)],
            {"entries": [1]},
            r"adapter of entry 1: features of shape \(5, 4\) have their channels last, and step_down makes conv",
        ),
    ],
)
def test_where_nothing_tells_the_user_is_asked(blocks: list[nn.Module], places: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nest(blocks, input_shape=(5, 4), **places)
    own = {
        kind: {place: First(4, 3) if kind == "exits" else nn.Linear(4, 8) for place in asked}
        for kind, asked in places.items()
    }
    assert len(nest(blocks, input_shape=(5, 4), **own).grid) == 2


# What is refused ----------------------------------------------------------------------------------------------------


def twice() -> nn.Sequential:
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), shared, shared, nn.Linear(6, 3))


LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
IN_PLACE = nn.Sequential(nn.ReLU(inplace=True), pooled_head((4, 4, 4), 5))
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (small, {"entries": (4,)}, r"^entry 4 is outside this network of 4 blocks: give 0 to 3$"),
    (small, {"entries": (-1,)}, r"^entry -1 is outside this network of 4 blocks: give 0 to 3$"),
    (small, {"exits": {4: nn.Linear(5, 5)}}, r"^exit 4 is outside this network of 4 blocks: give 0 to 3$"),
    (small, {"exits": (-1,)}, r"^exit -1 is outside this network of 4 blocks: give 0 to 3$"),
    (small, {"entries": (1.0,)}, r"^entry 1\.0 is outside this network of 4 blocks: give 0 to 3$"),
    (small, {"entries": (True,)}, r"^entry True is outside"),
    (small, {"entries": (1, 2, 1)}, r"^entry 1 is given twice: each block is named once$"),
    (small, {"exits": (0, 0)}, r"^exit 0 is given twice"),
    (lambda: small()[:2], {}, r"^the last block gives \(2, 6, 2, 2\) for 2 inputs, which are no logits .* add a block"),
    (lambda: [nn.Flatten(0)], {}, r"^the last block gives \(384,\) for 2 inputs, which are no logits"),
    (lambda: [nn.Flatten(0), nn.Unflatten(0, (1, -1))], {}, r"^the last block gives \(1, 384\) for 2 inputs"),
    (
        lambda: [block(3, 4), Twins(), LINEAR],
        {},
        r"^block 2 \(Sequential\): this Sequential failed on inputs of shapes input0 \(2, 4, 4, 4\), input1 \(2, 4",
    ),
    (
        lambda: [block(3, 4), block(5, 4), LINEAR],
        {},
        r"^block 1 \(Sequential\): this Sequential failed on an input of shape \(2, 4, 4, 4\).* Is input_shape",
    ),
    (twice, {"input_shape": (6,)}, r"^stages\.1 and stages\.2 share a parameter of shape \(6, 6\).*, or copy it$"),
    (
        lambda: [block(3, 4), nn.Sequential(nn.Flatten(), nn.LazyLinear(5))],
        {},
        r"^block 1 \(Sequential\): this Sequential has lazy layers without a shape: call it on an input once$",
    ),
    (small, {"entries": {1: nn.LazyConv2d(4, 2, 2)}}, r"^the adapter of entry 1: this LazyConv2d has lazy layers"),
    # In place
    (
        lambda: flat(inplace=True),
        {"exits": (1,)},
        r"^block 2 \(ReLU\) works in place on the features of block 1, which exit 1 and block 2 read: use inplace=F",
    ),
    (
        lambda: [nn.Conv2d(3, 3, 1), nn.Flatten(2), nn.ReLU(inplace=True), LINEAR],
        {"exits": (0,)},
        r"^block 2 \(ReLU\) works in place on the features of block 0, which exit 0",
    ),
    (
        lambda: [nn.ReLU(inplace=True), LINEAR],
        {},
        r"^block 0 \(ReLU\) works in place on the raw input, which every member reads: use inplace=False$",
    ),
    (lambda: [nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(192, 5)], {}, r"^block 1 \(ReLU\) .* on the raw input"),
    (small, {"exits": {0: IN_PLACE}}, r"^the head of exit 0 works in place on the features of block 0"),
    (
        small,
        {"entries": {1: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2, 2))}},
        r"^the adapter of entry 1 works in place on the raw input",
    ),
    (
        lambda: [nn.Linear(6, 6), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(6, 3)],
        {"input_shape": (6,), "entries": {1: nn.Flatten()}},
        r"^block 2, which entry 1 gives the raw input, works in place on the raw input",
    ),
    (
        lambda: [nn.Sequential(nn.Dropout(inplace=True), block(3, 4)), LINEAR],
        {"entries": {1: nn.Conv2d(3, 4, 2, 2)}},
        r"^block 0 \(Sequential\) works in place on the raw input",  # in training
    ),
    # Adapters and heads
    (
        small,
        {"entries": {1: nn.Conv2d(3, 5, 2, 2)}},
        r"^the adapter of entry 1 gives features of shape \(5, 4, 4\), where \(4, 4, 4\) is expected$",
    ),
    (
        small,
        {"exits": {0: pooled_head((4, 4, 4), 6)}},
        r"^the head of exit 0 gives features of shape \(6,\), where \(5,\) is expected$",
    ),
    (small, {"exits": {3: nn.Linear(5, 4)}}, r"^the head of exit 3 gives features of shape \(4,\), where \(5,\)"),
    (small, {"exits": {0: nn.Linear(3, 5)}}, r"^the head of exit 0: this Linear failed on an input of shape \(2, 4, 4"),
    (small, {"exits": {0: Twins()}}, r"^the head of exit 0 gives features of shape \(\(4, 4, 4\), \(4, 4, 4\)\), "),
    (
        small,
        {"input_shape": (3, 8, 9), "entries": (1,)},
        r"^the adapter of entry 1: a step from \(3, 8, 9\) down to \(4, 4, 4\) is impossible: 8 × 9 is no whole "
        r"multiple of 4 × 4\. .* give an adapter of your own for this entry$",
    ),
    (small, {"input_shape": 8}, r"input_shape 8 must be whole numbers above 0"),
    (small, {"statistics": "own"}, r"^statistics is one of shared, per-entry, recalibrated, not 'own'$"),
]


@pytest.mark.parametrize(("network", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_networks_that_cannot_be_nested(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nest(network(), **{"input_shape": IMAGE, **options})


WHICH_ORDER = re.escape("give an nn.Sequential or a list of the blocks, in the order in which they run")


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Linear(3, 2), {}, rf"^it is not known in which order a Linear runs its parts: {WHICH_ORDER}$"),
        (
            Backwards(nn.Linear(3, 2)),
            {},
            rf"^it is not known in which order a Backwards runs its parts: {WHICH_ORDER}$",
        ),
        (Nested([nn.Linear(3, 2)]), {}, r"^it is not known in which order a Nested runs its parts"),
        ([], {}, rf"^blocks are modules, not nothing: {WHICH_ORDER}$"),
        (nn.Sequential(), {}, r"^blocks are modules, not nothing"),
        ([nn.Flatten(), torch.relu], {}, r"^blocks are modules, not Flatten, builtin_function_or_method"),
        (None, {}, rf"^blocks are modules, not NoneType: {WHICH_ORDER}$"),
        (small(), {"entries": 2}, r"^entry 2 is no list of blocks: give \[2\]$"),
        (small(), {"exits": 1}, r"^exit 1 is no list of blocks: give \[1\]$"),
        (
            small(),
            {"entries": {1: step_down}},
            r"^the adapter of entry 1 is a function, and no module: call what makes it",
        ),
        (small(), {"exits": (0,), "head": lambda *_: None}, r"^the head of exit 0 is a NoneType, and no module"),
    ],
)
def test_what_is_no_sequence_of_modules(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        nest(network, input_shape=IMAGE, **options)
