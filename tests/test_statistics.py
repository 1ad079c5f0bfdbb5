"""BatchNorm's statistics: what each policy remembers, recalibration, and members that have seen nothing."""

import copy
import warnings
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from telescopic.catalogue import measure
from telescopic.data import Augment, Dataset, Preprocess, Split
from telescopic.extract import extract
from telescopic.nested import Nested, Statistics
from telescopic.papers.policies import by_policy, keep_shared
from telescopic.statistics import has_statistics, recalibrate_
from telescopic.subnet import Subnet
from telescopic.train import Recipe, evaluate, fit, recalibrate

PREPROCESS = Preprocess((0.4,), (0.3,))
RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05, preprocess=PREPROCESS)


def images(num: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (num,), generator=generator)
    pixels = torch.randint(100, (num, 1, 4, 4), generator=generator) + 80 * labels.view(-1, 1, 1, 1)
    return Split(pixels.to(torch.uint8), labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset("bright", images(100, 0), images(40, 1), images(60, 2), ("dark", "bright"), "made")


def network(statistics: Statistics = "shared") -> Nested:
    """Two entries, of which the second makes far larger features than the first stage does; norms in the heads too."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Conv2d(a, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for a in (1, 3)]
    big = nn.Conv2d(1, 3, 1)
    nn.init.constant_(big.weight, 50.0)
    heads = {i: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 2)) for i in (0, 1)}
    return Nested(stages, {0: nn.Identity(), 1: big}, heads, dropout=(0.1,), statistics=statistics)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def remembered(net: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in net.named_buffers()}


@pytest.mark.parametrize("policy", get_args(Statistics))
def test_a_policy_changes_no_weight(data: Dataset, policy: Statistics) -> None:
    trained = {}
    for statistics in ("shared", policy):
        net = network(statistics)
        fit(net, data, RECIPE, keep="last", progress=False)
        trained[statistics] = weights(net)
    assert trained["shared"].keys() == trained[policy].keys()
    assert all(torch.equal(trained["shared"][name], value) for name, value in trained[policy].items())


@torch.no_grad()
def by_hand(member: nn.Module, data: Split, size: int, number: int) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased variance at each norm, over batches as `recalibrate` draws them, averaged."""
    from telescopic.data import batches

    found: list[list[tuple[Tensor, Tensor]]] = []
    for pixels, _ in list(batches(data, size, seed=0))[:number]:
        x, row = PREPROCESS(pixels).double(), []
        for layer in member.children():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                axes = [axis for axis in range(x.ndim) if axis != 1]
                row.append((x.mean(axes), x.var(axes)))
                shape = [1, -1] + [1] * (x.ndim - 2)
                x = (x - x.mean(axes).view(shape)) / (x.var(axes, correction=0).view(shape) + layer.eps).sqrt()
                x = x * layer.weight.view(shape) + layer.bias.view(shape)  # type: ignore[operator]
            else:
                x = layer(x)
        found.append(row)
    return [(sum(m for m, _ in at) / len(at), sum(v for _, v in at) / len(at)) for at in zip(*found, strict=True)]


def test_recalibrated_statistics_are_those_of_each_entrys_own_stream(data: Dataset) -> None:
    net = network().double()
    before = remembered(net)
    made = recalibrate(net, data.train, PREPROCESS, batch_size=30)
    assert isinstance(made, Nested) and made.statistics == "recalibrated" and net.statistics == "shared"
    assert all(torch.equal(remembered(net)[name], value) for name, value in before.items())
    assert all(torch.equal(weights(made)[name], value) for name, value in weights(net).items())
    for member in made.grid:
        taken = extract(made, member)
        norms = [m for m in taken if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        expected = by_hand(extract(net, member), data.train, 30, 3)
        for norm, (mean, variance) in zip(norms, expected, strict=True):
            torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(norm.running_var, variance, rtol=1e-12, atol=1e-12)
            assert norm.momentum == 0.1, "as before, for training that goes on"


def test_a_plain_module_is_recalibrated_as_it_is_within_the_network(data: Dataset) -> None:
    net = network().double()
    inside = recalibrate(net.eval(), data.train, PREPROCESS)
    member = Subnet(entry=1, exit=1)
    alone = recalibrate(extract(net, member), data.train, PREPROCESS)
    assert isinstance(inside, Nested) and not alone.training
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(alone(x), inside(x, member), rtol=1e-12, atol=1e-12)


def test_recalibration_counts_images_and_leaves_modes_and_other_networks_alone(data: Dataset) -> None:
    net = network("per-entry").train()
    net.stages[0].eval()
    recalibrate_(net, data.train, num_images=70, batch_size=32)
    assert net.training and not net.stages[0].training and net.stages[1].training
    counted = {int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert counted == {2}, "two whole batches of 32"
    recalibrate_(net, Split(data.train.images[:5], data.train.labels[:5]), batch_size=32)
    assert {int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")} == {1}
    plain = Nested([nn.Flatten(), nn.Linear(16, 2)])
    assert not has_statistics(plain)
    recalibrate_(plain, data.train)
    empty = Split(data.train.images[:0], data.train.labels[:0])
    with pytest.raises(ValueError, match="recalibration takes images: 0 are there, 5120 asked for by 512"):
        recalibrate(net, empty)
    with pytest.raises(ValueError, match="100 are there, 0 asked for"):
        recalibrate(net, data.train, num_images=0)


def test_fit_recalibrates_before_it_evaluates(data: Dataset) -> None:
    """On images changed as those that it trains on are."""
    net, augment = network("recalibrated"), Augment(pad=2)
    history = fit(net, data, replace(RECIPE, augment=augment), keep="last", progress=False)
    plain, again = copy.deepcopy(net), copy.deepcopy(net)
    recalibrate_(plain, data.train, PREPROCESS)
    first = "stages.0.1.running_mean"
    assert (remembered(plain)[first] - remembered(net)[first]).abs().max() > 0.1
    recalibrate_(again, data.train, PREPROCESS, augment=augment)
    for name, value in remembered(again).items():  # not equal in the last bit: it was trained in another layout
        torch.testing.assert_close(remembered(net)[name], value)
    assert evaluate(net, [data.test], PREPROCESS)[0].tolist() == list(history[-1].test)


def test_shared_statistics_are_wrong_where_streams_differ_and_per_entry_ones_right(data: Dataset) -> None:
    accuracy = {}
    for policy in get_args(Statistics):
        net = network(policy)
        fit(net, data, replace(RECIPE, epochs=8), keep="last", progress=False)
        accuracy[policy] = evaluate(net, [data.test], PREPROCESS)[0].min().item()
    assert accuracy["shared"] < 0.8 < min(accuracy["per-entry"], accuracy["recalibrated"])


def test_one_run_answers_for_all_policies(data: Dataset) -> None:
    """What is kept beside a run is what runs of the other policies would have remembered."""

    def without_norms_in_heads(policy: Statistics) -> Nested:
        net = network(policy)
        exits = {int(i): nn.Sequential(head[0], head[2]) for i, head in net.exits.items()}  # type: ignore[index]
        entries = {int(i): adapter for i, adapter in net.entries.items()}
        return Nested(net.stages, entries, exits, dropout=net.dropout, statistics=policy)

    runs = {policy: without_norms_in_heads(policy) for policy in get_args(Statistics)}
    shared = keep_shared(runs["per-entry"])
    for net in runs.values():
        fit(net, data, RECIPE, keep="last", progress=False)
    for name, value in remembered(runs["shared"]).items():
        torch.testing.assert_close(dict(shared.named_buffers())[name], value, rtol=1e-4, atol=1e-5)
    found = by_policy(runs["per-entry"], data, RECIPE)
    for policy, net in runs.items():
        assert found[policy] == pytest.approx(evaluate(net, [data.test], PREPROCESS)[0].tolist(), abs=0.04)


def test_a_member_whose_norms_have_seen_nothing_is_warned_about(data: Dataset) -> None:
    with pytest.warns(UserWarning, match="not yet seen what these members make of an image: entry=1,exit=0; entry=0"):
        measure(network(), data)
    trained = network()
    fit(trained, data, RECIPE, progress=False)
    entries, exits = ({int(i): part for i, part in parts.items()} for parts in (trained.entries, trained.exits))
    late = Nested(trained.stages, entries, exits, statistics="per-entry")
    with pytest.warns(UserWarning, match=r"image: entry=1,exit=0; entry=1,exit=1\. Train the network"):
        evaluate(late, [data.test], PREPROCESS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(trained, [data.test], PREPROCESS)
        made = recalibrate(late, data.train, PREPROCESS)
        assert isinstance(made, Nested)
        evaluate(made, [data.test], PREPROCESS)
        measure(late, input_shape=(1, 4, 4))
