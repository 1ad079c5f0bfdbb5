import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

from telescopic import shrink
from telescopic.layers import Filter, Residual

from chance import examples

Make = Callable[[Iterable[Any]], Optimizer]


class LeNet(nn.Module):
    """As one writes it by hand."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv1(x))), 2)
        x = functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.view(x.shape[0], -1))))


IMAGES = (4, 1, 14, 14)


def filters(net: nn.Module) -> dict[str, Filter]:
    return {path: part for path, part in net.named_modules() if isinstance(part, Filter)}


def kill(net: nn.Module, dead: Callable[[int], Any] = lambda size: slice(1, None, 3)) -> None:
    for part in filters(net).values():
        part.theta.data[dead(len(part.theta))] = -0.01


def step(net: nn.Module, optimizer: Optimizer | None, x: Tensor, seed: int = 0) -> Tensor:
    """A training step towards random targets; the loss."""
    out = net.train()(x)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)
    loss = (out - target).square().mean() + 1e-3 * shrink.size(net)
    loss.backward()
    if optimizer is not None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # which mixes all gradients
        optimizer.step()
        optimizer.zero_grad()
    return loss


def adam(parameters: Iterable[Any]) -> Optimizer:
    return Adam(parameters, 1e-2)


def exact(net: nn.Module, x: Tensor, make: Make = adam, dead: Callable[[nn.Module], None] = kill, **how: Any) -> Any:
    """Train, kill channels, compact; the rest of training is that of the network with the dead channels. The log."""
    net, x = net.double(), x.double()
    for part in filters(net).values():
        part.theta.data[part.theta > 0] += 0.2  # so that none dies by itself
    optimizer = make(net.parameters())
    for seed in (1, 2):
        step(net, optimizer, x, seed)
    dead(net)
    masked, its = copy.deepcopy((net, optimizer))
    before = {id(parameter) for parameter in net.parameters()}
    kept = step(net, None, x)  # an old graph and gradients are alive
    step(masked, None, x)
    log = shrink.compact_(net, optimizer, example=x, **how)
    assert {id(parameter) for parameter in net.parameters()} == before
    assert kept.grad_fn is not None
    torch.testing.assert_close(net.eval()(x), masked.eval()(x), rtol=1e-12, atol=1e-12)
    # Of a channel that one filter killed, others in front may be alive: all they have left is their penalty.
    for cut in [cut for cut in log.cuts if cut.name.endswith("alive")]:
        alive = torch.zeros(cut.size, dtype=torch.bool).index_fill(0, cut.kept, True)
        masked.get_buffer(cut.name).logical_and_(alive)
        masked.get_parameter(cut.name.replace("alive", "theta")).grad.mul_(alive)
    for seed in (3, 4):
        losses = step(net, optimizer, x, seed), step(masked, its, x, seed)
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
    log.replay_(masked, its)
    torch.testing.assert_close(net.state_dict(), masked.state_dict(), rtol=1e-11, atol=1e-11)
    theirs = dict(masked.named_parameters())
    for name, parameter in net.named_parameters():
        state, other = optimizer.state[parameter], its.state[theirs[name]]
        torch.testing.assert_close(dict(state), dict(other), rtol=1e-11, atol=1e-11)
    return log


# Optimizers -----------------------------------------------------------------------------------------------------------


OPTIMIZERS: list[Make] = [
    lambda p: SGD(p, 0.05),
    lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True, foreach=True),
    lambda p: SGD(p, 0.05, momentum=0.9, fused=True),
    lambda p: Adam(p, 1e-2, amsgrad=True, foreach=False),
    lambda p: Adam(p, 1e-2, fused=True),
    lambda p: AdamW(p, 1e-2, weight_decay=0, foreach=True),
    lambda p: RMSprop(p, 1e-3, momentum=0.5, centered=True),
    lambda p: Adagrad(p, 1e-2),
    lambda p: Adadelta(p, 1.0),
    lambda p: NAdam(p, 1e-3),
    lambda p: SGD(p, torch.tensor(0.01), momentum=0.9, dampening=0.5, maximize=True),
    lambda p: Adam(p, torch.tensor(1e-3), amsgrad=True, maximize=True, fused=True),
    lambda p: AdamW(p, 1e-3, weight_decay=0, amsgrad=True, fused=True),
    lambda p: Adagrad(p, 1e-2, fused=True),
    lambda p: Adagrad(p, 1e-2, lr_decay=0.1, initial_accumulator_value=0.1, foreach=True),
    lambda p: Adadelta(p, 1.0, foreach=True, maximize=True),
    lambda p: RMSprop(p, 1e-3, foreach=True),
    lambda p: NAdam(p, 1e-3, decoupled_weight_decay=True, foreach=True),
    lambda p: RAdam(p, 1e-3),
    lambda p: RAdam(p, 1e-3, foreach=True, maximize=True),
    lambda p: Adamax(p, 1e-3),
    lambda p: Adamax(p, 1e-3, foreach=True),
    lambda p: Rprop(p, 1e-3),
    lambda p: Rprop(p, 1e-3, foreach=True),
    lambda p: ASGD(p, 1e-2, t0=1),
    lambda p: ASGD(p, 1e-2, t0=1, foreach=True),
]


@cache
def filtered() -> tuple[nn.Module, Tensor]:
    """A network with filters, and images for it; made once, for whoever takes a copy."""
    torch.manual_seed(0)
    x, net = torch.randn(IMAGES), LeNet()
    net.conv1.bias = None  # in front of the norm it has no gradient but rounding, of which some make steps
    return shrink.add_filters(net, x), x


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_optimizers(make: Make) -> None:
    net, x = copy.deepcopy(filtered())
    log = exact(net, x, make)
    assert log.removed == {"norm.filter": 2, "conv2.filter": 3, "fc1.filter": 4} and not log.held
    assert log.left == {"norm.filter": 4, "conv2.filter": 5, "fc1.filter": 8}


def test_groups_with_weight_decay_a_schedule_and_a_scaler() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES).double()
    net = shrink.add_filters(LeNet(), x.float()).double()
    kill(net)

    def trained(net: nn.Module) -> tuple[Any, ...]:
        optimizer = AdamW(shrink.parameter_groups(net), 0.01, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return net, optimizer, schedule, torch.amp.GradScaler("cpu")

    both = [trained(net), trained(masked := copy.deepcopy(net))]
    optimizer = both[0][1]
    log = shrink.compact_(net, optimizer)
    for _ in range(3):
        for model, steps, rates, scaled in both:
            scaled.scale(model(x).square().mean()).backward()
            scaled.step(steps)
            scaled.update()
            steps.zero_grad()
            rates.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01 / 8] * 2
    log.replay_(masked)
    torch.testing.assert_close(net.state_dict(), masked.state_dict(), rtol=1e-12, atol=1e-12)


def test_no_optimizer_holds_a_stale_parameter_and_all_move() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(norm=False), x)
    optimizer = Adam(net.parameters(), 0.01)
    for _ in range(3):
        step(net, optimizer, x)
        kill(net, lambda size: [0])
        loss = step(net, None, x)  # alive while the next step is taken
        assert shrink.compact_(net, optimizer) and loss.grad_fn is not None
        held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        assert held.keys() == {id(p) for p in net.parameters()}
        assert set(optimizer.state) <= set(held.values())
        for parameter, state in optimizer.state.items():
            assert {v.shape for v in state.values() if v.numel() > 1} <= {parameter.shape}
            assert parameter.grad is not None and parameter.grad.shape == parameter.shape
        before = [p.detach().clone() for p in net.parameters()]
        step(net, optimizer, x)
        assert all((p != old).any() for p, old in zip(net.parameters(), before, strict=True))
    assert [len(part.theta) for part in filters(net).values()] == [3, 5, 9]


def test_several_optimizers() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3)
    net = nn.Sequential(nn.Linear(3, 4), Filter(4), nn.ReLU(), nn.Linear(4, 2))
    one, two = Adam(net[:2].parameters()), SGD(net[3].parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        net(x).sum().backward()
        one.step(), two.step()
    kill(net)
    kept = torch.tensor([0, 2, 3])
    moment, momentum = one.state[net[0].weight]["exp_avg"], two.state[net[3].weight]["momentum_buffer"]
    shrink.compact_(net, one, two, example=x)
    assert torch.equal(one.state[net[0].weight]["exp_avg"], moment[kept])
    assert torch.equal(two.state[net[3].weight]["momentum_buffer"], momentum[:, kept])


# Edges ----------------------------------------------------------------------------------------------------------------


class Running(nn.Module):
    """Centres features by a running mean, which it exchanges for a new tensor each time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


def test_buffers_that_are_exchanged_are_as_before() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Running(), nn.Linear(3, 6), Filter(6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(4, 3)
    net(x + 1)
    mean, value = net[0].mean, float(net[0].mean)
    kill(net)
    assert shrink.compact_(net, example=x)
    assert net[0].mean is mean and float(mean) == value


def test_nothing_dead() -> None:
    net = shrink.add_filters(LeNet(), torch.randn(IMAGES))
    before = copy.deepcopy(net.state_dict())
    log = shrink.compact_(net)
    assert not log and log.removed == {} and log.left == {"norm.filter": 6, "conv2.filter": 8, "fc1.filter": 12}
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_all_dead_but_one_and_all_dead() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(), x)
    log = exact(net, x, dead=lambda net: kill(net, lambda size: slice(0, size - 1)))
    assert set(log.left.values()) == {1}
    assert all(part.theta[0] > 0 for part in filters(net).values())
    net = shrink.add_filters(LeNet(), x)
    last = net.conv1.weight[:1].detach().clone()
    kill(net, lambda size: slice(None))
    log = shrink.compact_(net)
    assert set(log.left.values()) == {1} and not log.held  # the first stays, and nothing else needs it
    assert torch.equal(net.conv1.weight, last) and torch.equal(net(x), net.fc2.bias.expand(4, 10))
    assert not shrink.compact_(net)


def test_multiples() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 20), Filter(20), nn.ReLU(), nn.Linear(20, 2))
    net[1].theta.data[[0, 3, 4, 5, 7, 19]] = 0
    log = exact(net, torch.randn(4, 3), multiple_of=8, dead=lambda net: None)
    assert log.left == {"1": 16}  # of the six dead, the first two stay
    assert net[1].dead().nonzero().flatten().tolist() == [0, 3]
    net[1].theta.data[0] = 0
    assert not shrink.compact_(net, example=torch.randn(4, 3), multiple_of=8)


def test_frozen_layers_stay_frozen() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(), x)
    for parameter in (net.conv2.weight, net.conv2.bias, net.conv1.weight):
        parameter.requires_grad_(False)
    assert exact(net, x).removed["conv2.filter"] == 3
    assert [p.requires_grad for p in (net.conv1.weight, net.conv1.bias, net.conv2.weight)] == [False, True, False]
    frozen = filters(net)["fc1.filter"].theta.requires_grad_(False)
    frozen.data[0] = 0
    assert shrink.compact_(net).removed == {"fc1.filter": 1}


def test_channels_last_stays() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    net(x)
    net = shrink.add_filters(net, x).to(memory_format=torch.channels_last)
    kill(net)
    shrink.compact_(net)
    assert net[2].weight.shape == (3, 5, 3, 3)
    assert net[2].weight.is_contiguous(memory_format=torch.channels_last) and not net[2].weight.is_contiguous()


def test_what_cannot_be_removed_is_asked_for_once() -> None:
    body = nn.Sequential(nn.Linear(4, 4), Filter(4), nn.ReLU())
    net, x = nn.Sequential(nn.Linear(3, 4), Residual(body), nn.Linear(4, 2)), torch.randn(2, 3)
    kill(net)
    runs: list[int] = []
    net.register_forward_hook(lambda *_: runs.append(1))
    log = shrink.compact_(net, example=x)
    assert not log and log.held == {"1.body.1": "linear in 1.body.0 (Linear), which takes it as something else than 0"}
    assert runs
    runs.clear()
    assert shrink.compact_(net, example=x).held == log.held and not runs
    body[1].theta.data[0] = 0
    assert shrink.compact_(net, example=x).held == log.held and runs


def test_modes_buffers_and_random_numbers_are_left_alone() -> None:
    x = torch.randn(IMAGES)
    net = shrink.add_filters(nn.Sequential(LeNet(), nn.Dropout(0.5), nn.Linear(10, 2)), x)
    kill(net, lambda size: [size - 1])
    net.train()
    net[0].conv2.eval()
    modes = [part.training for part in net.modules()]
    mean = net[0].norm.running_mean.clone()
    state = torch.get_rng_state()
    assert shrink.compact_(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(net[0].norm.running_mean, mean[:-1])
    assert net[0].norm.num_batches_tracked == 0


def test_a_moving_average_follows() -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    net = shrink.add_filters(LeNet(), x)
    mean = torch.optim.swa_utils.AveragedModel(net)
    kill(net)
    log = shrink.compact_(net)
    log.replay_(mean.module)
    mean.update_parameters(net)
    torch.testing.assert_close(mean.module.state_dict(), net.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"cuts dimension 1 of .* Replay the logs of all compactions, in order"):
        log.replay_(mean.module)


# Constants ------------------------------------------------------------------------------------------------------------


def sigmoids() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 6), Filter(6), nn.Sigmoid(), nn.Linear(6, 4), Filter(4), nn.ReLU(), nn.Linear(4, 2)
    )


def test_what_becomes_a_constant_stays() -> None:
    torch.manual_seed(0)
    net, x = sigmoids().double(), torch.randn(5, 3).double()
    kill(net)
    before = net(x)
    log = shrink.compact_(net, example=x)
    assert log.removed == {"4": 1}
    assert log.held == {"1": "linear in 3 (Linear), which takes it as something else than 0"}
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-12)


def lived(net: nn.Module) -> nn.Module:
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean), nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight), nn.init.normal_(part.bias)
    return net


def test_a_norm_behind_the_filter() -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(6, 2, 3)
    net = lived(nn.Sequential(nn.Conv2d(3, 6, 3), Filter(6), nn.BatchNorm2d(6), nn.ReLU(), last)).double().eval()
    kill(net)
    x = torch.randn(4, 3, 8, 8).double()
    before = net(x)
    log = shrink.compact_(net, example=x)
    assert log.held.keys() == {"1"} and not log
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)


def test_a_constant_that_is_0_now_but_may_be_trained_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Filter(4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    kill(net)
    net[2].running_mean.zero_()
    assert shrink.compact_(net, example=torch.randn(2, 3, 4, 4)).held.keys() == {"1"}


# Any network ----------------------------------------------------------------------------------------------------------


class Either(nn.Module):
    """Two branches, added, multiplied or put side by side."""

    def __init__(self, one: nn.Module, other: nn.Module, how: str) -> None:
        super().__init__()
        self.one, self.other, self.how = one, other, how

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.other(x)
        if self.how == "gate":
            return a * b.mean((2, 3), keepdim=True).sigmoid()
        return torch.cat((a, b), 1) if self.how == "cat" else a + b


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Blocks of all kinds with filters inside."""
    wide, layers = 3, list[nn.Module]()

    def conv(given: int, made: int, groups: int = 1, norm: bool | None = None) -> list[nn.Module]:
        normed, bias = draw(st.booleans()) if norm is None else norm, draw(st.booleans())
        # A bias in front of a norm has no gradient but rounding, of which Adam makes steps.
        parts: list[nn.Module] = [nn.Conv2d(given, made, 3, padding=1, groups=groups, bias=bias and not normed)]
        parts += [nn.BatchNorm2d(made)] * normed
        parts += [Filter(made)] * draw(st.booleans())
        return [*parts, draw(st.sampled_from([nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Identity(), nn.PReLU(made)]))]

    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "depthwise", "grouped", "residual", "add", "cat", "gate", "pool", "up"]))
        made = 2 * draw(st.integers(1, 4))
        if kind == "conv":
            layers += conv(wide, made)
        elif kind == "depthwise":
            layers += conv(wide, made := wide * draw(st.integers(1, 2)), wide)
        elif kind == "grouped":
            groups = 2 if wide % 2 == 0 else 1
            layers += conv(wide, made, groups)
        elif kind == "residual":
            body = nn.Sequential(*conv(wide, made), *conv(made, wide))
            layers.append(Residual(body, nn.Sequential(*conv(wide, wide)) if draw(st.booleans()) else None))
            made = wide
        elif kind in ("pool", "up"):
            part = nn.AvgPool2d(3, 1, 1) if kind == "pool" else nn.ConvTranspose2d(wide, made, 2)
            layers += [part, Filter(made), nn.ReLU()] if kind == "up" else [part]
            made = made if kind == "up" else wide
        else:
            layers.append(Either(nn.Sequential(*conv(wide, made)), nn.Sequential(*conv(wide, made)), kind))
            made *= 2 if kind == "cat" else 1
        wide = made
    layers += conv(wide, 6, norm=False)
    size = 5 + sum(isinstance(layer, nn.ConvTranspose2d) for layer in layers)
    layers += [nn.Flatten(), nn.Linear(6 * size * size, 6), Filter(6), nn.ReLU(), nn.Linear(6, 3)]
    return nn.Sequential(*layers)


@examples(few=15, many=300)
@given(networks(), st.integers(0, 2**31), st.sampled_from([OPTIMIZERS[i] for i in (1, 3, 6)]))
def test_compaction_is_exact(net: nn.Sequential, seed: int, make: Make) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 3, 5, 5)

    def some(net: nn.Module) -> None:
        for part in filters(net).values():
            part.theta.data[torch.rand(len(part.theta)) < 0.5] = 0

    exact(net, x, make, some)
    assert shrink.compact_(net, example=x.double()) or True
    # What the sizes say is what the weights are.
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            fresh = nn.Conv2d(part.in_channels, part.out_channels, 3, groups=part.groups)
            assert fresh.weight.shape == part.weight.shape
        if isinstance(part, nn.BatchNorm2d):
            assert part.num_features == len(part.weight) == len(part.running_mean)
        if isinstance(part, nn.Linear):
            assert (part.out_features, part.in_features) == part.weight.shape


def test_a_log_is_readable() -> None:
    log = shrink.Log(removed={"one.filter": 3}, left={"one.filter": 5, "two": 4}, held={"two": "view reads its size"})
    assert repr(log) == "one.filter: 3 removed, 5 left\ntwo: dead channels stay: view reads its size"
    assert repr(shrink.Log()) == "nothing removed"
