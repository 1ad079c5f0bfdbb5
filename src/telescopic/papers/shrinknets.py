"""ShrinkNets (Leclerc, Fernandez and Madden): a network that learns its own width while it is trained.

It starts too wide. A filter layer multiplies each channel by max(0, θ), a penalty λ·Σ max(0, θ) pushes θ to 0, and
channels that are dead are removed after each epoch, so that training becomes faster as it goes on. One number, λ, takes
the place of all widths.

The draft prints the penalty as λ|θ|, which would push dead channels back to life. The authors' code has λ·Σ max(0, θ),
and so has this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from telescopic.cost import Cost, cost
from telescopic.data import Dataset, Preprocess, prepared
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.networks import lenet, resnet
from telescopic.papers.paper import Build, Option
from telescopic.quantities import one_of
from telescopic.shrink.family import add_filters_to_family, fold_family
from telescopic.train import Recipe, Shrink
from telescopic.train.checkpoint import read_history
from telescopic.train.keeper import LAST


@dataclass(frozen=True)
class Units:
    """Figure 1: hidden units that are left of 10,000 after some epochs, for one λ. None is not known."""

    data: str
    penalty: float
    epoch_1: int | None
    epoch_5: int | None
    epoch_100: int

    @property
    def left(self) -> dict[int, int]:
        """Epoch → units, as far as they are known."""
        found = {1: self.epoch_1, 5: self.epoch_5, 100: self.epoch_100}
        return {epoch: units for epoch, units in found.items() if units is not None}


FIGURE_1 = (
    Units("mnist", 1e-1, 7634, 35, 25),
    Units("mnist", 1e-2, 7708, 121, 54),
    Units("mnist", 1e-3, 7980, 542, 104),
    Units("mnist", 1e-4, 9072, 4153, 172),
    Units("mnist", 1e-5, 9836, 8825, 441),
    Units("fashion-mnist", 1e-1, None, None, 15),
    Units("fashion-mnist", 1e-2, None, None, 47),
    Units("fashion-mnist", 1e-3, None, None, 164),
    Units("fashion-mnist", 1e-4, None, None, 582),
    Units("fashion-mnist", 1e-5, None, None, 1196),
)


@dataclass(frozen=True)
class Medians:
    """Figure 2: median test accuracy of 50 random models of each kind."""

    network: str
    data: str
    fixed: float
    fixed_l2: float
    shrinknets: float

    def of(self, kind: str) -> float:
        """That of one kind."""
        return float(getattr(self, kind.replace("-", "_")))


FIGURE_2 = (
    Medians("mlp", "mnist", 0.9819, 0.9800, 0.9830),
    Medians("mlp", "fashion-mnist", 0.8885, 0.8840, 0.8938),
    Medians("mlp", "cifar10", 0.5026, 0.5136, 0.5308),
    Medians("lenet", "mnist", 0.9921, 0.9925, 0.9934),
    Medians("lenet", "fashion-mnist", 0.9045, 0.9050, 0.9148),
    Medians("lenet", "cifar10", 0.6688, 0.6709, 0.7159),
)

NETWORKS: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one-layer": ((), (10_000,)),
    "mlp": ((), (500, 500, 500)),
    "lenet": ((50, 50), (5000,)),
    "resnet20": ((16,), ()),
}
"""Channels of the convolutions and features of the hidden layers with which each network starts. The text says 5000 for
the MLP of Figure 2, but 500 is what ran. The ResNet is ours, for in the paper the sum of a residual block keeps its
channels; its one number is the width of its first third, and the others have twice and four times as many."""

EPOCHS = {"one-layer": 100, "mlp": 100, "lenet": 200}
"""Epochs for each network, as in the paper."""


def network(
    kind: str = "one-layer",
    *,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    widths: Sequence[int] | None = None,
    learned: bool = True,
) -> Nested:
    """One of the paper's networks, or a ResNet-20, initialised: weights Xavier-normal with a gain of √2.

    Args:
        kind: a name in `NETWORKS`.
        input_shape: channels, height and width of an image.
        classes: number of classes.
        widths: of each layer but the last, from the first, and of a ResNet of its first third; default: see `NETWORKS`.
        learned: whether there is a filter behind each layer but the last, before its ReLU.

    Returns:
        A network of one member.

    Raises:
        ValueError: if there is no such kind, it has another number of widths, or the image is too small for it.
    """
    one_of("network", kind, NETWORKS)
    channels, hidden = NETWORKS[kind]
    if widths is not None and kind != "one-layer" and len(widths) != len(channels) + len(hidden):
        raise ValueError(
            f"{kind} has {len(channels) + len(hidden)} widths, and these are {len(widths)}: {list(widths)}"
        )
    if widths is not None:
        channels, hidden = tuple(widths[: len(channels)]), tuple(widths[len(channels) :])
    if kind == "resnet20":
        *blocks, head = resnet(20, classes, channels=input_shape[0], width=channels[0])
    else:
        *blocks, head = lenet(classes, input_shape=input_shape, channels=channels, hidden=hidden)
    for part in nn.ModuleList([*blocks, head]).modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(part.weight, math.sqrt(2))
    net = Nested(blocks, exits={len(blocks) - 1: head})
    return add_filters_to_family(net, torch.zeros(2, *input_shape)) if learned else net


def recipe(
    *,
    penalty: float | None = 1e-3,
    epochs: int = 100,
    weight_decay: float = 0.0,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> Recipe:
    """The paper's recipe: Adam with a rate of 1e-3, batches of 256, dead channels removed after each epoch.

    Args:
        penalty: λ; None for a network without filters.
        epochs: passes over the training images.
        weight_decay: λ of the L2 penalty λ/2·Σw², as torch's Adam has it.
        preprocess: mean and standard deviation of each channel.
        options: further ones of `Shrink`.
    """
    return Recipe(
        epochs=epochs,
        batch_size=256,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=weight_decay,
        shrink=None if penalty is None else Shrink(penalty=penalty, **options),
        preprocess=preprocess or Preprocess(),
    )


WAYS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "masked": {"collect": None},
    "proximal": {"method": "proximal"},
    "random": {"method": "random"},
}
"""Ways to shrink: the paper's, what it would be without removing anything, and its future work."""


def experiment(
    name: str,
    *,
    epochs: int = 100,
    units: int = 10_000,
    preprocess: Preprocess | None = None,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
) -> tuple[Nested, Recipe]:
    """The network and recipe of one run of Figure 1.

    Args:
        name: λ, such as `1e-3`, and perhaps a way of `WAYS`: `1e-3-masked`.
        epochs: passes over the training images.
        units: hidden units to start with.
        preprocess: mean and standard deviation of each channel.
        input_shape: channels, height and width of an image.
        classes: number of classes.

    Raises:
        ValueError: if there is no such experiment.
    """
    penalty, way = parse(name)
    how = recipe(penalty=penalty, epochs=epochs, preprocess=preprocess, **WAYS[way])
    return network(input_shape=input_shape, classes=classes, widths=(units,)), how


def parse(name: str) -> tuple[float, str]:
    """`1e-3-masked` → (0.001, "masked").

    Raises:
        ValueError: if that is no experiment.
    """
    number, _, way = name.rpartition("-")
    if way not in WAYS or not way:
        number, way = name, ""
    try:
        penalty = float(number)
    except ValueError:
        penalty = math.nan
    if not 0 <= penalty < math.inf:
        ways = ", ".join(way for way in WAYS if way)
        raise ValueError(f"ShrinkNets has no experiment {name!r}: give λ such as 1e-3, or with a way, 1e-3-masked; "
                         f"ways are {ways}")  # fmt: skip
    return penalty, way


KINDS = ("fixed", "fixed-l2", "shrinknets")
"""Kinds of models that Figure 2 draws at random."""


@dataclass(frozen=True)
class Space:
    """From what Figure 2 draws the models of one cell.

    Attributes:
        penalties: λ of ShrinkNets or of L2 lies between these, with a uniform logarithm.
        hidden: so does the base-2 logarithm of the features of a linear layer of fixed width.
        channels: between these lies the number of channels of a convolution of fixed width.
    """

    penalties: tuple[float, float]
    hidden: tuple[float, float] = (4.0, 12.0)
    channels: tuple[int, int] = (1, 50)


def space(data: str) -> Space:
    """From what the models for some data are drawn."""
    return Space((1e-6 if data == "cifar10" else 1e-5, 1e-2))


def random_model(
    kind: str,
    network_kind: str,
    *,
    penalty: float,
    widths: Sequence[int] | None,
    epochs: int,
    preprocess: Preprocess | None = None,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
) -> tuple[Nested, Recipe]:
    """The network and recipe of one model of Figure 2.

    Args:
        kind: one of `KINDS`.
        network_kind: `mlp` or `lenet`.
        penalty: λ of ShrinkNets, or of L2; `fixed` takes none.
        widths: of a network of fixed widths; None for ShrinkNets, which start with the paper's.
        epochs: passes over the training images.
        preprocess: mean and standard deviation of each channel.
        input_shape: channels, height and width of an image.
        classes: number of classes.
    """
    learned = kind == "shrinknets"
    net = network(network_kind, input_shape=input_shape, classes=classes, widths=widths, learned=learned)
    how = recipe(penalty=penalty if learned else None, epochs=epochs, preprocess=preprocess)
    return net, replace(how, weight_decay=penalty if kind == "fixed-l2" else 0.0)


def train(
    *,
    penalty: Annotated[
        float, Option("λ, which takes the place of all widths: the larger, the smaller the network.", least=0)
    ] = 1e-3,
    network: Annotated[
        str, Option("one-layer (10,000 units), mlp (500, 500, 500), lenet (50, 50, 5000), resnet20 (16).")
    ] = "one-layer",
    widths: Annotated[
        tuple[int, ...] | None,
        Option("Widths to start with, e.g. 2000. (default: the network's)", such_as="500,500,500"),
    ] = None,
    by: Annotated[str, Option("What a channel weighs: 1 (channels), its params, or its macs.")] = "channels",
    method: Annotated[str, Option("gradient (the paper), proximal (exact zeros), or random removal.")] = "gradient",
    collect: Annotated[
        str, Option("When dead channels are removed: epoch (the paper), never, or a number of steps.")
    ] = "epoch",
    epochs: Annotated[int, Option("Passes over the training images; the paper takes 100.", least=1)] = 20,
) -> Build:
    """Train a network that learns its widths and gets faster meanwhile (Leclerc et al., ShrinkNets)."""
    one_of("network", network, NETWORKS)
    when: str | int | None = {"never": None}.get(collect, int(collect) if collect.isdecimal() else collect)
    how = recipe(penalty=penalty, epochs=epochs, by=by, method=method, collect=when)
    return partial(_built, kind=network, widths=widths, how=how)


def _built(images: Dataset, *, kind: str, widths: Sequence[int] | None, how: Recipe) -> tuple[Nested, Recipe]:
    net = network(kind, input_shape=images.image_shape, classes=len(images.classes), widths=widths)
    return net, replace(how, preprocess=Preprocess.fit(images.train))


def price(net: Nested, recipe: Recipe, images: Dataset) -> Cost:
    """What one image costs a network when it has been trained; its filters are part of its weights then."""
    if recipe.shrink is not None:
        net = fold_family(net, prepared(images.train.images[:2], recipe.preprocess, next(net.parameters())))
    return cost(extract(net), images.input_shape)


def says(folder: Path) -> str:
    """What a network has become that learned its widths."""
    history = read_history(folder / LAST)
    first, last, seconds = history[0], history[-1], sum(epoch.seconds for epoch in history)
    layers = ", ".join(f"{name} {width:,}" for name, width in zip(history.filters, last.widths, strict=True))
    share = 100 * sum(epoch.compacting for epoch in history) / seconds
    return (
        f"Channels left: {layers}. The filters are part of the weights in {folder}: it is an ordinary network.\n"
        f"The last epoch was {last.images_per_s / first.images_per_s:.1f} times as fast as the first; removing "
        f"channels took {share:.1f} % of the time."
    )
