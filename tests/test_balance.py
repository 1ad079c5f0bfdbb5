"""Balanced gradients: what share of the loss each weight hears is found from gradients of one member at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_laws import convolutional, every_coordinate
from torch import Tensor, nn
from torch.nn import functional

from telescopic.data import Dataset, Preprocess, Split
from telescopic.nested import Nested
from telescopic.networks import causal_resnet, mlp
from telescopic.papers import doubly_nested
from telescopic.train import Recipe, Shrink, fit
from telescopic.train.balance import gradient_factors, loss_shares


def smooth(net: Nested) -> Nested:
    """Float64, and no activation that is flat anywhere: then a gradient of 0 means that nothing is read."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
    return net.double().train()


def transformed() -> Nested:
    torch.manual_seed(0)
    return doubly_nested.network(3, channels=(1, 2), blocks=1, in_channels=2, early_transform=True, conditioned=True)


NETWORKS: dict[str, tuple[Callable[[], Nested], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(4, (4, 4), 3), (4,)),
    "convolutional": (convolutional, (2, 8, 8)),
    "per entry": (lambda: convolutional(statistics="per-entry"), (2, 8, 8)),
    "every coordinate": (every_coordinate, (2, 8, 8)),
    "projected": (lambda: causal_resnet(4, (1, 2), 1, 3, in_channels=2, shortcut="projection"), (2, 8, 8)),
    "transformed": (transformed, (2, 8, 8)),
}


def gradients(net: Nested, shape: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """Of each member's own loss."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
    found = []
    for member in net.grid:
        net.zero_grad()
        logits = net(x, member)
        labels = torch.randint(logits.shape[1], (12,), generator=torch.Generator().manual_seed(2))
        functional.cross_entropy(logits, labels, reduction="sum").backward()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in net.named_parameters()})
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_hears_the_members_that_send_it_a_gradient(name: str) -> None:
    build, shape = NETWORKS[name]
    net = smooth(build())
    weights = torch.rand(len(net.grid), generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    # In eval mode, for in training BatchNorm takes a shift before it out again.
    each, shares = gradients(net.eval(), shape), loss_shares(net, weights.tolist())
    checked = 0
    for parameter_name, parameter in net.named_parameters():
        read = torch.stack([g[parameter_name] != 0 for g in each])
        expected = (weights.view(-1, *[1] * parameter.ndim) * read).sum(0)
        share = shares[parameter].expand_as(parameter)
        torch.testing.assert_close(share[read.any(0)], expected[read.any(0)], rtol=0, atol=1e-12)
        checked += int(read.any(0).sum())
    assert checked > 0.6 * sum(p.numel() for p in net.parameters()), "the rest are masked"


def test_what_no_member_reads_gets_no_gradient() -> None:
    net = smooth(mlp(4, (4, 4), 3))
    factors = dict(gradient_factors(net, (0.0, 0.5, 0.5)))
    assert {float(factor) for factor in factors.values()} == {1.0, 2.0}
    # Nobody but the full network runs the first stage, and here it is not asked.
    first = {id(p) for p in net.stages[0].parameters()}
    factors = dict(gradient_factors(net, (0.5, 0.5, 0.0)))
    assert {float(factor) for p, factor in factors.items() if id(p) in first} == {0.0}


def test_a_step_moves_each_weight_by_the_mean_over_its_members() -> None:
    """One step of plain gradient descent by `fit`, against the formula, with weight decay left as it is."""
    torch.manual_seed(0)
    net = smooth(causal_resnet(3, (1, 2), 1, 3, in_channels=2))
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (12, 2, 8, 8), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.randint(3, (12,), generator=generator))
    weights = doubly_nested.weights(net, macs=1, input_shape=(2, 8, 8))
    recipe = Recipe(
        epochs=1, batch_size=12, learning_rate=0.1, momentum=0, weight_decay=0.01, weights=weights, balanced=True
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    x = Preprocess()(images).double()
    expected: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in before.items()}
    shares = {name: loss_shares(net, weights)[p] for name, p in net.named_parameters()}
    for member, weight in zip(net.grid, weights, strict=True):
        net.zero_grad()
        (functional.cross_entropy(net(x, member), split.labels) * weight).backward()
        for name, p in net.named_parameters():
            expected[name] += 0 if p.grad is None else p.grad
    fit(net, Dataset("made", split, split, split, tuple("abc"), "made"), recipe, keep="last", cpu=True, progress=False)
    for name, p in net.named_parameters():
        used = shares[name] > 0  # the others are masked
        step = expected[name] / shares[name].where(used, 1) + 0.01 * before[name]
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * step, rtol=0, atol=1e-12)
    full = shares["stages.1.body.0.weight"].flatten()
    assert full[-1] < 0.3 < full[0] < 1, "or nothing is balanced here"


@pytest.mark.parametrize("other", [{"drawn": 1}, {"mix": ((1.0,),)}, {"shrink": Shrink(penalty=0.1)}])
def test_balanced_goes_with_nothing_that_changes_who_learns_what(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not with drawn, mix or shrink"):
        Recipe(epochs=1, balanced=True, **other)
