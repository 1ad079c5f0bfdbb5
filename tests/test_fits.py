"""Network, images and labels that do not belong together are told before anything is trained or measured."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from telescopic.anytime.answers import confidence_for
from telescopic.anytime.trial import try_deadlines
from telescopic.catalogue import measure
from telescopic.data import Dataset, Preprocess, Split, batches
from telescopic.fits import check_fits, check_training, tried
from telescopic.nested import Nested
from telescopic.tasks import regression
from telescopic.train import Recipe, evaluate, fit, recalibrate

RECIPE = Recipe(epochs=1, batch_size=128)
SHAPE = (1, 4, 4)


def split(num: int, labels: int | list[int] = 3, shape: tuple[int, int, int] = SHAPE) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num, *shape), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(num) % labels if isinstance(labels, int) else torch.tensor(labels))


def dataset(train: Split, validation: Split | None = None, test: Split | None = None) -> Dataset:
    kept = [split(6) if part is None else part for part in (validation, test)]
    return Dataset("mine", train, *kept, (), "made")


def network(*norm: nn.Module, scores: int = 3) -> Nested:
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(16, 5), *norm), nn.Linear(5, 5)]
    return Nested(stages, exits={0: nn.Linear(5, scores), 1: nn.Linear(5, scores)})


def spatial() -> Nested:
    stage = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    return Nested([stage], exits={0: nn.Sequential(nn.Flatten(), nn.Linear(8, 3))})


def run(net: Nested, data: Dataset, **recipe: Any) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    try:
        fit(net, data, replace(RECIPE, **recipe), cpu=True, progress=False)
    except ValueError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()), "nothing was done"
        raise


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([1, 2, 3] * 4, 3, r"labels go from 1 to 3, .*scores \(3\) are for labels from 0 to 2.*from 1: subtract 1"),
        ([0, 1, 7] * 4, 3, r"labels go from 0 to 7, .* from 0 to 2$"),
        ([0, 1] * 6, 1, r"labels go from 0 to 1, .*scores \(1\) .*each class needs a score of its own"),
    ],
)
def test_labels_without_a_score(labels: list[int], scores: int, reason: str) -> None:
    net, bad, good = network(scores=scores), split(12, labels), split(12, 2)
    own = split(12, labels)
    with pytest.raises(ValueError, match=reason):
        run(net, dataset(bad, own, own))
    with pytest.raises(ValueError, match=reason):
        measure(net, dataset(good, own, own))
    with pytest.raises(ValueError, match=reason):
        evaluate(net, [bad], Preprocess())
    with pytest.raises(ValueError, match=reason):
        confidence_for(net.eval(), bad)
    with pytest.raises(ValueError, match=reason):
        try_deadlines(net.eval(), bad, [1.0], catalogue=measure(net, input_shape=SHAPE))


def test_a_label_that_is_in_the_test_images_only() -> None:
    with pytest.raises(ValueError, match="labels go from 0 to 3"):
        run(network(), dataset(split(12), test=split(8, 4)))


def test_labels_are_classes() -> None:
    images = split(3).images
    for labels, reason in (
        (torch.tensor([0, -1, 1]), r"labels go from -1 to 1, .*scores \(3\) are for labels from 0 to 2"),
        (torch.tensor([0, 1, -100]), "labels go from -100 to 1"),
        (torch.tensor([0.0, 1.0, 1.0]), r"classes, int64 \[n\], not float32 \[3\]; see telescopic.tasks"),
        (torch.tensor([[0], [1], [2]]), r"classes, int64 \[n\], not int64 \[3, 1\]"),
    ):
        same = Split(images, labels)
        for call in (lambda same=same: run(network(), dataset(same, same, same)),
                     lambda same=same: evaluate(network(), [same], Preprocess())):  # fmt: skip
            with pytest.raises(ValueError, match=reason):
                call()


def test_numbers_that_are_not_finite() -> None:
    y = torch.arange(6) % 3
    for value, said in ((math.nan, "nan"), (math.inf, "inf")):
        x = torch.rand(6, 1, 4, 4)
        x[4, 0, 1, 2] = value
        with pytest.raises(ValueError, match=rf"inputs\[4, 0, 1, 2\] of a split of 6 examples is {said}"):
            run(network(), dataset(Split(x, y), split(0), split(0)))
    many = torch.zeros(5000, 1)
    many[4999] = math.nan
    with pytest.raises(ValueError, match=r"targets\[4999, 0\] of a split of 5000"):
        evaluate(network(scores=1), [Split(torch.rand(5000, 1, 4, 4), many)], Preprocess(), task=regression())


def test_splits_of_a_data_set_belong_together() -> None:
    with pytest.raises(
        ValueError, match=r"mine: training inputs uint8 \[6, 1, 4, 4\], but test inputs uint8 \[6, 3, 4, 4\]"
    ):
        dataset(split(6), test=split(6, shape=(3, 4, 4)))
    with pytest.raises(ValueError, match=r"mine: a label is 2, and the 2 classes are counted from 0"):
        replace(dataset(split(6)), classes=("a", "b"))


def test_images_that_the_network_does_not_take() -> None:
    data = dataset(*[split(12, shape=(3, 4, 4))] * 3)
    for call in (
        lambda: run(network(), data),
        lambda: measure(network(), data),
        lambda: recalibrate(network(nn.BatchNorm1d(5)), data.train),
    ):
        with pytest.raises(ValueError, match=r"does not take these images \[.*\] \[3, 4, 4\]: .*48"):
            call()
    with pytest.raises(ValueError, match=r"input_shape is \(1, 4, 4\), and the inputs of mine are \(3, 4, 4\)"):
        measure(network(), data, input_shape=SHAPE)
    with pytest.raises(ValueError, match=r"Preprocess takes numbers \[batch, 2, "):
        run(network(), dataset(split(12)), preprocess=Preprocess((0.0, 0.0), (1.0, 1.0)))
    pixelwise = Nested([nn.Conv2d(1, 3, 1)], exits={0: nn.Identity()})
    with pytest.raises(
        ValueError, match=r"scores \[batch, classes\], and this one an output of shape \[1, 2, 3, 4, 4\]"
    ):
        run(pixelwise, dataset(split(12)))


def test_one_class_is_no_data_to_learn_from() -> None:
    with pytest.raises(ValueError, match="mine has no training examples"):
        run(network(), dataset(split(0)))
    with pytest.raises(ValueError, match="all training examples of mine are of class 2: "):
        run(network(), dataset(split(12, [2] * 12)))
    with pytest.raises(ValueError, match=r"all training examples of mine are of class 1 \(b\)"):
        run(network(), replace(dataset(split(12, [1] * 12)), classes=("a", "b", "c")))
    with pytest.warns(
        UserWarning, match="all validation examples of mine are of class 1: accuracy on them says nothing"
    ):
        run(network(), dataset(split(12), validation=split(5, [1] * 5)))


def test_a_network_is_left_as_it_is() -> None:
    net = network(nn.BatchNorm1d(5), nn.Dropout()).train()
    frozen = next(m for m in net.modules() if isinstance(m, nn.BatchNorm1d)).eval()
    before, state = {m: m.training for m in net.modules()}, copy.deepcopy(net.state_dict())
    assert check_fits(net, [split(12)], Preprocess()) == 2
    with pytest.warns(UserWarning, match="BatchNorm has not yet seen"):
        evaluate(net, [split(12)], Preprocess())
    assert {m: m.training for m in net.modules()} == before and not frozen._forward_pre_hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("net", "least"), [(network(), 0), (network(nn.BatchNorm1d(5)), 2), (spatial(), 1), (spatial().stages[0], 1)]
)
def test_how_many_images_batch_norm_needs(net: nn.Module, least: int) -> None:
    assert tried(net, split(1), Preprocess())[1] == least
    if isinstance(net, Nested):
        for world in (1, 2, 3):
            assert check_training(net, dataset(split(12)), Preprocess(), 8, world) == max(1, world * least)


@pytest.mark.parametrize("num", [129, 257])
def test_a_last_batch_of_one_joins_the_one_before(num: int) -> None:
    net, sizes = network(nn.BatchNorm1d(5)), []
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm1d))
    handle = norm.register_forward_hook(lambda m, inputs, out: sizes.append(len(inputs[0])) if m.training else None)
    history = fit(net, dataset(split(num)), RECIPE, cpu=True, progress=False)
    handle.remove()
    assert sizes == [128] * (num // 128 - 1) + [129]
    assert torch.isfinite(torch.tensor(history[0].losses)).all() and int(norm.num_batches_tracked) == len(sizes)


def test_without_such_a_batch_norm_it_stays_alone() -> None:
    for net in (network(), spatial()):
        sizes: list[int] = []
        first = next(m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        seen = first.register_forward_hook(
            lambda m, inputs, out, sizes=sizes: sizes.append(len(inputs[0])) if m.training else None
        )
        fit(net, dataset(split(129)), RECIPE, cpu=True, progress=False)
        seen.remove()
        assert sizes == [128, 1]


def test_too_few_images_for_batch_norm() -> None:
    net = network(nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match="needs 2 examples in a batch, and these are batches of 1 from 12 examples"):
        run(net, dataset(split(12)), batch_size=1)
    with pytest.raises(ValueError, match=r"needs 6 examples in a batch, shared by 3 processes, .* of 4 from 12"):
        check_training(net, dataset(split(12)), Preprocess(), 4, 3)
    for few in ({"batch_size": 1}, {"num_images": 1}):
        with pytest.raises(ValueError, match="variance of 2 examples or more in a batch, not of 1"):
            recalibrate(net, split(12), **few)
    assert [len(y) for _, y in batches(split(12), 5, least=3)] == [5, 7]


def test_empty_parts_have_no_accuracy() -> None:
    net, empty = network(), split(0)
    history = fit(net, dataset(split(12), empty, empty), RECIPE, cpu=True, progress=False)
    assert all(map(math.isnan, (*history[0].validation, *history[0].test)))
    assert [member.accuracy for member in measure(net, dataset(split(12), empty, empty))] == [None, None]
    with pytest.raises(ValueError, match="there are none"):
        try_deadlines(net, empty, [1.0], catalogue=measure(net, input_shape=SHAPE))
