"""Doubly Nested Network: sub-networks by depth and by width (Kim et al. 2018, arXiv 1806.07568).

A ResNet-32-like network that can be cut behind its first convolution or behind any of its 15 residual blocks, and at
any of 22 channel groups: 352 members. Its convolutions are channel-causal, so that the first groups never depend on the
rest; heads are shared by all widths; all members are trained together by the joint loss (Eq. 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from telescopic.cost.nominal import nominal_macs
from telescopic.data import Augment, Preprocess
from telescopic.nested import Nested
from telescopic.networks import causal_resnet
from telescopic.train import Recipe


@dataclass(frozen=True)
class Facts:
    """What the paper prints: sizes of the grid, and the one comparison of accuracies that its text states (Figure 5).

    Depth and width in the paper's names are counted from 0: D14 & W12 runs 14 blocks with 13 groups.

    Attributes:
        exits: places where a prediction is read.
        widths: numbers of channel groups.
        budget: most multiply-adds of one image, in the comparison.
        depth_only: blocks and groups of the best member that is cut by depth alone.
        ours: blocks and groups of the best member that may be cut both ways.
        gain: by how much the latter is more accurate, as a fraction.
    """

    exits: int = 16
    widths: int = 22
    budget: float = 24e6
    depth_only: tuple[int, int] = (5, 22)
    ours: tuple[int, int] = (14, 13)
    gain: float = 0.09


FACTS = Facts()
CHANNELS = (1, 2, 4)
"""Channels of a group in the three thirds of the network, inferred: 22 groups make 22, 44 and 88 channels."""


def network(groups: int = 22, *, channels: Sequence[int] = CHANNELS, classes: int = 10, in_channels: int = 3) -> Nested:
    """The paper's network.

    Args:
        groups: channel groups; the paper's 22, or 16 for the widths of a common ResNet-32.
        channels: channels of a group in each third.
        classes: number of classes.
        in_channels: channels of the image.
    """
    return causal_resnet(groups, channels, 5, classes, in_channels=in_channels)


def weights(
    net: Nested, *, depth: float = 0.0, width: float = 0.0, macs: float = 0.0, input_shape: Sequence[int] = (3, 32, 32)
) -> tuple[float, ...]:
    """λ(l, c) of the joint loss (Eq. 2) for each member, adding up to 1: depth^d · width^w · MACs^m.

    With all exponents 0 it is uniform, which is likely the paper's own choice, for it names none. Then hundreds of weak
    members outvote the few that matter most.

    Args:
        net: the network.
        depth: exponent of the number of stages that a member runs, its adapter counted.
        width: exponent of its number of groups.
        macs: exponent of its nominal multiply-adds.
        input_shape: shape of one input, for the multiply-adds.
    """
    prices = nominal_macs(net, input_shape) if macs else [1] * len(net.grid)
    raw = []
    for member, price in zip(net.grid, prices, strict=True):
        assert member.entry is not None and member.exit is not None and member.width is not None
        raw.append((member.exit - member.entry + 2) ** depth * member.width**width * price**macs)
    return tuple(value / sum(raw) for value in raw)


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


def alone(how: Recipe, net: Nested) -> Recipe:
    """The same recipe for the full network's loss alone: what sharing costs is measured against it."""
    return replace(how, weights=tuple(float(member == net.grid.full) for member in net.grid))
