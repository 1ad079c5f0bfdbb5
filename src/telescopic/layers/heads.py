"""What reads a prediction off a stage's features."""

from collections.abc import Callable, Sequence

from torch import nn

Head = Callable[[Sequence[int], int], nn.Module]
"""Makes a head from the features' shape, without the batch, and the number of classes."""

_POOLS: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def pooled_head(shape: Sequence[int], classes: int) -> nn.Sequential:
    """The mean of each channel, and a linear layer to the logits; for plain features the linear layer alone.

    Args:
        shape: the features' shape without the batch: channels, and up to three sizes.
        classes: number of classes.

    Raises:
        ValueError: if the features have more than three sizes.
    """
    if not 1 <= len(shape) <= 1 + len(_POOLS):
        raise ValueError(f"features of shape {tuple(shape)} have no pooled head: give a head of your own for this exit")
    pool = [_POOLS[len(shape) - 2](1), nn.Flatten()] if len(shape) > 1 else []
    return nn.Sequential(*pool, nn.Linear(shape[0], classes))
