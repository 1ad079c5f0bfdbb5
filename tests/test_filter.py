import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from telescopic import shrink
from telescopic.layers import Filter


def filtered(*thetas: float) -> Filter:
    part = Filter(len(thetas))
    part.theta.data = torch.tensor(thetas)
    return part


def test_starts_between_0_and_1() -> None:
    theta = Filter(10_000).theta.detach()
    assert 0 < theta.min() < 0.01 and 0.99 < theta.max() <= 1
    assert abs(float(theta.mean()) - 0.5) < 0.02


@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (4, 5, 6)])
def test_multiplies_each_channel(shape: tuple[int, ...]) -> None:
    part, x = filtered(0.5, -1.0, 2.0, 0.0), torch.randn(3, 4, *shape)
    scale = torch.tensor([0.5, 0.0, 2.0, 0.0])
    assert torch.equal(part(x), x * scale.view(4, *[1] * len(shape)))
    assert part.dead().tolist() == [False, True, False, True]
    assert repr(part) == "Filter(4)"


def test_gradients() -> None:
    part, x = filtered(0.5, -1.0, 0.0), torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    part(x).sum().backward()
    assert part.theta.grad.tolist() == [1, 0, 0]
    assert x.grad.tolist() == [[0.5, 0, 0]]


OPTIMIZERS = [
    lambda p: SGD(p, 0.1, momentum=0.9),
    lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    lambda p: Adam(p, 0.1),
    lambda p: AdamW(p, 0.1, weight_decay=0.1),
    lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dead_stays_dead(optimizer: object) -> None:
    part = filtered(0.05, 1.0)
    steps: Optimizer = optimizer([part.theta])  # type: ignore[operator]
    x = torch.ones(1, 2)
    part.theta.grad = torch.tensor([1.0, 0.0])
    steps.step()  # kills the first channel
    steps.zero_grad()
    assert part.theta[0] <= 0
    rose = False
    for _ in range(30):
        (-part(x)).sum().backward()
        part.theta.grad[0] -= 1  # something pushes it back, as momentum does
        steps.step()
        steps.zero_grad()
        rose |= bool(part.theta[0] > 0)
        assert part(x)[0, 0] == 0 and part.dead().tolist() == [True, False]
        assert shrink.size(part) == part.theta[1]
    assert rose  # θ itself did come back: the buffer is what keeps it dead
    with torch.no_grad():
        assert copy.deepcopy(part)(x)[0, 0] == 0
    other = Filter(2)
    other.load_state_dict(part.state_dict())
    assert other(x)[0, 0] == 0


def test_a_pass_without_gradients_changes_nothing() -> None:
    part = filtered(-1.0, 1.0)
    with torch.no_grad():
        assert part(torch.ones(1, 2)).tolist() == [[0, 1]]
    assert part.alive.all()


def test_two_passes_before_one_backward() -> None:
    part = filtered(0.5, 1.0, -1.0)
    (part(torch.ones(1, 3)) + part(torch.ones(1, 3))).sum().backward()
    assert part.theta.grad.tolist() == [2, 2, 0]


# What pushes θ to 0 ---------------------------------------------------------------------------------------------------


def test_size() -> None:
    net = nn.Sequential(filtered(0.5, -1.0), filtered(2.0, 0.25))
    assert shrink.size(net) == 2.75
    shrink.size(net).backward()
    assert net[0].theta.grad.tolist() == [1, 0] and net[1].theta.grad.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"cost in macs: call shrink\.price_"):
        shrink.size(net, "macs")
    with pytest.raises(ValueError, match=r"no filters: see shrink\.add_filters"):
        shrink.size(nn.Linear(2, 2))


def test_size_by_what_a_channel_costs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    net = shrink.add_filters(net, x)
    (part,) = [part for part in net.modules() if isinstance(part, Filter)]
    # Weights and bias of the row, weight and bias of the norm, θ, and 16 columns of the linear layer
    assert part.params.tolist() == [27 + 1 + 2 + 1 + 16 * 5] * 4
    assert part.macs.tolist() == [27 * 16 + 16 * 5] * 4
    for by, each in (("params", part.params), ("macs", part.macs)):
        torch.testing.assert_close(shrink.size(net, by), (part.theta * each).sum())  # type: ignore[arg-type]
    part.theta.data[0] = 0
    shrink.compact_(net)
    assert part.macs.tolist() == [27 * 16 + 16 * 5] * 3


def test_proximal_step() -> None:
    part = filtered(0.5, 0.1, -0.3, 0.1000001)
    shrink.soft_threshold_(part, 0.1)
    torch.testing.assert_close(part.theta.data, torch.tensor([0.4, 0.0, -0.3, 1e-7]), atol=1e-8, rtol=0)
    assert part.theta[1] == 0 and part.dead().tolist() == [False, True, True, False]
    part.theta.data[1] = 1
    assert part.scale()[1] == 0
    part.macs.copy_(torch.tensor([4.0, 1, 1, 1]))
    shrink.soft_threshold_(part, 0.1, "macs")
    assert part.theta[0] == 0


def test_randomised_removal_keeps_the_mean() -> None:
    part = Filter(40_000)
    part.theta.data.fill_(0.03)
    part.theta.data[0], part.theta.data[1] = 0.7, -1
    shrink.drop_(part, 0.1, torch.Generator().manual_seed(0))
    assert part.theta[0] == 0.7 and part.theta[1] == -1
    rest = part.theta.detach()[2:]
    assert {round(v, 6) for v in rest.unique().tolist()} == {0.0, 0.1}
    assert abs(float(rest.mean()) - 0.03) < 0.001
    again = Filter(40_000)
    again.theta.data.fill_(0.03)
    shrink.drop_(again, 0.1, torch.Generator().manual_seed(0))
    assert torch.equal(again.theta[2:], rest)


def test_weight_decay_leaves_filters_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 3), Filter(3), nn.ReLU(), nn.Linear(3, 2))
    before = net[1].theta.detach().clone()
    optimizer = AdamW(shrink.parameter_groups(net), 0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in net.parameters()} and len(held) == 5
    (net(torch.ones(1, 2)).sum() * 0).backward()
    weight: Tensor = net[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(net[1].theta, before) and not torch.equal(net[0].weight, weight)
    with pytest.raises(ValueError, match=r"AdamW decays θ of filter 1 by 0\.01, .* shrink\.parameter_groups\(model\)"):
        shrink.compact_(net, AdamW(net.parameters()))
