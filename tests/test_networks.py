import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from telescopic import Recipe, Subnet, cost, extract, nest
from telescopic.layers import CausalConv2d
from telescopic.networks import causal_resnet, mlp, resnet, vgg
from telescopic.papers import nsn
from telescopic.testing import check_nested
from telescopic.train.objective import Objective
from telescopic.train.optimizer import groups_for

# mlp ----------------------------------------------------------------------------------------------------------------


def test_a_member_for_each_number_of_hidden_layers() -> None:
    net = mlp(6, (4, 6), 3)
    assert net.grid.entries == (0, 1, 2)
    assert net.grid.exits == (1,)
    assert [(linear.in_features, linear.out_features) for linear, _ in net.stages] == [(6, 4), (4, 6)]
    # Only entry 1 needs an adapter with weights, for the others find as many features as the input has.
    assert [sum(p.numel() for p in net.entries[str(entry)].parameters()) for entry in (0, 1, 2)] == [0, 28, 0]
    assert cost(extract(net, Subnet(entry=1)), (2, 3)).macs == 6 * 4 + 4 * 6 + 6 * 3
    assert [net(torch.randn(5, 2, 3), member).shape for member in net.grid] == [(5, 3)] * 3


def test_entries_can_be_chosen() -> None:
    assert mlp(6, (4, 6), 3, entries=(2, 0, 2)).grid.entries == (0, 2)
    softmax = mlp(6, (), 3)
    assert len(softmax.grid) == 1
    x = torch.randn(2, 6)
    assert torch.equal(softmax(x), softmax.exits["-1"](x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (4,), 3), r"^sizes of an MLP are 1 or more, not \[0, 4, 3\]$"),
        ((4, (4, -1), 3), "1 or more"),
        ((4, (4,), 0), "1 or more"),
        ((4, (4,), 3, (2,)), r"^entries \(2,\) must lie in 0 to 1, the number of hidden layers$"),
        ((4, (4,), 3, (-1,)), r"must lie in 0 to 1"),
        ((4, (4,), 3, ()), "at least one value in entries"),
    ],
)
def test_mlps_that_are_none(arguments: tuple[int, ...], message: str) -> None:
    *sizes, entries = arguments if len(arguments) == 4 else (*arguments, None)
    with pytest.raises(ValueError, match=message):
        mlp(*sizes, entries=entries)


# vgg ----------------------------------------------------------------------------------------------------------------

# Channels of each convolution and the side of its image, as in Simonyan and Zisserman's table 1.
VGG = {
    11: [(64, 32), (128, 16), *[(256, 8)] * 2, *[(512, 4)] * 2, *[(512, 2)] * 2],
    13: [*[(64, 32)] * 2, *[(128, 16)] * 2, *[(256, 8)] * 2, *[(512, 4)] * 2, *[(512, 2)] * 2],
    16: [*[(64, 32)] * 2, *[(128, 16)] * 2, *[(256, 8)] * 3, *[(512, 4)] * 3, *[(512, 2)] * 3],
    19: [*[(64, 32)] * 2, *[(128, 16)] * 2, *[(256, 8)] * 4, *[(512, 4)] * 4, *[(512, 2)] * 4],
}


@pytest.mark.parametrize("depth", VGG)
def test_vggs_by_the_table(depth: int) -> None:
    with torch.device("meta"):
        net = vgg(depth, 7, channels=2)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [size for size, _ in VGG[depth]]
    assert len(net) == depth - 2 == len(convs) + 1
    params = macs = 0
    channels = 2
    for made, side in VGG[depth]:
        params += 9 * channels * made + made + 2 * made  # kernel, bias, BatchNorm
        macs += 9 * channels * made * side**2
        channels = made
    price = cost(net, (2, 32, 32))
    assert (price.params, price.macs) == (params + 512 * 7 + 7, macs + 512 * 7)


def test_vgg_16_is_that_of_cnsn() -> None:
    price = cost(vgg(), (3, 32, 32))
    assert (price.params, price.macs) == (14_728_266, 313_201_664)


def test_each_block_of_a_vgg() -> None:
    net = vgg(13, scale=0.125)
    last_of_group = (1, 3, 5, 7, 9)
    for number, block in enumerate(net[:-1]):
        pool = [nn.MaxPool2d] if number in last_of_group else []
        assert [type(layer) for layer in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, *pool]
    assert [block[0].out_channels for block in net[:-1:2]] == [8, 16, 32, 64, 64]
    # 64 × 96 pixels leave 2 × 3, of which the head takes the mean.
    features = net[:-1].double()(torch.randn(2, 3, 64, 96, dtype=torch.float64))
    linear = net[-1].double()[-1]
    by_hand = features.mean((2, 3)) @ linear.weight.T + linear.bias
    torch.testing.assert_close(net[-1](features), by_hand, rtol=0, atol=1e-12)
    assert features.shape == (2, 64, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, r"^there is no VGG-12: depth is one of 11, 13, 16, 19$"),
        ({"classes": 0}, r"^sizes of a network are 1 or more, not \[3, 64, 128, 256, 512, 512, 0\]$"),
        ({"channels": 0}, r"^sizes of a network are 1 or more, not \[0, 64"),
        ({"scale": 0.001}, r"^sizes of a network are 1 or more, not \[3, 0, 0, 0, 1, 1, 10\]$"),
    ],
)
def test_vggs_that_are_none(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vgg(**options)


def test_images_too_small_for_a_vgg() -> None:
    message = r"^block 12 \(Sequential\): this Sequential failed on an input of shape \(2, 8, 1, 1\).*too small"
    with pytest.raises(ValueError, match=message):
        nest(vgg(scale=1 / 64), input_shape=(3, 16, 16))


# resnet -------------------------------------------------------------------------------------------------------------


def test_resnet_20_by_hand() -> None:
    net = resnet()
    first = 9 * 3 * 16
    thirds = [9 * 6 * 16 * 16, 9 * (16 * 32 + 5 * 32 * 32) + 16 * 32, 9 * (32 * 64 + 5 * 64 * 64) + 32 * 64]
    norms = 2 * (7 * 16 + 7 * 32 + 7 * 64)  # the first, six in a third, and one behind each 1 × 1 convolution
    price = cost(net, (3, 32, 32))
    assert price.params == first + sum(thirds) + norms + 64 * 10 + 10 == 272_474
    macs = 32**2 * (first + thirds[0]) + 16**2 * thirds[1] + 8**2 * thirds[2] + 64 * 10
    assert price.macs == macs == 40_813_184


@pytest.mark.parametrize("depth", [8, 14, 20, 56, 110])
def test_resnets_of_any_depth(depth: int) -> None:
    with torch.device("meta"):
        net = resnet(depth, 7, channels=1, width=4)
        number = (depth - 2) // 6
        features = [torch.empty(2, 1, 32, 32)]
        for block in net:
            features.append(block(features[-1]))
    assert len(net) == (depth - 2) // 2 + 2
    shapes = [(4, 32, 32)] * (1 + number) + [(8, 16, 16)] * number + [(16, 8, 8)] * number + [(7,)]
    assert [tuple(x.shape[1:]) for x in features[1:]] == shapes
    # The layers that give the network its name: all but the 1 × 1 convolutions on the way around.
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    around = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert (len(layers) - len(around), len(around)) == (depth, 2)


def test_a_residual_block_by_hand() -> None:
    torch.manual_seed(0)
    net = resnet(8, width=3).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for block in net[1:3]:  # the second halves the image and doubles the channels
        conv, norm, _, conv2, norm2 = block.body
        body = norm2(conv2(norm(conv(x)).clamp(min=0)))
        around = x if len(list(block.shortcut.children())) == 0 else block.shortcut[1](block.shortcut[0](x))
        expected = (body + around).clamp(min=0)
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)
        x = block(x)
    assert x.shape == (2, 6, 3, 3)


@pytest.mark.parametrize("depth", [-4, 2, 7, 18, 51])
def test_depths_that_are_no_resnet(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"has 6n \+ 2 layers, such as 8, 14, 20, 32, 56; not {depth}$"):
        resnet(depth)


@pytest.mark.parametrize("options", [{"classes": 0}, {"channels": 0}, {"width": 0}])
def test_resnets_of_no_size(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^sizes of a network are 1 or more, not \[.*\b0\b"):
        resnet(8, **options)


def test_the_shortcut_of_zeros() -> None:
    torch.manual_seed(0)
    net = resnet(8, width=3, shortcut="pad").double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    shortcut = net[2].shortcut
    assert torch.equal(shortcut(x), torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x)[:, :, ::2, ::2]], 1))
    assert net(x).shape == (2, 10)
    plain = cost(resnet(20, shortcut="pad"), (3, 32, 32))
    assert plain.params == 272_474 - (16 * 32 + 32 * 64) - 2 * (32 + 64) == 269_722  # He et al.: 0.27 M
    with pytest.raises(ValueError, match=r"^shortcut is one of pad, projection, not 'zeros'$"):
        resnet(8, shortcut="zeros")  # type: ignore[arg-type]


# causal_resnet ------------------------------------------------------------------------------------------------------


def test_the_network_of_the_paper() -> None:
    with torch.device("meta"):
        net = causal_resnet()
        features, x = [], net.entries["0"](torch.empty(1, 3, 32, 32))
        for stage in net.stages:
            x = stage(x)
            features.append(tuple(x.shape[1:]))
    assert (net.grid.entries, net.grid.exits, net.grid.widths) == ((0,), tuple(range(-1, 15)), tuple(range(1, 23)))
    assert features == [(22, 32, 32)] * 5 + [(44, 16, 16)] * 5 + [(88, 8, 8)] * 5
    convs = [module for module in net.modules() if isinstance(module, CausalConv2d)]
    # With the first convolution and a head there are 32 layers on the longest path.
    assert len(convs) == 30
    assert {(conv.kernel_size, conv.bias is None) for conv in convs} == {((3, 3), True)}
    assert [head[-1].in_features for head in net.exits.values()] == [22] * 6 + [44] * 5 + [88] * 5


@pytest.mark.parametrize(("shortcut", "average"), [("pad", True), ("projection", False)])
def test_a_small_one_keeps_the_laws(shortcut: str, average: bool) -> None:
    torch.manual_seed(0)
    net = causal_resnet(2, (1, 2, 2), blocks=1, classes=4, shortcut=shortcut, average=average)  # type: ignore[arg-type]
    check_nested(net, (3, 8, 8))


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_the_first_groups_depend_on_no_other(shortcut: str) -> None:
    """Bit by bit, whatever the weights of the other groups are, in training mode too."""
    torch.manual_seed(0)
    net = causal_resnet(4, (2, 3, 5), blocks=1, shortcut=shortcut)  # type: ignore[arg-type]
    x = torch.randn(4, 3, 8, 8)

    def features() -> list[torch.Tensor]:
        found = [net.entries["0"](x)]
        for stage in net.stages:
            found.append(stage(found[-1]))
        return found

    before = features()
    for width in (3, 2, 1):
        with torch.no_grad():
            for parameter in (p for part in (net.entries, net.stages) for p in part.parameters()):
                if len(parameter) % 4 == 0:
                    parameter[width * len(parameter) // 4 :] = torch.randn(()) * 100
        for one, other in zip(before, features(), strict=True):
            channels = width * one.shape[1] // 4
            assert torch.equal(one[:, :channels], other[:, :channels])
            assert not torch.equal(one[:, channels:], other[:, channels:])


def test_zeros_are_padded_group_by_group() -> None:
    net = causal_resnet(3, (2, 3), blocks=1).double()
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    around = net.stages[1].shortcut
    zero = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    small = x[:, :, ::2, ::2]
    by_hand = torch.cat([small[:, :2], zero, small[:, 2:4], zero, small[:, 4:], zero], 1)
    assert torch.equal(around(x), by_hand)
    assert torch.equal(around(x[:, :4]), by_hand[:, :6])
    assert type(net.stages[0].shortcut) is nn.Identity
    # Parts of as many channels need no zeros, but half of the image.
    same = causal_resnet(3, (2, 2), blocks=1).stages[1].shortcut
    assert torch.equal(same(x), small)


def test_a_causal_projection_by_hand() -> None:
    net = causal_resnet(2, (1, 2), blocks=1, shortcut="projection").double().eval()
    conv, norm = net.stages[1].shortcut
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    weight = conv.weight[:, :, 0, 0]
    assert (weight == 0).tolist() == [[False, True], [False, True], [False, False], [False, False]]
    by_hand = torch.einsum("oi,bihw->bohw", weight, x[:, :, ::2, ::2]) / (1 + norm.eps) ** 0.5
    torch.testing.assert_close(net.stages[1].shortcut(x), by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("groups", "channels"), [(16, (1, 2, 4)), (4, (4, 8, 16)), (1, (16, 32, 64))])
def test_networks_with_the_channels_of_resnet_32(groups: int, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net, plain = causal_resnet(groups, channels), resnet(32, shortcut="pad")
    full, dense = cost(extract(net), (3, 32, 32)), cost(plain, (3, 32, 32))
    assert (full.macs, full.params) == (dense.macs, dense.params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, r"^sizes of a network are 1 or more, not channels=\(1, 2, 4\) and \[0, 5, 10, 3\]$"),
        ({"channels": ()}, r"^sizes of a network are 1 or more, not channels=\(\) and"),
        ({"channels": (1, 0)}, r"^sizes of a network are 1 or more"),
        ({"blocks": 0}, r"^sizes of a network are 1 or more"),
        ({"shortcut": "zeros"}, r"^shortcut is one of pad, projection, not 'zeros'$"),
        (
            {"channels": (4, 2)},
            r"^groups of \(4, 2\) channels cannot be padded to fewer: use shortcut='projection'$",
        ),
    ],
)
def test_causal_resnets_that_are_none(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        causal_resnet(**options)  # type: ignore[arg-type]


# NSN ----------------------------------------------------------------------------------------------------------------


def test_nsn_has_the_sizes_of_the_paper() -> None:
    net = nsn.network()
    costs = [cost(extract(net, member), (1, 28, 28)) for member in net.grid]
    assert [c.params for c in costs] == [7_850, 623_290, 1_238_730]
    assert [c.macs for c in costs] == [7_840, 622_496, 1_237_152]
    assert sum(p.numel() for p in net.parameters()) == 1_238_730  # nothing but the largest member


def test_nsn_starts_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = nsn.network()
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        weight = layer.weight.detach()
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))  # Xavier, uniform
        assert 0.99 * bound < float(weight.max()) <= bound
        assert -bound <= float(weight.min()) < -0.99 * bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.01))


@pytest.mark.parametrize(("hidden", "dropout"), [(0, ()), (1, (0.2,)), (2, (0.2, 0.5)), (4, (0.2, 0.5, 0.5, 0.5))])
def test_nsn_of_any_depth(hidden: int, dropout: tuple[float, ...]) -> None:
    net = nsn.network(hidden, inputs=9, classes=4)
    assert net.dropout == dropout
    assert [member.entry for member in net.grid] == list(range(hidden, -1, -1))
    reference = nsn.network(hidden, inputs=9, classes=4, reference=True)
    assert len(reference.grid) == 1
    assert reference.dropout == dropout
    assert [type(layer) for layer in extract(reference)] == [type(layer) for layer in extract(net)]


def test_the_papers_recipes() -> None:
    recipe = nsn.recipe()
    assert recipe.mix == ((0.5, 0, 0), (0.5, 0.5, 0), (0, 0.5, 1))
    assert recipe.weights == (1, 1, 1)  # a sum of losses, not a mean
    assert (recipe.epochs, recipe.batch_size, recipe.milestones) == (600, 128, (200, 400))
    assert (recipe.learning_rate, recipe.momentum, recipe.l2) == (pytest.approx(0.03), 0.9, 9e-5)
    assert recipe.gamma == pytest.approx(1 / 3)
    assert nsn.recipe(1).l2 == 9e-6
    reference = nsn.reference_recipe(2)
    assert (reference.learning_rate, reference.l2, reference.mix, reference.weights) == (0.1, 1e-5, None, None)
    penalties = {row.experiment: row.l2 for row in nsn.ROWS if row.l2 is not None}
    assert len(penalties) == 5
    for name, penalty in penalties.items():
        assert nsn.experiment(name)[1].l2 == penalty


@pytest.mark.parametrize("name", nsn.EXPERIMENTS)
def test_every_experiment_can_be_trained(name: str) -> None:
    net, recipe = nsn.experiment(name, epochs=6, inputs=5, classes=3)
    total, losses = Objective(net, recipe)(torch.rand(4, 5), torch.tensor([0, 1, 2, 0]))
    total.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert len(losses) == len(net.grid) == (1 if name.startswith("ref") else 2 if name == "model0-1" else 3)
    assert recipe.milestones == (2, 4)
    if name in ("joint", "distilled"):
        assert (recipe.mix, recipe.distillation) == (None, 0.5 if name == "distilled" else 0)


def test_no_such_experiment() -> None:
    with pytest.raises(
        ValueError, match=r"^NSN has no experiment 'model0'; there are model0-1-2, model0-1, ref-model2"
    ):
        nsn.experiment("model0")


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_pairwise_sharing_is_that_of_the_paper(hidden: int) -> None:
    """Six steps against the paper's own words: a model for each size, gradients averaged by pairs and copied (Eq. 2),
    V ← 0.9 V + 0.1 G, W ← W − 0.3 V (Eq. 4), λ·Σw² in the loss of the full network."""
    torch.manual_seed(hidden)
    net = nsn.network(hidden, inputs=6, classes=4).double().eval()
    recipe = replace(nsn.recipe(hidden), l2=0.01)
    objective = Objective(net, recipe)
    groups = groups_for(net, recipe)
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    # Layer 0 is the softmax layer, layer n stands just before layer n - 1; model m has the layers 0 to m.
    layers = [net.exits[str(hidden - 1)], *(linear for linear, _ in reversed(net.stages))]
    weights = [[layer.weight.detach().clone(), layer.bias.detach().clone()] for layer in layers]
    velocities = [[torch.zeros_like(tensor) for tensor in layer] for layer in weights]
    for _ in range(6):
        x, labels = torch.rand(5, 6, dtype=torch.float64), torch.randint(4, (5,))
        optimizer.zero_grad()
        (objective(x, labels)[0] / len(x)).backward()
        optimizer.step()

        gradients = []
        for m in range(hidden + 1):
            copies = [[tensor.clone().requires_grad_() for tensor in layer] for layer in weights[: m + 1]]
            features = x
            for weight, bias in reversed(copies[1:]):
                features = (features @ weight.T + bias).clamp(min=0)
            log_odds = torch.log_softmax(features @ copies[0][0].T + copies[0][1], dim=1)
            loss = -log_odds[torch.arange(5), labels].mean()
            if m == hidden:
                loss = loss + 0.01 * sum((weight**2).sum() for weight, _ in copies)
            flat = torch.autograd.grad(loss, [tensor for layer in copies for tensor in layer])
            gradients.append([flat[2 * i : 2 * i + 2] for i in range(m + 1)])
        for layer in range(hidden + 1):
            pair = [gradients[m][layer] for m in (layer, layer + 1) if m <= hidden]
            for i in range(2):
                gradient = sum(g[i] for g in pair) / len(pair)
                velocities[layer][i] = 0.9 * velocities[layer][i] + 0.1 * gradient
                weights[layer][i] = weights[layer][i] - 0.3 * velocities[layer][i]
    for layer, (weight, bias) in zip(layers, weights, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(layer.bias.detach(), bias, rtol=0, atol=1e-12)


def test_a_plain_recipe_trains_every_network_of_the_family() -> None:
    for net in (mlp(5, (4, 3), 2), mlp(5, (), 2)):
        groups = groups_for(net, Recipe(epochs=1))
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in net.parameters()}
