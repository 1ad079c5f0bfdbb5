"""The objective and the optimizer's groups, against formulas written out by hand, in float64."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import telescopic as tl
from telescopic.layers import CausalBatchNorm1d, CausalLinear, GradientScale, SharedHead
from telescopic.nested import Mix, Nested
from telescopic.networks import mlp
from telescopic.papers import nsn
from telescopic.train import Objective, Recipe, pairwise
from telescopic.train.optimizer import groups_for

from chance import examples

EXACT = {"rtol": 0.0, "atol": 1e-12}


def network(seed: int = 0) -> Nested:
    """Members of 0, 1 and 2 hidden layers; the first stage is the full network's own."""
    torch.manual_seed(seed)
    return mlp(4, (4, 4), 3).double()


def batch(size: int = 6, features: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (size,), generator=generator)


def log_probabilities(net: Nested, x: Tensor, temperature: float = 1.0) -> Tensor:
    """Of each member, `[members, batch, classes]`, one member at a time."""
    logits = torch.stack([net(x, member) for member in net.grid]) / temperature
    return logits - logits.exp().sum(2, keepdim=True).log()


def close(one: Tensor, other: Tensor | float) -> None:
    torch.testing.assert_close(one, torch.as_tensor(other, dtype=torch.float64), **EXACT)


def test_the_loss_is_the_weighted_sum_over_members_of_sums_over_images() -> None:
    net, (x, y) = network(), batch()
    nll = -log_probabilities(net, x)[:, range(6), y].sum(1)
    loss, losses = Objective(net, Recipe(epochs=1, weights=(0.5, 0.0, 3.0)))(x, y)
    close(losses, nll)
    close(loss, 0.5 * nll[0] + 3 * nll[2])
    assert loss.requires_grad and not losses.requires_grad


def test_without_weights_it_is_the_mean_over_members() -> None:
    net, (x, y) = network(), batch()
    nll = -log_probabilities(net, x)[:, range(6), y].sum(1)
    close(Objective(net, Recipe(epochs=1))(x, y)[0], nll.sum() / 3)


def test_label_smoothing_spreads_probability_over_all_classes() -> None:
    net, (x, y) = network(), batch()
    logs = log_probabilities(net, x)
    expected = -(0.7 * logs[:, range(6), y] + 0.3 * logs.mean(2)).sum(1)
    close(Objective(net, Recipe(epochs=1, label_smoothing=0.3))(x, y)[1], expected)


def test_distillation_is_the_formula_and_spares_the_full_network() -> None:
    net, (x, y) = network(), batch()
    nll = -log_probabilities(net, x)[:, range(6), y].sum(1)
    soft = log_probabilities(net, x, temperature=3.0)
    divergence = 9 * (soft[2].exp() * (soft[2] - soft)).sum((1, 2))
    expected = torch.stack([0.75 * nll[m] + 0.25 * divergence[m] for m in (0, 1)] + [nll[2]])
    loss, losses = Objective(net, Recipe(epochs=1, distillation=0.25, temperature=3.0))(x, y)
    close(losses, expected)
    close(loss, expected.mean())
    assert (divergence[:2] > 1e-3).all(), "or the formula would not be seen"


def test_the_teacher_learns_nothing_from_its_pupils() -> None:
    net, (x, y) = network(), batch()
    recipe = Recipe(epochs=1, weights=(1.0, 1.0, 0.0), distillation=1.0)
    Objective(net, recipe)(x, y)[0].backward()
    teachers_own = [p.grad for p in net.stages[0].parameters()]
    assert all(grad is None or not grad.any() for grad in teachers_own)
    assert all(p.grad is not None and p.grad.any() for p in net.stages[1].parameters()), "its pupils do learn"


def test_the_full_network_learns_alike_with_and_without_pupils() -> None:
    net, (x, y) = network(), batch()
    grads = []
    for distillation in (0.0, 1.0):
        net.zero_grad()
        Objective(net, Recipe(epochs=1, weights=(0.0, 0.0, 1.0), distillation=distillation))(x, y)[0].backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        close(one, other)


def test_losses_of_bf16_logits_are_summed_in_float32() -> None:
    net, (x, y) = network().float(), batch(4096)
    with torch.autocast("cpu", torch.bfloat16):
        loss, losses = Objective(net, Recipe(epochs=1))(x.float(), y)
        logits = net.all(x.float())
    assert logits.dtype == torch.bfloat16
    nll = torch.stack([functional.cross_entropy(z.double(), y, reduction="sum") for z in logits])
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), nll, rtol=1e-5, atol=0)  # bf16 itself resolves 4e-3


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="3 members need as many loss weights, none negative, not all 0; got"):
        Objective(network(), Recipe(epochs=1, weights=weights))


@pytest.mark.parametrize("mix", [pairwise(2), ((1.0, 1.0, 1.0),) * 2, ((1.0, 1.0),) * 3])
def test_a_mix_that_does_not_fit_is_refused(mix: Mix) -> None:
    with pytest.raises(ValueError, match="this network has 3 members: its gradient mix is 3 × 3 numbers"):
        Objective(network(), Recipe(epochs=1, mix=mix))


def wide() -> Nested:
    """Nine members: exits -1, 0 and 1, widths of 1, 2 and 4 features."""
    torch.manual_seed(3)
    stages = [nn.Sequential(CausalLinear(4, 4, width_groups=3), CausalBatchNorm1d(4, width_groups=3)) for _ in "12"]
    heads = {i: SharedHead(4, 3, width_groups=3) for i in (-1, 0, 1)}
    return Nested(stages, {0: nn.Linear(4, 4)}, heads, groups=3).double()


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_widths_and_depths_have_weights_of_their_own(distillation: float) -> None:
    net, (x, y) = wide().eval(), batch()
    weights = tuple((member.exit + 2) * member.width**2 for member in net.grid)
    recipe = Recipe(epochs=1, weights=weights, distillation=distillation, temperature=1.0)
    loss, losses = Objective(net, recipe)(x, y)
    logs = log_probabilities(net, x)
    wanted = -logs[:, range(6), y].sum(1)
    if distillation:
        teacher = logs[-1].detach()
        divergence = (teacher.exp() * (teacher - logs)).sum((1, 2))
        wanted = torch.cat([(wanted + divergence)[:-1] / 2, wanted[-1:]])
    close(losses, wanted)
    close(loss, torch.dot(torch.tensor(weights, dtype=torch.float64), wanted))
    found = torch.autograd.grad(loss, list(net.parameters()))
    alone = [torch.zeros_like(p) for p in net.parameters()]
    for m, weight in enumerate(weights):
        theirs = torch.autograd.grad(weight * wanted[m], list(net.parameters()), allow_unused=True, retain_graph=True)
        alone = [a if g is None else a + g for a, g in zip(alone, theirs, strict=True)]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_members_drawn_anew_each_step_weigh_as_much_as_all() -> None:
    net, (x, y) = wide().eval(), batch()
    weights = tuple(float(m + 1) for m in range(9))
    objective, seen = Objective(net, Recipe(epochs=1, weights=weights, drawn=2)), set()
    for seed in range(60):
        torch.manual_seed(seed)
        loss, losses = objective(x, y)
        torch.manual_seed(seed)
        chosen, _ = objective._weights_of_this_step()
        close(loss, torch.dot(chosen, losses))
        close(chosen.sum(), sum(weights))
        places = chosen.nonzero().flatten().tolist()
        assert len(places) == 4 and {0, 8} <= set(places)
        close(chosen[places] / chosen[0], torch.tensor(weights, dtype=torch.float64)[places] / weights[0])
        seen |= set(places)
    assert seen == set(range(9))
    assert torch.equal(Objective(net, Recipe(epochs=1, weights=weights, drawn=7))(x, y)[0],
                       Objective(net, Recipe(epochs=1, weights=weights))(x, y)[0])  # fmt: skip


@pytest.mark.parametrize("drawn", [0, 3])
def test_members_that_are_not_drawn_teach_nothing(drawn: int) -> None:
    """And those that are teach as they would by themselves, with a distillation from the full network too."""
    net, (x, y) = wide().eval(), batch()
    torch.manual_seed(4)
    objective = Objective(net, Recipe(epochs=1, drawn=drawn, distillation=0.5))
    chosen, _ = objective._weights_of_this_step()
    torch.manual_seed(4)
    objective(x, y)[0].backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()]
    weighed = replace(objective.recipe, drawn=None, weights=tuple(chosen.tolist()))
    net.zero_grad()
    Objective(net, weighed)(x, y)[0].backward()
    for one, parameter in zip(found, net.parameters(), strict=True):
        close(one, torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    assert len(chosen.nonzero()) == 2 + drawn
    close(chosen[chosen > 0], (1 / (2 + drawn),) * (2 + drawn))


def test_a_network_of_one_or_two_members_has_nothing_to_draw() -> None:
    for entries in ((0,), (0, 1)):
        net, (x, y) = mlp(4, (4,), 3, entries=entries).double(), batch()
        drawn, all_ = (Objective(net, Recipe(epochs=1, drawn=number))(x, y)[0] for number in (0, None))
        close(drawn, all_)


class Checkpointed(nn.Module):
    """Runs its layers twice in training: forward, and once more for the gradient."""

    def __init__(self, layers: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant = layers, reentrant

    def forward(self, x: Tensor) -> Tensor:
        run = partial(checkpoint, self.layers, use_reentrant=self.reentrant) if self.training else self.layers
        made: Tensor = run(x)
        return made


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", [{}, {"mix": ((1.0, 0), (0, 1.0))}, {"group_gradient": 0.5}])
def test_what_is_computed_anew_for_the_gradient_learns_as_ever_or_is_refused(
    how: dict[str, Any], reentrant: bool
) -> None:
    def trained(wrap: Callable[[nn.Module], nn.Module]) -> Tensor:
        torch.manual_seed(0)
        groups, entries = (1, (0, 1)) if "mix" in how else (2, (0,))
        layer, head = (nn.Linear(4, 4), nn.Linear(4, 3)) if groups == 1 else (CausalLinear(4, 4, width_groups=2), None)
        stages = [wrap(nn.Sequential(copy.deepcopy(layer), nn.ReLU())) for _ in range(2)]
        last = head or SharedHead(4, 3, width_groups=2)
        net = Nested(stages, {entry: nn.Linear(4, 4) for entry in entries}, {1: last}, groups=groups)
        x, y = batch(12)
        data = tl.data.of(x.float(), y, validation=2, test=2)
        tl.fit(net, data, Recipe(epochs=1, batch_size=8, learning_rate=0.1, **how), progress=False, precision="fp32")
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    wrap = partial(Checkpointed, reentrant=reentrant)
    if how:
        with pytest.raises(ValueError, match=rf"layers \(Sequential\).*{next(iter(how))}"):
            trained(wrap)
    else:
        assert torch.equal(trained(wrap), trained(lambda layers: layers))


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_a_scaled_gradient(scale: float) -> None:
    """What reads the features learns as before; what made them learns a share."""
    net, quiet, (x, y) = wide().eval(), wide().eval(), batch()
    for exit_ in ("-1", "0"):
        quiet.exits[exit_] = nn.Sequential(GradientScale(scale), quiet.exits[exit_])
    assert torch.equal(net.all(x), quiet.all(x))
    weights = tuple(float(member.exit == 0) for member in net.grid)
    grads = []
    for one in (net, quiet):
        Objective(one, Recipe(epochs=1, weights=weights))(x, y)[0].backward()
        zero = torch.zeros(())
        grads.append([zero if p.grad is None else p.grad for p in one.parameters()])
    names = [name for name, _ in net.named_parameters()]
    for name, loud, soft in zip(names, *grads, strict=True):
        close(soft, loud if name.startswith("exits") else (scale * loud if scale else torch.zeros_like(soft)))
    stage, head = names.index("stages.0.0.weight"), names.index("exits.0.weight")
    assert grads[0][stage].any() and grads[1][head].any()


def test_a_scaled_gradient_where_there_is_none() -> None:
    scaled = GradientScale(0.5)
    x = torch.randn(3, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(scaled(x), x)
    assert not GradientScale(0.0)(x).requires_grad and GradientScale(1.0)(x) is x
    assert scaled(x.detach()).requires_grad is False and isinstance(scaled.narrow(1), nn.Identity)


def test_pairwise_tables() -> None:
    assert pairwise(1) == ((1.0,),)
    assert pairwise(2) == ((0.5, 0.0), (0.5, 1.0))
    assert pairwise(4) == ((0.5, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0), (0.0, 0.5, 0.5, 0.0), (0.0, 0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="one member or more, not 0"):
        pairwise(0)


def mixed_gradients(net: Nested, recipe: Recipe, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients with the penalty written into the full network's loss: a copy and a backward pass for each member."""
    weights = recipe.weights or (1 / len(net.grid),) * len(net.grid)
    owners, total = net.owners(), {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for m, member in enumerate(net.grid):
        alone = copy.deepcopy(net)
        loss = functional.cross_entropy(alone(x, member), y)
        if member == net.grid.full:
            run = {id(p) for _, part in alone.path(member) for p in part.parameters()}
            matrices = [p for p in alone.parameters() if id(p) in run and p.ndim > 1]
            loss = loss + recipe.l2 * sum(p.square().sum() for p in matrices)
        (weights[m] * loss).backward()
        for name, p in alone.named_parameters():
            if p.grad is not None:
                scale = recipe.mix[m][owners[".".join(name.split(".")[:2])]] if recipe.mix is not None else 1.0
                total[name] += scale * p.grad
    return total


def step(net: Nested, recipe: Recipe, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Weights after one step as the loop takes it."""
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=0.5, fused=True)
    (Objective(net, recipe)(x, y)[0] / len(y)).backward()
    optimizer.step()
    return {name: p.detach() for name, p in net.named_parameters()}


def uneven() -> Nested:
    """Adapters that only some members have, and a head for each depth."""
    torch.manual_seed(2)
    stages = [nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), nn.Linear(5, 6)]
    return Nested(stages, {0: nn.Identity(), 1: nn.Linear(4, 5)}, {0: nn.Linear(5, 3), 1: nn.Linear(6, 3)}).double()


numbers = st.floats(0, 2)


@pytest.mark.parametrize("build", [network, uneven])
@examples(few=5, many=100)
@given(data=st.data(), l2=numbers)
def test_weight_decay_is_the_penalty_of_the_full_networks_loss(
    build: Callable[[], Nested], data: st.DataObject, l2: float
) -> None:
    net, (x, y) = build(), batch()
    members = len(net.grid)
    row = st.tuples(*[numbers] * members)
    weights = data.draw(st.none() | row.filter(lambda w: sum(w) > 0))
    recipe = Recipe(epochs=1, l2=l2, weights=weights, mix=data.draw(st.none() | st.tuples(*[row] * members)))
    grads = mixed_gradients(net, recipe, x, y)
    expected = {name: p.detach() - 0.5 * grads[name] for name, p in net.named_parameters()}
    for name, weight in step(net, recipe, x, y).items():
        close(weight, expected[name])


def test_plain_weight_decay_is_of_every_parameter_alike_and_not_mixed() -> None:
    net, (x, y) = uneven(), batch()
    plain = Recipe(epochs=1, l2=0.3, weights=(0.5,) * len(net.grid), mix=((0.25,) * len(net.grid),) * len(net.grid))
    without, decayed = step(net, plain, x, y), step(uneven(), replace(plain, weight_decay=0.02), x, y)
    for name, parameter in uneven().named_parameters():
        close(decayed[name], without[name] - 0.5 * 0.02 * parameter.detach())


def test_pairwise_sharing_halves_the_decay_of_shared_layers_and_spares_the_softmax_layer() -> None:
    net = network()
    groups = groups_for(net, Recipe(epochs=1, l2=0.5, weights=(1.0, 1.0, 1.0), mix=pairwise(3)))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}  # type: ignore[attr-defined]
    found = {name: decay[id(p)] for name, p in net.named_parameters()}
    weights = {"stages.0.0.weight": 1.0, "stages.1.0.weight": 0.5, "exits.1.weight": 0.0}
    biases = dict.fromkeys(("stages.0.0.bias", "stages.1.0.bias", "exits.1.bias"), 0.0)
    assert found == weights | biases


def test_a_tenth_of_the_rate_makes_torchs_momentum_equation_4() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, dtype=torch.float64))
    w, v = weight.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = torch.optim.SGD([weight], lr=0.3 * 0.1, momentum=0.9)
    for _ in range(10):
        weight.grad = torch.randn(5, dtype=torch.float64)
        v = 0.9 * v + 0.1 * weight.grad
        w = w - 0.3 * v
        optimizer.step()
        close(weight.detach(), w)


def test_a_step_of_nsn_is_the_authors_step() -> None:
    """Three models, copies of the shared layers, three backward passes, averages of pairs, Eq. 4, L2 on model2."""
    torch.manual_seed(0)
    net = nsn.network(2, inputs=8, classes=5).double().eval()  # without dropout
    recipe = nsn.recipe(2, l2=0.01)
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=recipe.learning_rate, momentum=recipe.momentum)
    names = {"stages.0.0": "first", "stages.1.0": "second", "exits.1": "softmax"}
    layers = {
        names[name]: (linear.weight.detach().clone(), linear.bias.detach().clone())
        for name, linear in net.named_modules()
        if isinstance(linear, nn.Linear)
    }
    models = {"model0": ["softmax"], "model1": ["second", "softmax"], "model2": ["first", "second", "softmax"]}
    learns_from = {"softmax": ["model0", "model1"], "second": ["model1", "model2"], "first": ["model2"]}
    momentum = {name: [torch.zeros_like(t) for t in pair] for name, pair in layers.items()}
    for _ in range(3):
        x, y = torch.randn(7, 8, dtype=torch.float64), torch.randint(5, (7,))
        optimizer.zero_grad()
        (Objective(net, recipe)(x, y)[0] / 7).backward()
        optimizer.step()

        grads: dict[str, dict[str, tuple[Tensor, ...]]] = {}
        for model, path in models.items():
            own = {name: tuple(t.clone().requires_grad_() for t in layers[name]) for name in path}
            h = x
            for name in path:
                h = functional.linear(h.relu() if name != path[0] else h, *own[name])
            loss = functional.cross_entropy(h, y)
            if model == "model2":
                loss = loss + 0.01 * sum(weight.square().sum() for weight, _ in own.values())
            loss.backward()
            grads[model] = {name: tuple(t.grad for t in pair) for name, pair in own.items()}  # type: ignore[misc]
        for name, sources in learns_from.items():
            for i in (0, 1):
                grad = sum(grads[model][name][i] for model in sources) / len(sources)
                momentum[name][i] = 0.9 * momentum[name][i] + 0.1 * grad
            weight, bias = layers[name]
            layers[name] = weight - 0.3 * momentum[name][0], bias - 0.3 * momentum[name][1]
        for module, name in names.items():
            close(net.get_submodule(module).weight.detach(), layers[name][0])
            close(net.get_submodule(module).bias.detach(), layers[name][1])


def test_a_part_that_no_member_runs_has_no_decay() -> None:
    groups = groups_for(mlp(5, (5,), 3, entries=(1,)), Recipe(epochs=1, mix=((1.0,),), l2=0.5))
    decay = {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[(3, 5)] == 1.0 and decay[(5, 5)] == 0.0
