"""Heads fitted to final features: the best there is for them, width by width, and nothing else is touched."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import telescopic as tl
from telescopic import readout
from telescopic.bundle import BundleError
from telescopic.layers import CausalLinear, SharedHead
from telescopic.networks import causal_resnet
from telescopic.readout import fit_heads_
from telescopic.testing import check_nested
from telescopic.train import CheckpointError

RECIPE = tl.Recipe(epochs=2, batch_size=32, learning_rate=0.05, fit_heads=True)
HOW: dict[str, Any] = {"cpu": True, "precision": "fp32", "progress": False}
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@cache
def digits() -> tl.data.Dataset:
    data = tl.data.load("digits")
    parts = [tl.data.Split(p.images[:n], p.labels[:n]) for p, n in ((data.train, 300), (data.test, 200))]
    return tl.data.Dataset("digits", *parts, data.test, data.classes, data.source)


def numbers(validation: int = 0, outputs: int = 2) -> tl.data.Dataset:
    """A regression, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 6, dtype=torch.float64, generator=generator)
    y = (x @ torch.randn(6, outputs, dtype=torch.float64, generator=generator)).sin()
    return tl.data.of(x[validation:], y[validation:], validation=(x[:validation], y[:validation]))


def wide(separate: bool = True, average: bool = False, conditioned: bool = False) -> tl.Nested:
    """Three widths and two exits."""
    torch.manual_seed(0)
    how: dict[str, Any] = {"average": average, "conditioned": conditioned, "separate": separate}
    stages = [nn.Sequential(CausalLinear(7, 7, width_groups=3), nn.Tanh()) for _ in range(2)]
    heads = {i: SharedHead(7, 2, width_groups=3, **how) for i in (0, 1)}
    return tl.Nested(stages, {0: nn.Linear(6, 7)}, heads, groups=3).double()


def late() -> tl.Nested:
    """Two entries, of whose streams one head reads both; with statistics of their own."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))
    stages = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2)]
    net = tl.Nested(stages, {0: nn.Linear(6, 5), 1: nn.Linear(6, 5)}, {1: head}, statistics="per-entry").double()
    with torch.no_grad():
        net.train().all(torch.randn(50, 6, dtype=torch.float64))
    return net.eval()


def solved(x: Tensor, y: Tensor) -> Tensor:
    """The answers of least squares with a constant."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return x @ torch.linalg.lstsq(x, y).solution


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_each_width_has_the_least_squares_of_its_features(average: bool, conditioned: bool) -> None:
    net, data = wide(False, average, conditioned), numbers()
    if conditioned:
        for head in net.exits.values():
            nn.init.normal_(head.scale)
            nn.init.normal_(head.shift)
    made = tl.fit_heads(net, data, task=tl.tasks.regression(), penalty=0)
    x, y = data.train.inputs, data.train.targets
    features = net.entries["0"](x)
    for exit_, stage in enumerate(net.stages):
        features = stage(features)
        for width, end in ((1, 2), (2, 4), (3, 7)):
            want = solved(features[:, :end].detach(), y)
            member = tl.Subnet(exit=exit_, width=width)
            answers = made.all(x)[made.grid.index(member)], made(x, member), tl.extract(made, member)(x)
            for answer in answers:
                torch.testing.assert_close(answer, want, **CLOSE)


def test_those_who_read_one_head_learn_it_together() -> None:
    net, data = late(), numbers()
    made = tl.fit_heads(net, data, task=tl.tasks.regression(), penalty=0)
    x, y = data.train.inputs, data.train.targets
    seen = []
    for member in net.grid:
        *body, (_, head) = net.path(member)
        features = x
        for module in (*(module for _, module in body), *head[:-1]):
            features = module(features)
        seen.append(features.detach())
    want = solved(torch.cat(seen), torch.cat([y, y]))
    torch.testing.assert_close(made.all(x), torch.stack([*want.chunk(2)]), **CLOSE)


def test_a_layer_without_a_bias_gets_none() -> None:
    torch.manual_seed(0)
    net = tl.Nested([nn.Linear(6, 4, bias=False)], exits={0: nn.Linear(4, 2, bias=False)}).double()
    data = numbers()
    made = tl.fit_heads(net, data, task=tl.tasks.regression(), penalty=0)
    x = net.stages[0](data.train.inputs).detach()
    want = x @ torch.linalg.lstsq(x, data.train.targets).solution
    torch.testing.assert_close(made(data.train.inputs), want, **CLOSE)


def test_a_classifier_ends_where_no_step_leads_down() -> None:
    data, penalty = digits(), 1e-3
    torch.manual_seed(0)
    net = tl.Nested([nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())], exits={0: nn.Linear(12, 10)})
    part = tl.data.Dataset("digits", data.train, data.train[:0], data.test, data.classes, "made")
    made = tl.fit_heads(net.double(), part, penalty=penalty)
    head, x = made.exits["0"], made.stages[0](data.train.images.double() / 255).detach()
    spread = x.std(0, correction=0)
    spread[spread < 1e-9] = 1
    loss = nn.functional.cross_entropy(head(x), data.train.labels) + penalty * (head.weight * spread).square().sum()
    gradients = torch.autograd.grad(loss, [head.weight, head.bias])
    assert (gradients[0] / spread).abs().max() < 1e-4 and gradients[1].abs().max() < 1e-4
    before = nn.functional.cross_entropy(net(data.train.images.double() / 255), data.train.labels)
    assert loss < 0.7 * before


def test_nothing_but_the_last_layers_is_changed() -> None:
    net = causal_resnet(2, (2, 2), 1, 10, in_channels=1, conditioned=True)
    tl.fit(net, digits(), replace(RECIPE, fit_heads=False), **HOW)
    before = copy.deepcopy(net.state_dict())
    made = tl.fit_heads(net, digits(), RECIPE.preprocess)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    after = made.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all(name.endswith(".shift") for name in changed)
    assert {*after} - {*before} == {f"exits.{exit_}.1.own" for exit_ in (-1, 0, 1)}
    check_nested(made, digits().test.images[:2] / 255)


def test_no_member_is_worse_on_validation_examples() -> None:
    net, data = wide(), numbers(20)
    with torch.no_grad():  # which fits them so well that a fit to the others is worse
        x, y = data.validation.inputs, data.validation.targets
        features = net.stages[0](net.entries["0"](x))
        rows = torch.cat([features, torch.ones(20, 1, dtype=x.dtype)], 1)
        solution = torch.linalg.lstsq(rows, y).solution
        net.exits["0"].weight.copy_(solution[:-1].T)
        net.exits["0"].bias.copy_(solution[-1])
    made = tl.fit_heads(net, data, task=tl.tasks.regression())
    losses = [tl.tasks.regression().loss(some.all(x), y).mean(1) for some in (net, made)]
    assert (losses[1] <= losses[0]).all()
    kept = [bool(torch.equal(one, other)) for one, other in zip(net.all(x), made.all(x), strict=True)]
    assert kept[net.grid.index(tl.Subnet(exit=0, width=3))] and not all(kept)


def test_exits_of_a_network_that_is_trained_already() -> None:
    torch.manual_seed(0)
    trained = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data, task = numbers(), tl.tasks.regression()
    net = tl.nest(trained, input_shape=(6,), exits=[1, 3])
    made, x = tl.fit_heads(net, data, task=task, penalty=0), data.train.inputs
    assert torch.equal(made(x), trained(x)), "the full member is the network as it was"
    for place, exit_ in enumerate((1, 3)):
        want = solved(trained[: exit_ + 1](x).detach(), data.train.targets)
        torch.testing.assert_close(made.all(x)[place], want, **CLOSE)


def test_a_dead_feature_does_no_harm() -> None:
    net, data = wide(), numbers()
    with torch.no_grad():
        net.stages[1][0].weight[2:4] = 0
    made = tl.fit_heads(net, data, task=tl.tasks.regression())
    assert made.all(data.train.inputs).isfinite().all()
    score = tl.evaluate(made, [data.train], tl.Preprocess(), task=tl.tasks.regression())
    assert (score >= tl.evaluate(net, [data.train], tl.Preprocess(), task=tl.tasks.regression())).all()


def test_separate_heads_are_as_the_others_until_they_are_fitted() -> None:
    for average in (False, True):
        for conditioned in (False, True):
            plain, x = wide(False, average, conditioned), torch.randn(5, 6, dtype=torch.float64)
            apart = wide(True, average, conditioned)
            apart.load_state_dict(plain.state_dict(), strict=False)
            assert torch.allclose(plain.all(x), apart.all(x), rtol=0, atol=1e-12)
            learns = {name for name, p in apart.named_parameters() if not p.requires_grad}
            assert {name.rpartition(".")[2] for name in learns} == {"own"} | (set() if conditioned else {"shift"})


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    net, data = wide(), numbers()
    task = tl.Task(loss=lambda outputs, targets: outputs.mean(2) / 0 * 0)
    made, x = tl.fit_heads(net, data, task=task), data.train.inputs
    assert torch.equal(made.all(x), net.all(x))


# As a part of training ----------------------------------------------------------------------------------------------


def family(separate: bool = True) -> tl.Nested:
    torch.manual_seed(0)
    return causal_resnet(2, (2, 2), 1, 10, in_channels=1, conditioned=True, separate=separate)


def test_a_recipe_ends_with_it(tmp_path: Path) -> None:
    net, plain = family(), family()
    history = tl.fit(net, digits(), RECIPE, out=tmp_path / "run", **HOW)
    tl.fit(plain, digits(), replace(RECIPE, fit_heads=False), **HOW)
    want = tl.fit_heads(plain, digits(), RECIPE.preprocess)
    for name, tensor in want.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name
    scores = tl.evaluate(net, [digits().validation, digits().test], RECIPE.preprocess)
    assert history.fitted is not None
    assert scores.tolist() == [list(history.fitted.validation), list(history.fitted.test)]
    assert history.fitted.epoch == history.best().epoch and history.fitted.validation != history.best().validation
    bundle = tl.Bundle.open(tmp_path / "run" / "model.safetensors")
    assert [member.accuracy for member in bundle.catalogue] == list(history.fitted.validation)
    loaded, x = tl.load(tmp_path / "run" / "model.safetensors"), digits().test.images[:4] / 255
    assert torch.equal(loaded.eval().all(x), net.all(x))


def test_a_finished_run_is_fitted_again_as_before(tmp_path: Path) -> None:
    first = family()
    tl.fit(first, digits(), RECIPE, out=tmp_path, **HOW)
    for net in (first, family()):  # the network itself, and one that is new
        history = tl.fit(net, digits(), RECIPE, out=tmp_path, resume=True, **HOW)
        assert len(history) == 2 and history.fitted is not None
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), net.state_dict().values(), strict=True)
        )
    longer = tl.fit(family(), digits(), replace(RECIPE, epochs=3), out=tmp_path, resume=True, **HOW)
    assert len(longer) == 3


def test_it_is_part_of_what_a_run_agrees_in(tmp_path: Path) -> None:
    tl.fit(family(), digits(), RECIPE, out=tmp_path, **HOW)
    with pytest.raises(CheckpointError, match="fit_heads"):
        tl.fit(family(), digits(), replace(RECIPE, fit_heads=False), out=tmp_path, resume=True, **HOW)


def test_it_goes_with_a_moving_average() -> None:
    net = family()
    history = tl.fit(net, digits(), replace(RECIPE, ema=0.9), **HOW)
    assert history.fitted is not None
    scores = tl.evaluate(net, [digits().validation], RECIPE.preprocess)[0].tolist()
    assert scores == list(history.fitted.validation)


# What is refused ----------------------------------------------------------------------------------------------------


def slimmed() -> tl.Nested:
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    return tl.slim(net, torch.rand(2, 6), 4, order="given")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: tl.Nested([nn.Linear(6, 2)]), "answer themselves"),
        (lambda: tl.Nested([nn.Linear(6, 2)], exits={0: nn.Sequential(nn.Linear(2, 2), nn.Tanh())}), "Tanh"),
        (slimmed, "pass of its own"),
    ],
)
def test_other_heads_are_refused(net: Any, message: str) -> None:
    data = numbers()
    data = tl.data.of(data.train.inputs.float(), data.train.targets.float())
    with pytest.raises(ValueError, match=message):
        tl.fit_heads(net(), data, task=tl.tasks.regression())


def test_a_recipe_wants_separate_heads_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="separate=True"):
        tl.fit(family(separate=False), digits(), RECIPE, out=tmp_path / "run", **HOW)
    with pytest.raises(BundleError):
        tl.Bundle.open(tmp_path / "run" / "model.safetensors")


def test_impossible_numbers_and_no_examples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data, task = wide(), numbers(), tl.tasks.regression()
    for how in ({"num_examples": 0}, {"penalty": -1.0}, {"penalty": float("nan")}):
        with pytest.raises(ValueError, match="1 example or more, with a penalty from 0"):
            tl.fit_heads(net, data, task=task, **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are none"):
        fit_heads_(net, data.train[:0], data.validation, task=task)
    monkeypatch.setattr(readout, "MOST_BYTES", 7 * 8 * 2 * 50)
    with pytest.raises(ValueError, match="num_examples=50"):
        tl.fit_heads(net, data, task=task)
    tl.fit_heads(net, data, task=task, num_examples=50)
