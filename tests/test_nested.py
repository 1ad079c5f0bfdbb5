import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from telescopic import Nested, Subnet
from telescopic.layers import CausalBatchNorm1d, CausalLinear, SharedHead
from telescopic.networks import mlp


class Ones(nn.Module):
    """Features or logits that are all 1, so that dropout can be seen."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), self.size)


class Twice(nn.Module):
    """One parameter by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one + self.other


def linears(num: int) -> list[nn.Module]:
    return [nn.Linear(3, 3) for _ in range(num)]


def exits_of(*places: int, num_stages: int = 3) -> Nested:
    """One entry, some exits; float64."""
    torch.manual_seed(0)
    return Nested(linears(num_stages), exits={place: nn.Linear(3, 2) for place in places}).double()


def per_entry() -> Nested:
    """Two linear stages with BatchNorm, entries before both."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    return Nested(stages, {0: nn.Identity(), 1: nn.Identity()}, statistics="per-entry").double()


def counted(net: Nested, call: Callable[[], object]) -> dict[str, int]:
    """How often a call runs each part."""
    calls: Counter[str] = Counter()
    names = {module: name for name, module in net.named_modules() if name.count(".") == 1}
    hooks = [module.register_forward_hook(lambda part, *_: calls.update([names[part]])) for module in names]
    call()
    for hook in hooks:
        hook.remove()
    return dict(calls)


def inputs(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, dtype=torch.float64)


def gradients(net: Nested, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


# What a member computes ---------------------------------------------------------------------------------------------


def test_members_by_hand() -> None:
    a, b, c = (nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in range(3))
    stages = [nn.Tanh(), nn.Sequential(b, nn.Sigmoid())]
    net = Nested(stages, {0: a, 1: c, 2: nn.Identity()}, {-1: nn.Softmax(1), 1: nn.Identity(), 0: nn.ReLU()})
    assert net.stages[1] is stages[1]
    assert (list(net.entries), list(net.exits)) == (["0", "1", "2"], ["-1", "0", "1"])
    x = torch.randn(4, 2, dtype=torch.float64)
    u, v = x @ a.weight.T, x @ c.weight.T
    by_hand = {  # in grid order: by number of stages, then exit
        Subnet(entry=0, exit=-1): u.softmax(1),
        Subnet(entry=1, exit=0): v.relu(),
        Subnet(entry=2, exit=1): x,
        Subnet(entry=0, exit=0): u.tanh().relu(),
        Subnet(entry=1, exit=1): (v @ b.weight.T).sigmoid(),
        Subnet(entry=0, exit=1): (u.tanh() @ b.weight.T).sigmoid(),
    }
    for member, logits in by_hand.items():
        torch.testing.assert_close(net(x, member), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(net.all(x), torch.stack(list(by_hand.values())), rtol=0, atol=1e-12)
    assert torch.equal(net(x), net(x, Subnet(entry=0, exit=1)))
    assert torch.equal(net(x, Subnet(exit=-1)), net(x, net.grid[0]))


def test_one_module_may_be_a_stage_and_a_head() -> None:
    tanh = nn.Tanh()
    net, x = Nested([nn.Linear(3, 3), tanh], exits={0: tanh, 1: tanh}), torch.randn(4, 3)
    assert torch.equal(net.all(x), torch.stack([net(x, member) for member in net.grid]))
    longer = Nested([tanh, nn.Linear(3, 3), tanh], exits={0: tanh, 1: tanh, -1: tanh, 2: tanh})
    assert torch.equal(longer.all(x), torch.stack([longer(x, member) for member in longer.grid]))


def test_paths_and_owners() -> None:
    net = Nested(linears(3), {0: nn.Identity(), 2: nn.Identity()}, {1: nn.Identity(), 2: nn.Identity()})
    assert [name for name, _ in net.path(Subnet(entry=2))] == ["entries.2", "stages.2", "exits.2"]
    assert [name for name, _ in net.path(Subnet(exit=1))] == ["entries.0", "stages.0", "stages.1", "exits.1"]
    assert [module for _, module in net.path()][1:-1] == list(net.stages)
    # Members: entry 2 exit 1 (no stage), entry 2 exit 2, entry 0 exit 1, full.
    owners = {"entries.2": 0, "exits.1": 0, "stages.2": 1, "exits.2": 1, "entries.0": 2, "stages.0": 2, "stages.1": 2}
    assert net.owners() == owners


def test_all_runs_what_exits_share_once() -> None:
    net, x = exits_of(-1, 1, 2), inputs()
    stages = {"stages.0": 1, "stages.1": 1, "stages.2": 1}
    assert counted(net, lambda: net.all(x)) == {"entries.0": 1, **stages, "exits.-1": 1, "exits.1": 1, "exits.2": 1}
    assert counted(net, lambda: net(x, Subnet(exit=1))) == {"entries.0": 1, "stages.0": 1, "stages.1": 1, "exits.1": 1}


def test_entries_share_no_computation() -> None:
    net = mlp(3, (3, 3), 2)
    assert counted(net, lambda: net.all(torch.randn(4, 3))) == {
        **{"entries.0": 1, "entries.1": 1, "entries.2": 1},
        **{"stages.0": 1, "stages.1": 2, "exits.1": 3},
    }


# Widths -------------------------------------------------------------------------------------------------------------


def wide(groups: int = 2, **options: object) -> Nested:
    """Entries 0 and 1, exits -1, 0 and 1, groups of two features; float64."""
    torch.manual_seed(0)
    size = 2 * groups
    stages = [
        nn.Sequential(CausalLinear(size, size, width_groups=groups), CausalBatchNorm1d(size, width_groups=groups))
        for _ in range(2)
    ]
    heads = {i: SharedHead(size, 2, width_groups=groups) for i in (-1, 0, 1)}
    return Nested(stages, {0: nn.Linear(3, size), 1: nn.Linear(3, size)}, heads, groups=groups, **options).double()


def test_members_of_some_width_by_hand() -> None:
    net, x = wide().eval(), inputs()
    conv, norm = net.stages[1]
    for norm_ in (net.stages[0][1], norm):
        nn.init.normal_(norm_.running_mean), nn.init.uniform_(norm_.running_var, 1, 2)
    assert [net.grid.label(member) for member in net.grid][:4] == [
        "entry=0,exit=-1,width=1", "entry=1,exit=0,width=1", "entry=0,exit=-1,width=2", "entry=1,exit=0,width=2",
    ]  # fmt: skip
    features = (x @ net.entries["1"].weight.T + net.entries["1"].bias)[:, :2]
    features = features @ conv.weight[:2, :2].T + conv.bias[:2]
    features = (features - norm.running_mean[:2]) / (norm.running_var[:2] + norm.eps).sqrt()
    head = net.exits["1"]
    logits = features @ head.weight[:, :2].T + head.bias
    torch.testing.assert_close(net(x, Subnet(entry=1, width=1)), logits, rtol=0, atol=1e-12)
    each = torch.stack([net(x, member) for member in net.grid])
    torch.testing.assert_close(net.all(x), each, rtol=0, atol=1e-12)


def test_all_widths_take_one_pass() -> None:
    net, x = wide(groups=3).eval(), inputs()
    assert len(net.grid) == 15
    runs = {"entries.0": 1, "entries.1": 1, "stages.0": 1, "stages.1": 2}  # heads are asked for every width
    assert counted(net, lambda: net.all(x)) == runs
    wider = {member: (0.5 if member.width == 1 else 1.0) for member in net.grid}
    mix = tuple((factor,) * 15 for factor in wider.values())
    assert counted(net, lambda: net.all(x, mix)) == {name: 2 * number for name, number in runs.items()}
    assert torch.equal(net.all(x, mix), net.all(x))


def test_a_mix_scales_what_widths_send() -> None:
    net, x = wide(), inputs()
    weights = torch.randn(len(net.grid), 4, 2, dtype=torch.float64)
    mix = tuple(tuple(row) for row in torch.rand(len(net.grid), len(net.grid)).tolist())
    net.eval()
    alone = [gradients(net, (net(x, member) * weights[m]).sum()) for m, member in enumerate(net.grid)]
    found, owners = gradients(net, (net.all(x, mix) * weights).sum()), net.owners()
    assert owners == {
        "entries.0": 0,
        "exits.-1": 0,
        "entries.1": 1,
        "exits.0": 1,
        "stages.0": 4,
        "stages.1": 5,
        "exits.1": 5,
    }
    for name, gradient in found.items():
        owner = owners[".".join(name.split(".")[:2])]
        want = sum(mix[m][owner] * theirs[name] for m, theirs in enumerate(alone))
        torch.testing.assert_close(gradient, want, rtol=0, atol=1e-11)


def test_widths_share_what_was_dropped() -> None:
    size = 400
    heads = {0: SharedHead(size, size, width_groups=2)}
    net = Nested([nn.Identity()], {0: nn.Linear(1, size)}, heads, dropout=(0.5,), groups=2)
    nn.init.ones_(net.entries["0"].weight), nn.init.zeros_(net.entries["0"].bias)
    net.exits["0"].weight.data, net.exits["0"].bias.data = torch.eye(size), torch.zeros(size)
    narrow, full = net.all(torch.ones(3, 1))
    assert torch.equal(narrow[:, :200], full[:, :200]) and not narrow[:, 200:].any()
    assert set(full.unique().tolist()) == {0, 2}
    assert net(torch.ones(3, 1), Subnet(width=1))[:, :200].count_nonzero() == pytest.approx(300, abs=60)


def test_statistics_of_widths_are_those_of_their_entry() -> None:
    net, x = wide(statistics="per-entry"), inputs(8)
    net(x, Subnet(entry=1, width=1))
    twin = net.twins["1-1"][1]
    assert not net.stages[1][1].running_mean.any() and not twin.running_mean[2:].any() and twin.running_mean[:2].all()
    before = twin.running_mean.clone()
    net.all(x)
    assert net.stages[1][1].running_mean.all() and not torch.equal(twin.running_mean, before)
    assert [int(norm.num_batches_tracked) for norm in (net.stages[0][1], net.stages[1][1], twin)] == [1, 1, 2]


def test_a_stage_or_head_of_one_width_is_named_when_it_is_asked_for_another() -> None:
    broken, x = wide(), inputs()
    broken.stages[1] = nn.Linear(4, 4).double()
    assert broken(x).shape == (4, 2)
    says = (
        r"^stages\.1 does not run on the first 1 of 2 channel groups, features \(4, 2\): .*\(telescopic\.layers\.Causal"
    )
    with pytest.raises(ValueError, match=says):
        broken(x, Subnet(width=1))
    headless = wide()
    headless.exits["1"] = nn.Linear(4, 2).double()
    with pytest.raises(ValueError, match=r"^exits\.1 does not run on the first 1 of 2 .* heads end in a SharedHead"):
        headless(x, Subnet(width=1))
    with pytest.raises(ValueError, match=r"^a head does not run on the first 1 of 2 channel groups"):
        headless.all(x)
    with pytest.raises(
        ValueError, match=r"\(4, 2\) does not fit: .* Linear, takes \[batch, \.\.\., 3\]"
    ):  # no matter of widths
        broken(x[:, :2])


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Inside(nn.Module):
    """A block of one's own around a layer that knows of widths, or does not."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.sum = layer, Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x, self.layer(x))


def with_stage(*stage: nn.Module) -> Nested:
    heads = {0: SharedHead(4, 2, width_groups=2)}
    return Nested([nn.Sequential(*stage)], {0: nn.Linear(3, 4)}, heads, groups=2)


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (nn.Linear(4, 4), "a Linear cannot be made narrower: use the Causal layers and SharedHead"),
        (nn.BatchNorm1d(4), "a BatchNorm1d cannot be made narrower: use the Causal"),
        (
            nn.TransformerEncoderLayer(4, 2, 6),
            "a MultiheadAttention cannot be made narrower: every feature that it gives",
        ),
        (nn.LSTM(4, 4), "a LSTM cannot be made narrower"),
        (nn.LayerNorm(4, elementwise_affine=False), "a LayerNorm cannot be in it: it takes statistics over channels"),
        (nn.GroupNorm(2, 4), "a GroupNorm cannot be made narrower: it takes statistics over channels of later groups"),
        (nn.Softmax(1), "a Softmax cannot be in it: of the first 1 of 2 channel groups it does not make the first"),
        (Centred(), "a Centred cannot be in it: of the first 1 of 2 channel groups it does not make the first"),
        (Sum(), r"a Sum cannot be in it: it could not be tried on features; .* narrow\(width\) that returns itself"),
        (Inside(nn.Linear(4, 4)), "a Linear cannot be made narrower"),
    ],
)
def test_stages_that_know_nothing_of_widths_are_refused(stage: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^stages\.0 knows nothing of the 2 channel groups of this network: {says}"):
        with_stage(nn.ReLU(), stage)
    assert len(Nested([stage]).grid) == 1  # of one width it may be anything


@pytest.mark.parametrize(
    "stage",
    [
        Swish(),
        nn.PixelShuffle(2),
        nn.Softmax(2),
        nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), nn.ZeroPad2d(1), nn.Dropout(), nn.Flatten()),
        Inside(CausalLinear(4, 4, width_groups=2)),
    ],
)
def test_what_treats_each_group_alone_is_found_by_trying(stage: nn.Module) -> None:
    assert len(with_stage(stage, nn.Identity()).grid) == 2


@pytest.mark.parametrize(
    ("entry", "head", "says"),
    [
        (nn.Identity(), None, r"entries\.0 .* ends in a convolution or a linear layer.* this one has none: Identity"),
        (nn.Conv2d(4, 4, 1, groups=2), None, r"entries\.0 .* ends in a convolution or a linear layer"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), None, r"entries\.0 .*: a LayerNorm cannot be made narrower"),
        (None, nn.Linear(4, 2), r"exits\.0 .*: a Linear cannot be made narrower"),
        (None, nn.Flatten(), r"exits\.0 .* gives all classes at every width, and this one fewer"),
        (None, nn.Sequential(Centred(), SharedHead(4, 2, width_groups=2)), r"exits\.0 .*: a Centred cannot be in it"),
    ],
)
def test_adapters_and_heads_that_know_nothing_of_widths(
    entry: nn.Module | None, head: nn.Module | None, says: str
) -> None:
    entries, exits = {0: entry or nn.Linear(3, 4)}, {0: head or SharedHead(4, 2, width_groups=2)}
    with pytest.raises(ValueError, match=says):
        Nested([nn.ReLU()], entries, exits, groups=2)


def test_tokens_are_not_taken_for_channels() -> None:
    head = nn.Sequential(nn.Flatten(), SharedHead(24, 2, width_groups=2))
    net = Nested([CausalLinear(4, 4, width_groups=2)], {0: nn.Linear(3, 4)}, {0: head}, groups=2)
    for ask in (net, net.all, lambda x: net(x, Subnet(width=1))):
        with pytest.raises(ValueError, match=r"features \(2, 6, 4\) with channels in their last dimension"):
            ask(torch.randn(2, 6, 3))


# Inputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (
            torch.rand(3, 6, 6),
            r"of shape \(3, 6, 6\) has no batch: .* takes \[batch, 3, height, width\]; .* is x\[None\]",
        ),
        (
            torch.rand(2, 6, 6, 3),
            r"of shape \(2, 6, 6, 3\) does not fit: its first layer, a Conv2d, takes \[batch, 3, h",
        ),
        (torch.zeros(2, 3, 6, 6, dtype=torch.uint8), r"an input uint8 .* the weights of .* Conv2d, are torch\.float32"),
        (torch.tensor(1.0), r"of shape \(\) has no example in it"),
        ({"pixels": torch.rand(2, 3, 6, 6)}, r"one tensor \[batch, \.\.\.\], not a dict$"),
        (np.zeros((2, 3, 6, 6), dtype=np.float32), r"not a numpy\.ndarray: give torch\.from_numpy\(x\)$"),
        ([1.0], "not a float"),
    ],
)
def test_inputs_that_are_no_batch_are_told_in_one_sentence(x: Any, says: str) -> None:
    stages = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Flatten()]
    net = Nested(stages, {0: nn.Identity(), 1: nn.Conv2d(3, 4, 3)}, {1: nn.Linear(64, 2)}).eval()
    for ask in (net, net.all, lambda x: net(x, Subnet(entry=1))):
        with pytest.raises(ValueError, match=says) as caught:
            ask(x)
        assert "\n" not in str(caught.value)
    assert net(torch.rand(2, 3, 6, 6)).shape == (2, 2)


def test_what_is_not_the_inputs_fault_is_told_as_it_is() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    net = mlp(3, (3,), 2)
    net.stages[0].forward = fail
    for ask in (net, net.all):
        with pytest.raises(RuntimeError, match=r"^out of memory$"):
            ask(torch.rand(2, 3))


# The gradient mix ---------------------------------------------------------------------------------------------------


def test_what_a_mix_distinguishes_runs_separately() -> None:
    net, x = exits_of(0, 1, 2), inputs()
    # Stage 0 is owned by exit 0, stage 1 by exit 1: the last two members see stage 0 alike, the first another way.
    mix = ((1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (0.5, 0.0, 1.0))
    runs = {"entries.0": 1, "stages.0": 2, "stages.1": 2, "stages.2": 1, "exits.0": 1, "exits.1": 1, "exits.2": 1}
    assert counted(net, lambda: net.all(x, mix)) == runs
    assert torch.equal(net.all(x, mix), net.all(x))
    with torch.no_grad():
        assert counted(net, lambda: net.all(x, mix)) == dict.fromkeys(runs, 1)
    net.stages.requires_grad_(False)
    assert counted(net, lambda: net.all(x, mix)) == dict.fromkeys(runs, 1)


def test_a_mix_scales_gradients_by_owner() -> None:
    net, x = exits_of(0, 1), inputs()
    x.requires_grad_()
    weights = torch.randn(2, 4, 2, dtype=torch.float64)
    small, full = (gradients(net, (net(x, member) * weights[m]).sum()) for m, member in enumerate(net.grid))
    mixed = net.all(x, ((0.25, 7.0), (0.0, 3.0))) * weights
    found = gradients(net, mixed.sum())
    for name in small:
        owned_by_small = name.startswith(("stages.0", "exits.0"))
        want = 0.25 * small[name] + 0.0 * full[name] if owned_by_small else 3.0 * full[name]
        torch.testing.assert_close(found[name], want, rtol=0, atol=1e-12)
    # Towards the input nothing is scaled, not even by a layer that learns nothing.
    plain = (net.all(x) * weights).sum()
    mixed = (net.all(x, ((0.25, 7.0), (0.0, 3.0))) * weights).sum()
    (one,), (other,) = (torch.autograd.grad(loss, [x]) for loss in (mixed, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert float(other.abs().max()) > 0.01


def test_a_mix_of_layers_and_weights_that_stand_in_a_stage_twice() -> None:
    layer, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = layer.weight
    net = Nested([nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), other, Twice())]).double()
    x, own = inputs(), list(net.parameters())
    assert len(own) == 4
    plain = gradients(net, net.all(x).sum())
    for factor in (0.5, 0.0, 0.25):
        x.requires_grad_()  # so that there is something to learn when the weights are not
        scaled = gradients(net, net.all(x, ((factor,),)).sum())
        for name in plain:
            torch.testing.assert_close(scaled[name], factor * plain[name], rtol=0, atol=1e-12)
        assert all(one is another for one, another in zip(net.parameters(), own, strict=True))


def test_a_mix_leaves_alone_what_does_not_learn() -> None:
    net, x = exits_of(0, 1), inputs()
    net.stages[0].weight.requires_grad_(False)
    net.all(x, ((0.5, 1.0), (0.5, 0.0))).sum().backward()
    assert net.stages[0].weight.grad is None
    assert float(net.stages[0].bias.grad.abs().max()) > 0
    # A factor of 0 detaches, so that nothing is computed.
    assert net.stages[1].weight.grad is None
    assert net.exits["1"].weight.grad is None


@pytest.mark.parametrize(
    ("mix", "facts"), [((), r"0 rows of \[\]"), (((1,), (1,)), r"2 rows of \[1\]"), (((1, 1), (1,)), r"of \[1, 2\]")]
)
def test_mixes_of_another_size(mix: tuple[tuple[float, ...], ...], facts: str) -> None:
    with pytest.raises(ValueError, match=rf"^a gradient mix of this network is 2 × 2; this has .*{facts}$"):
        exits_of(0, 1).all(inputs(), mix)


# Dropout ------------------------------------------------------------------------------------------------------------


def test_dropout_goes_by_the_stages_since_the_members_own_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = mlp(3, (4, 5, 6), 7, dropout=(0.2, 0.5)), torch.randn(4, 3)
    asked: list[tuple[int, float]] = []

    def dropout(features: Tensor, p: float) -> Tensor:
        asked.append((features.shape[1], p))
        return features

    monkeypatch.setattr("telescopic.nested._dropped", dropout)
    wanted = {0: [(4, 0.2), (5, 0.5)], 1: [(5, 0.2), (6, 0.5)], 2: [(6, 0.2)], 3: []}  # (features, p)
    for entry, drops in wanted.items():
        asked.clear()
        net(x, Subnet(entry=entry))
        assert asked == drops
    asked.clear()
    net.all(x)
    assert sorted(asked) == sorted(drop for drops in wanted.values() for drop in drops)
    asked.clear()
    net.eval()
    net.all(x)
    net(x)
    assert asked == []


def test_dropout_drops_features_but_neither_input_nor_logits() -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []
    head = Ones(10)
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net = Nested([Ones(500), nn.Identity()], exits={1: head}, dropout=(0.2, 0.5))
    assert torch.equal(net(torch.ones(400, 1)), torch.ones(400, 10))
    values, counts = seen[-1].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (0.8 * 0.5)]))
    assert float(counts[0]) / seen[-1].numel() == pytest.approx(1 - 0.8 * 0.5, abs=0.005)  # sd 0.001
    net(torch.ones(400, 1), Subnet(entry=0))
    assert not torch.equal(seen[-1], seen[-2])
    net.eval()(torch.ones(400, 1))
    assert torch.equal(seen[-1], torch.ones(400, 500))


def test_exits_share_what_was_dropped_and_no_stage_means_no_dropout() -> None:
    heads = {-1: nn.Identity(), 0: nn.Identity(), 1: nn.Identity()}
    net = Nested([nn.Identity(), nn.Identity()], exits=heads, dropout=(0.5,))
    x = torch.ones(4, 100)
    none, first, second = net.all(x)
    assert torch.equal(none, x)
    assert torch.equal(first, second)  # computed once, and the second stage has no dropout of its own
    assert set(first.unique().tolist()) == {0, 2}


# Statistics ---------------------------------------------------------------------------------------------------------


def test_training_moves_only_the_statistics_of_the_own_entry() -> None:
    net = per_entry()
    norms = {0: [net.stages[0][1], net.stages[1][1]], 1: [net.twins["1-1"][1]]}
    assert list(net.twins) == ["1-1"]  # entry 1 does not run stage 0
    x = inputs(8)
    net(x, Subnet(entry=1))
    assert [int(norm.num_batches_tracked) for norm in norms[0] + norms[1]] == [0, 0, 1]
    seen = net.stages[1][0](x)
    torch.testing.assert_close(norms[1][0].running_mean, 0.1 * seen.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(norms[1][0].running_var, 0.9 + 0.1 * seen.var(0), rtol=0, atol=1e-12)
    net.all(x)
    assert [int(norm.num_batches_tracked) for norm in norms[0] + norms[1]] == [1, 1, 2]
    assert not torch.equal(norms[0][1].running_mean, norms[1][0].running_mean)


def test_shared_statistics_are_moved_by_every_entry() -> None:
    net = Nested([nn.Identity(), nn.BatchNorm1d(3)], {0: nn.Identity(), 1: nn.Identity()})
    assert len(net.twins) == 0
    net.all(torch.randn(4, 3))
    assert int(net.stages[1].num_batches_tracked) == 2


def test_only_stages_with_buffers_have_twins() -> None:
    stages = [nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)]
    net = Nested(stages, {i: nn.Identity() for i in (0, 1, 2, 4)}, statistics="per-entry")
    assert list(net.twins) == ["1-1", "1-3", "2-3"]


@pytest.mark.parametrize("change", [lambda net: net, copy.deepcopy, nn.Module.double, nn.Module.half])
def test_entries_share_the_very_parameters(change: Callable[[Nested], Nested]) -> None:
    net = change(per_entry().float())
    pairs = list(zip(net.stages[1].named_parameters(), net.twins["1-1"].named_parameters(), strict=True))
    assert len(pairs) == 4
    assert all(one[0] == other[0] and one[1] is other[1] for one, other in pairs)
    assert len(list(net.parameters())) == 8
    buffers = zip(net.stages[1].buffers(), net.twins["1-1"].buffers(), strict=True)
    assert all(one.data_ptr() != other.data_ptr() for one, other in buffers)


def test_both_entries_teach_the_shared_parameters() -> None:
    net, x = per_entry().eval(), inputs()
    weights = torch.randn(2, 4, 3, dtype=torch.float64)
    alone = [gradients(net, (net(x, member) * weights[m]).sum()) for m, member in enumerate(net.grid)]
    both = gradients(net, (net.all(x) * weights).sum())
    mixed = gradients(net, (net.all(x, ((0.5, 1.0), (0.25, 1.0))) * weights).sum())
    for name in both:
        torch.testing.assert_close(both[name], alone[0][name] + alone[1][name], rtol=0, atol=1e-12)
        if name.startswith("stages.1"):  # owned by the smaller member
            want = 0.5 * alone[0][name] + 0.25 * alone[1][name]
            torch.testing.assert_close(mixed[name], want, rtol=0, atol=1e-12)
            assert float(alone[0][name].abs().max()) > 0.001


def test_statistics_travel_in_the_state() -> None:
    net = per_entry()
    for _ in range(3):
        net.all(inputs())
    other = per_entry()
    other.load_state_dict(net.state_dict())
    x = inputs()
    assert torch.equal(other.eval().all(x), net.eval().all(x))
    assert other.twins["1-1"][0].weight is other.stages[1][0].weight


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"entries": {3: nn.Identity()}}, r"^entry 3 is outside this network of 2 stages: give 0 to 2$"),
        ({"entries": {-1: nn.Identity()}}, r"entry -1 is outside .* give 0 to 2"),
        ({"exits": {2: nn.Identity()}}, r"^exit 2 is outside this network of 2 stages: give -1 to 1$"),
        ({"exits": {-2: nn.Identity()}}, r"exit -2 is outside"),
        ({"entries": {}}, "a grid needs at least one value in entries"),
        ({"entries": {2: nn.Identity()}, "exits": {0: nn.Identity()}}, r"every entry \(2,\) lies behind every exit"),
        ({"dropout": (0.5, 1)}, r"^dropout \(0\.5, 1\) must hold probabilities of dropping, at least 0 and below 1$"),
        ({"dropout": (-0.1,)}, "at least 0 and below 1"),
        ({"dropout": (float("nan"),)}, "at least 0 and below 1"),
        *(
            ({"groups": groups}, rf"^a network has 1 channel group or more, not {groups!r}$")
            for groups in (0, -1, True, 2.0, "2")
        ),
        ({"statistics": "own"}, r"^statistics is one of shared, per-entry, recalibrated, not 'own'$"),
    ],
)
def test_networks_that_are_none(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Nested(linears(2), **arguments)


def test_parts_that_share_a_parameter_are_refused() -> None:
    layer = nn.Linear(3, 3)
    remedy = r"share a parameter of shape \(3, 3\): each belongs to one stage, adapter or head"
    with pytest.raises(ValueError, match=rf"^stages\.0 and stages\.2 {remedy}"):
        Nested([layer, nn.ReLU(), nn.Sequential(layer)])
    with pytest.raises(ValueError, match=rf"^stages\.0 and exits\.1 {remedy}"):
        Nested([layer, nn.ReLU()], exits={1: layer})
    with pytest.raises(ValueError, match=rf"^entries\.0 and entries\.1 {remedy}"):
        Nested([nn.ReLU()], entries={0: layer, 1: layer})
    relu = nn.ReLU()
    assert len(Nested([relu, layer, relu], {0: relu, 1: relu}).grid) == 2  # nothing to own


@pytest.mark.parametrize("place", ["stages", "entries", "exits"])
def test_layers_of_other_groups_are_refused(place: str) -> None:
    other = CausalLinear(4, 4, width_groups=4)
    parts: dict[str, object] = {"stages": [nn.Tanh()], "entries": {0: nn.Linear(4, 4)}, "exits": {0: nn.Identity()}}
    parts[place] = [nn.Sequential(other)] if place == "stages" else {0: nn.Sequential(nn.Linear(4, 4), other)}
    says = rf"^{place}\.0 has a CausalLinear of 4 channel groups in a network of 2: give it width_groups=2$"
    with pytest.raises(ValueError, match=says):
        Nested(**parts, groups=2)
    assert len(Nested(**parts).grid) == 1  # at full width alone it is no matter


def test_a_member_that_is_not_there() -> None:
    net = mlp(3, (3, 3), 2, entries=(0, 2))
    for ask in (lambda: net(torch.ones(1, 3), Subnet(entry=1)), lambda: net.path(Subnet(entry=1))):
        with pytest.raises(ValueError, match=r"^there is no member entry=1: .*; nearest is entry="):
            ask()
    with pytest.raises(TypeError, match=r"expected a telescopic\.Subnet, got int 0"):
        net(torch.ones(1, 3), 0)
