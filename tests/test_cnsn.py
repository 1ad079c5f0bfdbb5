"""CNSN: the paper's network, recipe and numbers, and what it claims."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from telescopic.bundle import load, save
from telescopic.catalogue import measure
from telescopic.cost import cost
from telescopic.data import Augment, Preprocess
from telescopic.extract import extract
from telescopic.layers import strided_stem
from telescopic.networks import vgg
from telescopic.papers import cnsn
from telescopic.subnet import Subnet
from telescopic.train import Objective

SHAPE = (3, 32, 32)


def test_the_network_is_the_papers() -> None:
    """13 convolutions with BatchNorm, and one linear layer; step-downs to 64 × 16 × 16 and 256 × 4 × 4."""
    net = cnsn.network()
    assert [net.grid.label(member) for member in net.grid] == ["entry=7", "entry=2", "entry=0"]
    convs = [m for m in extract(net) if isinstance(m, nn.Conv2d)]
    channels = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [conv.out_channels for conv in convs] == channels
    assert all(conv.kernel_size == (3, 3) and conv.bias is not None for conv in convs)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in extract(net)) == 13
    assert [m.out_features for m in extract(net) if isinstance(m, nn.Linear)] == [10]
    for entry, size, made in ((2, 2, 64), (7, 8, 256)):
        conv, norm, relu = net.entries[str(entry)]  # type: ignore[misc]
        assert (conv.in_channels, conv.out_channels) == (3, made)
        assert conv.kernel_size == conv.stride == (size, size) and conv.padding == (0, 0)
        assert type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU
        features = net.entries[str(entry)](torch.zeros(2, *SHAPE))
        assert features.shape[1:] == (made, 32 // size, 32 // size)


def test_costs_are_the_papers() -> None:
    """Section 2 of the paper's table; by what they skip, for its names of the sub-models are swapped."""
    net = cnsn.network()
    found = {m.label: (round(m.macs / 1e6, 1), round(m.params / 1e6, 3)) for m in measure(net, input_shape=SHAPE)}
    assert found == {"entry=7": (123.5, 13.040), "entry=2": (273.9, 14.690), "entry=0": (313.2, 14.728)}
    for row in cnsn.ROWS:
        module = extract(net, Subnet(entry=row.entry))
        assert round(cost(module, SHAPE, elementwise=True).macs / 1e9, 3) == row.gmacs


def test_the_full_network_is_an_ordinary_vgg() -> None:
    torch.manual_seed(0)
    ordinary = vgg(16, scale=0.125).eval()
    torch.manual_seed(0)
    net = cnsn.network(scale=0.125, entries=(1, 2, 12)).eval()
    x = torch.rand(2, *SHAPE)
    assert torch.equal(net(x), ordinary(x))
    assert len(net.grid) == 4


def test_the_bundle_holds_the_base_and_the_step_downs_only(tmp_path: Path) -> None:
    """Section 2: "we only required the storage of the base-model and several step-down convolutional layers"."""
    net = cnsn.network(scale=0.125)
    save(net, tmp_path / "family.safetensors", input_shape=SHAPE)
    save(extract(net), tmp_path / "base.safetensors", input_shape=SHAPE)
    more = sum(t.nbytes for entry in ("2", "7") for t in net.entries[entry].state_dict().values())
    family, base = (
        sum(t.nbytes for t in load_file(tmp_path / f"{name}.safetensors").values()) for name in ("family", "base")
    )
    assert family == base + more
    for member in net.grid:
        x = torch.rand(2, *SHAPE)
        assert torch.equal(load(tmp_path / "family.safetensors", member)(x), net.eval()(x, member))


def test_what_users_may_change() -> None:
    net = cnsn.network(entries=[7], scale=0.125, classes=4, input_shape=(1, 64, 32), adapter=strided_stem)
    assert net(torch.zeros(2, 1, 64, 32), Subnet(entry=7)).shape == (2, 4)
    assert sum(isinstance(m, nn.Conv2d) for m in net.entries["7"].modules()) == 3
    with pytest.raises(ValueError, match=r"entry 14 is outside this network of 14 blocks: give 0 to 13"):
        cnsn.network(entries=[14], scale=0.125)
    with pytest.raises(
        ValueError, match=r"from \(3, 33, 33\) down to \(8, 16, 16\) is impossible: 33 × 33 is no whole"
    ):
        cnsn.network(scale=0.125, input_shape=(3, 33, 33))


def test_a_member_alone_begins_with_the_same_weights() -> None:
    net = cnsn.network(scale=0.125, statistics="per-entry").eval()
    x = torch.rand(2, *SHAPE)
    for member in net.grid:
        assert member.entry is not None
        single = cnsn.alone(net, member.entry).eval()
        assert len(single.grid) == 1 and torch.equal(single(x), net(x, member))


def test_the_recipe_is_the_papers() -> None:
    recipe = cnsn.recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.momentum, recipe.nesterov) == (300, 32, 0.9, False)
    assert recipe.augment == Augment(pad=4, flip=True)
    assert (recipe.weight_decay, cnsn.recipe(baseline=True).weight_decay) == (6e-4, 6e-3)
    assert (recipe.l2, recipe.mix, recipe.weights, recipe.label_smoothing, recipe.distillation) == (0, None, None, 0, 0)
    rates = {epoch: recipe.rate(epoch, 0.0) for epoch in (1, 2, 50, 51, 100, 101, 150, 151, 300)}
    assert rates == pytest.approx(
        {1: 0, 2: 1e-2, 50: 1e-2, 51: 1e-3, 100: 1e-3, 101: 1e-4, 150: 1e-4, 151: 1e-5, 300: 1e-5}
    )
    assert recipe.rate(1, 0.25) == pytest.approx(2.5e-3)
    assert cnsn.recipe(epochs=30).milestones == (5, 10, 15)
    assert cnsn.recipe(epochs=1).rate(1) == 1e-2
    short = cnsn.short_recipe(epochs=10, preprocess=Preprocess((0.5,), (0.2,)))
    assert [round(short.rate(epoch, 0.0), 4) for epoch in (1, 2, 3, 7)] == [0.0, 0.05, 0.1, 0.05]
    assert short.preprocess.std == (0.2,)


def test_the_multi_model_loss_is_the_mean() -> None:
    net = cnsn.network(scale=0.0625)
    x, y = torch.rand(4, *SHAPE), torch.tensor([0, 3, 9, 1])
    loss, each = Objective(net, cnsn.recipe())(x, y)
    expected = torch.stack([functional.cross_entropy(logits, y, reduction="sum") for logits in net.all(x)])
    torch.testing.assert_close(each, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, each.mean())


def test_experiments() -> None:
    kinds = {}
    for name in cnsn.EXPERIMENTS:
        net, recipe = cnsn.experiment(name, scale=0.0625, epochs=7, short=name != "alone-0")
        assert recipe.epochs == 7
        kinds[name] = len(net.grid), len(net.stages), recipe.distillation, recipe.weight_decay
    joint = (3, 14, 0.0, 5e-4)
    assert kinds == {
        "joint": joint,
        "distilled": (3, 14, 0.5, 5e-4),
        "stem": joint,
        "stem-distilled": (3, 14, 0.5, 5e-4),
        "alone-0": (1, 14, 0.0, 6e-3),
        "alone-2": (1, 12, 0.0, 5e-4),
        "alone-7": (1, 7, 0.0, 5e-4),
        "alone-2-stem": (1, 12, 0.0, 5e-4),
        "alone-7-stem": (1, 7, 0.0, 5e-4),
    }
    with pytest.raises(ValueError, match="CNSN has no experiment 'alone'; there are joint, distilled"):
        cnsn.experiment("alone")
