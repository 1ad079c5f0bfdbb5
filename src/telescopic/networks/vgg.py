"""VGG for small images, with BatchNorm."""

from torch import nn

_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)


def vgg(depth: int = 16, classes: int = 10, *, channels: int = 3, scale: float = 1.0) -> nn.Sequential:
    """VGG with the classifier that CNSN gives it (section 3): one linear layer behind the last pooling.

    Each convolution is a block with its BatchNorm and ReLU; the last one of a group has the max pooling too. The block
    behind them takes the mean over what remains of the image (one pixel of 32 × 32) and gives the logits.

    Args:
        depth: 11, 13, 16 or 19, as the networks are called; the number of convolutions is three less.
        classes: number of classes.
        channels: channels of the image, of 32 × 32 pixels or more.
        scale: multiplies the channels of all layers: 0.25 makes a network of about a sixteenth of the size.

    Returns:
        A plain module of `depth - 2` blocks; `telescopic.nest` makes a family of it.

    Raises:
        ValueError: if there is no such depth, or a size is below 1.
    """
    if depth not in _GROUPS:
        raise ValueError(f"there is no VGG-{depth}: depth is one of {', '.join(map(str, _GROUPS))}")
    sizes = [round(size * scale) for size in _CHANNELS]
    if min(classes, channels, *sizes) < 1:
        raise ValueError(f"sizes of a network are 1 or more, not {[channels, *sizes, classes]}")
    blocks: list[nn.Module] = []
    for size, number in zip(sizes, _GROUPS[depth], strict=True):
        for place in range(number):
            conv = nn.Conv2d(channels, size, 3, padding=1)
            pool = [nn.MaxPool2d(2)] if place == number - 1 else []
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(size), nn.ReLU(), *pool))
            channels = size
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    return nn.Sequential(*blocks, head)
