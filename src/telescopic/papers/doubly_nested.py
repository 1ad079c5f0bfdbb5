"""Doubly Nested Network: sub-networks by depth and by width (Kim et al. 2018, arXiv 1806.07568).

A ResNet-32-like network that can be cut behind its first convolution or behind any of its 15 residual blocks, and at
any of 22 channel groups: 352 members. Its convolutions are channel-causal, so that the first groups never depend on the
rest; heads are shared by all widths; all members are trained together by the joint loss (Eq. 2).

Trained so, hundreds of weak members outvote the few that matter most: `WAYS` are what we have tried against that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import nn

from telescopic.data import Augment, Preprocess
from telescopic.extract import extract
from telescopic.layers import CausalBatchNorm2d, CausalConv2d, GradientScale, Residual
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.networks import causal_resnet
from telescopic.papers.doubly_nested_ways import BEST_WAY as BEST_WAY
from telescopic.papers.doubly_nested_ways import LAMBDAS as LAMBDAS
from telescopic.papers.doubly_nested_ways import WAYS as WAYS
from telescopic.papers.doubly_nested_ways import Way as Way
from telescopic.papers.doubly_nested_ways import told as told
from telescopic.papers.doubly_nested_ways import weights as weights
from telescopic.papers.paper import Build, Option, sizes
from telescopic.quantities import one_of
from telescopic.train import Recipe


@dataclass(frozen=True)
class Facts:
    """What the paper prints: sizes of the grid, and the one comparison of accuracies that its text states (Figure 5).

    Depth and width in the paper's names are counted from 0: D14 & W12 runs 14 blocks with 13 groups.

    Attributes:
        exits: places where a prediction is read.
        widths: numbers of channel groups.
        budget: most multiply-adds of one image, in the comparison.
        full_macs: what the full member needs; inferred, as the channels are.
        depth_only: blocks and groups of the best member that is cut by depth alone.
        ours: blocks and groups of the best member that may be cut both ways.
        gain: by how much the latter is more accurate, as a fraction.
    """

    exits: int = 16
    widths: int = 22
    budget: float = 24e6
    full_macs: float = 68.2e6
    depth_only: tuple[int, int] = (5, 22)
    ours: tuple[int, int] = (14, 13)
    gain: float = 0.09


FACTS = Facts()
CHANNELS = (1, 2, 4)
"""Channels of a group in the three thirds of the network, inferred: 22 groups make 22, 44 and 88 channels."""

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "aligned": {"groups": 2, "channels": (16, 32, 64), "blocks": 2},
    "paper": {"groups": 22, "channels": CHANNELS, "blocks": 5},
}
"""Sizes for `network`. Processors like multiples of 16 channels, so the aligned one is what to use: 7 exits × 2 widths,
78.7 M multiply-adds (nominal), where the paper's has 68.2 M."""


def network(
    groups: int = 22,
    *,
    channels: Sequence[int] = CHANNELS,
    blocks: int = 5,
    classes: int = 10,
    in_channels: int = 3,
    early_gradient: float = 1.0,
    early_transform: bool = False,
    conditioned: bool = False,
    separate: bool = False,
) -> Nested:
    """The paper's network.

    Args:
        groups: channel groups; the paper's 22, or 16 for the widths of a common ResNet-32.
        channels: channels of a group in each third.
        blocks: residual blocks in each third.
        classes: number of classes.
        in_channels: channels of the image.
        early_gradient: share of the gradient from every exit but the last that reaches the stages before it; the
            paper's is 1.
        early_transform: whether every head but the last begins with a causal 1 × 1 convolution of its own, BatchNorm
            and ReLU, so that what an early exit needs need not be what the next block is given; the paper has none.
        conditioned: whether each member has a scale and a shift of its own in its head, see `layers.SharedHead`; the
            paper's has none, and names it as future work.
        separate: whether each member has room for weights of its own in its head, see `layers.SharedHead`.
    """
    reads: dict[str, Any] = {"conditioned": conditioned, "separate": separate}
    net = causal_resnet(groups, channels, blocks, classes, in_channels=in_channels, **reads)
    for exit_, head in list(net.exits.items())[:-1]:
        assert isinstance(head, nn.Sequential)
        before: list[nn.Module] = [] if early_gradient == 1 else [GradientScale(early_gradient)]
        if early_transform:
            features: Any = head[-1].in_features
            conv = CausalConv2d(features, features, 1, bias=False, width_groups=groups)
            before += [conv, CausalBatchNorm2d(features, width_groups=groups), nn.ReLU()]
        net.exits[exit_] = nn.Sequential(*before, *head)
    return net


def recipe(*, epochs: int = 30, preprocess: Preprocess | None = None) -> Recipe:
    """A recipe for CIFAR-10; the paper says nothing of its own.

    Args:
        epochs: passes over the training images.
        preprocess: mean and standard deviation of each channel.
    """
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=0.2,
        schedule="one-cycle",
        warmup=epochs / 5,
        nesterov=True,
        weight_decay=5e-4,
        preprocess=preprocess or Preprocess(),
        augment=Augment(pad=4, flip=True),
    )


_SINGLE = re.compile(r"(alone|dense)(?:-x(\d+))?(?:-w(\d+))?")


def experiment(
    name: str,
    *,
    groups: int = 22,
    channels: Sequence[int] = CHANNELS,
    blocks: int = 5,
    epochs: int = 30,
    preprocess: Preprocess | None = None,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
) -> tuple[Nested, Recipe]:
    """The network and recipe of one experiment.

    Names are those of `WAYS`, and two for one network by itself: `alone` is the causal network that learns its full
    member's loss only; `dense` the ordinary ResNet with as many channels (Figure 4's "full training"). `alone-w8` and
    `dense-w8` have 8 groups, `alone-x7` ends behind stage 7, and `alone-x7-w8` does both.

    Args:
        name: which.
        groups: see `network`.
        channels: see `network`.
        blocks: see `network`.
        epochs: passes over the training images.
        preprocess: mean and standard deviation of each channel.
        input_shape: channels, height and width of an image.
        classes: number of classes.

    Raises:
        ValueError: if there is no such experiment, or the network has no such width or exit.
    """
    kind, exit_, width = member(name, groups, len(channels) * blocks - 1)
    way = WAYS.get(name, Way(weights="full-only"))
    net = network(
        width,
        channels=channels,
        blocks=blocks,
        classes=classes,
        in_channels=input_shape[0],
        early_gradient=way.early_gradient,
        early_transform=way.early_transform,
        conditioned=way.conditioned,
        separate=way.fit_heads,
    )
    if kind:
        exits = {exit_: net.exits[str(exit_)]}
        net = Nested(list(net.stages)[: exit_ + 1], {0: net.entries["0"]}, exits, groups=width)
    if kind == "dense":
        return dense(net), recipe(epochs=epochs, preprocess=preprocess)
    return net, told(recipe(epochs=epochs, preprocess=preprocess), way, net, input_shape)


def member(name: str, groups: int, last: int) -> tuple[str, int, int]:
    """What an experiment trains: `alone`, `dense`, or "" for all members; the last exit, and the number of groups.

    Args:
        name: of the experiment.
        groups: of the whole network.
        last: exit of the whole network.

    Raises:
        ValueError: if there is no such experiment, or the network has no such width or exit.
    """
    single = _SINGLE.fullmatch(name)
    if name not in WAYS and single is None:
        raise ValueError(
            f"Doubly Nested Network has no experiment {name!r}; there are {', '.join(WAYS)}, alone and dense, and by "
            "width and exit alone-w8, alone-x7, alone-x7-w8, dense-w8"
        )
    kind, x, w = single.groups() if single else ("", None, None)
    exit_, width = int(x or last), int(w or groups)
    if not (1 <= width <= groups and exit_ <= last):
        raise ValueError(f"{name} is no member of this network: it has {groups} widths, and exits up to {last}")
    return kind, exit_, width


def dense(net: Nested) -> Nested:
    """The ordinary residual network of the same shape as the full member, newly initialised: no weight is masked.

    Its zeros on the way around a block stand between the channels, not behind them, which for a dense network is a
    matter of numbering.
    """
    layers = list(extract(net))
    for conv in (part for layer in layers for part in layer.modules() if isinstance(part, nn.Conv2d)):
        conv.reset_parameters()
    places = [place for place, layer in enumerate(layers) if isinstance(layer, Residual)]
    first, last = places[0], places[-1]
    stem, head = nn.Sequential(*layers[:first]), nn.Sequential(*layers[last + 1 :])
    return Nested(layers[first : last + 1], {0: stem}, {last - first: head})


@torch.no_grad()
def slice_(narrow: Nested, wide: Nested) -> None:
    """Give a narrow dense network the first channels of a wide one: Figure 4's "brute-force slicing"."""
    # In the same order; their names may differ, for of one group nothing was made narrower.
    for mine, theirs in zip(named_tensors(narrow).values(), named_tensors(wide).values(), strict=True):
        mine.copy_(theirs[tuple(map(slice, mine.shape))])


def classifier_only_(net: Nested, how: Recipe, *, epochs: int = 2) -> Recipe:
    """Let only a network's classifier learn (Figure 4's "fine-tuning"), and give the recipe for it.

    The weights before it are fixed. BatchNorm's statistics follow the features that are left, which the paper does not
    say and which makes the scheme better than it would be without.

    Args:
        net: the network; its other weights get no gradient any more.
        how: the recipe it was trained by.
        epochs: passes over the training images.
    """
    for part in (*net.entries.values(), *net.stages):
        part.requires_grad_(False)
    return replace(how, epochs=epochs, warmup=epochs / 5, learning_rate=how.learning_rate / 4)


def train(
    *,
    network: Annotated[
        str, Option("aligned (2 groups of 16, 32, 64 channels: quick on any processor), or paper.")
    ] = "aligned",
    groups: Annotated[int | None, Option("Channel groups, and so widths. (default: the network's)", least=2)] = None,
    channels: Annotated[
        tuple[int, ...] | None,
        Option("Channels of a group in each part, e.g. 1,2,4. (default: the network's)", such_as="1,2,4"),
    ] = None,
    blocks: Annotated[int | None, Option("Residual blocks a part. (default: the network's)", least=1)] = None,
    way: Annotated[
        str, Option("How members learn together: uniform (the paper), macs, ...; a wrong one lists all.")
    ] = BEST_WAY,
    epochs: Annotated[int, Option("Passes over the training images.", least=1)] = 30,
) -> Build:
    """Train Doubly Nested: a ResNet that can be cut by depth and by width (Kim et al. 2018)."""
    one_of("network", network, NETWORKS)
    one_of("way", way, WAYS)
    named = {"groups": groups, "channels": channels, "blocks": blocks}
    chosen = {**NETWORKS[network], **{name: size for name, size in named.items() if size is not None}}
    return lambda images: experiment(way, **chosen, epochs=epochs, **sizes(images))
