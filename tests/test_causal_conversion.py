import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from telescopic import Nested, Subnet, architecture, causal_, cost, extract, load, nest, save
from telescopic.layers import (
    CausalBatchNorm1d,
    CausalBatchNorm2d,
    CausalConv2d,
    CausalLinear,
    Residual,
    SharedHead,
    pooled_head,
    step_down,
)
from telescopic.layers.causal import causal_mask
from telescopic.networks import resnet, vgg
from telescopic.testing import check_nested

IMAGE = (3, 8, 8)
LOGITS = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


class Bottleneck(nn.Module):
    """A block with a forward of its own: 1 × 1, depthwise, 1 × 1, and what it was given."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.channels, self.inner = channels, inner
        self.narrow_conv = nn.Conv2d(channels, inner, 1, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=2, dilation=2, groups=inner)
        self.wide_conv = nn.Conv2d(inner, channels, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(inner, affine=False)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](self.narrow_conv(x)).relu()
        y = torch.nn.functional.dropout(self.norms[1](self.depthwise(y)).relu(), 0.1, self.training)
        return x + self.wide_conv(y)


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * gates[:, :, None, None]


class Concatenated(nn.Module):
    """Appends new channels behind those that it was given, or group by group."""

    def __init__(self, channels: int, by_group: bool) -> None:
        super().__init__()
        self.conv, self.by_group = nn.Conv2d(channels, channels, 3, padding=1), by_group

    def forward(self, x: Tensor) -> Tensor:
        if self.by_group:
            return torch.cat([x.unflatten(1, (-1, 2)), self.conv(x).unflatten(1, (-1, 2))], 2).flatten(1, 2)
        return torch.cat([x, self.conv(x)], 1)


class Function(nn.Module):
    """Any function without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Then(nn.Module):
    """A layer, and behind it a function in the forward of its parent."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.one, self.other = function, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.function(self.one(x)))


class Scale(nn.Module):
    """Has a parameter of its own, and says what it is for the first groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[: x.shape[1], None, None]

    def narrow(self, width: int) -> "Scale":
        made = Scale(self.channels * width // self.groups, width)
        made.scale = nn.Parameter(self.scale.detach()[: made.channels].clone())
        return made


class Written(nn.Module):
    """A network with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(16, 5, bias=False)  # written first, and run last
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1)])
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(self.norm(x)))
        x = self.act(self.layers[0](x))
        x = self.act(self.layers[1](x) + x)
        return self.classifier(x.mean((2, 3))).log_softmax(1)


def block(given: int, made: int, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(), *more)


def small() -> nn.Sequential:
    """Blocks with channels that are multiples of four before they are laid flat, and not elsewhere."""
    torch.manual_seed(0)
    return nn.Sequential(
        block(3, 6, nn.MaxPool2d(2)),
        Bottleneck(6, 5),
        block(6, 8, nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(32, 9), nn.BatchNorm1d(9), nn.Tanh()),
        nn.Linear(9, 5),
    )


def around(part: nn.Module, channels: int = 8, given: int = 8) -> nn.Sequential:
    """A network of layers with a part in the middle."""
    return nn.Sequential(
        nn.Conv2d(3, given, 3, padding=1), nn.ReLU(), part, nn.Conv2d(channels, 8, 3), *LOGITS, nn.Linear(8, 5)
    )


# What becomes of a network ------------------------------------------------------------------------------------------


def test_layers_are_exchanged_one_by_one() -> None:
    network = small()
    assert causal_(network, 4, input_shape=IMAGE) is network
    kinds = {
        path: type(part)
        for path, part in network.named_modules()
        if type(part) not in (nn.Sequential, nn.ModuleList, Bottleneck)
    }
    assert kinds == {
        "0.0": nn.Conv2d,
        "0.1": CausalBatchNorm2d,
        "0.2": nn.ReLU,
        "0.3": nn.MaxPool2d,
        "1.narrow_conv": CausalConv2d,
        "1.depthwise": CausalConv2d,
        "1.wide_conv": CausalConv2d,
        "1.norms.0": CausalBatchNorm2d,
        "1.norms.1": CausalBatchNorm2d,
        "2.0": CausalConv2d,
        "2.1": CausalBatchNorm2d,
        "2.2": nn.ReLU,
        "2.3": nn.AvgPool2d,
        "3.0": nn.Flatten,
        "3.1": CausalLinear,
        "3.2": CausalBatchNorm1d,
        "3.3": nn.Tanh,
        "4": SharedHead,
    }
    depthwise = network[1].depthwise
    assert (depthwise.depthwise, depthwise.groups, depthwise.dilation, depthwise.padding) == (True, 5, (2, 2), (2, 2))
    assert {part.width_groups for part in network.modules() if hasattr(part, "width_groups")} == {4}


def test_weights_stay_but_for_those_that_may_not_be_read() -> None:
    network = small()
    network[1].wide_conv.weight.requires_grad_(False)
    network[2].eval()
    plain, parameters = copy.deepcopy(network), dict(network.named_parameters())
    causal_(network, 4, input_shape=IMAGE)
    # The very same parameters, so an optimizer made before still has them.
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    assert {name: p.requires_grad for name, p in network.named_parameters()} == {
        name: p.requires_grad for name, p in plain.named_parameters()
    }
    masked = ("1.narrow_conv", "1.wide_conv", "2.0", "3.1")
    before = plain.state_dict()
    for path in masked:
        weight = before[f"{path}.weight"]
        mask = causal_mask(*weight.shape[:2], 4)
        assert 0 < mask.sum() < mask.numel()
        before[f"{path}.weight"] = weight * mask.view(*mask.shape, *[1] * (weight.ndim - 2))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [part.training for part in network.modules()] == [part.training for part in plain.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_the_network_answers_as_one_with_these_weights_at_zero(training: bool) -> None:
    network = small().train(training)
    network[1].eval()  # has dropout
    plain = copy.deepcopy(network)
    causal_(network, 4, input_shape=IMAGE)
    plain.load_state_dict(network.state_dict())
    x = torch.randn(5, *IMAGE)
    assert torch.equal(network(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), plain.buffers(), strict=True))
    # One group takes nothing away.
    same = small().train(training)
    same[1].eval()
    expected = copy.deepcopy(same)(x)
    assert torch.equal(causal_(same, 1, input_shape=IMAGE)(x), expected)


def test_a_network_with_a_forward_of_its_own() -> None:
    torch.manual_seed(0)
    network = Written()
    plain = copy.deepcopy(network)
    causal_(network, 4)  # any square image will do
    assert [type(part) for part in (network.norm, network.stem)] == [nn.BatchNorm2d, nn.Conv2d]
    assert [type(part) for part in network.layers] == [CausalConv2d, CausalConv2d]
    assert type(network.classifier) is SharedHead
    # A head without a bias gets one that stays zero.
    assert torch.equal(network.classifier.bias, torch.zeros(5)) and not network.classifier.bias.requires_grad
    assert torch.equal(network.classifier.weight, plain.classifier.weight)


def test_the_first_groups_depend_on_no_other() -> None:
    torch.manual_seed(0)
    network = causal_(small(), 4, input_shape=IMAGE)
    network[1].eval()
    features = network[0](torch.randn(4, *IMAGE)).detach()
    for width, channels in ((1, (1, 1, 2, 2)), (2, (3, 3, 4, 4)), (3, (4, 4, 6, 6))):
        noisy = features.clone()
        noisy[:, channels[0] :] = torch.randn_like(noisy[:, channels[0] :])
        one, other, narrow = features, noisy, features[:, : channels[0]]
        for part, kept in zip(network[1:4], channels[1:], strict=True):
            one, other, narrow = part(one), part(other), part(narrow)
            assert torch.equal(one[:, :kept], other[:, :kept])
            assert not torch.equal(one[:, kept:], other[:, kept:])
            torch.testing.assert_close(narrow[:, :kept], one[:, :kept])
        assert width == 4 * narrow.shape[1] // 9 + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_stay(dtype: torch.dtype) -> None:
    network = causal_(small().to(dtype), 4, input_shape=IMAGE)
    assert {t.dtype for t in network.state_dict().values() if t.is_floating_point()} == {dtype}
    assert network.eval()(torch.randn(2, *IMAGE, dtype=dtype)).dtype == dtype


def test_a_network_without_memory() -> None:
    with torch.device("meta"):
        network = small()
    causal_(network, 4, input_shape=IMAGE)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert type(network[4]) is SharedHead


def test_nothing_is_drawn_from_torchs_random_numbers() -> None:
    network, state = small(), torch.get_rng_state()
    before = copy.deepcopy(network)
    causal_(network, 4, input_shape=IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    # What BatchNorm has recorded is not touched by the proof.
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), before.buffers(), strict=True))


def test_one_layer_in_two_places_stays_one() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    network = around(nn.Sequential(conv, nn.ReLU(), conv))
    causal_(network, 4, input_shape=IMAGE)
    assert type(network[2][0]) is CausalConv2d
    assert network[2][0] is network[2][2]


def test_an_optimizer_made_before_goes_on() -> None:
    network = small()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    causal_(network, 4, input_shape=IMAGE)
    before = copy.deepcopy(network.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, *IMAGE)).square().mean().backward()
        optimizer.step()
    weight = network[2][0].weight
    mask = causal_mask(8, 6, 4)
    assert not weight.detach()[~mask].any()
    assert (weight != before["2.0.weight"])[mask].all()


def test_a_list_of_blocks() -> None:
    blocks = nn.ModuleList(small())
    assert causal_(blocks, 4, input_shape=IMAGE) is blocks
    expected = causal_(small(), 4, input_shape=IMAGE)
    assert [type(part) for part in blocks.modules()][1:] == [type(part) for part in expected.modules()][1:]
    assert len(nest(blocks, input_shape=IMAGE, groups=4).grid) == 4
    with pytest.raises(TypeError, match=r"^layers of a list cannot be exchanged: give an nn\.Sequential, an nn\.Modu"):
        causal_(list(small()), 4)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"^layers of a Nested cannot be exchanged"):
        causal_(nest(small(), input_shape=IMAGE), 4)


def test_where_the_raw_input_ends() -> None:
    network = nn.Sequential(OrderedDict(stem=block(3, 6), body=block(6, 8), head=pooled_head((8, 1, 1), 5)))
    deep = copy.deepcopy(network)
    causal_(network, 2)
    assert type(network.stem[1]) is CausalBatchNorm2d
    causal_(deep, 2, first="stem")
    assert [type(part) for part in deep.stem] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert type(deep.body[0]) is CausalConv2d
    parallel = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1)), *around(nn.Identity())[3:])
    stays = causal_(copy.deepcopy(parallel), 4, first="0")
    assert [type(part) for part in stays[0]] == [nn.Conv2d, nn.Conv2d]
    assert [type(part) for part in causal_(parallel, 4)[0]] == [nn.Conv2d, CausalConv2d]


def test_shapes_that_are_found() -> None:
    assert type(causal_(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 4)[2]) is SharedHead
    flat = nn.Sequential(nn.Conv2d(1, 8, 5), nn.Flatten(), nn.Linear(8 * 24 * 24, 12), nn.ReLU(), nn.Linear(12, 3))
    assert type(causal_(flat, 4)[2]) is CausalLinear  # 28 × 28
    other = nn.Sequential(nn.Conv2d(1, 8, 5), nn.Flatten(), nn.Linear(8 * 7 * 7, 12), nn.Linear(12, 3))
    with pytest.raises(ValueError, match=r"^what this Sequential takes was not found by trying: give input_shape="):
        causal_(other, 4)
    assert type(causal_(other, 4, input_shape=(1, 11, 11))[2]) is CausalLinear


# Families of it -----------------------------------------------------------------------------------------------------


def family() -> Nested:
    return nest(
        causal_(small(), 4, input_shape=IMAGE), input_shape=IMAGE, entries=[2], exits=[0, 2], groups=4
    )  # fmt: skip


def test_a_family_has_the_numbers_of_the_blocks() -> None:
    network = causal_(small(), 4, input_shape=IMAGE)
    net = nest(network, input_shape=IMAGE, entries=[2], exits=[0, 2], groups=4).eval()
    assert (net.grid.entries, net.grid.exits, net.grid.widths) == ((0, 2), (0, 2, 4), (1, 2, 3, 4))
    x = torch.randn(3, *IMAGE)
    assert torch.equal(net(x), network.eval()(x))
    assert torch.equal(net(x, Subnet(exit=2)), net.exits["2"](network[:3](x)))
    assert torch.equal(net(x, Subnet(exit=0)), net.exits["0"](network[0](x)))
    assert torch.equal(net(x, Subnet(entry=2)), network[2:](net.entries["2"](x)))
    assert net.entries["0"] is network[0] and net.exits["4"] is network[4] and net.stages[1] is network[1]
    narrow = network[0](x)[:, :3]  # 6 channels in 4 groups: 1, 3, 4, 6
    for part in network[1:]:
        narrow = part(narrow)
    assert torch.equal(net(x, Subnet(width=2)), narrow)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))


def test_a_family_keeps_the_laws() -> None:
    net = family()
    members = [Subnet(entry=e, exit=x, width=w) for e, x, w in ((0, 4, 4), (0, 4, 1), (2, 4, 3), (2, 2, 2), (0, 0, 3))]
    check_nested(net, IMAGE, members=members, rebuild=False)


@pytest.mark.parametrize(
    ("make", "entries", "exits"),
    [
        (lambda: resnet(8, width=4), (2,), (1, 2)),
        (lambda: vgg(11, scale=1 / 16), (3,), (2, 5)),
        (lambda: around(Squeeze(8, 4)), (), (2,)),
        (lambda: around(Concatenated(8, by_group=True), 16), (), (2,)),
        (lambda: around(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1))), (3,), (2,)),
        (lambda: around(nn.PixelShuffle(2), 8, given=32), (), (2,)),
    ],
    ids=["resnet", "vgg", "squeeze", "concatenated", "unshuffle", "shuffle"],
)
def test_families_of_many_kinds_keep_the_laws(make: Any, entries: Any, exits: Any) -> None:
    torch.manual_seed(0)
    network = make()
    shape = (3, 32, 32) if len(network) == 9 else IMAGE
    net = nest(causal_(network, 4, input_shape=shape), input_shape=shape, entries=entries, exits=exits, groups=4)
    check_nested(net, shape, members=6, rebuild=False)


def test_a_member_is_made_of_ordinary_layers() -> None:
    net = family().eval()
    member = extract(net, Subnet(entry=2, width=3))
    kinds = {type(part) for part in member.modules()}
    assert kinds <= {nn.Sequential, nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.ReLU, nn.AvgPool2d, nn.Flatten} | {
        nn.Linear,
        nn.Tanh,
    }
    assert [layer.weight.shape[:2] for layer in member if isinstance(layer, nn.Conv2d | nn.Linear)] == [
        (4, 3),
        (6, 4),
        (6, 24),
        (5, 6),
    ]
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(member(x), net(x, Subnet(entry=2, width=3)))
    macs = 3 * 8 * 8 * 4 + 9 * 4 * 4 * 4 * 6 + 24 * 6 + 6 * 5
    assert cost(member, IMAGE).macs == macs


def test_a_family_is_saved_and_loaded(registered: None, tmp_path: Any) -> None:
    network = nn.Sequential(block(3, 6), block(6, 8, nn.AvgPool2d(8)), nn.Sequential(nn.Flatten(), nn.Linear(8, 5)))
    net = nest(causal_(network, 3), input_shape=IMAGE, exits=[0, 1], groups=3).eval()
    save(net, tmp_path / "net.safetensors", input_shape=IMAGE)
    x = torch.randn(2, *IMAGE)
    for member in net.grid:
        torch.testing.assert_close(load(tmp_path / "net.safetensors", member)(x), net(x, member))


def test_adapters_and_heads_of_ones_own() -> None:
    network = causal_(small(), 4, input_shape=IMAGE)
    first = nn.Conv2d(3, 3, 1)
    head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), SharedHead(8, 5, width_groups=4, average=True))
    adapter = step_down(IMAGE, (6, 4, 4), norm=False, activation=None)
    net = nest(network, input_shape=IMAGE, entries={0: first, 1: adapter}, exits={2: head}, groups=4).eval()
    x = torch.randn(3, *IMAGE)
    assert torch.equal(net(x), network.eval()(first(x)))
    assert torch.equal(net(x, Subnet(exit=2)), head(network[:3](first(x))))
    narrow = network[2](network[1](adapter(x)[:, :4]))
    assert torch.equal(net(x, Subnet(entry=1, exit=2, width=3)), head(narrow))
    torch.testing.assert_close(net.all(x)[net.grid.index(Subnet(entry=1, exit=2, width=3))], head(narrow))


def test_a_class_of_ones_own_that_narrows_itself() -> None:
    network = causal_(around(Scale(8, 4)), 4, input_shape=IMAGE)
    with torch.no_grad():
        network[2].scale.copy_(torch.arange(8.0))
    net = nest(network, input_shape=IMAGE, groups=4).eval()
    x = torch.randn(2, *IMAGE)
    for member in net.grid:
        torch.testing.assert_close(extract(net, member)(x), net(x, member))


NO_WIDTHS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (
        small,
        {},
        r"^block 1 does not do with the first of 4 groups of channels: .* Make the network channel-causal with "
        r"telescopic\.causal_\(network, groups=4\), with all up to its first layer in "
        r"block 0 and all from its last",
    ),
    (
        lambda: causal_(small(), 2, input_shape=IMAGE),
        {},
        r"^block 1 does not do with the first of 4 groups of channels: its CausalConv2d has 2 groups\.",
    ),
    (
        lambda: causal_(small(), 4, input_shape=IMAGE),
        {"exits": {2: pooled_head((8, 2, 2), 5)}},
        r"^the head of exit 2 does not do with the first of 4 groups of channels: .* of your own end in a SharedHead$",
    ),
    (
        lambda: causal_(small(), 4, input_shape=IMAGE),
        {"exits": {2: nn.Sequential(*LOGITS, SharedHead(8, 5, width_groups=8))}},
        r"^the head of exit 2 does not do with the first of 4 groups of channels: its SharedHead has 8 groups",
    ),
    (
        lambda: causal_(small(), 4, input_shape=IMAGE),
        {"exits": {4: nn.Linear(5, 5)}},
        r"^the head of exit 4 does not do with .*: a Linear cannot be made narrower",
    ),
    (
        lambda: causal_(small(), 4, input_shape=IMAGE),
        {"entries": {1: nn.MaxUnpool2d(2)}},
        r"^the adapter of entry 1",
    ),
    (
        lambda: causal_(nn.Sequential(Then(nn.Identity()), *LOGITS, nn.Linear(8, 5)), 4, input_shape=(8, 4, 4)),
        {"input_shape": (8, 4, 4)},
        r"^the adapter of entry 0: the adapter of a network with several widths ends in a convolution",
    ),
    (
        lambda: causal_(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 5)), 4, input_shape=IMAGE),
        {},
        r"^the adapter of entry 0: .* Block 0 is the end of it: have all up to the network's first layer there$",
    ),
    (
        lambda: causal_(around(nn.Identity()).append(nn.LogSoftmax(1)), 4, input_shape=IMAGE),
        {},
        r"^block 6 does not do with the first of 4 groups of channels: it gives \(5,\), and not \(1,\)\. .* all from "
        r"its last linear layer on in the last block",
    ),
    (lambda: [nn.Linear(192, 5)], {"input_shape": (192,)}, r"^a network with several widths has two blocks or more"),
    (small, {"groups": 2.0}, r"1 channel group or more, not 2\.0$|first of 2\.0"),
]


@pytest.mark.parametrize(("network", "options", "message"), NO_WIDTHS, ids=range(len(NO_WIDTHS)))
def test_networks_without_widths(network: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nest(network(), **{"input_shape": IMAGE, "groups": 4, **options})


# What is refused ----------------------------------------------------------------------------------------------------


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def channel_attention(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)


def hooked() -> nn.Sequential:
    network = small()
    network[2][0].register_forward_hook(lambda *_: None)
    return network


def refused(kind: str, path: str = "2") -> str:
    return rf"^{re.escape(path)} \({kind}\) cannot be made channel-causal: "


DEPENDS = r" breaks causality: the first 1 of 4 groups of channels that it gives depend on channels of later groups$"
REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "group norm": (lambda: around(nn.GroupNorm(4, 8)), {}, refused("GroupNorm") + "it takes statistics over channels"),
    "layer norm": (lambda: around(nn.LayerNorm([8, 8, 8])), {}, refused("LayerNorm") + ".* use nn.BatchNorm2d in its"),
    "no weights": (lambda: around(nn.GroupNorm(1, 8, affine=False)), {}, refused("GroupNorm")),
    "local": (lambda: around(nn.LocalResponseNorm(3)), {}, refused("LocalResponseNorm")),
    "instance": (lambda: around(nn.InstanceNorm2d(8)), {}, refused("InstanceNorm2d") + "torch's own is made for one"),
    "prelu": (lambda: around(nn.PReLU(8)), {}, refused("PReLU") + ".* use nn.ReLU or nn.LeakyReLU"),
    "unknown": (
        lambda: around(nn.ConvTranspose2d(8, 8, 3)),
        {},
        refused("ConvTranspose2d")
        + r"it is none of nn\.Conv2d, .* has tensors of its own \(weight, bias\); use these, or",
    ),
    "weight norm": (
        lambda: around(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        {},
        refused("ParametrizedConv2d") + "it is none of",
    ),
    "hooks": (hooked, {}, refused("Conv2d", "2.0") + "it has hooks"),
    "grouped": (lambda: around(nn.Conv2d(8, 8, 1, groups=4)), {}, refused("Conv2d") + "its 4 groups are its own"),
    "multiplied": (lambda: around(nn.Conv2d(8, 16, 1, groups=8), 16), {}, refused("Conv2d") + "its 8 groups are"),
    "circular": (
        lambda: around(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
        {},
        refused("Conv2d") + "it pads with 'circular'",
    ),
    "few channels": (lambda: around(Squeeze(8, 3)), {}, refused("Linear", "2.squeeze") + "3 channels make 1 to 3 gro"),
    "few features": (lambda: around(nn.Identity()), {"groups": 9}, refused("Conv2d", "3") + "8 channels make 1 to 8"),
    "twice": (
        lambda: causal_(small(), 4, input_shape=IMAGE),
        {},
        r"^0\.1 \(CausalBatchNorm2d\) is channel-causal already: give a network of ordinary layers$",
    ),
    # Found by running it
    "shuffle": (lambda: around(Function(shuffled)), {}, r"^2 \(Function\)" + DEPENDS),
    "shuffle, torch's": (lambda: around(nn.ChannelShuffle(2)), {}, refused("ChannelShuffle") + "it moves channels"),
    "shuffle in a forward": (
        lambda: around(Then(shuffled)),
        {},
        r"^2 \(Then\) breaks causality: the first 1 of 4 groups of channels that it passes on to 2\.other depend on ch",
    ),
    "mean of channels": (lambda: around(Function(lambda x: x * x.mean(1, keepdim=True))), {}, r"^2 \(Fu.*" + DEPENDS),
    "softmax": (lambda: around(nn.Softmax2d()), {}, r"^2 \(Softmax2d\)" + DEPENDS),
    "glu": (lambda: around(nn.GLU(1), 4), {}, r"^2 \(GLU\)" + DEPENDS),
    "attention": (lambda: around(Function(channel_attention)), {}, r"^2 \(Function\)" + DEPENDS),
    "gate of all": (
        lambda: around(Function(lambda x: x * x.sum((1, 2, 3), keepdim=True).sigmoid())),
        {},
        r"^2 \(Function\)" + DEPENDS,
    ),
    "not a number": (
        lambda: around(Function(lambda x: (x - 1).log())),
        {},
        r"^2 \(Function\): what it gives, with random weights and inputs, is not finite, which would hide what depends",
    ),
    "tokens as features": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Flatten(), nn.Linear(48, 3)),
        {"input_shape": (6, 4)},
        r"the adapter gives features \(3, 6, 8\) with channels in their last dimension",
    ),
    "appended": (lambda: around(Concatenated(8, by_group=False), 16), {}, r"^2 \(Concatenated\)" + DEPENDS),
    "later only": (
        lambda: around(Function(lambda x: torch.cat([x[:, :6], x[:, 6:].flip(1) + x[:, -1:]], 1))),
        {"groups": 8},
        r"^2 \(Function\) breaks causality: the first 7 of 8 groups of channels that it gives depend",
    ),
    "appended zeros": (
        lambda: around(Residual(nn.Conv2d(8, 16, 1), nn.ZeroPad3d((0, 0, 0, 0, 0, 8))), 16),
        {},
        r"^2\.shortcut \(ZeroPad3d\) breaks causality: given the first 1 of 4 groups of channels, it gives features of "
        r"shape \(10, 8, 8\), and these groups of \(16, 8, 8\) are the first 4\. It mixes channels",
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 9, 3), nn.Flatten(), nn.Linear(9 * 36, 8), nn.Linear(8, 5)),
        {},
        r"^1 \(Flatten\) breaks causality: given the first 1 of 4 groups of channels, it gives features of shape "
        r"\(72,\), and these groups of \(324,\) are the first 81\. Have a multiple of 4 channels in front of it, or po",
    ),
    "fixed number": (
        lambda: around(Function(lambda x: x.view(len(x), 8, 8, 8) * 2)),
        {},
        r"^2 \(Function\) breaks causality: it fails on the first 1 of 4 groups of channels: shape '\[3, 8, 8, 8\]' is",
    ),
    "tokens": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 2, 2),
            nn.Flatten(2),
            Function(lambda x: x.mT),
            nn.Linear(8, 8),
            Function(lambda x: x.mean(1)),
            nn.Linear(8, 5),
        ),
        {},
        r"^2 \(Function\) breaks causality: given the first 1 of 4 groups of channels, it gives features of shape "
        r"\(16, 2\), and these groups of \(16, 8\) are the first 4\.",
    ),
    # Where it begins and ends
    "no logits": (
        lambda: small()[:3],
        {},
        r"^2\.1 \(BatchNorm2d\) is the last layer with parameters, .* an nn\.Linear",
    ),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), {}, r"^1 \(Linear\) is the last layer with"),
    "a layer": (lambda: nn.Linear(8, 5), {"input_shape": (8,)}, r"^the network \(Linear\) cannot be the first layer"),
    "no first": (small, {"first": "9.9"}, r"^the network has no module '9\.9': give one of its paths, such as '0\.0'$"),
    "first without layers": (small, {"first": "0.2"}, r"^0\.2 \(ReLU\) cannot be the first layer"),
    "all of it": (small, {"first": ""}, r"^the network \(Sequential\) cannot be the first layer"),
    "too late": (small, {"first": "4"}, r"^4 \(Linear\) is the last layer with parameters"),
    "another shape": (
        small,
        {"input_shape": (1, 8, 8)},
        r"failed on an input of shape \(3, 1, 8, 8\).* Is input_shape",
    ),
    "no shape": (small, {"input_shape": 8}, r"input_shape"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(8, 1), *LOGITS, nn.Linear(8, 5)), {}, "has lazy layers without a"),
    "no groups": (small, {"groups": 0}, r"^a network has 1 channel group or more, not 0$"),
    "half a group": (small, {"groups": 1.5}, r"^a network has 1 channel group or more, not 1\.5$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_cannot_be_made_causal_stay_as_they_are(name: str) -> None:
    make, options, message = REFUSED[name]
    torch.manual_seed(0)
    network = make()
    kinds = [(path, type(part)) for path, part in network.named_modules()]
    tensors = {path: (tensor, copy.deepcopy(tensor)) for path, tensor in network.named_parameters()}
    with pytest.raises((ValueError, TypeError), match=message):
        causal_(network, **{"groups": 4, "input_shape": IMAGE, **options})
    assert kinds == [(path, type(part)) for path, part in network.named_modules()]
    for path, tensor in network.named_parameters():
        assert tensor is tensors[path][0]
        assert name == "lazy" or torch.equal(tensor, tensors[path][1])
    assert name == "lazy" or not [part for part in network.modules() if part._forward_pre_hooks]


def test_a_layer_registered_nowhere_is_found() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Conv2d(8, 8, 1, dtype=torch.float64)]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[0].to(x.device)(x.double()).to(x.dtype)

    with pytest.raises(ValueError, match=r"^this Sequential failed|^2 \(Hidden\) breaks causality"):
        causal_(around(Hidden()), 4, input_shape=IMAGE)
