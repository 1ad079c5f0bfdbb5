import time

import pytest
import torch
from torch import Tensor, nn

from telescopic import Nested, cost, extract
from telescopic.cost import nominal_macs, nominal_params
from telescopic.layers import CausalBatchNorm2d, CausalConv2d, CausalLinear, Residual, SharedHead, step_down
from telescopic.networks import causal_resnet, mlp, resnet

IMAGE = (3, 32, 32)


class Mixed(nn.Module):
    """Multiplies what no causal layer does: each pixel's features with the features of its neighbours to the right."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.transpose(2, 3)


def uneven(conditioned: bool = False) -> Nested:
    """Channels that are no multiples of the groups, two entries, a depthwise convolution, a layer that runs twice."""
    groups = 3
    twice = CausalConv2d(7, 7, 1, bias=False, width_groups=groups)
    stages = [
        nn.Sequential(
            CausalConv2d(5, 7, 3, stride=2, padding=1, width_groups=groups), nn.ReLU(), twice, nn.ReLU(), twice
        ),
        Residual(CausalConv2d(7, 7, 3, padding=1, width_groups=groups, depthwise=True)),
        nn.Sequential(Mixed(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), CausalLinear(7, 8, width_groups=groups)),
    ]
    stem = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), CausalBatchNorm2d(5, width_groups=groups))
    heads = {
        0: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), SharedHead(7, 4, width_groups=groups, conditioned=conditioned)
        ),
        2: SharedHead(8, 4, width_groups=groups),
    }
    return Nested(stages, {0: stem, 1: step_down((2, 8, 8), (7, 4, 4))}, heads, groups=groups)


def by_weights(member: nn.Sequential, shape: tuple[int, ...]) -> tuple[int, int]:
    """Multiply-adds and parameters of an extracted member whose weights are zero exactly where they may not be read."""
    macs = 0

    def applied(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal macs
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        macs += int(layer.weight.count_nonzero()) * out[0].numel() // len(layer.weight)

    for layer in member.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(applied)
    with torch.no_grad():
        member(torch.randn(1, *shape))
    return macs, sum(int(p.count_nonzero()) for p in member.parameters())


def filled(net: Nested) -> Nested:
    """No parameter is zero, except where a weight may not be read: the layers' own masks decide."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1)
    return net.eval()


def test_the_figures_of_the_paper() -> None:
    with torch.device("meta"):
        net = causal_resnet()
    start = time.process_time()
    macs, params = nominal_macs(net, IMAGE), nominal_params(net)
    assert time.process_time() - start < 15
    assert len(macs) == len(params) == len(net.grid) == 352
    at = {(m.exit, m.width): price for m, price in zip(net.grid, macs, strict=True)}
    head = 10 * 88
    # Σ 9·H·W·c_in·c_out·w(w + 1)/2 with w = 22 groups, and the first convolution, which reads the image.
    triangle = 22 * 23 // 2
    thirds = [1024 * 10 * 1, 256 * (1 * 2 + 9 * 4), 64 * (2 * 4 + 9 * 16)]
    assert at[14, 22] == 9 * (triangle * sum(thirds) + 1024 * 3 * 22) + head
    assert f"{(at[14, 22] - head) / 1e6:.1f}" == "68.2"
    assert f"{at[4, 22] / 1e6:.2f}" == "23.92"  # the paper's D5, which counts from the first convolution
    assert f"{at[13, 13] / 1e6:.2f}" == "23.00"  # D14 & W12, counted from 0
    deepest = {exit_ for (exit_, width), price in at.items() if price <= 24e6 and width == 13}
    assert max(deepest) == 13
    kernels = 9 * (triangle * (10 + 2 + 36 + 8 + 144) + 3 * 22)
    norms = 2 * (11 * 22 + 10 * 44 + 10 * 88)
    assert params[-1] == kernels + norms + head + 10
    assert f"{kernels / 1e3:.0f}" == "456"


def test_resnet_32_for_comparison() -> None:
    net = resnet(32, shortcut="pad")
    price = cost(net, IMAGE)
    assert f"{price.macs / 1e6:.1f}" == "68.9"
    kernels = sum(module.weight.numel() for module in net.modules() if isinstance(module, nn.Conv2d))
    assert f"{kernels / 1e3:.0f}" == "461"


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_members_by_counting_the_weights_that_are_read(shortcut: str) -> None:
    net = filled(causal_resnet(3, (1, 2), blocks=1, shortcut=shortcut))  # type: ignore[arg-type]
    expected = [by_weights(extract(net, member), (3, 8, 8)) for member in net.grid]
    assert nominal_macs(net, (3, 8, 8)) == [macs for macs, _ in expected]
    assert nominal_params(net) == [params for _, params in expected]


@pytest.mark.parametrize("conditioned", [False, True])
def test_uneven_groups_and_other_products(conditioned: bool) -> None:
    net = filled(uneven(conditioned))
    expected = []
    for member in net.grid:
        assert member.width is not None
        macs, params = by_weights(extract(net, member), (2, 8, 8))
        # `Mixed` multiplies 4 × 4 pixels by 4 × 4 pixels in each of the first channels.
        expected.append((macs + (7 * member.width // 3 * 4 * 4 * 4 if member.exit == 2 else 0), params))
    assert nominal_macs(net, (2, 8, 8)) == [macs for macs, _ in expected]
    assert nominal_params(net) == [params for _, params in expected]


def test_scales_and_shifts_are_the_familys_and_cost_a_member_nothing() -> None:
    plain, net = uneven(), uneven(conditioned=True)
    assert nominal_macs(net, (2, 8, 8)) == nominal_macs(plain, (2, 8, 8))
    assert nominal_params(net) == nominal_params(plain)
    for member in net.grid:
        assert cost(extract(net, member), (2, 8, 8)) == cost(extract(plain, member), (2, 8, 8))
    ours, theirs = (sum(parameter.numel() for parameter in made.parameters()) for made in (net, plain))
    assert ours - theirs == 3 * (7 + 4)


def test_what_is_executed_is_more() -> None:
    net = uneven()
    for member, macs, params in zip(net.grid, nominal_macs(net, (2, 8, 8)), nominal_params(net), strict=True):
        price = cost(extract(net, member), (2, 8, 8))
        same = member.width == 1 or (member.entry == 1 and member.exit == 0)
        assert (price.macs == macs, price.params == params) == (same, same)
        assert price.macs >= macs and price.params >= params


def test_networks_of_one_width_cost_what_they_cost() -> None:
    net = mlp(6, (4, 6), 3)
    prices = [cost(extract(net, member), (6,)) for member in net.grid]
    assert nominal_macs(net, (6,)) == [price.macs for price in prices]
    assert nominal_params(net) == [price.params for price in prices]


def test_causal_layers_at_full_width_only() -> None:
    net = Nested([nn.Sequential(nn.Flatten(), CausalLinear(4, 6, width_groups=2))], groups=1)
    assert (nominal_macs(net, (4,)), nominal_params(net)) == ([18], [24])  # 3 · 2 + 3 · 4, and 6 biases


def test_an_input_of_another_shape() -> None:
    net = causal_resnet(2, (1,), blocks=1)
    with pytest.raises(ValueError, match=r"failed on an input of shape \(1, 1, 8, 8\).* Is input_shape right\?$"):
        nominal_macs(net, (1, 8, 8))
