"""What brings the raw input to the shape that an inner stage expects."""

from collections.abc import Callable, Sequence
from math import prod

from torch import nn

Shape = Sequence[int]
Norm = Callable[[int], nn.Module] | bool
Activation = Callable[[], nn.Module] | None
Adapter = Callable[[Shape, Shape], nn.Module]
"""Makes an adapter from the raw input's shape and the shape expected, both without the batch."""

_CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def step_down(
    input_shape: Shape, output_shape: Shape, *, norm: Norm = True, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """A step-down convolution (CNSN section 2.1): one convolution whose kernel is its stride.

    Every pixel of the output reads its own patch of the input, and no two patches overlap. A stage that expects plain
    features gets a linear layer, which is the same thing with the whole input as the one patch.

    Args:
        input_shape: the raw input's shape without the batch, such as `[channels, height, width]`.
        output_shape: the shape that the stage expects: as many sizes, or `[features]`.
        norm: True for torch's BatchNorm after the convolution ("after each weight layer", section 3), False for none,
            or what makes another one from its number of channels.
        activation: what makes the activation at the end; None for none.

    Raises:
        ValueError: if a size of the input is no whole multiple of the size expected.
    """
    ratio = _ratio(input_shape, output_shape)
    first: list[nn.Module] = (
        [_CONVS[len(ratio) - 1](input_shape[0], output_shape[0], ratio, stride=ratio)]
        if ratio
        else [nn.Flatten(), nn.Linear(prod(input_shape), output_shape[0])]
    )
    return nn.Sequential(*first, *_after(output_shape[0], max(1, len(ratio)), norm, activation))


def strided_stem(
    input_shape: Shape, output_shape: Shape, *, norm: Norm = True, activation: Activation = nn.ReLU
) -> nn.Sequential:
    """A small convolutional network in place of a step-down convolution: better at large reductions, and dearer.

    One overlapping convolution (kernel 3 for stride 2) for each prime factor of the reduction, the largest first; the
    channels double from one to the next. Bringing 3 × 32 × 32 to 256 × 4 × 4 takes three of them, and 9.9 M
    multiply-adds where a step-down convolution takes 0.8 M. Not from the paper.

    Args:
        input_shape: see `step_down`.
        output_shape: see `step_down`.
        norm: see `step_down`; follows each convolution.
        activation: see `step_down`; follows each norm.

    Raises:
        ValueError: if a size of the input is no whole multiple of the size expected.
    """
    ratio = _ratio(input_shape, output_shape)
    if not ratio:
        return step_down(input_shape, output_shape, norm=norm, activation=activation)
    factors = [_prime_factors(r) for r in ratio]
    steps = max(1, *map(len, factors))
    strides = list(zip(*([1] * (steps - len(f)) + f for f in factors), strict=True))
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for step, stride in enumerate(sorted(strides, reverse=True)):
        made = max(1, output_shape[0] >> (steps - 1 - step))
        kernel = [max(3, s | 1) for s in stride]  # odd, so that padding by half of it keeps the reduction exact
        conv = _CONVS[len(ratio) - 1]
        layers.append(conv(channels, made, kernel, stride=stride, padding=[k // 2 for k in kernel]))
        layers += _after(made, len(ratio), norm, activation)
        channels = made
    return nn.Sequential(*layers)


def _ratio(input_shape: Shape, output_shape: Shape) -> tuple[int, ...]:
    """By how much each size shrinks; empty for plain features."""
    given, wanted = tuple(input_shape[1:]), tuple(output_shape[1:])
    if not wanted and len(output_shape) == 1 and input_shape:
        return ()
    if len(given) != len(wanted) or not 1 <= len(given) <= len(_CONVS):
        raise ValueError(
            f"no convolution brings an input of shape {tuple(input_shape)} to {tuple(output_shape)}: both need "
            "channels and the same one to three sizes; give an adapter of your own for this entry"
        )
    if any(a % b for a, b in zip(given, wanted, strict=True)):
        raise ValueError(
            f"a step from {tuple(input_shape)} down to {tuple(output_shape)} is impossible: {_sizes(given)} is no "
            f"whole multiple of {_sizes(wanted)}. Pad or resize the input, enter before another stage, or give an "
            "adapter of your own for this entry"
        )
    return tuple(a // b for a, b in zip(given, wanted, strict=True))


def _sizes(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors[::-1]


def _after(channels: int, dimensions: int, norm: Norm, activation: Activation) -> list[nn.Module]:
    """What follows a convolution."""
    made = [_NORMS[dimensions - 1](channels) if norm is True else norm(channels)] if norm else []
    return [*made, activation()] if activation is not None else made
