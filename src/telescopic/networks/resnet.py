"""ResNet for small images."""

from typing import Literal

from torch import nn

from telescopic.layers import Residual
from telescopic.quantities import one_of


def resnet(
    depth: int = 20,
    classes: int = 10,
    *,
    channels: int = 3,
    width: int = 16,
    shortcut: Literal["pad", "projection"] = "projection",
) -> nn.Sequential:
    """The residual network for CIFAR-10 (He et al. 2016, section 4.2).

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56, ...
        classes: number of classes.
        channels: channels of the image.
        width: channels of the first third; the second has twice, the last four times as many.
        shortcut: what goes around a block in which shapes change: `pad` takes every second pixel and adds channels of
            zeros (their option A, which the paper used), `projection` is a 1 × 1 convolution (option B).

    Returns:
        A plain module of (depth - 2) / 2 + 2 blocks: the first convolution, the residual blocks, and the one that
        gives the logits. `telescopic.nest` makes a family of it.

    Raises:
        ValueError: if the depth is not of this form, a size is below 1, or there is no such shortcut.
    """
    number, rest = divmod(depth - 2, 6)
    if number < 1 or rest:
        raise ValueError(f"a ResNet for CIFAR has 6n + 2 layers, such as 8, 14, 20, 32, 56; not {depth}")
    if min(classes, channels, width) < 1:
        raise ValueError(f"sizes of a network are 1 or more, not {[channels, width, classes]}")
    one_of("shortcut", shortcut, ("pad", "projection"))
    blocks: list[nn.Module] = [nn.Sequential(_conv(channels, width), nn.BatchNorm2d(width), nn.ReLU())]
    given = width
    for made in (width, 2 * width, 4 * width):
        for place in range(number):
            stride = 2 if made != given and place == 0 else 1
            body = nn.Sequential(
                _conv(given, made, stride), nn.BatchNorm2d(made), nn.ReLU(), _conv(made, made), nn.BatchNorm2d(made)
            )
            around = _around(shortcut, given, made)
            blocks.append(Residual(body, around if stride > 1 else nn.Identity()))
            given = made
    return nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes)))


def _conv(given: int, made: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, stride, padding=1, bias=False)


def _around(shortcut: str, given: int, made: int) -> nn.Sequential:
    if shortcut == "pad":
        return nn.Sequential(nn.AvgPool2d(1, 2), nn.ZeroPad3d((0, 0, 0, 0, 0, made - given)))
    return nn.Sequential(nn.Conv2d(given, made, 1, 2, bias=False), nn.BatchNorm2d(made))
