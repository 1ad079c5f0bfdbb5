"""Optimizers and the network that they are given with: whether they belong together, and can be cut."""

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from test_shrink import IMAGES, LeNet, exact, kill
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from telescopic import shrink
from telescopic.layers import Filter
from telescopic.shrink import optimizers


def net_and_input() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), Filter(6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    kill(net)
    return net, torch.randn(5, 3)


def refused(match: str, net: nn.Module, *given: Any, x: Tensor) -> None:
    """By everything that takes optimizers, and nothing is changed."""
    before, log = copy.deepcopy(net.state_dict()), shrink.compact_(copy.deepcopy(net), example=x)
    for call in (
        lambda: shrink.compact_(net, *given, example=x),
        lambda: shrink.order_(net, *given, example=x),
        lambda: log.replay_(net, *given),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_an_optimizer_of_the_network_that_filters_were_added_to() -> None:
    model, x = LeNet(), torch.randn(IMAGES)
    optimizer = Adam(model.parameters())
    net = shrink.add_filters(model, x)
    with pytest.raises(ValueError, match=r"this Adam holds none of the network's 13 parameters but 10 of elsewhere"):
        shrink.compact_(net, optimizer)  # before anything is dead
    kill(net)
    refused(r"holds none of the network's 13 parameters .*shrink\.add_filters returns a copy", net, optimizer, x=x)


def test_optimizers_that_hold_only_some_of_the_parameters() -> None:
    net, x = net_and_input()
    some = SGD(net[:4].parameters(), 0.1)
    refused(r"SGD holds 5 of the network's 7 parameters .* missing are 5\.weight, 5\.bias\. Give all", net, some, x=x)
    body = Adam(net[0].parameters())
    refused(r"SGD and Adam hold 5 of .* 7 parameters", net, some, body, x=x)
    refused(r"Adam holds 2 of .* missing are 1\.theta, 3\.weight, 3\.bias and 2 more", net, body, x=x)
    net[5].requires_grad_(False)
    assert shrink.compact_(net, some, body, example=x).removed == {"1": 2}


def test_an_optimizer_may_hold_parameters_of_another_network_too() -> None:
    net, x = net_and_input()
    other = nn.Linear(6, 6)
    optimizer = Adam([*net.parameters(), *other.parameters()])
    (net(x).sum() + other(torch.ones(6)).sum()).backward()
    optimizer.step()
    assert shrink.compact_(net, optimizer, example=x)
    assert optimizer.state[other.weight]["exp_avg"].shape == (6, 6)


def test_what_is_no_optimizer() -> None:
    net, x = net_and_input()
    optimizer = Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    refused("a StepLR was given where optimizers stand", net, optimizer, schedule, x=x)
    refused("a Tensor was given where .* example=x", net, x, x=x)
    refused("a list was given", net, [optimizer], x=x)


def test_a_state_of_other_widths() -> None:
    net, x = net_and_input()
    optimizer = Adam(net.parameters())
    net(x).sum().backward()
    optimizer.step()
    optimizer.state[net[3].weight]["exp_avg"] = torch.zeros(4, 4)
    refused(r"Adam keeps 'exp_avg' of 3\.weight in the shape \(4, 4\), and 3\.weight is \(4, 6\)", net, optimizer, x=x)


@pytest.mark.parametrize("kind", ["Muon", "Adafactor", "LBFGS", "SparseAdam"])
def test_kinds_that_mix_entries_are_refused(kind: str) -> None:
    net, x = net_and_input()
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    given = (getattr(torch.optim, kind)(matrices), Adam(others))
    refused(f"{kind} is not known to update each entry .* say so with shrink.register_optimizer", net, *given, x=x)


def test_an_optimizer_that_is_vouched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_KNOWN", set(optimizers._KNOWN))

    class Mine(SGD):
        pass

    net, x = net_and_input()
    refused("Mine is not known", net, Mine(net.parameters(), 0.1), x=x)
    shrink.register_optimizer(Mine)
    assert exact(net, x, lambda parameters: Mine(parameters, 0.1, momentum=0.9)).left == {"1": 4}


def test_an_optimizer_that_accelerate_wraps() -> None:
    net, x = net_and_input()
    inner = Adam(net.parameters())
    wrapped: Optimizer = Accelerator(cpu=True).prepare_optimizer(inner)
    net(x).sum().backward()
    wrapped.step()
    assert shrink.compact_(net, wrapped, example=x)
    assert inner.state[net[3].weight]["exp_avg"].shape == net[3].weight.shape == (4, 4)


def test_multiples_that_are_none() -> None:
    net, x = net_and_input()
    for value in (0, -8, 1.5, True):
        with pytest.raises(ValueError, match=f"multiple_of is a whole number of channels, 1 or more, not {value}"):
            shrink.compact_(net, example=x, multiple_of=value)
