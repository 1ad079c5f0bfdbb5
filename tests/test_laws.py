"""Networks of every kind keep the laws; each law notices a network that breaks it."""

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import told_widths
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from telescopic import Grid, Nested, Subnet, architecture, extract, load, measure, register_layer
from telescopic import nested as nested_module
from telescopic.layers import (
    CausalBatchNorm1d,
    CausalBatchNorm2d,
    CausalConv2d,
    CausalLinear,
    GradientScale,
    SharedHead,
    step_down,
)
from telescopic.networks import causal_resnet, mlp
from telescopic.papers import nsn
from telescopic.testing import check, check_nested, laws
from telescopic.testing.trial import Trial

from chance import examples


class Around(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Reader(nn.Module):
    """An LSTM that hands on its outputs only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.lstm = nn.LSTM(size, size, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Calls(nn.Module):
    """A module that is its function of itself and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **held: object) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Gain(nn.Module):
    """A factor for each channel, which says itself how it is made narrower."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups
        self.factor = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[: x.shape[1]].view(-1, *[1] * (x.ndim - 2))

    def narrow(self, width: int) -> "Gain":
        made = Gain(self.channels * width // self.groups, 1)
        made.factor = nn.Parameter(self.factor.detach()[: made.channels].clone())
        return made


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above can be kept in bundles, in this test."""
    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    register_layer(Around)
    register_layer(Reader)
    register_layer(Gain)
    for layer in (told_widths.ToldLinear, told_widths.ToldConv, told_widths.ToldNorm, told_widths.Block):
        register_layer(layer)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def pooled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def convolutional(**options: Any) -> Nested:
    """Uneven channels, two strides, three entries and three exits, BatchNorm everywhere."""
    torch.manual_seed(0)
    stages = [conv(2, 5), conv(5, 3, stride=2), conv(3, 8)]
    entries = {0: nn.Identity(), 1: nn.Conv2d(2, 5, 1), 2: nn.Sequential(nn.Conv2d(2, 3, 2, 2), nn.BatchNorm2d(3))}
    exits = {0: pooled(5), 1: nn.Sequential(nn.BatchNorm2d(3), pooled(3)), 2: pooled(8)}
    return Nested(stages, entries, exits, **options)


def causal(inputs: int, outputs: int, groups: int, stride: int = 1) -> nn.Sequential:
    layer = CausalConv2d(inputs, outputs, 3, stride, padding=1, bias=False, width_groups=groups)
    return nn.Sequential(layer, CausalBatchNorm2d(outputs, width_groups=groups), nn.ReLU(inplace=True))


def wide_head(channels: int, groups: int, *first: nn.Module, **options: Any) -> nn.Sequential:
    head = SharedHead(channels, 3, width_groups=groups, **options)
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def every_coordinate(**options: Any) -> Nested:
    """Two entries, four exits, three widths; channels that are no multiple of the groups."""
    torch.manual_seed(0)
    stages = [causal(5, 3, 3, stride=2), causal(3, 7, 3), causal(7, 7, 3)]
    first = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1, bias=False), CausalBatchNorm2d(5, width_groups=3), nn.ReLU())
    heads = {-1: wide_head(5, 3), 0: wide_head(3, 3, GradientScale(0.3)), 2: wide_head(7, 3, average=True)}
    heads[1] = wide_head(7, 3, nn.Sequential(CausalBatchNorm2d(7, width_groups=3)))
    return Nested(stages, {0: first, 2: step_down((2, 4, 4), (7, 2, 2))}, heads, groups=3, **options)


def wide_mlp() -> Nested:
    torch.manual_seed(0)
    norm, linear = CausalBatchNorm1d(4, width_groups=4), CausalLinear(5, 4, width_groups=4)
    depthwise = nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), CausalConv2d(4, 4, 1, width_groups=4, depthwise=True))
    stages = [nn.Sequential(nn.Tanh(), linear, norm), nn.Sequential(depthwise, nn.Flatten(), Gain(4, 4))]
    linear.bias.requires_grad_(False)
    adapter = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    return Nested(stages, {0: adapter}, {1: SharedHead(4, 2, width_groups=4)}, groups=4, dropout=(0.5,))


def residual() -> Nested:
    body = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    stages = [conv(1, 4), Around(body), Around(nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1)))]
    heads = {i: pooled(4) for i in range(3)}
    return Nested(stages, {0: nn.Identity(), 1: nn.Conv2d(1, 4, 1)}, heads, dropout=(0.5,))


def learning(net: Nested) -> Nested:
    """All of its weights, those too that only `fit_heads` sets."""
    return net.requires_grad_()


def silent() -> Nested:
    """Heads that start at zero, a layer that is frozen."""
    net = mlp(4, (3, 4), 2)
    nn.init.zeros_(net.exits["1"].weight)
    net.stages[1].requires_grad_(False)
    return net


def encoder() -> Nested:
    layers = [nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True) for _ in range(2)]
    return Nested(layers, exits={i: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for i in (-1, 0, 1)})


def tied() -> Nested:
    shared, tanh = nn.Linear(3, 3), nn.Tanh()
    stages = [nn.Sequential(shared, nn.Tanh(), shared), tanh, nn.Linear(3, 3)]
    return Nested(stages, {i: nn.Identity() for i in range(4)}, {0: tanh, 1: tanh, 2: nn.Identity()})


FAMILIES: dict[str, tuple[Callable[[], Nested], tuple[int, ...]]] = {
    "nsn": (lambda: nsn.network(2, inputs=16), (1, 4, 4)),
    "uneven mlp": (lambda: mlp(6, (9, 4, 6), 3, dropout=(0.2, 0.5)), (2, 3)),
    "chosen entries": (lambda: mlp(6, (9, 4), 3, entries=(1, 2)), (6,)),
    "one member": (lambda: nsn.network(2, inputs=6, reference=True), (6,)),
    "softmax alone": (lambda: mlp(6, (), 3), (6,)),
    "stages alone": (lambda: Nested([nn.Linear(4, 4), nn.Linear(4, 2)]), (4,)),
    "convolutional": (convolutional, (2, 4, 4)),
    "statistics per entry": (lambda: convolutional(statistics="per-entry"), (2, 4, 4)),
    "residual": (residual, (1, 4, 4)),
    "widths of an mlp": (wide_mlp, (2, 3)),
    "all coordinates": (every_coordinate, (2, 4, 4)),
    "all coordinates, statistics per entry": (
        lambda: every_coordinate(statistics="per-entry", dropout=(0.2, 0.5)), (2, 4, 4)
    ),
    "conditioned heads": (lambda: causal_resnet(3, (1, 2), 1, 4, conditioned=True), (3, 4, 4)),
    "conditioned heads that average": (
        lambda: causal_resnet(2, (1,), 2, 3, average=True, conditioned=True), (3, 4, 4)
    ),
    "separate heads": (lambda: learning(causal_resnet(3, (1, 2), 1, 4, conditioned=True, separate=True)), (3, 4, 4)),
    "separate heads that average": (
        lambda: causal_resnet(2, (1,), 2, 3, average=True, separate=True), (3, 4, 4)
    ),
    "exit before all": (
        lambda: Nested([nn.Linear(4, 4)] * 1, exits={-1: nn.Linear(4, 2), 0: nn.Linear(4, 2)}, dropout=(0.3,)),
        (4,),
    ),
    "silent at first": (silent, (4,)),
    "recurrent": (lambda: Nested([Reader(3), Reader(3)], {0: nn.Linear(3, 3), 1: nn.Linear(3, 3)},
                                 {0: nn.Flatten(), 1: nn.Flatten()}), (2, 3)),
    "attention": (encoder, (3, 4)),
    "tied in a stage": (tied, (3,)),
    "told widths": (told_widths.slimmable, (2, 4, 4)),
    "told widths, statistics per entry": (lambda: told_widths.slimmable(statistics="per-entry"), (2, 4, 4)),
    "told widths inside blocks": (told_widths.transformer, (3, 4)),
}  # fmt: skip
NOT_REBUILT = {"attention", "tied in a stage"}  # a description of these would build another network


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("registered")
def test_families_keep_the_laws(name: str) -> None:
    torch.manual_seed(1)
    build, shape = FAMILIES[name]
    net = build()
    # All members of a family with widths are checked once, and some of them when each entry has its statistics.
    some = 6 if net.groups > 1 and net.statistics == "per-entry" else None
    check_nested(net, shape, members=some, rebuild=name not in NOT_REBUILT)


@examples(few=4, many=100)
@given(st.data())
def test_random_mlps_keep_the_laws(data: st.DataObject) -> None:
    size = st.integers(1, 5)
    inputs, hidden = data.draw(size), data.draw(st.lists(size, max_size=3))
    entries = data.draw(st.none() | st.sets(st.integers(0, len(hidden)), min_size=1))
    dropout = data.draw(st.lists(st.sampled_from([0, 0.5]), max_size=3))
    check_nested(mlp(inputs, hidden, data.draw(size), entries=entries, dropout=dropout), (inputs,))


# check_nested itself ------------------------------------------------------------------------------------------------


def test_the_network_stays_exactly_as_it_was() -> None:
    net = convolutional(statistics="per-entry", dropout=(0.5,))
    net.stages[1].eval()
    net.exits["0"].requires_grad_(False)
    net.all(torch.randn(4, 2, 4, 4)).sum().backward()

    def facts() -> list[object]:
        tensors = [*net.parameters(), *net.buffers()]
        return [
            [(id(t), t.data_ptr(), t._version, t.dtype, t.requires_grad, t.tolist()) for t in tensors],
            [None if p.grad is None else (id(p.grad), p.grad._version, p.grad.tolist()) for p in net.parameters()],
            [(id(m), m.training, len(m._forward_pre_hooks)) for m in net.modules()],
            torch.get_rng_state().tolist(),
            (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
            torch.backends.cuda.flash_sdp_enabled(),
        ]

    before = facts()
    check_nested(net, (2, 4, 4), members=2)
    assert facts() == before
    with pytest.raises(AssertionError):  # nor when a law is broken
        check_nested(broken_by_memory(net), (2, 4, 4), members=2)
    del net.stages[0][1].forward
    assert facts() == before


def broken_by_memory(net: Nested) -> Nested:
    layer = net.stages[0][1]
    layer.forward = lambda x: x + torch.rand(())
    return net


def test_members_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Subnet, ...]] = []

    def law(trial: Trial) -> None:
        seen.append(trial.members)

    monkeypatch.setattr(check, "LAWS", (law,))
    net = nsn.network(6, inputs=2)
    for members in (None, 1, 2, 3, 50, [Subnet(entry=2), Subnet()]):
        check_nested(net, (2,), members=members)
    entries = [[member.entry for member in members] for members in seen]
    every = [6, 5, 4, 3, 2, 1, 0]
    assert entries == [every, [0], [6, 0], [6, 3, 0], every, [2, 0]]
    for members in (0, -1, ()):
        with pytest.raises(ValueError, match=f"^check one member or more, not members={re.escape(str(members))}$"):
            check_nested(net, (2,), members=members)
    with pytest.raises(ValueError, match="no member entry=7"):
        check_nested(net, (2,), members=[Subnet(entry=7)])


def test_hundreds_of_members_are_checked_by_a_sample() -> None:
    torch.manual_seed(0)
    stages = [causal(22, 22, 22) for _ in range(9)]
    heads = {i: wide_head(22, 22) for i in range(-1, 9)}
    net = Nested(stages, {0: nn.Conv2d(2, 22, 1)}, heads, groups=22)
    assert len(net.grid) == 220
    check_nested(net, (2, 4, 4), members=6)
    net.exits["8"].insert(0, nn.GroupNorm(1, 22, affine=False))
    with pytest.raises(AssertionError, match=r"^Sized: .* exits\.8 knows nothing of the 22 .* GroupNorm cannot be in"):
        check_nested(net, (2, 4, 4), members=[Subnet(width=1), Subnet(exit=8, width=1)])


@pytest.mark.parametrize(("shape", "message"), [((5,), r"shape \(3, 5\).*Is input_shape right"), ((0,), "above 0")])
def test_inputs_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_nested(mlp(3, (3,), 2), shape)


# Broken networks ----------------------------------------------------------------------------------------------------


def plain(
    stages: dict[int, nn.Module] | None = None, cls: type[Nested] = Nested, head: nn.Module | None = None
) -> Nested:
    """Four members: entries 0 and 1, exits 1 and 2. Some stages, and the last head, may be others."""
    torch.manual_seed(0)
    usual = [nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)]
    heads = {1: nn.Linear(3, 2), 2: nn.Linear(3, 2) if head is None else head}
    return cls([(stages or {}).get(i, usual[i]) for i in range(3)], {0: nn.Identity(), 1: nn.Linear(3, 3)}, heads)


def wide(stage: nn.Module | None = None, head: nn.Module | None = None, cls: type[Nested] = Nested) -> Nested:
    """Four members: exits 0 and 1, widths 1 and 2. The last stage, and the last head, may be others."""
    torch.manual_seed(0)
    net = cls(
        [causal(4, 4, 2) for _ in range(2)], {0: nn.Conv2d(2, 4, 1)}, {i: wide_head(4, 2) for i in (0, 1)}, groups=2
    )
    if stage is not None:
        net.stages[1] = stage  # when the network is made already, which would refuse it
    if head is not None:
        net.exits["1"][-1] = head
    return net


Patch = pytest.MonkeyPatch
BROKEN: list[tuple[str, str, Callable[[Patch], Nested]]] = []
"""Law, what its message must say, and how to build the network or break what it relies on."""


def breaks(law: str, says: str) -> Callable[[Callable[[Patch], Nested]], Callable[[Patch], Nested]]:
    def keep(build: Callable[[Patch], Nested]) -> Callable[[Patch], Nested]:
        BROKEN.append((law, says, build))
        return build

    return keep


@breaks("no_memory", r"member entry=0,exit=2, asked first and asked again: they differ by up to \d")
def counts_its_calls(_: Patch) -> Nested:
    def count(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 1e-9 * self.calls

    return plain({2: Calls(count, calls=0)})


@breaks("no_memory", "asked first and asked again")
def works_at_random(_: Patch) -> Nested:
    return plain({2: Calls(lambda self, x: x + torch.rand(()))})


@breaks("no_memory", "differ by up to nan")
def gives_no_number(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: x.abs().neg().log())})


@breaks("no_memory", r"member entry=0,exit=\d changes its input: something works in place")
def writes_into_its_input(_: Patch) -> Nested:
    return plain({0: Calls(lambda self, x: x.mul_(2))})


@breaks("no_memory", "net.all changes its input")
def writes_into_the_input_of_all(_: Patch) -> Nested:
    class Writing(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            logits = super().all(x, mix)
            x.zero_()
            return logits

    return plain(cls=Writing)


@breaks("no_memory", r"stages\.2\.\w+ has changed")
def learns_statistics_in_eval_mode(_: Patch) -> Nested:
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> "Stubborn":
            return super().train(True)

    return plain({2: Stubborn(3)})


@breaks("no_memory", "asked before and after net.all")
def is_changed_by_all(_: Patch) -> Nested:
    class Drifting(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            self.exits["1"].bias.data += 1e-9
            return super().all(x, mix)

    return plain(cls=Drifting)


@breaks("extraction", r"member entry=1,exit=1, its row of net\.all\(x\) and net\(x, member\)")
def has_rows_in_another_order(_: Patch) -> Nested:
    class Flipped(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x, mix).flip(0)

    return plain(cls=Flipped)


@breaks("extraction", r"member entry=1,exit=1, its row of net\.all")
def hands_on_to_one_member_what_another_changes(_: Patch) -> Nested:
    net = plain({2: Calls(lambda self, x: x.add_(1))}, head=nn.Flatten())
    net.exits["1"] = nn.Flatten()
    return net


@breaks("extraction", "net.all has 3 rows for 4 members")
def lacks_a_row(_: Patch) -> Nested:
    class Short(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x, mix)[1:]

    return plain(cls=Short)


@breaks("extraction", r"member entry=1,exit=1 gives \(3,\): logits are \[batch, classes\]")
def gives_no_logits(_: Patch) -> Nested:
    wide = Calls(lambda self, x: x.sum(1))
    net = plain(head=wide)
    net.exits["1"] = copy.deepcopy(wide)
    return net


@breaks("extraction", r"member entry=1,exit=1, extracted and by net\(x, member\): they differ by up to \d")
def is_another_member_when_extracted(patch: Patch) -> Nested:
    patch.setattr(laws, "extract", lambda net, member: extract(net))
    return plain()


@breaks("extraction", r"they differ by up to \d\S*e-\d+, and 1e-12 is allowed")
def is_a_little_different_when_extracted(patch: Patch) -> Nested:
    def nearly(net: Nested, member: Subnet) -> nn.Module:
        taken = extract(net, member)
        taken[-1].bias.data += 1e-11
        return taken

    patch.setattr(laws, "extract", nearly)
    return plain()


@breaks("extraction", r"member entry=2,exit=1, extracted and by net\(x, member\)")
def has_the_statistics_of_entry_0_when_extracted(patch: Patch) -> Nested:
    def shared(net: Nested, member: Subnet) -> nn.Module:
        return copy.deepcopy(nn.Sequential(*Trial(net, (), torch.ones(1), True).parts(member))).eval()

    patch.setattr(laws, "extract", shared)
    return convolutional(statistics="per-entry")


@breaks("extraction", "shares memory with the network when extracted")
def is_no_copy_when_extracted(patch: Patch) -> Nested:
    patch.setattr(laws, "extract", lambda net, member: nn.Sequential(*(m for _, m in net.path(member))).eval())
    return plain()


@breaks("extraction", "is in training mode when extracted")
def is_in_training_mode_when_extracted(patch: Patch) -> Nested:
    patch.setattr(laws, "extract", lambda net, member: extract(net, member).train())
    return plain()


@breaks("extraction", "is extracted with Calls, which its parts have not")
def is_wrapped_when_extracted(patch: Patch) -> Nested:
    def wrapped(net: Nested, member: Subnet) -> nn.Module:
        return Calls(lambda self, x: self.inner(x), inner=extract(net, member)).eval()

    patch.setattr(laws, "extract", wrapped)
    return plain()


class Own(Nested):
    """Some members run copies of their own: name of the part → which members."""

    own: dict[str, Callable[[Subnet], bool]]

    def path(self, subnet: Subnet | None = None) -> list[tuple[str, nn.Module]]:
        member = self.grid.resolve(subnet)
        copied = {name for name, belongs in self.own.items() if belongs(member)}
        path = super().path(member)
        return [(n, self.copies[n.replace(".", "-")] if n in copied else module) for n, module in path]

    @classmethod
    def of(cls, own: dict[str, Callable[[Subnet], bool]]) -> "Own":
        net = plain(cls=cls)
        net.own = own
        net.copies = nn.ModuleDict({name.replace(".", "-"): copy.deepcopy(net.get_submodule(name)) for name in own})
        return net


@breaks(
    "nesting",
    r"member entry=1,exit=1 runs a stage with copies\.stages-1\.0\.\w+, .*which member entry=0,exit=1 h",
)
def runs_a_stage_of_its_own(_: Patch) -> Nested:
    return Own.of({"stages.1": lambda member: member.entry == 1})


@breaks(
    "nesting", "member entry=2,exit=1 and member entry=1,exit=1 have the same exit, but not the same parameters there"
)
def shares_no_more_after_loading(_: Patch) -> Nested:
    net = convolutional(statistics="per-entry")
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    for twin in net.twins.values():  # as copying the state above keeps what is shared together
        for part in twin.modules():
            for name, parameter in list(part._parameters.items()):
                part._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach().clone())
    return net


@breaks("nesting", r"member entry=1,exit=1 and member entry=1,exit=2 have the same entry, but not the same parameters")
def has_two_adapters_for_one_entry(_: Patch) -> Nested:
    return Own.of({"entries.1": lambda member: member.exit == 1})


@breaks("nesting", r"member entry=1,exit=1 and member entry=0,exit=1 have the same exit, but not the same parameters")
def has_two_heads_for_one_exit(_: Patch) -> Nested:
    return Own.of({"exits.1": lambda member: member.entry == 1})


@breaks("nesting", r"the stages of member entry=1 cost 2304 MACs, those of member entry=0, which contains it, 864")
def has_an_adapter_that_gives_too_much(_: Patch) -> Nested:
    entries = {0: nn.Identity(), 1: nn.Conv2d(2, 4, 1)}
    return Nested([conv(2, 4, stride=2), conv(4, 4)], entries, {1: pooled(4)})


@breaks("nesting", r"member entry=0,exit=2 stands in the grid before member entry=1,exit=2, which it contains")
def has_a_grid_in_another_order(_: Patch) -> Nested:
    class Backwards(Grid):
        def __init__(self, grid: Grid) -> None:
            super().__init__(grid.entries, grid.exits)
            self._members = self._members[::-1]
            self._index = {member: i for i, member in enumerate(self._members)}

    net = plain()
    net.grid = Backwards(net.grid)
    return net


def peeking(look: Callable[[nn.Module], Tensor], at: nn.Module) -> Nested:
    """Stage 1 looks at stage 2, which it keeps in a list, where no network looks for modules."""
    return plain({1: Calls(lambda self, x: x + look(self.other[0]), other=[at]), 2: at})


@breaks("independence", r"member entry=1,exit=1, net\(x, member\) before and after a change outside it")
def reads_a_weight_outside(_: Patch) -> Nested:
    return peeking(lambda other: other.weight.detach().sum(), nn.Linear(3, 3))


@breaks("independence", r"member entry=1,exit=1, net\(x, member\) before and after a change outside it")
def reads_a_buffer_outside(_: Patch) -> Nested:
    return peeking(lambda other: other.running_mean, nn.BatchNorm1d(3, affine=False))


@breaks("independence", r"member entry=1, net\(x, member\) before and after a change outside it")
def reads_the_statistics_of_another_entry(_: Patch) -> Nested:
    norm = nn.BatchNorm1d(3)
    reader = Calls(lambda self, x: x + self.other[0].running_mean, other=[norm])
    return Nested([nn.Linear(3, 3), norm], {0: nn.Identity(), 1: reader}, statistics="per-entry")


@breaks("independence", r"stages\.2\.weight is outside member entry=1,exit=1, but gets a gradient from its net\(x, m")
def teaches_a_weight_outside(_: Patch) -> Nested:
    return peeking(lambda other: (other.weight - other.weight.detach()).sum(), nn.Linear(3, 3))


@breaks("independence", r"stages\.0\.0\.weight is outside member entry=1,exit=1, .* net\.all\(x\), of up to \d")
def teaches_a_weight_outside_with_all(_: Patch) -> Nested:
    class Leaking(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            weight = self.stages[0][0].weight
            return super().all(x, mix) + (weight - weight.detach()).sum()

    return plain(cls=Leaking)


@breaks("gradient_mix", "member entry=1,exit=1 has 6 parameters, extracted 7, or in another order")
def has_more_parameters_when_extracted(patch: Patch) -> Nested:
    def more(net: Nested, member: Subnet) -> nn.Module:
        taken = extract(net, member)
        taken[-1].more = nn.Parameter(torch.zeros(3))
        return taken

    patch.setattr(laws, "extract", more)
    return plain()


@breaks("gradient_mix", r"stages\.0\.0\.weight, owned by member entry=0,exit=1, with a random mix")
def ignores_the_mix(_: Patch) -> Nested:
    class Deaf(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x)

    return plain(cls=Deaf)


@breaks("gradient_mix", r"stages\.\d\.0\.\w+, owned by member entry=\d,exit=\d, with a random mix")
def mistakes_the_owners(_: Patch) -> Nested:
    class Mistaken(Nested):
        def owners(self) -> dict[str, int]:
            return dict.fromkeys(super().owners(), 3)

    return plain(cls=Mistaken)


@breaks("gradient_mix", "the gradient of input 0 with a random mix, from net.all and from its members alone")
def scales_what_flows_on(patch: Patch) -> Nested:
    def run(module: nn.Module, x: Tensor, scale: float) -> Tensor:
        out = module(x)
        return scale * out + (1 - scale) * out.detach()

    patch.setattr(nested_module, "_run", run)
    return plain()


@breaks("gradient_mix", "net.all with and without a gradient mix")
def answers_otherwise_with_a_mix(_: Patch) -> Nested:
    class Mixed(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x, mix) + (mix is not None) * 1e-9

    return plain(cls=Mixed)


@breaks("gradient_mix", r"stages\.1\.linear\.weight, owned by .* with a random mix")
def keeps_a_weight_where_it_cannot_be_replaced(_: Patch) -> Nested:
    linear = nn.Linear(3, 3)
    return plain({1: Calls(lambda self, x: x @ self.flat[0], linear=linear, flat=[linear.weight])})


@breaks("gradient_mix", "the gradient of input 0 without a mix")
def stops_gradients_in_all(_: Patch) -> Nested:
    class Stopped(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x.detach(), mix)

    return plain(cls=Stopped)


@breaks("gradient_mix", r"stages\.0\.0\.weight, owned by .* without a mix")
def learns_less_than_its_members(_: Patch) -> Nested:
    class Lazy(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x, mix or ((0.5,) * 4,) * 4)

    return plain(cls=Lazy)


@breaks("threads", r"member entry=\d,exit=\d, beside member entry=\d,exit=\d in another thread and alone")
def has_an_active_member(_: Patch) -> Nested:
    class Active(Nested):
        def forward(self, x: Tensor, subnet: Subnet | None = None) -> Tensor:
            self.active = self.grid.resolve(subnet)
            x = self.entries[str(self.active.entry)](x)
            for i, stage in enumerate(self.stages):
                if self.active.entry <= i <= self.active.exit:
                    x = stage(x)
            return self.exits[str(self.active.exit)](x)

    return plain(cls=Active)


@breaks("threads", r"net\.all, beside another thread's and alone")
def keeps_features_in_all(_: Patch) -> Nested:
    class Keeping(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            self.kept = x.detach()
            return super().all(x, mix) + (self.kept - x.detach()).sum()

    return plain(cls=Keeping)


@breaks("threads", r"member entry=1,exit=1, beside member entry=1,exit=1 in another thread and alone")
def keeps_features_in_a_stage(_: Patch) -> Nested:
    def keep(self: Any, x: Tensor) -> Tensor:
        self.kept = x.detach()
        return self.inner(x) + self.kept

    return plain({1: Calls(keep, inner=nn.Linear(3, 3))})


@breaks("cost", r"member entry=1,exit=1 has 33 MACs, and the catalogue says 24")
def does_less_when_it_is_measured(_: Patch) -> Nested:
    work = Calls(lambda self, x: x if x.is_meta else self.linear(x), linear=nn.Linear(3, 3))
    return plain({1: nn.Sequential(nn.Linear(3, 3), work)})


@breaks("cost", "member entry=1,exit=1 has 32 parameters, and the catalogue says 33")
def is_listed_with_other_numbers(patch: Patch) -> Nested:
    def wrong(*arguments: Any, **options: Any) -> list[Any]:
        return [replace(member, params=member.params + 1) for member in measure(*arguments, **options)]

    patch.setattr(laws, "measure", wrong)
    return plain()


@breaks("cost", "the catalogue lists entry=0,exit=2,width=1, ")
def is_listed_in_another_order(patch: Patch) -> Nested:
    patch.setattr(laws, "measure", lambda *arguments, **options: measure(*arguments, **options)[::-1])
    return plain()


@breaks("round_trip", r"stages\.1 is a Calls, a class .*register_layer.*; or check with rebuild=False")
def cannot_be_described(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: 2 * x)})


@breaks("round_trip", r"member entry=1,exit=1 of the network loaded and saved: they differ by up to \d")
def forgets_an_argument(patch: Patch) -> Nested:
    class Scaled(nn.Module):
        def __init__(self, factor: float = 1.0) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    patch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    register_layer(Scaled, [])
    return plain({1: Scaled(2.0)})


@breaks("round_trip", r"stages\.0\.0\.weight.* differ after saving and loading")
def loads_other_weights(patch: Patch) -> Nested:
    def wrong(path: Path, member: Subnet | None = None, into: Nested | None = None) -> nn.Module:
        loaded = load(path, member, into=into)
        for parameter in loaded.parameters():
            parameter.data += 1e-9
        return loaded

    patch.setattr(laws, "load", wrong)
    return plain()


@breaks("round_trip", "member entry=1,exit=1, loaded alone and saved")
def loads_another_member(patch: Patch) -> Nested:
    def wrong(path: Path, member: Subnet | None = None, into: Nested | None = None) -> nn.Module:
        return load(path, None if member is None else Subnet(entry=0, exit=1), into=into)

    patch.setattr(laws, "load", wrong)
    return plain()


# An example among others


def beside(says: str) -> str:
    return rf"member entry=1,exit=\d: {says}: .* for the same example what differs by"


@breaks("neighbours", beside(r"stages\.1 \(Calls\) mixes the examples of a batch"))
def subtracts_the_mean_of_the_batch(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: x - x.mean())})


@breaks("neighbours", beside(r"stages\.1 \(Softmax\) mixes the examples of a batch"))
def has_a_softmax_over_the_batch(_: Patch) -> Nested:
    return plain({1: nn.Softmax(0)})


@breaks("neighbours", beside(r"stages\.1 \(BatchNorm1d\) mixes the examples of a batch"))
def has_no_running_statistics(_: Patch) -> Nested:
    return plain({1: nn.BatchNorm1d(3, track_running_stats=False)})


@breaks("neighbours", beside(r"exits\.1 \(Sequential\) mixes the examples of a batch"))
def has_a_head_that_attends_to_neighbours(_: Patch) -> Nested:
    net = plain()
    net.exits["1"] = nn.Sequential(nn.Linear(3, 2), Calls(lambda self, x: (x @ x.T).softmax(1) @ x))
    return net


@breaks("neighbours", r"member entry=1,exit=1: stages\.1 \(Calls\) mixes the examples of a batch")
def knows_the_place_in_the_batch(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: x + 1e-9 * torch.arange(len(x)).view(-1, 1))})


@breaks("neighbours", r"member entry=1,exit=1: stages\.1 \(Calls\) mixes the examples of a batch")
def knows_the_size_of_the_batch(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: x / len(x))})


@breaks("neighbours", r"member entry=1,exit=1: .*\(1x9 and 3x")
def is_made_for_three(_: Patch) -> Nested:
    return plain({1: Calls(lambda self, x: x.expand(3, -1).reshape(len(x), -1))})


@breaks("neighbours", r"net\.all, for an example alone and in a batch: they differ by up to \d")
def mixes_in_all(_: Patch) -> Nested:
    class Mixing(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            return super().all(x, mix) + 1e-9 * len(x)

    return plain(cls=Mixing)


# Of several widths


@breaks(
    "sized", r"stages\.1 knows nothing of the 2 .*: a Conv2d cannot be made narrower: use the Causal layers and Sha"
)
def has_a_layer_of_one_width(_: Patch) -> Nested:
    return wide(nn.Conv2d(4, 4, 3, padding=1))


@breaks(
    "sized", r"stages\.1 knows nothing of .*: a GroupNorm cannot be made narrower: it takes statistics over channels"
)
def has_a_group_norm(_: Patch) -> Nested:
    return wide(nn.GroupNorm(2, 4))


@breaks("sized", "a Own cannot be made narrower: use the Causal layers and SharedHead of telescopic.layers, or give")
def cannot_be_extracted(_: Patch) -> Nested:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor[: x.shape[1]]

    return wide(Own())


@breaks("sized", r"stages\.1, of the first 1 of 2 channel groups and of all: they differ by up to \d")
def reads_later_groups(_: Patch) -> Nested:
    class Careless(CausalConv2d):
        def of_width(self, width: int) -> tuple[Tensor, None]:
            return self.weight[: 2 * width, : 2 * width], None

    return wide(Careless(4, 4, 3, padding=1, width_groups=2))


@breaks("sized", r"stages\.1 knows nothing of .*: a GroupNorm cannot be in it: it takes statistics over channels")
def normalises_over_all_channels(_: Patch) -> Nested:
    return wide(nn.GroupNorm(1, 4, affine=False))


@breaks(
    "sized", r"stages\.1 knows nothing of .*: a Calls cannot be in it: of the first 1 of 2 channel groups it does not "
)
def appends_zeros_behind_all_channels(_: Patch) -> Nested:
    padded = Calls(lambda self, x: nn.functional.pad(x, (0, 0, 0, 0, 0, x.shape[1])))
    return wide(nn.Sequential(padded, CausalConv2d(8, 4, 1, width_groups=2)))


@breaks("sized", r"stages\.1, of the first 1 of 2 channel groups: .* invalid")
def fails_when_it_is_narrow(_: Patch) -> Nested:
    return wide(nn.Sequential(causal(4, 4, 2), Calls(lambda self, x: x.view(-1, 4, 4, 4), narrow=lambda width: None)))


@breaks("extraction", r"member exit=1,width=1, its row of net\.all")
def has_a_head_that_reads_all(_: Patch) -> Nested:
    class Whole(SharedHead):
        def every_width(self, input: Tensor) -> Tensor:
            return self(input).expand(2, -1, -1)

    return wide(head=Whole(4, 3, width_groups=2))


@breaks("extraction", "member exit=1,width=1 is extracted with CausalConv2d, which its parts have not")
def stays_causal_when_extracted(patch: Patch) -> Nested:
    class Kept(CausalConv2d):
        def narrow(self, width: int) -> nn.Module:
            made = CausalConv2d(2 * width, 2 * width, 1, bias=False, width_groups=width)
            made.weight.data = super().narrow(width).weight.data
            return made

    return wide(Kept(4, 4, 1, bias=False, width_groups=2))


@breaks(
    "nesting",
    r"member exit=1,width=1 is extracted with \d elements of exits\.1\.2\.\w+, not the \d of its first groups",
)
def mixes_weights_when_extracted(_: Patch) -> Nested:
    class Summed(SharedHead):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + self.weight[:, -1]

        def every_width(self, input: Tensor) -> Tensor:
            return super().every_width(input) + self.weight[:, -1]

        def narrow(self, width: int) -> nn.Linear:
            made = super().narrow(width)
            made.bias.data += self.weight.data[:, -1]
            return made

    return wide(head=Summed(4, 3, width_groups=2))


@breaks(
    "independence", r"a part of stages\.1\.weight is outside member exit=1,width=1, but gets a gradient from its net\(x"
)
def teaches_weights_that_are_masked(_: Patch) -> Nested:
    class Leaking(CausalConv2d):
        def of_width(self, width: int) -> tuple[Tensor, Tensor | None]:
            weight, bias = super().of_width(width)
            return weight + (self.weight.sum() - self.weight.sum().detach()), bias

    return wide(Leaking(4, 4, 1, width_groups=2))


@breaks(
    "independence", r"a part of stages\.0\.0\.weight is outside member exit=0,width=1, .* net\.all\(x\), of up to \d"
)
def teaches_later_groups_with_all(_: Patch) -> Nested:
    class Leaking(Nested):
        def all(self, x: Tensor, mix: Any = None) -> Tensor:
            weight = self.stages[0][0].weight[-1]
            return super().all(x, mix) + (weight - weight.detach()).sum()

    return wide(cls=Leaking)


@breaks("independence", r"member exit=0,width=1, net\(x, member\) before and after a change outside it")
def reads_statistics_of_later_groups(_: Patch) -> Nested:
    net = wide()
    net.stages[0].append(Calls(lambda self, x: x + self.norm[0].running_mean[-1], norm=[net.stages[0][1]]))
    return net


@breaks("gradient_mix", r"the gradient of exits\.1\.2\.weight, owned by member exit=1,width=1, without a mix")
def learns_less_from_every_width(_: Patch) -> Nested:
    class Half(SharedHead):
        def every_width(self, input: Tensor) -> Tensor:
            half = (self.weight + self.weight.detach()) / 2
            return torch.stack([nn.functional.linear(input[:, :n], half[:, :n], self.bias) for n in (2, 4)])

    return wide(head=Half(4, 3, width_groups=2))


def conditioned_as(of_width: Callable[[SharedHead, int], tuple[Tensor, Tensor]]) -> Nested:
    """All answers of the last head, and what is taken out of it, by this rule."""

    class Other(SharedHead):
        def of_width(self, width: int) -> tuple[Tensor, Tensor]:
            return of_width(self, width)

        def every_width(self, input: Tensor) -> Tensor:
            return torch.stack([self(input[:, :features]) for features in (2, 4)])

    return wide(head=Other(4, 3, width_groups=2, conditioned=True))


@breaks(
    "nesting", r"member exit=1,width=1 is extracted with 0 elements of exits\.1\.2\.shift, not the 3 of its .*; 3 are"
)
def has_no_shift(_: Patch) -> Nested:
    return conditioned_as(lambda head, width: (SharedHead.of_width(head, width)[0], head.bias))


@breaks("nesting", r"extracted with 2 elements of exits\.1\.2\.scale, not the 4 of its first groups; 6 are wrong")
def has_the_scale_of_a_smaller_member(_: Patch) -> Nested:
    def other(head: SharedHead, width: int) -> tuple[Tensor, Tensor]:
        weight, bias = SharedHead.of_width(head, width)
        scaled = torch.cat([weight[:, :2] / (1 + head.scale[width - 1, :2]) * (1 + head.scale[0, :2]),
                            head.weight[:, 2:2 * width]], 1)  # fmt: skip
        return scaled, bias

    return conditioned_as(other)


@breaks("independence", r"a part of exits\.1\.2\.scale is outside member exit=1,width=1, but gets .* its net\.all")
def teaches_the_scale_of_another_width(_: Patch) -> Nested:
    class Leaking(SharedHead):
        def every_width(self, input: Tensor) -> Tensor:
            return super().every_width(input) + (self.scale - self.scale.detach()).sum()

    return wide(head=Leaking(4, 3, width_groups=2, conditioned=True))


@breaks("gradient_mix", r"the gradient of exits\.1\.2\.scale, owned by member exit=1,width=1, without a mix")
def learns_less_scale_than_its_members(_: Patch) -> Nested:
    class Half(SharedHead):
        def every_width(self, input: Tensor) -> Tensor:
            half = (self.scale + self.scale.detach()) / 2
            each = zip(half, self.shift, (2, 4), strict=True)
            weight, bias = self.weight, self.bias
            return torch.stack(
                [nn.functional.linear(input[:, :n], weight[:, :n] * (1 + s[:n]), bias + b) for s, b, n in each]
            )

    return wide(head=Half(4, 3, width_groups=2, conditioned=True))


@breaks("cost", r"member exit=0,width=1 has 55 parameters, and the catalogue says 56")
def has_a_width_listed_with_other_numbers(patch: Patch) -> Nested:
    is_listed_with_other_numbers(patch)
    return wide()


@breaks("round_trip", "member exit=0,width=1, loaded alone and saved")
def loads_another_width(patch: Patch) -> Nested:
    def wrong(path: Path, member: Subnet | None = None, into: Nested | None = None) -> nn.Module:
        return load(path, member and replace(member, width=2), into=into)

    patch.setattr(laws, "load", wrong)
    return wide()


@pytest.mark.parametrize(("law", "says", "build"), [pytest.param(*row, id=row[2].__name__) for row in BROKEN])
def test_what_is_broken_is_found(
    law: str, says: str, build: Callable[[Patch], Nested], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = build(monkeypatch)
    shape = (2, 4, 4) if any(isinstance(module, nn.Conv2d) for module in net.modules()) else (3,)
    sentence = getattr(laws, law).__doc__.splitlines()[0]
    with pytest.raises(AssertionError, match=f"^{re.escape(sentence)} But .*{says}"):
        check_nested(net, shape)


def test_a_head_of_one_width_is_found_before_all_laws() -> None:
    says = r"^a head does not run on the first 1 of 2 channel groups, features \(3, 2, 4, 4\): .* end in a SharedHead"
    with pytest.raises(ValueError, match=says):
        check_nested(wide(head=nn.Linear(4, 3)), (2, 4, 4))


def test_loading_into_a_copy_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = plain({1: Calls(lambda self, x: 2 * x)})
    check_nested(net, (3,), rebuild=False)
    monkeypatch.setattr(laws, "load", lambda path, member=None, into=None: into)  # fills nothing
    with pytest.raises(AssertionError, match=r"^Round trip: .* differ after saving and loading"):
        check_nested(net, (3,), rebuild=False)


def test_every_law_is_broken_by_some_network() -> None:
    assert {law.__name__ for law in check.LAWS} == {law for law, _, _ in BROKEN}
    for law in check.LAWS:  # the page that lists the laws has the same ones
        assert law.__doc__ is not None
        assert law.__doc__.partition(":")[0].partition(" is ")[0] in check_nested.__doc__
