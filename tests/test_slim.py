"""Any network in several widths, its own weights inside: what becomes narrow, what stays, and all the laws."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl
from telescopic.layers.slim import Slim
from telescopic.testing import check_nested
from telescopic.train.objective import Objective


class Block(nn.Module):
    """A residual block of two convolutions, with a projection where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.way: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.way = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.one(x)))
        return torch.relu(self.norms[1](self.two(y)) + self.way(x))


class Squeeze(nn.Module):
    """Inverted residual with squeeze and excitation, and hard-swish (MobileNetV3)."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.each = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.norm = nn.BatchNorm2d(inner)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 8, 1), nn.ReLU(), nn.Conv2d(8, inner, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.hardswish(self.norm(self.each(self.up(x))))
        return x + self.down(y * functional.hardsigmoid(self.gate(y)))


class Dense(nn.Module):
    """Each layer reads all before it, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8 + 16 * i, 16, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, torch.relu(layer(x))), 1)
        return x


class Encoder(nn.Module):
    """A transformer block: the residual stream is normalised over its features, its hidden units are not."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return out


class Halves(nn.Module):
    """One half passes, and the halves are shuffled (ShuffleNetV2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat((left, self.one(right)), 1)
        return y.view(len(y), 2, y.shape[1] // 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)


def pooled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU())


NETWORKS: dict[str, tuple[Any, tuple[int, ...], dict[str, tuple[int, ...]], set[str]]] = {
    # Name: network, input, widths of some layers in halves, layers that stay whole.
    "residual": (
        lambda: nn.Sequential(stem(16), Block(16, 16, 1), Block(16, 32, 2), pooled(32)),
        (3, 8, 8), {"0.0": (8, 16), "1.one": (8, 16), "1.two": (8, 16), "2.way.0": (16, 32)}, {"3.2"},
    ),
    "depthwise with a gate": (
        lambda: nn.Sequential(stem(16), Squeeze(16, 32), pooled(16)),
        (3, 8, 8), {"0.0": (8, 16), "1.up": (16, 32), "1.gate.3": (16, 32)}, {"2.2"},
    ),
    "concatenation": (
        lambda: nn.Sequential(stem(8), Dense(), pooled(56)), (3, 8, 8), {"1.layers.0": (8, 16)}, {"2.2"},
    ),
    "flattened": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(),
                              nn.Linear(32, 4)),
        (3, 8, 8), {"0": (8, 16), "3": (16, 32)}, {"5"},
    ),
    "series": (
        lambda: nn.Sequential(nn.Conv1d(2, 16, 3), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.Flatten(),
                              nn.Linear(96, 4)),
        (2, 10), {"0": (8, 16), "3": (8, 16)}, {"5"},
    ),
    "shuffled": (
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ChannelShuffle(4), nn.ReLU(), pooled(32)),
        (3, 8, 8), {"0": (16, 32)}, {"3.2"},
    ),
    "shuffled halves, twice": (
        lambda: nn.Sequential(stem(32), Halves(32), Halves(32), pooled(32)),
        (3, 8, 8), {"0.0": (16, 32), "1.one": (8, 16), "2.one": (8, 16)}, {"3.2"},
    ),
    "transformer": (
        lambda: nn.Sequential(Encoder(), Encoder(), nn.Flatten(), nn.Linear(48, 4)), (3, 16),
        {"0.up": (16, 32), "1.up": (16, 32)}, {"3"},
    ),
}  # fmt: skip


def lived_in(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for _ in range(2):
            net.train()(torch.randn(8, *shape))
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_becomes_a_family_that_keeps_the_laws(name: str) -> None:
    build, shape, narrow, whole = NETWORKS[name]
    torch.manual_seed(0)
    net = lived_in(build(), shape).double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    family = tl.slim(net, x, (0.5, 1))
    torch.testing.assert_close(family(x), net(x), rtol=0, atol=1e-12)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items()), "the network given has changed"
    found = {layer: sizes for layers, sizes in family.narrowing.channels.items() for layer in layers}
    assert {layer: found.get(f"stages.0.{layer}") for layer in narrow} == narrow, str(family.narrowing)
    assert whole <= {layer.removeprefix("stages.0.") for layer in family.narrowing.whole}
    assert not whole & {layer.removeprefix("stages.0.") for layer in found}
    check_nested(family, shape, rebuild=False)


def test_channels_of_large_weights_come_first() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2))
    with torch.no_grad():
        size = torch.randperm(16)
        net[0].weight.copy_(torch.ones(16, 3) * size[:, None] + 1)
        net[1].weight.fill_(0.1)
    family = tl.slim(net, torch.randn(2, 3), (0.5, 1))
    kept = tl.extract(family, tl.Subnet(width=1))[0].weight
    assert kept[:, 0].tolist() == list(range(16, 8, -1))
    given = tl.slim(net, torch.randn(2, 3), (0.5, 1), order="given")
    assert torch.equal(tl.extract(given, tl.Subnet(width=1))[0].weight, net[0].weight[:8])


def test_entries_and_exits_have_widths_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = tl.nest([stem(16), Block(16, 16, 1), Block(16, 32, 2), pooled(32)], exits=[1, 2], input_shape=(3, 8, 8))
    family = tl.slim(net, x, (0.25, 0.5, 1))
    assert family.grid.exits == net.grid.exits and family.grid.widths == (1, 2, 3)
    for member in net.grid:
        wide = tl.Subnet(entry=member.entry, exit=member.exit)
        torch.testing.assert_close(family.eval()(x, wide), net.eval()(x, member))
    sizes = [
        member.macs for member in tl.measure(family, input_shape=(3, 8, 8)) if member.subnet.exit == net.grid.exits[-1]
    ]
    assert sizes == sorted(set(sizes))


def test_a_bundle_holds_it_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(stem(32), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), pooled(64)).eval()
    family = tl.slim(net, x, (0.25, 0.5, 1))
    tl.save(family, tmp_path / "family.safetensors", input_shape=(3, 8, 8))
    tl.save(net, tmp_path / "net.safetensors", input_shape=(3, 8, 8))
    sizes = [(tmp_path / name).stat().st_size for name in ("family.safetensors", "net.safetensors")]
    assert sizes[0] < sizes[1] + 8192, "statistics and cuts alone are added"
    loaded = tl.load(tmp_path / "family.safetensors")
    assert any(isinstance(part, Slim) for part in loaded.modules())
    for member in family.grid:
        assert torch.equal(loaded(x, member), family(x, member))
        assert torch.equal(tl.load(tmp_path / "family.safetensors", member)(x), family(x, member))


@pytest.mark.parametrize(
    ("net", "options", "says"),
    [
        (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)), {"widths": (0.5, 0.25, 1)}, "rising shares"),
        (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)), {"widths": (0.5, 0.75)}, "the last one 1"),
        (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)), {"widths": 1}, "2 to 64"),
        (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)), {"multiple_of": 0}, "multiple_of"),
        (nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 2)), {"order": "best"}, "best"),
        (nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), {}, "multiples of 8"),
        (nn.Linear(3, 16), {}, "the network's output"),
        (
            nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.Linear(16, 2)),
            {},
            r"stages.0.0, stages.0.1: layer_norm in stages.0.1",
        ),
    ],
)
def test_what_cannot_be_is_refused(net: nn.Module, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tl.slim(net, torch.randn(2, 3), **options)


def test_what_a_network_counts_on_stays_whole() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.one(x))
            assert y.shape[1] == 16, "sixteen, please"
            return self.out(torch.relu(self.two(y)))

    family = tl.slim(Counts(), torch.randn(2, 3), (0.5, 1))
    assert family.narrowing.channels == {("stages.0.two",): (8, 16)}
    assert "sixteen" in family.narrowing.whole["stages.0.one"]


def test_a_step_runs_the_members_that_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    family = tl.slim(net, torch.randn(4, 6), 4)
    objective = Objective(family, tl.recipes.slim(1))
    x, labels = torch.randn(12, 6), torch.randint(3, (12,))
    drawn, total, asked, every = set(), [], list[int](), tl.Nested.all

    def noted(net: tl.Nested, x: Tensor, mix: Any, members: list[int], *heard: Any) -> Tensor:
        asked[:] = members
        return every(net, x, mix, members, *heard)

    monkeypatch.setattr(tl.Nested, "all", noted)
    for _ in range(40):
        loss, losses = objective(x, labels)
        assert len(asked) == 3 and {0, 3} <= set(asked) and loss.item() > 0
        assert losses.nonzero().view(-1).tolist() == asked
        drawn |= set(asked)
        total.append(losses)
    assert drawn == {0, 1, 2, 3}
    # Over many steps each member's mean is that of all its losses: one that is drawn half the time counts twice.
    monkeypatch.undo()
    mean, half = torch.stack(total).mean(0), torch.stack(total)[:, 1:3]
    assert mean[3].item() == pytest.approx(
        functional.cross_entropy(family.all(x)[3], labels, reduction="sum").item(), rel=1e-4
    )
    assert half[half > 0].min() > 1.5 * total[0][[0, 3]].min()


def test_the_full_member_teaches_also_if_its_own_loss_weighs_nothing() -> None:
    torch.manual_seed(0)
    family = tl.slim(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(4, 6), 4)
    objective = Objective(family, tl.recipes.slim(1, weights=(0.5, 0.25, 0.25, 0.0)))
    loss, losses = objective(torch.randn(12, 6), torch.randint(3, (12,)))
    assert loss.item() > 0 and losses[3] > 0 and int((losses > 0).sum()) == 3


def test_it_learns_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    def family() -> tl.Nested:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        return tl.slim(net, torch.randn(4, 1, 8, 8), (0.25, 0.5, 1))

    data = tl.data.load("digits")
    how: dict[str, Any] = {"precision": "fp32", "progress": False, "cpu": True, "keep": "last"}
    recipe = tl.recipes.slim(4, batch_size=64)
    whole = family()
    history = tl.fit(whole, data, recipe, out=tmp_path / "whole", **how)
    assert min(history[-1].test) > 0.85

    def stop(history: tl.History) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tl.fit(family(), data, recipe, out=tmp_path / "cut", on_epoch=stop, **how)
    resumed = family()
    tl.fit(resumed, data, recipe, out=tmp_path / "cut", resume=True, **how)
    theirs = resumed.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        ([[("weight", 0, 16, [[[0, 8]]])]], None),
        ([[("weight", 0, 16, [[[0, 17]]])]], "cannot be cut"),
        ([[("weight", 0, 16, [[[8, 8]]])]], "cannot be cut"),
        ([[("weight", 2, 16, [[[0, 8]]])]], "cannot be cut"),
        ([[("weight", 0, 15, [[[0, 8]]])]], "cannot be cut"),
        ([[("weight", 0, 16, [[[0, 8]]]), ("weight", 0, 16, [[[0, 8]]])]], "cannot be cut"),
        ([[("weight", 0, 16, [])]], "cannot be cut"),
        ([[("gain", 0, 16, [[[0, 8]]])]], "no tensor 'gain'"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cuts: Any, says: str | None) -> None:
    if says is None:
        assert Slim(nn.Linear(4, 16, bias=False), cuts).in_width(1)(torch.rand(2, 4)).shape == (2, 8)
        return
    with pytest.raises(ValueError, match=says):
        Slim(nn.Linear(4, 16, bias=False), cuts)


def test_a_file_that_speaks_of_endless_layers_allocates_nothing() -> None:
    with torch.device("meta"):
        part = Slim(nn.Linear(4, 2**40, bias=False), [[("weight", 0, 2**40, [[[0, 2**39], [2**39 + 1, 2**40]]])]])
        assert part.in_width(1)(torch.empty(2, 4)).shape == (2, 2**40 - 1)


def sizes_of(family: tl.Nested) -> dict[str, tuple[int, ...]]:
    return {layer: sizes for layers, sizes in family.narrowing.channels.items() for layer in layers}


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))


def test_layers_are_as_wide_as_the_user_says() -> None:
    x = torch.randn(2, 6)
    some = {"stages.0.0": 5, "stages.0.2": 0.5}
    family = tl.slim(two_layers(), x, (0.25, some | {"stages.0.0": 8}, {"stages.0.*": 0.75}, 1))
    assert sizes_of(family) == {"stages.0.0": (8, 8, 24, 32), "stages.0.2": (8, 16, 24, 32)}
    odd = tl.slim(two_layers(), x, (some, 1))  # a number is taken as it is, and what is not named stays whole
    assert sizes_of(odd) == {"stages.0.0": (5, 32), "stages.0.2": (16, 32)}
    assert sizes_of(tl.slim(two_layers(), x, ({"stages.0.0": 5}, 1))) == {"stages.0.0": (5, 32)}
    check_nested(odd, (6,), rebuild=False)


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        (({"stages.0.9": 0.5}, 1), r"stages\.0\.9.*stages\.0\.0, stages\.0\.2"),
        (({"stages.0.4": 0.5}, 1), r"stages\.0\.4 stays whole.*output"),
        (({"stages.0.0": 33}, 1), "keeps 1 to 32 channels, in multiples of 1, not 33"),
        (({"stages.0.0": 0}, 1), "not 0"),
        (({"stages.0.0": 1.5}, 1), r"not 1\.5"),
        (({"stages.0.0": 16}, {"stages.0.0": 8}, 1), "widths rise"),
        (({"stages.0.0": 8, "stages.0.*": 16}, 1), "would keep different ones"),
        (None, "None"), ("1,2", "1,2"), ((True, 1), "True"), ((0.5, float("nan"), 1), "nan"),
    ],
)  # fmt: skip
def test_widths_that_cannot_be_are_refused(widths: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tl.slim(two_layers(), torch.randn(2, 6), widths)


def test_channels_of_what_is_shuffled_go_by_multiples() -> None:
    net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ChannelShuffle(4), nn.ReLU(), pooled(32))
    x = torch.randn(2, 3, 8, 8)
    assert sizes_of(tl.slim(net, x, ({"stages.0.0": 12}, 1)))["stages.0.0"] == (12, 32)
    with pytest.raises(ValueError, match="in multiples of 4, not 13"):
        tl.slim(net, x, ({"stages.0.0": 13}, 1))


def test_multiply_adds_are_saved_where_least_is_lost() -> None:
    net, x = two_layers(), torch.randn(2, 6)
    with torch.no_grad():
        net[2].weight[16:] *= 0.01  # half of the units of the second layer matter little
        net[4].weight[:, 16:] *= 0.01
    shares = (0.5, 0.8, 1)
    family = tl.slim(net, x, shares, of="macs")
    macs = [member.macs for member in tl.measure(family, input_shape=(6,))]
    assert all(share - 0.15 < one / macs[-1] <= share for share, one in zip(shares, macs, strict=True))
    sizes = sizes_of(family)
    assert sizes["stages.0.2"][0] == 16, "what matters least goes first, and no more than is needed"
    check_nested(family, (6,), rebuild=False)
    with pytest.raises(ValueError, match=r"needs 0\.\d+ of all multiply-adds, not 0\.01"):
        tl.slim(net, x, (0.01, 1), of="macs")
    with pytest.raises(ValueError, match="no share of all multiply-adds"):
        tl.slim(net, x, ({"stages.0.0": 8}, 1), of="macs")
    with pytest.raises(ValueError, match="not of 'params'"):
        tl.slim(net, x, shares, of="params")  # type: ignore[arg-type]


def test_importance_to_the_loss_is_gradient_times_weight() -> None:
    net = two_layers().double().train()
    net[0].weight.requires_grad_(False)
    batches = [(torch.randn(5, 6, dtype=torch.float64), torch.randint(2, (5,))) for _ in range(3)]
    found = tl.importance.taylor(net, batches)
    assert net.training and not net[0].weight.requires_grad and net[2].weight.grad is None
    wanted = torch.zeros_like(net[0].weight)
    for x, labels in batches:
        weight = net[0].weight.detach().clone().requires_grad_()
        tensors = {"0.weight": weight, **{n: p.detach() for n, p in net.named_parameters() if n != "0.weight"}}
        functional.cross_entropy(torch.func.functional_call(net, tensors, (x,)), labels).backward()
        wanted += (weight.grad * weight.detach()) ** 2
    torch.testing.assert_close(found["0.weight"], wanted, rtol=1e-12, atol=0)
    # The channels that stay are those that matter most, by what goes into them and what comes out together.
    unit = found["0.weight"].sum(1) + found["0.bias"] + found["2.weight"].sum(0)
    family = tl.slim(net, batches[0][0], (0.25, 1), order=found)
    kept = tl.extract(family, tl.Subnet(width=1))[0].weight
    assert torch.equal(kept, net[0].weight[unit.argsort(descending=True, stable=True)[:8]])


@pytest.mark.parametrize(
    ("batches", "loss", "says"),
    [
        ([], functional.cross_entropy, "there is none"),
        ([(torch.randn(2, 6), torch.zeros(2, dtype=torch.long))], lambda y, t: y, "no finite number"),
        ([(torch.randn(2, 6) / 0, torch.zeros(2, dtype=torch.long))], functional.cross_entropy, "no finite number"),
        ([(torch.randn(2, 6), torch.zeros(2, dtype=torch.long))], lambda y, t: torch.ones(()), "no parameter"),
    ],
)
def test_a_loss_that_says_nothing_is_refused(batches: Any, loss: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tl.importance.taylor(two_layers(), batches, loss)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"9.weight": torch.ones(1)}, "9.weight"),
        ({"0.weight": torch.ones(6, 32)}, r"\[32, 6\], not \[6, 32\]"),
        ({"0.weight": torch.full((32, 6), torch.nan)}, "not finite and 0 or more"),
        ({"0.weight": torch.full((32, 6), -1.0)}, "not finite and 0 or more"),
        ({"0.weight": None}, "NoneType"),
    ],
)
def test_importances_of_another_network_are_refused(change: dict[str, Any], says: str) -> None:
    net = two_layers()
    with pytest.raises(ValueError, match=says):
        tl.slim(net, torch.randn(2, 6), order={name: torch.ones_like(p) for name, p in net.named_parameters()} | change)
    with pytest.raises(ValueError, match=r"no importance is given for 0\.bias"):
        tl.slim(net, torch.randn(2, 6), order={"0.weight": torch.ones(32, 6)})


def test_what_filters_learned_becomes_a_width() -> None:
    net, x = two_layers(), torch.randn(4, 6)
    with_filters = tl.shrink.add_filters(net, x)
    with torch.no_grad():
        alive = {}
        for path, part in with_filters.named_modules():
            if path in ("0.filter", "2.filter"):
                part.theta.copy_(torch.randperm(32).sub(12 if path == "0.filter" else 20).clamp(min=0))
                alive[f"stages.0.{path.removesuffix('.filter')}"] = int((~part.dead()).sum())
    tl.shrink.order_(with_filters, example=x)
    family = tl.slim(tl.shrink.fold(with_filters, x), x, (alive, 1), order="given").eval()
    assert sizes_of(family) == {path: (number, 32) for path, number in alive.items()}
    torch.testing.assert_close(family(x, tl.Subnet(width=1)), with_filters.eval()(x))
    torch.testing.assert_close(family(x), with_filters(x))


def test_small_weights_of_half_precision_are_told_apart() -> None:
    net = two_layers()
    with torch.no_grad():
        net[0].weight.copy_(torch.linspace(0.1, 1, 32)[:, None].expand(32, 6) * 1e-4)
        net[2].weight.fill_(1e-4)
    family = tl.slim(net.half(), torch.randn(2, 6).half(), (0.5, 1))
    kept = tl.extract(family, tl.Subnet(width=1))[0].weight
    assert torch.equal(kept, net[0].weight.flip(0)[:16])


def test_what_a_grouped_convolution_reads_counts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1, groups=2), pooled(32))
    order = {name: torch.zeros_like(parameter) for name, parameter in net.named_parameters()}
    order["2.weight"] += torch.arange(16.0)[None, :, None, None]
    family = tl.slim(net, torch.randn(2, 3, 4, 4), (0.5, 1), order=order)
    kept = tl.extract(family, tl.Subnet(width=1))[0].weight
    theirs = [*range(15, 7, -1), *range(31, 23, -1)]  # the last eight of each group
    assert torch.equal(kept, net[0].weight[theirs])


def test_layers_beside_each_other_keep_a_share_each() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 32)
            self.out = nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(torch.cat((self.a(x), self.b(x)), 1) + self.c(x)))

    x = torch.randn(2, 6)
    family = tl.slim(Beside(), x, (0.5, 1))
    assert sizes_of(family) == {"stages.0.a": (8, 16), "stages.0.b": (8, 16), "stages.0.c": (16, 32)}
    check_nested(family, (6,), rebuild=False)
    assert sizes_of(tl.slim(Beside(), x, ({"stages.0.b": 4}, 1)))["stages.0.b"] == (4, 16)
    with pytest.raises(ValueError, match="keeps 1 to 16 channels"):
        tl.slim(Beside(), x, ({"stages.0.b": 33}, 1))


def test_several_groupings_of_the_same_channels() -> None:
    net = nn.Sequential(nn.Conv2d(32, 64, 1, groups=4), nn.ReLU(), nn.Conv2d(64, 32, 1, groups=2), pooled(32))
    family = tl.slim(net, torch.randn(2, 32, 4, 4), (0.5, 1))
    assert sizes_of(family)["stages.0.0"] == (32, 64)
    check_nested(family, (32, 4, 4), rebuild=False)


def test_importance_of_other_types() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = two_layers(), nn.Parameter(torch.arange(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.seen.sum()

    batch = (torch.randn(4, 6), torch.zeros(4, dtype=torch.long))
    found = tl.importance.taylor(Counts(), [batch])
    assert not found["seen"].any() and found["net.0.weight"].any()
    half = tl.importance.taylor(two_layers().bfloat16(), [(batch[0].bfloat16(), batch[1])])
    assert half["0.weight"].dtype == torch.float32 and half["0.weight"].count_nonzero() > 100
