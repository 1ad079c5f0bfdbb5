"""Networks of every kind keep the laws; each law notices a network that breaks it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from telescopic import Grid, Nested, Subnet, architecture, register_layer
from telescopic.networks import mlp
from telescopic.papers import nsn
from telescopic.testing import check_nested, laws


class Around(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Reader(nn.Module):
    """An LSTM that hands on its outputs only."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.lstm = nn.LSTM(size, size, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class Calls(nn.Module):
    """A module that is its function of itself and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **held: object) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above can be kept in bundles, in this test."""
    monkeypatch.setattr(architecture, "_LAYERS", dict(architecture._LAYERS))
    register_layer(Around)
    register_layer(Reader)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def pooled(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def convolutional(**options: Any) -> Nested:
    """Uneven channels, two strides, three entries and three exits, BatchNorm everywhere."""
    torch.manual_seed(0)
    stages = [conv(2, 5), conv(5, 3, stride=2), conv(3, 8)]
    entries = {0: nn.Identity(), 1: nn.Conv2d(2, 5, 1), 2: nn.Sequential(nn.Conv2d(2, 3, 2, 2), nn.BatchNorm2d(3))}
    exits = {0: pooled(5), 1: nn.Sequential(nn.BatchNorm2d(3), pooled(3)), 2: pooled(8)}
    return Nested(stages, entries, exits, **options)


def residual() -> Nested:
    body = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
    stages = [conv(1, 4), Around(body), Around(nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 1)))]
    heads = {i: pooled(4) for i in range(3)}
    return Nested(stages, {0: nn.Identity(), 1: nn.Conv2d(1, 4, 1)}, heads, dropout=(0.5,))


def silent() -> Nested:
    """Heads that start at zero, a layer that is frozen."""
    net = mlp(4, (3, 4), 2)
    nn.init.zeros_(net.exits["1"].weight)
    net.stages[1].requires_grad_(False)
    return net


def encoder() -> Nested:
    layers = [nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True) for _ in range(2)]
    return Nested(layers, exits={i: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for i in (-1, 0, 1)})


def tied() -> Nested:
    shared, tanh = nn.Linear(3, 3), nn.Tanh()
    stages = [nn.Sequential(shared, nn.Tanh(), shared), tanh, nn.Linear(3, 3)]
    return Nested(stages, {i: nn.Identity() for i in range(4)}, {0: tanh, 1: tanh, 2: nn.Identity()})


FAMILIES: dict[str, tuple[Callable[[], Nested], tuple[int, ...]]] = {
    "nsn": (lambda: nsn.network(2, inputs=16), (1, 4, 4)),
    "uneven mlp": (lambda: mlp(6, (9, 4, 6), 3, dropout=(0.2, 0.5)), (2, 3)),
    "chosen entries": (lambda: mlp(6, (9, 4), 3, entries=(1, 2)), (6,)),
    "one member": (lambda: nsn.network(2, inputs=6, reference=True), (6,)),
    "softmax alone": (lambda: mlp(6, (), 3), (6,)),
    "stages alone": (lambda: Nested([nn.Linear(4, 4), nn.Linear(4, 2)]), (4,)),
    "convolutional": (convolutional, (2, 4, 4)),
    "statistics per entry": (lambda: convolutional(statistics="per-entry"), (2, 4, 4)),
    "residual": (residual, (1, 4, 4)),
    "exit before all": (
        lambda: Nested([nn.Linear(4, 4)] * 1, exits={-1: nn.Linear(4, 2), 0: nn.Linear(4, 2)}, dropout=(0.3,)),
        (4,),
    ),
    "silent at first": (silent, (4,)),
    "recurrent": (lambda: Nested([Reader(3), Reader(3)], {0: nn.Linear(3, 3), 1: nn.Linear(3, 3)},
                                 {0: nn.Flatten(), 1: nn.Flatten()}), (2, 3)),
    "attention": (encoder, (3, 4)),
    "tied in a stage": (tied, (3,)),
}  # fmt: skip
NOT_REBUILT = {"attention"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("registered")
def test_families_keep_the_laws(name: str) -> None:
    torch.manual_seed(1)
    build, shape = FAMILIES[name]
    check_nested(build(), shape, rebuild=name not in NOT_REBUILT)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_random_mlps_keep_the_laws(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), max_size=3))
    entries = data.draw(st.none() | st.sets(st.integers(0, len(sizes)), min_size=1))
    dropout = data.draw(st.lists(st.sampled_from([0, 0.5]), max_size=3))
    net = mlp(data.draw(st.integers(1, 6)), sizes, data.draw(st.integers(1, 4)), entries=entries, dropout=dropout)
    check_nested(net, (net.entries[str(net.grid.full.entry)], net)[1].__dict__.get("shape", (1,)) if False else (0,))
