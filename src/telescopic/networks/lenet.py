"""LeNet-5 as people build it now: two convolutions with max pooling, ReLU, and linear layers."""

from collections.abc import Sequence

from torch import nn


def lenet(
    classes: int = 10,
    *,
    input_shape: tuple[int, int, int] = (1, 28, 28),
    channels: Sequence[int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
    kernel: int = 5,
) -> nn.Sequential:
    """Build LeNet-5.

    Args:
        classes: number of classes.
        input_shape: channels, height and width of an image.
        channels: of each convolution, which max pooling follows that halves the image.
        hidden: features of each hidden linear layer.
        kernel: height and width of the convolutions, which pad nothing.

    Returns:
        A plain module of one block a layer; the last gives the logits.

    Raises:
        ValueError: if a size is below 1, or the image is too small.
    """
    if min([*input_shape, *channels, *hidden, classes, kernel]) < 1:
        raise ValueError(f"sizes of a network are 1 or more, not {[*input_shape, *channels, *hidden, classes, kernel]}")
    (made, *pixels), blocks = input_shape, list[nn.Module]()
    for size in channels:
        pixels = [(side - kernel + 1) // 2 for side in pixels]
        if min(pixels) < 1:
            raise ValueError(
                f"images of {input_shape[1]} × {input_shape[2]} pixels are too small for {len(channels)} convolutions "
                f"of {kernel} × {kernel}: pad them, or take a smaller kernel"
            )
        blocks.append(nn.Sequential(nn.Conv2d(made, size, kernel), nn.ReLU(), nn.MaxPool2d(2)))
        made = size
    features = made * pixels[0] * pixels[1]
    flatten = [nn.Flatten()]
    for size in hidden:
        blocks.append(nn.Sequential(*flatten, nn.Linear(features, size), nn.ReLU()))
        features, flatten = size, []
    return nn.Sequential(*blocks, nn.Sequential(*flatten, nn.Linear(features, classes)))
