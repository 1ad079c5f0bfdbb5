import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from telescopic import Recipe, Subnet, cost, extract
from telescopic.networks import mlp
from telescopic.papers import nsn
from telescopic.train.objective import Objective, parameter_groups

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
    groups = parameter_groups(net, recipe)
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
        groups = parameter_groups(net, Recipe(epochs=1))
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in net.parameters()}
