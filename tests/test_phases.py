"""What changes while members learn: phases, teachers, the moving average, and how much groups hear of wider members."""

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl
from telescopic.layers import CausalConv2d, CausalLinear, SharedHead
from telescopic.layers.groups import between_groups
from telescopic.layers.narrowing import used
from telescopic.networks import causal_resnet
from telescopic.train.balance import loss_shares
from telescopic.train.checkpoint import CheckpointError, read_facts
from telescopic.train.objective import objective_weights

FULL = tl.Phase(name="full alone", until=2, weights="full", distillation=0.0)
RECIPE = tl.Recipe(epochs=4, batch_size=32, learning_rate=0.05, distillation=0.5, phases=(FULL,))
HOW: dict[str, Any] = {"cpu": True, "precision": "fp32", "progress": False}


@cache
def digits(images: int = 96) -> tl.data.Dataset:
    data = tl.data.load("digits")
    few = [tl.data.Split(part.images[:images], part.labels[:images]) for part in (data.train, data.validation)]
    return tl.data.Dataset("digits", few[0], few[1], few[1], data.classes, data.source)


def mlp() -> tl.Nested:
    torch.manual_seed(0)
    return tl.networks.mlp(64, (16, 16), 10, entries=(0, 1))


def family() -> tl.Nested:
    """Two widths, each a pass, and two exits; a copy of the one that is made once."""
    made = copy.deepcopy(_family())
    torch.manual_seed(0)
    return made


@cache
def _family() -> tl.Nested:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
    last = nn.Sequential(_block(), nn.Linear(32, 10))
    net = tl.nest([first, _block(), last], input_shape=(1, 8, 8), exits=[0, 1])
    return tl.slim(net, torch.randn(4, 1, 8, 8), (0.5, 1))


def _block() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())


@pytest.mark.parametrize("conditioned", [False, True])
def test_with_no_gradient_between_groups_each_width_learns_as_if_alone(conditioned: bool) -> None:
    torch.manual_seed(0)
    net = causal_resnet(3, (2, 2), 1, 5, conditioned=conditioned).double()
    with torch.no_grad():
        for parameter in net.parameters():  # so that heads' scales and shifts matter
            parameter += 0.1 * torch.randn_like(parameter)
    x, weights = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.rand(len(net.grid), dtype=torch.float64)
    targets = torch.randint(5, (6,))

    def gradients(weights: Tensor, share: float) -> dict[str, Tensor]:
        net.zero_grad()
        with between_groups(net, share):
            answers = net.all(x)
        losses = functional.cross_entropy(answers.transpose(1, 2), targets.expand(len(answers), -1), reduction="none")
        (losses.sum(1) * weights).sum().backward()
        found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        return found | {"answers": answers.detach()}

    whole, apart = gradients(weights, 1.0), gradients(weights, 0.0)
    assert torch.equal(whole.pop("answers"), apart.pop("answers"))
    names, checked = {id(p): name for name, p in net.named_parameters()}, 0
    for width in (1, 2, 3):
        alone = gradients(torch.tensor([w * (m.width == width) for w, m in zip(weights, net.grid, strict=True)]), 1.0)
        for part in (*net.stages, *net.exits.values()):
            before = dict(used(part, width - 1)) if width > 1 else {}
            for parameter, mask in used(part, width):
                name = names[id(parameter)]
                if mask is None or mask.numel() == 1:
                    continue
                own = (mask & ~before[parameter] if before else mask).expand(parameter.shape)  # type: ignore[operator]
                torch.testing.assert_close(apart[name][own], alone[name][own], rtol=1e-9, atol=1e-12)
                checked += int(own.sum())
                if width == 1 and name.startswith("stages"):
                    assert not torch.allclose(whole[name][own], apart[name][own])
    assert checked > 500


@pytest.mark.parametrize(
    "layer, shape",
    [
        (CausalConv2d(5, 7, 3, padding=1, width_groups=3), (2, 5, 6, 6)),
        (CausalConv2d(5, 7, (2, 4), padding="same", dilation=2, width_groups=3, bias=False), (2, 5, 8, 8)),
        (CausalConv2d(5, 7, 3, stride=2, width_groups=3), (5, 6, 6)),
        (CausalLinear(5, 7, width_groups=3), (4, 3, 5)),
        (CausalLinear(5, 7, width_groups=3, bias=False), (2, 3)),
        (SharedHead(6, 4, width_groups=3), (2, 6)),
        (SharedHead(7, 4, width_groups=3, average=True), (2, 7)),
        (SharedHead(7, 4, width_groups=3, average=True, conditioned=True), (2, 4)),
    ],
)
def test_a_share_lies_between_all_and_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Gradients are a straight line in the share where groups are crossed once; and outputs the same."""
    layer = layer.double()
    if isinstance(layer, SharedHead) and layer.scale is not None and layer.shift is not None:
        nn.init.normal_(layer.scale)
        nn.init.normal_(layer.shift)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    call = layer.every_width if isinstance(layer, SharedHead) else layer
    factors = torch.randn_like(call(x))

    def gradients(share: float) -> list[Tensor]:
        with between_groups(layer, share):
            out = call(x)
            one, rows = layer(x), call(x)[-1]
        if isinstance(layer, SharedHead):  # of which one width by itself is a row of all
            single, row = (torch.autograd.grad((o * factors[-1]).sum(), [x, *layer.parameters()]) for o in (one, rows))
            torch.testing.assert_close(single, row)
        some = torch.autograd.grad((out * factors).sum(), [x, *layer.parameters()])
        return [out.detach(), *some]

    whole, part, none = gradients(1.0), gradients(0.25), gradients(0.0)
    assert torch.equal(whole[0], part[0]) and not torch.allclose(whole[1], none[1])
    for a, b, c in zip(whole[1:], part[1:], none[1:], strict=True):
        torch.testing.assert_close(b, 0.25 * a + 0.75 * c)


def test_balanced_gradients_know_how_little_groups_hear() -> None:
    net = causal_resnet(3, (2,), 1, 5)
    weights = [1 / len(net.grid)] * len(net.grid)
    all_, half = loss_shares(net, weights), loss_shares(net, weights, 0.5)
    stage = next(p for p in net.stages.parameters() if p.ndim == 4)
    # The only stage is run by half of the members: a sixth of all weights for each width.
    assert all_[stage][:, 0, 0, 0].tolist() == pytest.approx([3 / 6, 3 / 6, 2 / 6, 2 / 6, 1 / 6, 1 / 6])
    assert half[stage][:, 0, 0, 0].tolist() == pytest.approx([2 / 6, 2 / 6, 1.5 / 6, 1.5 / 6, 1 / 6, 1 / 6])
    head = net.exits["0"][-1]
    assert half[head.bias].item() == pytest.approx(all_[head.bias].item())  # of no group


def test_what_has_no_groups_is_refused_a_share() -> None:
    with pytest.raises(ValueError, match=r"0\.5.*no channel-causal layer"):
        tl.Objective(mlp(), tl.Recipe(epochs=1, group_gradient=0.5))
    net = causal_resnet(3, (2,), 1, 5)
    net.exits["0"] = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(ValueError, match="Sequential is a head without a SharedHead"):
        tl.Objective(net, tl.Recipe(epochs=1, group_gradient=0.5))


def test_phases_change_what_is_minimised(tmp_path: Path) -> None:
    net = mlp()
    objective, x, y = tl.Objective(net, RECIPE), torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    losses = functional.cross_entropy(net.all(x)[-1], y, reduction="sum")
    torch.testing.assert_close(objective(x, y)[0], losses)
    objective.begin(3)
    whole = tl.Objective(net, replace(RECIPE, phases=()))
    assert torch.equal(objective(x, y)[0], whole(x, y)[0]) and not torch.equal(objective(x, y)[0], losses)
    history = tl.fit(net, digits(), RECIPE, out=tmp_path / "run", **HOW)
    assert [epoch.phase for epoch in history] == ["full alone", "full alone", "", ""]
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [row.split(",")[-1] for row in rows] == ["phase", "full alone", "full alone", "", ""]
    again = tl.Recipe.from_dict(read_facts(tmp_path / "run" / "last.safetensors")["recipe"])
    assert again.phases == RECIPE.phases and again == RECIPE


@pytest.mark.parametrize("teacher, ema", [("full", 0.0), ("full", 0.9), ("exits", 0.0), ("ema", 0.9)])
@pytest.mark.parametrize("make", [mlp, family])
def test_a_stopped_run_ends_as_one_that_was_not(make: Any, teacher: Any, ema: float, tmp_path: Path) -> None:
    recipe = replace(RECIPE, teacher=teacher, ema=ema, momentum=0.9, weight_decay=1e-3)

    def stop(history: tl.History) -> None:
        if len(history) in (1, 3):
            raise KeyboardInterrupt

    whole = make()
    tl.fit(whole, digits(), recipe, keep="last", **HOW)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tl.fit(make(), digits(), recipe, out=tmp_path / "run", resume=True, checkpoint_seconds=0.0,
                   on_epoch=stop, **HOW)  # fmt: skip
    net = make()
    history = tl.fit(net, digits(), recipe, out=tmp_path / "run", resume=True, keep="last", **HOW)
    assert len(history) == 4
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name
    if ema:
        with pytest.raises(CheckpointError, match=r"teacher = ema, not full|ema = 0\.9, not 0"):
            changed = replace(recipe, ema=0.0, teacher="full")
            tl.fit(make(), digits(), changed, out=tmp_path / "run", resume=True, **HOW)


def test_the_best_epoch_is_one_in_which_all_members_learn() -> None:
    """The full member may be better while it learns alone."""
    seen = [(0.9, "full alone"), (0.95, "full alone"), (0.7, ""), (0.8, "")]
    epochs = [
        tl.train.Epoch(i, 1.0, 1.0, 0.1, 1.0, (1.0,), (score,), (score,), phase=phase)
        for i, (score, phase) in enumerate(seen, 1)
    ]
    assert [tl.History(["full"], 0, epochs[:n]).best().epoch for n in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_a_sum_weighs_each_member_drawn_as_much_as_one_alone() -> None:
    net = tl.slim(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(4, 6), 4)
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    losses = functional.cross_entropy(net.all(x).transpose(1, 2), y.expand(4, -1), reduction="none").sum(1)
    objective = tl.Objective(net, tl.Recipe(epochs=1, weights="sum", drawn=0))
    torch.testing.assert_close(objective(x, y)[0], losses[0] + losses[3])


def test_nothing_of_training_stays_on_a_network() -> None:
    net = causal_resnet(3, (2,), 1, 5, in_channels=1).double()
    tl.Objective(net, tl.Recipe(epochs=1, group_gradient=0.5))(torch.randn(2, 1, 8, 8).double(), torch.tensor([0, 1]))
    tl.testing.check_nested(net, (1, 8, 8))
    assert not [part for part in net.modules() if "group_gradient" in vars(part)]


def test_another_teacher_is_another_run(tmp_path: Path) -> None:
    recipe = replace(RECIPE, teacher="module")
    teachers = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in range(2)]
    tl.fit(mlp(), digits(), recipe, teacher=teachers[0], out=tmp_path / "run", **HOW)
    assert all(part.training for part in teachers[0].modules())
    with pytest.raises(CheckpointError, match="teacher_weights = crc32"):
        tl.fit(mlp(), digits(), recipe, teacher=teachers[1], out=tmp_path / "run", resume=True, **HOW)
    net = mlp()
    with pytest.raises(ValueError, match="has parameters of the network"):
        tl.fit(net, digits(), recipe, teacher=net, **HOW)


def test_where_each_width_is_a_pass_the_full_one_alone_takes_one() -> None:
    history = tl.fit(family(), digits(), RECIPE, **HOW)
    full = len(history.labels) - 1
    for epoch in history:
        known = [m for m, loss in enumerate(epoch.losses) if math.isfinite(loss)]
        assert known == ([full] if epoch.phase else list(range(full + 1)))
    assert tl.History.from_dict(history.to_dict())[0].phase == "full alone"


def test_members_that_are_drawn_later_than_others_have_their_momentum_too() -> None:
    """torch's fused optimizer cannot do with momenta of which some are missing."""
    recipe = tl.recipes.slim(2, batch_size=16, phases=(replace(FULL, until=1),))
    history = tl.fit(family(), digits(), recipe, **HOW)
    assert math.isfinite(history[-1].loss)
    one, two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True, fused=True) for p in (one, two)]
    tl.train.optimizer.remember_(optimizers[0])
    for step in range(3):
        for parameter, optimizer in zip((one, two), optimizers, strict=True):
            parameter.grad = torch.full((3,), 1.0 + step)
            optimizer.step()
        assert torch.equal(one, two)


def test_whoever_teaches_is_asked() -> None:
    net, x, y = mlp().double(), torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.5)).double()
    answers = net.all(x).detach()
    own = functional.cross_entropy(answers.transpose(1, 2), y.expand(len(answers), -1), reduction="none").sum(1)

    def learned(from_: Tensor) -> Tensor:
        soft, logits = (from_ / 2).log_softmax(-1), (answers / 2).log_softmax(-1)
        return 4 * (soft.exp() * (soft - logits)).sum((1, 2))

    recipe = tl.Recipe(epochs=1, distillation=0.25)
    for kind, from_ in (("module", teacher.eval()(x)[None]), ("exits", None)):
        deep = [m for m, one in enumerate(net.grid) if one.entry == net.grid.full.entry and 2 * one.exit >= 1]
        from_ = answers[deep].mean(0, keepdim=True) if from_ is None else from_
        given = teacher.train() if kind == "module" else None
        objective = tl.Objective(net, replace(recipe, teacher=kind), teacher=given)
        expected = 0.75 * own + 0.25 * learned(from_)
        torch.testing.assert_close(objective(x, y)[1], expected)
        assert kind != "module" or not list(p for n, p in objective.named_parameters() if "teacher" in n)
    with pytest.raises(ValueError, match=r"teacher is module, and none is given"):
        tl.Objective(net, replace(recipe, teacher="module"))
    with pytest.raises(ValueError, match=r"teacher is full, and one is given"):
        tl.Objective(net, recipe, teacher=teacher)
    with pytest.raises(ValueError, match=r"teacher answers \[5, 64\] to a batch, and the network \[5, 10\]"):
        tl.Objective(net, replace(recipe, teacher="module"), teacher=nn.Flatten())(x, y)
    history = tl.fit(mlp(), digits(), replace(recipe, teacher="module"), teacher=teacher.float(), **HOW)
    assert math.isfinite(history[-1].loss)


def test_the_moving_average_is_what_is_tried_and_kept(tmp_path: Path) -> None:
    recipe, states = tl.Recipe(epochs=3, batch_size=96, learning_rate=0.1, ema=0.75), []
    net = mlp()

    def note(history: tl.History) -> None:
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})

    history = tl.fit(net, digits(), recipe, out=tmp_path / "run", keep="last", on_epoch=note, **HOW)
    expected = states[0]  # one step an epoch
    for state in states[1:]:
        expected = {name: 0.75 * old + 0.25 * state[name] for name, old in expected.items()}
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    data = digits()
    assert tl.evaluate(net, [data.test], recipe.preprocess)[0].tolist() == list(history[-1].test)
    assert tl.load(tmp_path / "run" / "model.safetensors").state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    "told, said",
    [
        ({"ema": 1.0}, "ema lies below 1"),
        ({"ema": 0.9, "shrink": tl.Shrink(penalty=0.1)}, "ema .* no shrink"),
        ({"teacher": "exits"}, "exits, is asked only where distillation"),
        ({"teacher": "ema", "distillation": 0.5}, "moving average, and ema is 0"),
        ({"teacher": "best", "distillation": 0.5}, "teacher .* 'best'"),
        ({"group_gradient": 1.5}, r"group_gradient .* 1\.5"),
        ({"weights": "most"}, "weights .* 'most'"),
        ({"phases": (FULL, replace(FULL, until=1))}, r"\[2, 1\]"),
        ({"phases": (replace(FULL, until=4),)}, r"\[4\]"),
        ({"phases": (replace(FULL, drawn=1),), "balanced": True}, "drawn"),
    ],
)
def test_what_makes_no_sense_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tl.Recipe(epochs=4, **told)


@pytest.mark.parametrize(
    "told", [{"until": 0}, {"until": 1.5}, {"name": ""}, {"name": "a" * 201}, {"distillation": 2.0}, {"drawn": -1}]
)
def test_a_phase_is_refused_what_makes_no_sense(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"phase|drawn"):
        replace(FULL, **told)


def test_weights_of_a_phase_must_fit_the_network_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match=r"\d members"):
        tl.Objective(mlp(), tl.Recipe(epochs=3, phases=(replace(FULL, weights=(1.0,)),)))
    assert objective_weights(mlp(), tl.Recipe(epochs=1, weights="full"))[-1] == 1
