"""The network of Doubly Nested Network: a ResNet that can be cut along its depth and its width."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from telescopic.layers import CausalBatchNorm2d, CausalConv2d, GlobalAvgPool2d, Residual, SharedHead
from telescopic.nested import Nested
from telescopic.quantities import one_of


def causal_resnet(
    groups: int = 22,
    channels: Sequence[int] = (1, 2, 4),
    blocks: int = 5,
    classes: int = 10,
    *,
    in_channels: int = 3,
    shortcut: Literal["pad", "projection"] = "pad",
    average: bool = False,
    conditioned: bool = False,
    separate: bool = False,
) -> Nested:
    """Build the residual network of Doubly Nested Network (2018, section 4), by default with its 16 exits × 22 widths.

    The first convolution is the adapter of entry 0; each residual block is a stage. The prediction may be read behind
    every one of them, exit -1 being right behind the first convolution. The paper's sizes are not stated and inferred
    from its figures: 68.2 M multiply-adds (nominal, see `cost.nominal_macs`) against 68.9 M for the ResNet-32 of
    `resnet(32, shortcut="pad")`.

    The paper's groups are narrow, and processors like multiples of 16 channels: `groups=4, channels=(16, 32, 64)`
    keeps to them, `groups=16` has the 16, 32 and 64 channels of ResNet-32.

    Args:
        groups: number of channel groups, and so of widths.
        channels: channels of a group in each part of the network; the image is halved between parts.
        blocks: residual blocks in each part, of two 3 × 3 convolutions each.
        classes: number of classes.
        in_channels: channels of the image.
        shortcut: what goes around a block in which shapes change. `pad` takes every second pixel and gives each group
            its own new channels of zeros (ResNet's zeros behind all channels would move channels to other groups);
            `projection` is a causal 1 × 1 convolution.
        average: see `layers.SharedHead`.
        conditioned: see `layers.SharedHead`.
        separate: see `layers.SharedHead`.

    Returns:
        A nested network with `len(channels) * blocks + 1` exits.

    Raises:
        ValueError: if a size is below 1, or zeros cannot be padded since a group has fewer channels than before.
    """
    sizes = [*channels, groups, blocks, classes, in_channels]
    if not channels or min(sizes) < 1:
        raise ValueError(f"sizes of a network are 1 or more, not channels={tuple(channels)} and {sizes[-4:]}")
    one_of("shortcut", shortcut, ("pad", "projection"))
    if shortcut == "pad" and list(channels) != sorted(channels):
        raise ValueError(f"groups of {tuple(channels)} channels cannot be padded to fewer: use shortcut='projection'")
    given = channels[0]
    first = nn.Conv2d(in_channels, groups * given, 3, padding=1, bias=False)
    stages: list[nn.Module] = []
    made_by = [given]
    for part, made in enumerate(channels):
        for place in range(blocks):
            stride = 2 if part > 0 and place == 0 else 1
            body = nn.Sequential(
                *_conv(groups, given, made, 3, stride), nn.ReLU(), *_conv(groups, made, made, 3, 1)
            )  # fmt: skip
            stages.append(Residual(body, _around(shortcut, groups, given, made, stride)))
            made_by.append(made)
            given = made
    reads: dict[str, Any] = {"average": average, "conditioned": conditioned, "separate": separate}
    heads = {
        number - 1: nn.Sequential(GlobalAvgPool2d(), SharedHead(groups * made, classes, width_groups=groups, **reads))
        for number, made in enumerate(made_by)
    }
    stem = nn.Sequential(first, CausalBatchNorm2d(groups * channels[0], width_groups=groups), nn.ReLU())
    return Nested(stages, {0: stem}, heads, groups=groups)


def _conv(groups: int, given: int, made: int, kernel: int, stride: int) -> list[nn.Module]:
    """A causal convolution and its BatchNorm; channels are those of a group."""
    sizes = (groups * given, groups * made, kernel, stride, kernel // 2)
    return [
        CausalConv2d(*sizes, bias=False, width_groups=groups),
        CausalBatchNorm2d(groups * made, width_groups=groups),
    ]


def _around(shortcut: str, groups: int, given: int, made: int, stride: int) -> nn.Module | None:
    if stride == 1 and given == made:
        return None
    if shortcut == "projection":
        return nn.Sequential(*_conv(groups, given, made, 1, stride))
    return nn.Sequential(
        nn.AvgPool2d(1, stride),
        nn.Unflatten(1, (-1, given)),  # [batch, groups, channels of a group, height, width]
        nn.ZeroPad3d((0, 0, 0, 0, 0, made - given)),
        nn.Flatten(1, 2),
    )
