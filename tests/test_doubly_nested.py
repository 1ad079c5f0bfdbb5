"""Doubly Nested Network: the paper's network and numbers, the ways to train it, and what it is compared with."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from telescopic.cost import cost, nominal_macs, nominal_params
from telescopic.data import Augment, Preprocess
from telescopic.extract import extract
from telescopic.layers import CausalBatchNorm2d, CausalConv2d, GradientScale
from telescopic.nested import Nested
from telescopic.networks import resnet
from telescopic.papers import doubly_nested
from telescopic.papers.doubly_nested import FACTS, LAMBDAS, WAYS, Way
from telescopic.subnet import Subnet
from telescopic.train import Objective, Recipe

SMALL = {"groups": 4, "blocks": 1}


def small(**options: float) -> Nested:
    torch.manual_seed(0)
    return doubly_nested.network(4, blocks=1, **options).double().eval()  # type: ignore[arg-type]


def image(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_network_is_the_papers() -> None:
    net = doubly_nested.network()
    assert net.grid.exits == tuple(range(-1, 15)) and net.grid.widths == tuple(range(1, 23))
    assert len(net.grid) == FACTS.exits * FACTS.widths == 352
    convs = [module for module in extract(net).modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [22] * 11 + [44] * 10 + [88] * 10


def test_costs_are_those_that_figure_5_prints() -> None:
    net = doubly_nested.network()
    found = dict(zip(net.grid, nominal_macs(net, (3, 32, 32)), strict=True))
    assert found[net.grid.full] == pytest.approx(FACTS.full_macs, rel=1e-3)
    (depth, full), (deep, narrow) = FACTS.depth_only, FACTS.ours

    def blocks(number: int, width: int) -> int:
        return found[net.grid.resolve(Subnet(exit=number - 1, width=width))]

    assert round(blocks(depth, full) / 1e6, 2) == 23.92 and round(blocks(deep, narrow) / 1e6, 2) == 23.00
    assert blocks(depth + 1, full) > FACTS.budget, "the next exit is too dear"
    assert blocks(deep, narrow + 1) > FACTS.budget, "and so is the next width"


def test_weights_are_powers_of_depth_width_and_macs() -> None:
    net = small()
    sizes = [(member.exit + 2, member.width) for member in net.grid]
    assert doubly_nested.weights(net) == pytest.approx((1 / 16,) * 16)
    total = sum(depth * width**2 for depth, width in sizes)
    expected = [depth * width**2 / total for depth, width in sizes]
    assert doubly_nested.weights(net, **LAMBDAS["depth-width"]) == pytest.approx(expected)
    macs = nominal_macs(net, (3, 8, 8))
    expected = [price / sum(macs) for price in macs]
    assert doubly_nested.weights(net, macs=1, input_shape=(3, 8, 8)) == pytest.approx(expected)
    both = doubly_nested.weights(net, depth=-1, macs=0.5, input_shape=(3, 8, 8))
    raw = [math.sqrt(price) / depth for price, (depth, _) in zip(macs, sizes, strict=True)]
    assert both == pytest.approx([value / sum(raw) for value in raw])


def test_the_largest_members_may_get_a_share_beforehand() -> None:
    net = doubly_nested.network(16)
    given = dict(zip(net.grid, doubly_nested.weights(net, **LAMBDAS["edges"]), strict=True))
    edges = [(14, 4), (14, 8), (14, 12), *((exit_, 16) for exit_ in range(7, 14))]
    expected = {net.grid.resolve(Subnet(exit=exit_, width=width)): 0.06 for exit_, width in edges}
    assert {m: pytest.approx(share) for m, share in given.items() if share} == expected | {net.grid.full: 0.4}
    mixed = dict(zip(net.grid, doubly_nested.weights(net, **LAMBDAS["edges-macs"]), strict=True))
    by_macs = dict(zip(net.grid, doubly_nested.weights(net, macs=1), strict=True))
    for member, share in mixed.items():
        beforehand = 0.4 if member == net.grid.full else 0.04 * (member in expected)
        assert share == pytest.approx(0.2 * by_macs[member] + beforehand)
    odd = doubly_nested.network(22)  # a quarter of 22 groups is begun by the sixth
    given = dict(zip(odd.grid, doubly_nested.weights(odd, edges=1), strict=True))
    assert [m.width for m, share in given.items() if share and m.exit == 14] == [6, 11, 17]


def test_infinite_powers_leave_the_largest_only() -> None:
    net = small()
    deep = doubly_nested.weights(net, **LAMBDAS["depth-only"])
    assert deep == tuple(0.25 * (member.width == 4) for member in net.grid)
    assert doubly_nested.weights(net, **LAMBDAS["full-only"]) == (0.0,) * 15 + (1.0,)


def test_heads_of_early_exits_may_be_quiet() -> None:
    """The stages hear a tenth of them, the heads themselves learn as before, and no answer changes."""
    loud, quiet, x = small(), small(early_gradient=0.1), image()
    assert torch.equal(loud.all(x), quiet.all(x))
    for member in (Subnet(exit=0), Subnet(exit=1, width=2), Subnet()):
        for net in (loud, quiet):
            net.zero_grad()
            net(x, member).square().sum().backward()
        share = 1.0 if member.exit is None else 0.1
        theirs = dict(loud.named_parameters())
        for name, parameter in quiet.named_parameters():
            grad = theirs[name if "exits" not in name or ".exits.2" in name else _one_earlier(name)].grad
            assert (grad is None) == (parameter.grad is None)
            if grad is not None and parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, grad * (1.0 if "exits" in name else share))


def _one_earlier(name: str) -> str:
    """exits.0.3.weight → exits.0.2.weight: where a layer stood before another was put in front."""
    exits, exit_, layer, kind = name.split(".")
    return name if exit_ == "2" else f"{exits}.{exit_}.{int(layer) - 1}.{kind}"


def test_heads_of_early_exits_may_have_a_transform_of_their_own() -> None:
    net, x = small(early_transform=True, early_gradient=0.5), image()
    for exit_, channels in ((-1, 4), (0, 4), (1, 8)):
        scale, conv, norm, relu, *_ = net.exits[str(exit_)]  # type: ignore[misc]
        assert (type(scale), type(conv), type(norm), type(relu)) == (
            GradientScale,
            CausalConv2d,
            CausalBatchNorm2d,
            nn.ReLU,
        )
        assert tuple(conv.weight.shape) == (channels, channels, 1, 1)
    assert len(net.exits["2"]) == 2  # type: ignore[arg-type]
    answers = net.all(x)
    for member, logits in zip(net.grid, answers, strict=True):
        torch.testing.assert_close(extract(net, member)(x), logits, rtol=0, atol=1e-12)
    more = (
        cost(extract(net, Subnet(exit=0, width=3)), (3, 8, 8)).macs
        - cost(extract(small(), Subnet(exit=0, width=3)), (3, 8, 8)).macs
    )
    assert more == 3 * 3 * 64


@pytest.mark.parametrize(("groups", "plain", "more"), [(16, 469_424, 11_776), (22, 882_998, 20_944)])
def test_parameters_of_conditioned_heads(groups: int, plain: int, more: int) -> None:
    """In six, five and five heads; of the scales a member of w groups reads w of its own row."""
    with torch.device("meta"):
        nets = [doubly_nested.network(groups, conditioned=conditioned) for conditioned in (False, True)]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [plain, plain + more]
    channels = 6 * 1 + 5 * 2 + 5 * 4
    assert more == groups * (channels * groups + 16 * 10)


def test_conditioned_heads_start_as_if_they_were_not() -> None:
    plain, net, x = small(), small(conditioned=True), image()
    torch.testing.assert_close(net.all(x), plain.all(x), rtol=0, atol=1e-12)
    for member in net.grid:
        assert torch.equal(net(x, member), plain(x, member))


def test_the_recipe() -> None:
    recipe = doubly_nested.recipe(epochs=10, preprocess=Preprocess((0.5,), (0.2,)))
    rates = [recipe.rate(epoch, 0.0) for epoch in (1, 2, 3, 7)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.1])
    assert (recipe.augment, recipe.preprocess.std, recipe.weights) == (Augment(pad=4, flip=True), (0.2,), None)


def test_every_way_is_told_to_the_recipe() -> None:
    known: dict[tuple[object, ...], tuple[float, ...] | None] = {}  # of equal networks once, for MACs are counted
    for name, way in WAYS.items():
        net, recipe = doubly_nested.experiment(name, **SMALL, epochs=3)
        assert len(net.grid) == 16 and recipe.epochs == 3
        assert (recipe.drawn, recipe.distillation) == (way.drawn, way.distillation)
        key, exponents = (way.weights, way.conditioned, way.early_transform), LAMBDAS[way.weights]
        if key not in known:
            known[key] = doubly_nested.weights(net, **exponents) if exponents else None
        assert recipe.weights == known[key]
        heads: list[Any] = [head[-1] for head in net.exits.values()]  # type: ignore[index]
        assert all((head.conditioned, head.separate) == (way.conditioned, way.fit_heads) for head in heads)
        assert recipe.fit_heads == way.fit_heads
        scales = [part.scale for part in net.modules() if isinstance(part, GradientScale)]
        assert scales == ([] if way.early_gradient == 1 else [way.early_gradient] * 3)
        assert isinstance(net.exits["0"][0], CausalConv2d | GradientScale) == (name not in plain())  # type: ignore[index]
    assert WAYS["uniform"] == Way()
    with pytest.raises(
        ValueError, match=r"weights are one of uniform, depth-width, macs, half-macs, edges, .*full-only, not 'full'"
    ):
        doubly_nested.told(Recipe(epochs=1), Way(weights="full"), small())


def plain() -> list[str]:
    """Ways that leave the heads as they are."""
    return [name for name, way in WAYS.items() if way.early_gradient == 1 and not way.early_transform]


@pytest.mark.parametrize(
    ("name", "exit_", "width"),
    [
        ("alone", 2, 4),
        ("alone-w3", 2, 3),
        ("alone-x1", 1, 4),
        ("alone-x0-w1", 0, 1),
        ("dense", 2, 4),
        ("dense-w2", 2, 2),
    ],
)
def test_a_member_by_itself_has_its_shape_and_its_loss_only(name: str, exit_: int, width: int) -> None:
    net, recipe = doubly_nested.experiment(name, **SMALL)
    ours = extract(doubly_nested.network(4, blocks=1), Subnet(exit=exit_, width=width))
    shapes = [tuple(parameter.shape) for parameter in extract(net).parameters()]
    assert shapes == [tuple(parameter.shape) for parameter in ours.parameters()]
    assert len(net.grid) == (1 if name.startswith("dense") else width)
    x, y = torch.rand(6, 3, 32, 32), torch.arange(6)
    loss, each = Objective(net, recipe)(x, y)
    torch.testing.assert_close(loss.detach(), each[-1])


@pytest.mark.parametrize("name", ["none", "alone-", "alone-w", "alone-w2-x1", "Dense", "sliced-w2", "dense-w2 "])
def test_an_unknown_experiment_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"has no experiment .*there are uniform, depth-only, .*, alone and dense"):
        doubly_nested.experiment(name, **SMALL)


@pytest.mark.parametrize("name", ["alone-w5", "dense-w0", "alone-x3"])
def test_a_member_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no member of this network: it has 4 widths, and exits up to 2"):
        doubly_nested.experiment(name, **SMALL)


def test_the_dense_network_is_an_ordinary_resnet() -> None:
    """Its channels only have other numbers, for zeros stand between them: group by group it is option A of ResNet."""
    torch.manual_seed(0)
    net, _ = doubly_nested.experiment("dense", groups=16, blocks=1)
    plain = extract(net.double())
    ordinary = resnet(8, shortcut="pad").double().eval()
    assert [p.numel() for p in plain.parameters()] == [p.numel() for p in ordinary.parameters()]
    assert all(module.weight.all() for module in plain.modules() if isinstance(module, nn.Conv2d)), (
        "no weight is masked"
    )
    # From the ordinary number of a channel to that in our network: each group has its old channels, then its new ones.
    thirds = [list(range(16))]
    for size in (1, 2):
        given, made = thirds[-1], 2 * size
        old = [channel // size * made + channel % size for channel in given]
        thirds.append(old + [channel for channel in range(16 * made) if channel not in set(old)])
    places = [None, thirds[0], thirds[0], thirds[0], thirds[1], thirds[1], thirds[2], thirds[2], None]
    convs = [part for part in plain.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    theirs = [part for part in ordinary.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for i, (ours, part) in enumerate(zip(convs, theirs, strict=True)):
            weight = ours.weight if places[i + 1] is None else ours.weight[places[i + 1]]
            part.weight.copy_(weight if places[i] is None else weight[:, places[i]])
        ordinary[-1][-1].bias.copy_(convs[-1].bias)  # type: ignore[index, arg-type]
    x = image()
    torch.testing.assert_close(plain(x), ordinary(x), rtol=0, atol=1e-12)


def test_slicing_takes_the_first_channels() -> None:
    wide, _ = doubly_nested.experiment("dense", **SMALL)
    narrow, _ = doubly_nested.experiment("dense-w2", **SMALL)
    with torch.no_grad():
        for buffer in wide.buffers():
            buffer.copy_(torch.rand(buffer.shape) * 9)
    doubly_nested.slice_(narrow, wide)
    assert torch.equal(narrow.stages[1].body[0].weight, wide.stages[1].body[0].weight[:4, :2])  # type: ignore[union-attr, index]
    assert torch.equal(narrow.exits["2"][-1].weight, wide.exits["2"][-1].weight[:, :8])  # type: ignore[index]
    assert torch.equal(narrow.exits["2"][-1].bias, wide.exits["2"][-1].bias)  # type: ignore[index]
    assert torch.equal(narrow.entries["0"][1].running_var, wide.entries["0"][1].running_var[:2])  # type: ignore[index]
    again, _ = doubly_nested.experiment("dense", **SMALL)
    doubly_nested.slice_(again, wide)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x), wide.eval()(x)), "all channels are the network itself"


def test_only_the_classifier_is_tuned() -> None:
    net, how = doubly_nested.experiment("dense-w2", **SMALL)
    recipe = doubly_nested.classifier_only_(net, how)
    learning = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert learning == ["exits.2.2.weight", "exits.2.2.bias"]
    assert (recipe.epochs, recipe.warmup, recipe.learning_rate) == (2, 0.4, how.learning_rate / 4)


def test_parameters_of_the_full_network() -> None:
    """456 k in convolutions, a little less than the 461 k of a dense ResNet-32."""
    net = doubly_nested.network()
    norms = sum(2 * m.num_features for m in extract(net).modules() if isinstance(m, nn.BatchNorm2d))
    assert round((nominal_params(net)[-1] - norms - 88 * 10 - 10) / 1e3) == 456
