"""Networks that learn their widths: in the training loop, in families, in files, and ShrinkNets' own experiments."""

import copy
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from telescopic.bundle import load as load_bundle
from telescopic.bundle import save
from telescopic.cost import cost
from telescopic.data import Augment, Dataset, Preprocess, Split, batches, load
from telescopic.extract import extract
from telescopic.layers import Filter
from telescopic.layers.cuts import named_tensors
from telescopic.layers.filter import TokenFilter, attached, detach_
from telescopic.nest import nest
from telescopic.nested import Nested
from telescopic.networks import lenet, mlp, vgg
from telescopic.papers import cnsn, shrinknets
from telescopic.papers.reproduce import plots, reproduce, runs, tables
from telescopic.papers.shrinknets_runs import PAPER, figure_1
from telescopic.report.plots import write_plots
from telescopic.report.widths import widths
from telescopic.shrink import add_filters, compact_, fold, price_
from telescopic.shrink.family import Every, add_filters_to_family, filters, fold_family, living
from telescopic.shrink.shapes import reshape_
from telescopic.subnet import Statistics
from telescopic.testing import check_nested
from telescopic.train import CheckpointError, History, Recipe, Shrink, fit
from telescopic.train.checkpoint import Position, load_checkpoint, save_checkpoint
from telescopic.train.optimizer import groups_for, optimizer_for
from telescopic.train.shrinking import Shrinking

X = torch.rand(2, 1, 8, 8, dtype=torch.float64)
ADAM = Recipe(epochs=4, batch_size=64, optimizer="adam", learning_rate=0.02, shrink=Shrink(penalty=0.05))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load("digits")
    return replace(whole, train=Split(whole.train.images[:320], whole.train.labels[:320]))


def one_layer(units: int = 30, seed: int = 0) -> Nested:
    """A copy of the one that is made once."""
    made = copy.deepcopy(_one_layer(units, seed))
    torch.manual_seed(seed)
    return made


@cache
def _one_layer(units: int, seed: int) -> Nested:
    torch.manual_seed(seed)
    return shrinknets.network(input_shape=(1, 8, 8), widths=(units,)).double()


def shorter(statistics: Statistics = "per-entry") -> Nested:
    """As CNSN makes a family of VGG-16, of the first 4 convolutions of VGG-11, for images of 8 × 8 pixels."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    blocks = [*vgg(11, channels=1, scale=0.0625)[:4], head]
    return nest(blocks, input_shape=(1, 8, 8), entries=(1, 2), statistics=statistics).double()


def family(statistics: Statistics = "per-entry") -> Nested:
    """The same with filters; a copy of the one that is made once."""
    torch.manual_seed(0)
    return copy.deepcopy(_family(statistics))


@cache
def _family(statistics: Statistics) -> Nested:
    return add_filters_to_family(shorter(statistics), X)


def kill(net: nn.Module, share: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in filters(net).values():
            part.theta[torch.rand(len(part.theta), generator=generator) < share] = -1


def sizes(net: nn.Module) -> list[int]:
    return [len(part.theta) for part in filters(net).values()]


# In the loop ----------------------------------------------------------------------------------------------------------


def test_the_loop_does_what_one_writes_by_hand(digits: Dataset) -> None:
    """Mean cross-entropy + λ·Σ max(0, θ), Adam, and dead channels removed after each epoch."""
    net, mine = one_layer(), one_layer()
    history = fit(net, digits, ADAM, seed=3, keep="last", cpu=True, progress=False)
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.02, fused=True)
    for epoch in range(1, 5):
        mine.train()
        for images, labels in batches(digits.train, 64, seed=3, epoch=epoch):
            x = ADAM.preprocess(images).double()
            theta = mine.stages[0][1].filter.theta  # type: ignore[index]
            loss = functional.cross_entropy(mine(x), labels) + 0.05 * theta.clamp(min=0).sum()  # type: ignore[union-attr, operator]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        compact_(mine, optimizer, example=X)
        assert history[epoch - 1].widths == tuple(sizes(mine))
    assert 1 < sizes(net)[0] < 30
    for name, tensor in named_tensors(net).items():
        torch.testing.assert_close(tensor, named_tensors(mine)[name], rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize(
    ("optimizer", "method"),
    [("sgd", "gradient"), ("sgd", "proximal"), ("adam", "gradient"), ("adamw", "proximal")],
)
def test_whenever_channels_are_removed_the_network_learns_the_same(
    digits: Dataset, optimizer: Any, method: Any
) -> None:
    rate = 0.05 if optimizer == "sgd" else 0.02
    how = replace(ADAM, optimizer=optimizer, learning_rate=rate, weight_decay=1e-3)
    seen: dict[Any, tuple[History, list[int]]] = {}
    for collect in (None, "epoch", 3):
        net = one_layer()
        told = replace(how, shrink=Shrink(penalty=0.05, method=method, collect=collect))
        seen[collect] = fit(net, digits, told, keep="last", cpu=True, progress=False), sizes(net)
    masked, untouched = seen.pop(None)
    assert untouched == [30] and masked[-1].widths[0] < 25 and masked[-1].compacting == 0
    for history, left in seen.values():
        assert left[0] < 30
        assert [epoch.widths for epoch in history] == [epoch.widths for epoch in masked]
        assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in masked], rel=1e-9)
        assert [epoch.test for epoch in history] == [epoch.test for epoch in masked]
        assert 0 < sum(epoch.compacting for epoch in history) < sum(epoch.seconds for epoch in history)


def shrinking(net: Nested, how: Shrink, optimizer: torch.optim.Optimizer) -> Shrinking:
    return Shrinking(net, how, optimizer, X, seed=0)


def test_a_proximal_step_by_hand() -> None:
    net = one_layer(4)
    (part,) = filters(net).values()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    by_hand = shrinking(net, Shrink(penalty=0.2, method="proximal"), optimizer)
    assert by_hand.minimised(torch.zeros(())).item() == 0.0
    with torch.no_grad():
        part.theta.copy_(torch.tensor([0.5, 0.03, 0.04, -0.2]))
    by_hand.after_step(1)
    # 0.1 / (1 - 0.5) · 0.2 = 0.04; the third is exactly 0, the fourth was dead and stays what it was.
    torch.testing.assert_close(part.theta.data, torch.tensor([0.46, 0, 0, -0.2], dtype=torch.float64))
    assert part.alive.tolist() == [True, False, False, False]


def test_a_proximal_step_under_adam_is_never_longer_than_adams() -> None:
    net = one_layer(3)
    (part,) = filters(net).values()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    part.theta.grad = torch.tensor([1e-9, 0.4, 4.0], dtype=torch.float64)
    optimizer.step()
    before = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    with torch.no_grad():
        part.theta.copy_(before)
    shrinking(net, Shrink(penalty=0.2, method="proximal"), optimizer).after_step(1)
    # The second moments say that gradients are about as large as the first was: λ against each, at most 1.
    expected = before - 0.1 * torch.tensor([1.0, 0.5, 0.05], dtype=torch.float64)
    torch.testing.assert_close(part.theta.data, expected, rtol=0, atol=1e-7)


def test_the_penalty_weighs_channels_by_what_they_cost() -> None:
    net = one_layer(5)
    (part,) = filters(net).values()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    total = float(part.theta.detach().sum())
    # 64 inputs and 10 classes; a bias and θ besides.
    for by, price in (("channels", 1), ("macs", 64 + 10), ("params", 64 + 1 + 1 + 10)):
        penalty = shrinking(net, Shrink(penalty=0.5, by=by), optimizer).minimised(torch.zeros(()))  # type: ignore[arg-type]
        assert isinstance(penalty, Tensor) and penalty.item() == pytest.approx(0.5 * price * total)


def test_streams_that_share_theta_pay_for_it_once() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    plain = cnsn.network(scale=0.0625, input_shape=(1, 32, 32), statistics="per-entry").double()
    net = add_filters_to_family(plain, x)
    assert len(net.twins) > 0 and len(filters(net)) == 13 + 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    penalty = Shrinking(net, Shrink(penalty=1), optimizer, x, seed=0).minimised(torch.zeros(()))
    assert isinstance(penalty, Tensor)
    thetas = [p for name, p in net.named_parameters() if name.endswith("theta")]
    assert penalty.item() == pytest.approx(sum(float(theta.detach().sum()) for theta in thetas))


def test_weight_decay_leaves_theta_alone() -> None:
    net, how = one_layer(), replace(ADAM, optimizer="adamw", weight_decay=0.3, l2=0.1)
    decays = {id(p): float(str(group["weight_decay"])) for group in groups_for(net, how) for p in group["params"]}  # type: ignore[attr-defined]
    assert len(decays) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        expected = 0.0 if name.endswith("theta") else 0.5 if parameter.ndim > 1 else 0.3
        assert decays[id(parameter)] == pytest.approx(expected), name


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_the_recipe_names_its_optimizer(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    how = replace(ADAM, optimizer=name, learning_rate=0.3, momentum=0.7, nesterov=True)
    made = optimizer_for(one_layer(), how, torch.device("cpu"))
    assert type(made) is kind and made.param_groups[0]["lr"] == 0.3
    if name == "sgd":
        assert (made.param_groups[0]["momentum"], made.param_groups[0]["nesterov"]) == (0.7, True)


def test_channels_die_at_random_and_alike_for_the_same_seed(digits: Dataset) -> None:
    how = replace(ADAM, shrink=Shrink(penalty=0.02, method="random", level=0.5))
    found = []
    for seed in (1, 1, 2):
        net = one_layer()
        history = fit(net, digits, how, seed=seed, keep="last", cpu=True, progress=False)
        found.append((history[-1].widths, [round(epoch.loss, 12) for epoch in history]))
        (part,) = filters(net).values()
        assert 0 < len(part.theta) < 30
    assert found[0] == found[1] != found[2]


def test_layers_keep_a_multiple_of_channels(digits: Dataset) -> None:
    net = one_layer(32)
    how = replace(ADAM, epochs=8, shrink=Shrink(penalty=0.1, multiple_of=8))
    fit(net, digits, how, keep="last", cpu=True, progress=False)
    assert sizes(net)[0] in (8, 16, 24) and living(net)[0] <= sizes(net)[0]


def test_a_network_without_filters_is_refused(digits: Dataset) -> None:
    with pytest.raises(ValueError, match=r"it has no filters: see telescopic\.shrink\.add_filters"):
        fit(mlp(64, (8,), 10), digits, ADAM, cpu=True, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": -1}, "penalty is 0 or more, not -1"),
        ({"penalty": math.nan}, "penalty is 0 or more, not nan"),
        ({"by": "units"}, "by is one of channels, params, macs, not 'units'"),
        ({"method": "magic"}, "method is one of gradient, proximal, random, not 'magic'"),
        ({"collect": "never"}, "collect is epoch, a number of steps or None, not 'never'"),
        ({"collect": 0}, "not 0"),
        ({"collect": True}, "not True"),
        ({"method": "random", "collect": None}, "say when, with collect="),
        ({"level": 0}, "level is above 0"),
        ({"multiple_of": 0}, "multiple_of 1 or more"),
    ],
)
def test_what_is_no_way_to_shrink(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shrink(**({"penalty": 0.1} | options))


def test_a_recipe_that_shrinks_survives_json() -> None:
    how = replace(ADAM, shrink=Shrink(penalty=0.1, by="macs", collect=7), augment=Augment(pad=1))
    assert Recipe.from_dict(json.loads(json.dumps(how.to_dict()))) == how
    with pytest.raises(ValueError, match="optimizer of a recipe is sgd or adam or adamw, not 'lion'"):
        replace(how, optimizer="lion")  # type: ignore[arg-type]


# Families -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["shared", "per-entry"])
def test_a_family_keeps_its_laws_whenever_it_shrinks(digits: Dataset, statistics: Statistics) -> None:
    held = digits.test[:8]
    data, net = replace(digits, train=digits.train[:96], validation=held, test=held), family(statistics)
    began, seen = sizes(net), list[list[int]]()

    def laws(history: History) -> None:
        seen.append(sizes(net))
        check_nested(net, (1, 8, 8), members=None if len(history) == how.epochs else 1)

    how = Recipe(epochs=3, batch_size=16, learning_rate=0.1, shrink=Shrink(penalty=0.2, by="channels"))
    fit(net, data, how, keep="last", cpu=True, progress=False, on_epoch=laws)
    assert all(a >= b for before, after in zip([began, *seen], seen, strict=False) for a, b in zip(before, after))  # noqa: B905
    assert sum(seen[-1]) < sum(began) / 2
    names = list(filters(net))
    for entry in ("1", "2"):
        place = next(i for i, name in enumerate(names) if name.startswith(f"entries.{entry}."))
        assert seen[-1][place] < began[place], "the step-down convolution shrinks with the spine"
        stage = net.stages[int(entry)]
        assert stage[0].in_channels == seen[-1][place]  # type: ignore[index, union-attr]


def test_removing_changes_no_members_logits_and_folding_neither() -> None:
    net, x = family(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    net.train().all(x)  # so that statistics of channels differ
    net.eval()
    kill(net)
    before = net.all(x)
    wide = sum(parameter.numel() for parameter in net.parameters())
    assert compact_(Every(net), example=x)
    torch.testing.assert_close(net.all(x), before, rtol=0, atol=1e-12)
    assert sum(parameter.numel() for parameter in net.parameters()) < 0.5 * wide
    plain = fold_family(net, x)
    torch.testing.assert_close(plain.all(x), before, rtol=0, atol=1e-12)
    assert not filters(plain) and plain.statistics == "per-entry"
    check_nested(plain, (1, 8, 8))
    assert named_tensors(plain).keys() == named_tensors(shorter()).keys(), "twins share their parameters again"


def test_filters_where_one_wants_them() -> None:
    net = cnsn.network(scale=0.0625, input_shape=(1, 32, 32)).double()
    x = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    made = add_filters_to_family(net, x, where=lambda path: path in ("stages.3.0", "stages.8.0"))
    assert list(filters(made)) == ["stages.3.1", "stages.8.1"] and not filters(net)
    with pytest.raises(ValueError, match="could never remove a channel"):
        add_filters_to_family(net, x, where=lambda path: path == "stages.1.0")  # entry 2 gives the same channels


def test_dropout_is_no_obstacle() -> None:
    torch.manual_seed(0)
    net = add_filters_to_family(mlp(64, (20, 20), 10, dropout=(0.2, 0.5)).double(), X)
    kill(net)
    before = net.eval().all(X)
    assert compact_(Every(net), example=X) and net.dropout == (0.2, 0.5)
    torch.testing.assert_close(net.all(X), before, rtol=0, atol=1e-12)


# Files ----------------------------------------------------------------------------------------------------------------


def shrunk(seed: int = 0, share: float = 0.5) -> Nested:
    net = one_layer(seed=seed)
    kill(net, share)
    compact_(net, example=X)
    return net.eval()


def test_a_checkpoint_gives_its_widths_to_a_network_wider_or_narrower(tmp_path: Path) -> None:
    small, path = shrunk(), tmp_path / "small.safetensors"
    save_checkpoint(path, small, None, Position(), {})
    for other in (one_layer(seed=1), shrunk(1, 0.95)):
        assert sizes(other) != sizes(small)
        load_checkpoint(path, other, example=X)
        torch.testing.assert_close(other.eval()(X), small(X), rtol=0, atol=0)
        assert other.stages[0][1].out_features == sizes(small)[0] == other.exits["0"][0].in_features  # type: ignore[index, union-attr]


def test_without_an_example_a_checkpoint_of_other_widths_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", shrunk(), None, Position(), {})
    net = one_layer()
    with pytest.raises(CheckpointError, match=r"is of another network: .* differ in name or shape"):
        load_checkpoint(tmp_path / "x", net)
    assert sizes(net) == [30]


def test_a_checkpoint_of_0_1_0_is_refused_with_the_reason(tmp_path: Path) -> None:
    old: Any = one_layer()
    part = old.stages[0][1].filter
    detach_(old.stages[0][1])
    old.stages[0][1] = nn.Sequential(old.stages[0][1], part)  # as its filters stood
    save_checkpoint(tmp_path / "x", old, None, Position(), {})
    with pytest.raises(CheckpointError, match=r"filters have the names of version 0\.1\.0"):
        load_checkpoint(tmp_path / "x", one_layer())


def changed(**shapes: tuple[int, ...]) -> Callable[[dict[str, Tensor]], None]:
    def change(stored: dict[str, Tensor]) -> None:
        for name, shape in shapes.items():
            full = next(key for key in stored if key.replace(".", "_") == name)
            stored[full] = torch.zeros(shape, dtype=stored[full].dtype)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(exits_0_0_weight=(10, 7)), "does not run"),
        (changed(stages_0_1_weight=(9, 64)), "channels"),
        (changed(stages_0_1_weight=(17, 63)), "does not run"),
        (changed(stages_0_1_filter_theta=(1,)), "a Filter would have 1 and .* channels"),
        (changed(stages_0_1_filter_theta=(4, 4)), r"is \(4, 4\) there and \(30,\) here"),
        (changed(stages_0_1_bias=(0,)), r"is \(0,\) there"),
        (changed(stages_0_1_bias=(1,)), "a Linear would have 1 and"),
        (changed(exits_0_0_weight=(9, 17), exits_0_0_bias=(9,)), "does not run|gives"),
        (lambda stored: stored.pop("exits.0.0.bias"), "exits.0.0.bias"),
    ],
)
def test_shapes_that_fit_no_network_touch_nothing(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "x"
    save_checkpoint(path, shrunk(), None, Position(), {})
    stored = {name.removeprefix("net/"): tensor for name, tensor in load_file(path).items()}
    damage(stored)
    meta = {"telescopic": json.dumps({"format": 1, "position": vars(Position())})}
    save_file({f"net/{name}": tensor for name, tensor in stored.items()}, path, metadata=meta)
    net, untouched = one_layer(), one_layer()
    parameters = list(net.parameters())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path, net, example=X)
    assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
    for name, tensor in named_tensors(net).items():
        torch.testing.assert_close(tensor, named_tensors(untouched)[name], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(net(X), untouched(X), rtol=0, atol=0)


def test_networks_without_filters_keep_their_shapes() -> None:
    net = mlp(64, (8,), 10)
    other = {name: tensor.shape for name, tensor in named_tensors(mlp(64, (7,), 10)).items()}
    with pytest.raises(ValueError, match=r"there and .* here"):
        reshape_(net, other, X.float())
    with pytest.raises(ValueError, match="is only in one of the two"):
        reshape_(net, {}, X.float())


def test_a_plain_network_of_tokens_is_reshaped_too() -> None:
    """Whose filters have channels along the last dimension."""

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return add_filters(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), torch.rand(2, 5, 6))

    small, wide, x = made(0), made(1), torch.rand(2, 5, 6)
    kill(small)
    compact_(small)
    assert sizes(small)[0] < 12 and type(next(iter(filters(small).values()))) is TokenFilter
    reshape_(wide, {name: tensor.shape for name, tensor in named_tensors(small).items()}, x)
    wide.load_state_dict(small.state_dict())
    torch.testing.assert_close(wide(x), small(x), rtol=0, atol=0)


def test_reshaped_parameters_learn_and_twins_share_them() -> None:
    net, x = family(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    small = family()
    kill(small)
    compact_(Every(small), example=x)
    shapes = {name: tensor.shape for name, tensor in named_tensors(small).items()}
    net.all(x).sum().backward()  # an old graph and old gradients are no obstacle
    reshape_(net, shapes, x)
    assert {name: tensor.shape for name, tensor in named_tensors(net).items()} == shapes
    with torch.no_grad():
        for name, tensor in named_tensors(net).items():
            tensor.copy_(named_tensors(small)[name])
    torch.testing.assert_close(net.eval().all(x), small.eval().all(x), rtol=0, atol=0)
    net.all(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())


def test_the_best_epoch_may_be_wider_than_the_last(digits: Dataset, tmp_path: Path) -> None:
    """The penalty is so high that the network can hardly learn in the end."""
    how = replace(ADAM, epochs=6, shrink=Shrink(penalty=2.0))
    net = one_layer()
    history = fit(net, digits, how, out=tmp_path, cpu=True, progress=False)
    best = history.best()
    assert best.widths[0] > history[-1].widths[0] and sizes(net) == list(best.widths)
    again = one_layer(seed=5)
    load_checkpoint(tmp_path / "best.safetensors", again, example=X)
    assert sizes(again) == list(best.widths)
    torch.testing.assert_close(again.eval()(X), net(X), rtol=0, atol=0)


@pytest.mark.parametrize("folded", [False, True])
def test_a_bundle_of_a_network_that_has_shrunk(tmp_path: Path, folded: bool) -> None:
    net = shrunk()
    made = fold_family(net, X) if folded else net
    loaded = load_bundle(save(made, tmp_path / "x.safetensors", input_shape=(1, 8, 8)))
    assert isinstance(loaded, Nested) and repr(loaded) == repr(made)
    torch.testing.assert_close(loaded(X), net(X), rtol=0, atol=1e-12)
    kinds = {type(part) for part in extract(made).modules()}
    assert (Filter in kinds) is not folded
    member = load_bundle(tmp_path / "x.safetensors", net.grid.full)
    torch.testing.assert_close(member(X), net(X), rtol=0, atol=1e-12)


# The paper ------------------------------------------------------------------------------------------------------------


def test_networks_start_as_wide_as_the_papers() -> None:
    torch.manual_seed(0)
    made = {}
    for kind, left, params in (
        ("one-layer", [10_000], 784 * 10_000 + 10_000 + 10_000 * 10 + 10),
        ("mlp", [500] * 3, 784 * 500 + 2 * 500 * 500 + 3 * 500 + 5010),
        ("lenet", [50, 50, 5000], 25 * 50 + 25 * 2500 + 100 + 800 * 5000 + 5000 + 50_010),
    ):
        net = made[kind] = shrinknets.network(kind)
        assert sizes(net) == left and net.grid.full == net.grid[0] and len(net.grid) == 1
        assert sum(p.numel() for p in net.parameters()) == params + sum(left)
        thetas = torch.cat([part.theta.detach() for part in filters(net).values()])
        assert 0 < thetas.min() < 0.01 and 0.99 < thetas.max() <= 1 and abs(float(thetas.mean()) - 0.5) < 0.02
    weight = shrinknets.network(widths=(2000,)).stages[0][1].weight  # type: ignore[index, union-attr]
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2) * math.sqrt(2 / (784 + 2000)), rel=0.01)  # type: ignore[union-attr, operator, arg-type]
    plain = shrinknets.network("lenet", input_shape=(3, 32, 32), widths=(3, 4, 50), learned=False)
    assert not filters(plain) and cost(extract(plain), (3, 32, 32)).params == 3 * 76 + 4 * 76 + 100 * 50 + 50 + 510
    stage: Any = made["lenet"].stages[0]
    order = [type(layer) for layer in stage]
    assert order == [nn.Conv2d, nn.ReLU, nn.MaxPool2d] and attached(stage[0]), "the filter is the convolution's"


def test_a_lenet_shrinks_through_its_flatten() -> None:
    torch.manual_seed(0)
    net = shrinknets.network("lenet", widths=(6, 5, 30)).double().eval()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    before = net(x)
    for part, left in zip(filters(net).values(), (4, 2, 9), strict=True):
        with torch.no_grad():
            part.theta[left:] = 0
    kept = net(x)
    assert compact_(Every(net), example=x) and not torch.equal(before, kept)
    torch.testing.assert_close(net(x), kept, rtol=0, atol=1e-12)
    plain = extract(fold_family(net, x))
    assert [tuple(p.shape) for p in plain.parameters() if p.ndim > 1] == [(4, 1, 5, 5), (2, 4, 5, 5), (9, 32), (10, 9)]
    torch.testing.assert_close(plain(x), kept, rtol=0, atol=1e-12)


def test_a_resnet_learns_the_same_and_shrinks(digits: Dataset) -> None:
    """Blocks and the residual stream lose channels while it trains; that changes nothing of what it learns."""
    nets, ends = [], []
    torch.manual_seed(0)
    made = shrinknets.network("resnet20", input_shape=(1, 8, 8), widths=(4,)).double()
    for collect in ("epoch", None):
        nets.append(copy.deepcopy(made))
        how = replace(ADAM, epochs=3, learning_rate=0.04, shrink=Shrink(penalty=0.1, collect=collect))
        history = fit(nets[-1], digits, how, seed=1, keep="last", cpu=True, progress=False)
        ends.append((history[-1].widths, [epoch.loss for epoch in history]))
    small, masked = nets
    assert sizes(masked)[:3] == [4, 4, 4] and len(sizes(masked)) == 1 + 18 + 2
    assert sum(sizes(small)) < 0.8 * sum(sizes(masked)), (sizes(small), sizes(masked))
    inner, stream = sizes(small)[1:9:2], sizes(small)[0:3:2]
    assert min(inner) < 4 and stream[0] == stream[1], "a block loses channels alone, the stream what all branches lost"
    torch.testing.assert_close(torch.tensor(ends[0][1]), torch.tensor(ends[1][1]), rtol=1e-9, atol=0)
    x = ADAM.preprocess(digits.test.images[:64]).double()
    torch.testing.assert_close(small.eval()(x), masked.eval()(x), rtol=1e-9, atol=1e-9)
    plain = extract(fold_family(small, x))
    torch.testing.assert_close(plain(x), small(x), rtol=0, atol=1e-10)


def test_lenet_by_hand_and_images_too_small() -> None:
    plain = lenet()
    shapes = [tuple(block[0].weight.shape) if isinstance(block[0], nn.Conv2d) else 0 for block in plain][:2]  # type: ignore[index]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5)]
    assert sum(p.numel() for p in plain.parameters()) == 156 + 2416 + 256 * 120 + 120 + 120 * 84 + 84 + 850
    x = torch.rand(2, 1, 28, 28)
    for block in plain:
        x = block(x)
    assert x.shape == (2, 10)
    with pytest.raises(ValueError, match="images of 8 × 8 pixels are too small for 2 convolutions of 5 × 5"):
        lenet(input_shape=(1, 8, 8))
    assert len(lenet(input_shape=(1, 8, 8), kernel=2)) == 5
    with pytest.raises(ValueError, match="sizes of a network are 1 or more"):
        lenet(channels=(0,))


def test_the_recipe_is_the_papers() -> None:
    how = shrinknets.recipe()
    assert (how.epochs, how.batch_size, how.optimizer, how.learning_rate) == (100, 256, "adam", 1e-3)
    assert how.shrink == Shrink(penalty=1e-3, collect="epoch", method="gradient", by="channels")
    assert how.weight_decay == how.l2 == 0 and how.rate(100) == 1e-3
    assert shrinknets.recipe(penalty=None).shrink is None


def test_the_papers_numbers() -> None:
    mnist = [(row.penalty, row.epoch_1, row.epoch_5, row.epoch_100) for row in shrinknets.FIGURE_1[:5]]
    assert mnist[:3] == [(1e-1, 7634, 35, 25), (1e-2, 7708, 121, 54), (1e-3, 7980, 542, 104)]
    assert mnist[3:] == [(1e-4, 9072, 4153, 172), (1e-5, 9836, 8825, 441)]
    assert [row.epoch_100 for row in shrinknets.FIGURE_1[5:]] == [15, 47, 164, 582, 1196]
    for row in shrinknets.FIGURE_2:
        assert row.of("shrinknets") > max(row.of("fixed"), row.of("fixed-l2")), "the paper's claim"


@pytest.mark.parametrize(
    ("name", "penalty", "way"),
    [("1e-3", 1e-3, ""), ("0.1", 0.1, ""), ("1e-2-masked", 1e-2, "masked"), ("0-proximal", 0.0, "proximal")],
)
def test_experiments_by_name(name: str, penalty: float, way: str) -> None:
    assert shrinknets.parse(name) == (penalty, way)
    net, how = shrinknets.experiment(name, units=20, epochs=7, input_shape=(1, 8, 8))
    assert sizes(net) == [20] and how.epochs == 7
    assert how.shrink == Shrink(penalty=penalty, **shrinknets.WAYS[way])


@pytest.mark.parametrize("name", ["", "masked", "1e-3-", "1e-3-quick", "nan", "-1", "inf"])
def test_no_such_experiment(name: str) -> None:
    with pytest.raises(ValueError, match=r"ShrinkNets has no experiment .*: give λ such as 1e-3"):
        shrinknets.parse(name)


def test_no_such_network() -> None:
    with pytest.raises(ValueError, match="one of one-layer, mlp, lenet, resnet20, not 'vgg'"):
        shrinknets.network("vgg")
    with pytest.raises(ValueError, match="mlp has 3 widths, and these are 2"):
        shrinknets.network("mlp", widths=(3, 4))
    with pytest.raises(ValueError, match="resnet20 has 1 widths, and these are 3"):
        shrinknets.network("resnet20", widths=(16, 32, 64))


@pytest.mark.parametrize("kind", shrinknets.KINDS)
def test_random_models(kind: str) -> None:
    given = None if kind == "shrinknets" else (5, 6, 7)
    options: dict[str, Any] = {"penalty": 0.01, "widths": given, "epochs": 3, "input_shape": (1, 8, 8)}
    net, how = shrinknets.random_model(kind, "mlp", **options)
    assert how.weight_decay == (0.01 if kind == "fixed-l2" else 0)
    assert how.shrink == (Shrink(penalty=0.01) if kind == "shrinknets" else None)
    assert sizes(net) == ([500] * 3 if kind == "shrinknets" else [])
    assert net.stages[1][0].out_features == 6 if given else True  # type: ignore[index, union-attr]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Figure 1's runs leave, on digits and with 40 units."""
    out = tmp_path_factory.mktemp("figure1")
    for epochs, names in ((6, ["0.05", "1e-3"]), (2, ["0.05-masked"])):
        reproduce(PAPER, out, only=names, data="digits", units=40, epochs=epochs, progress=False)
    return out


def cells(table: Table) -> list[list[str]]:
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_figure_1_leaves_what_it_saw(left: Path) -> None:
    run = runs(left)["0.05"][0]
    assert run["train_images"] == 1437, "all that are not test images, as in the paper"
    assert len(run["left"]) == len(run["losses"]) == len(run["seconds"]) == len(run["compacting"]) == 6
    assert run["left"] == sorted(run["left"], reverse=True) and run["left"][-1] < 40
    assert run["params"] == run["left"][-1] * (64 + 1 + 10) + 10 and run["macs"] == run["left"][-1] * 74
    assert run["peak_bytes"] > 10**7 and 0 < sum(run["compacting"]) < sum(run["seconds"])
    masked = runs(left)["0.05-masked"][0]
    assert masked["left"] == run["left"][:2] and masked["losses"] == pytest.approx(run["losses"][:2], rel=1e-3)
    before = (left / "digits-0.05" / "summary.json").stat().st_mtime_ns
    reproduce(PAPER, left, only=["0.05"], data="digits", units=40, epochs=6, progress=False)
    assert (left / "digits-0.05" / "summary.json").stat().st_mtime_ns == before, "it is not trained again"
    with pytest.raises(ValueError, match="no experiment 'x'"):
        reproduce(PAPER, left, only=["0.05", "x"], data="digits")


def test_figure_1_as_tables(left: Path) -> None:
    units, times = tables(PAPER, left)
    rows = {row[0]: row for row in cells(units)}
    assert list(rows) == ["0.05", "1e-3", "0.05-masked"], "the paper's way first, λ falling"
    run = runs(left)["0.05"][0]
    assert rows["0.05"][1:5] == [str(run["left"][0]), str(run["left"][4]), "–", "–"]
    assert [row[0] for row in cells(times)] == ["0.05", "1e-3"]
    first, second = cells(times)
    assert first[3].startswith("≈ ") and float(first[4]) > 0 and second[3:5] == ["–", "–"]
    assert "extrapolated from fewer epochs" in str(times.caption)
    for table in (units, times):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        assert max(map(len, console.export_text().splitlines())) <= 80
        assert "…" not in console.file.getvalue()


def test_tables_have_the_papers_numbers(tmp_path: Path) -> None:
    facts = {"experiment": "1e-2", "seed": 0, "data": "mnist", "train_images": 60_000, "units": 10_000}
    facts |= {"precision": "fp32", "left": [7700] * 100, "tests": [0.98], "macs": 1, "seconds": [2.0] * 100}
    facts |= {"compacting": [0.02] * 100, "machine": "m", "threads": 1, "losses": [1.0] * 100}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "summary.json").write_text(json.dumps(facts))
    units, times = tables(PAPER, tmp_path)
    assert cells(units)[0][:5] == ["1e-2", "7,700", "7,700", "7,700", "7,700"]
    assert cells(units)[1] == ["  the paper's", "7,708", "121", "–", "54", "", ""]
    assert cells(times)[0][1:6] == ["100", "3.3", "–", "–", "1"]
    (units_plot, loss_plot) = plots(PAPER, tmp_path)
    assert units_plot.svg.count("stroke: #0b7a75") or "λ 1e-2" in units_plot.svg
    assert "Hollow: the authors' numbers." in units_plot.caption and loss_plot.name == "figure1-loss-mnist"


def test_figure_1_as_plots(left: Path, tmp_path: Path) -> None:
    drawn = plots(PAPER, left)
    assert [plot.name for plot in drawn] == ["figure1-units-digits", "figure1-loss-digits"]
    assert all("λ 0.05" in plot.svg and "λ 1e-3" in plot.svg and "masked" not in plot.svg for plot in drawn)
    paths = write_plots(tmp_path / "new", drawn)
    assert [path.name for path in paths] == ["figure1-units-digits.svg", "figure1-loss-digits.svg"]
    assert paths[0].read_text() == drawn[0].svg and (tmp_path / "new" / "figure1-loss-digits.png").exists()
    assert figure_1([run for some in runs(left).values() for run in some if "masked" in run["experiment"]]) == []


def test_widths_of_one_run_as_a_plot(digits: Dataset) -> None:
    net = one_layer()
    history = fit(net, digits, ADAM, keep="last", cpu=True, progress=False)
    plot = widths(history)
    assert "stages.0.1" in plot.svg and plot.name == "training-widths"
    first, last = history[0].widths[0], history[-1].widths[0]
    assert plot.caption == f"{last} channels are left of {first} after the first epoch."
    (again,) = [History.from_dict(json.loads(json.dumps(history.to_dict())))]
    assert again.filters == ("stages.0.1",) and again[-1].widths == history[-1].widths


def test_preprocessing_belongs_to_the_example(digits: Dataset) -> None:
    """A mean and a deviation of its own for each channel of the image."""
    how = replace(ADAM, epochs=1, preprocess=Preprocess.fit(digits.train))
    history = fit(one_layer(), digits, how, keep="last", cpu=True, progress=False)
    assert history[0].widths[0] <= 30


def test_a_family_is_not_taken_for_its_full_member() -> None:
    net, x = shorter(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="has 3 members, and called as it is it runs one: use"):
        add_filters(net, x)
    learner = family()
    for part in learner.modules():
        if isinstance(part, Filter):
            part.theta.data[::2] = 0
    for function in (compact_, price_, fold):
        with pytest.raises(ValueError, match="_to_family and shrink"):
            function(learner, example=x)  # type: ignore[operator]
    assert compact_(Every(learner), example=x) and torch.isfinite(learner.eval().all(x)).all()
