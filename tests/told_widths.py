"""Layers in several widths that are told theirs, for tests: prefixes of inputs and outputs, statistics for each width.

(Slimmable Neural Networks, Yu et al. 2019.)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic import Nested
from telescopic.layers.causal import filled, narrow_norm


class ToldLinear(nn.Linear):
    """A linear layer of which each width takes the first inputs and gives the first outputs."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__(inputs[-1], outputs[-1])
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def in_width(self, width: int) -> nn.Module:
        return LinearInWidth(self, width)

    def used(self, width: int) -> dict[str, Tensor]:
        rows = torch.arange(self.out_features) < self.outputs[width - 1]
        columns = torch.arange(self.in_features) < self.inputs[width - 1]
        return {"weight": rows[:, None] & columns, "bias": rows}

    def narrow(self, width: int) -> nn.Linear:
        inputs, outputs = self.inputs[width - 1], self.outputs[width - 1]
        made = nn.Linear(inputs, outputs, device="meta")
        return filled(made, self, self.weight[:outputs, :inputs], self.bias[:outputs])


class LinearInWidth(nn.Module):
    def __init__(self, layer: ToldLinear, width: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.inputs, self.outputs = layer.inputs[width - 1], layer.outputs[width - 1]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight[: self.outputs, : self.inputs], self.bias[: self.outputs])

    def narrow(self, width: int) -> nn.Linear:
        made = nn.Linear(self.inputs, self.outputs, device="meta")
        return filled(made, self, self.weight[: self.outputs, : self.inputs], self.bias[: self.outputs])


class ToldConv(nn.Conv2d):
    """A 3 × 3 convolution of which each width takes the first inputs and gives the first outputs."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__(inputs[-1], outputs[-1], 3, padding=1, bias=False)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def in_width(self, width: int) -> nn.Module:
        return ConvInWidth(self, width)

    def narrow(self, width: int) -> nn.Conv2d:
        inputs, outputs = self.inputs[width - 1], self.outputs[width - 1]
        made = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, device="meta")
        return filled(made, self, self.weight[:outputs, :inputs], None)


class ConvInWidth(nn.Module):
    def __init__(self, layer: ToldConv, width: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, None
        self.inputs, self.outputs = layer.inputs[width - 1], layer.outputs[width - 1]

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight[: self.outputs, : self.inputs], padding=1)

    def narrow(self, width: int) -> nn.Conv2d:
        made = nn.Conv2d(self.inputs, self.outputs, 3, padding=1, bias=False, device="meta")
        return filled(made, self, self.weight[: self.outputs, : self.inputs], None)


class ToldNorm(nn.BatchNorm2d):
    """A BatchNorm of which each width has the first weights, and statistics of its own."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__(channels[-1])
        self.channels = tuple(channels)

    def in_width(self, width: int) -> nn.Module:
        return NormInWidth(self, self.channels[width - 1])

    def narrow(self, width: int) -> nn.BatchNorm2d:
        return narrow_norm(nn.BatchNorm2d, self, self.channels[width - 1])


class NormInWidth(nn.BatchNorm2d):
    def __init__(self, layer: ToldNorm, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.weight, self.bias, self.affine = layer.weight, layer.bias, True

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked += 1
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None and self.training else self.momentum or 0
        weight, bias = (tensor[: self.num_features] for tensor in (self.weight, self.bias))
        return functional.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, self.training, factor, self.eps
        )

    def narrow(self, width: int) -> nn.BatchNorm2d:
        return narrow_norm(nn.BatchNorm2d, self, self.num_features)


class Block(nn.Module):
    """Pre-norm transformer block: the residual stream is whole, its hidden units are a prefix."""

    def __init__(self, features: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.hidden = features, tuple(hidden)
        whole = (features,) * len(hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.up, self.down = ToldLinear(whole, hidden), ToldLinear(hidden, whole)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return out


def slimmable(**options: object) -> Nested:
    """Two entries, three exits, three widths, BatchNorm for each."""
    torch.manual_seed(0)
    image, a, b = (2, 2, 2), (2, 3, 5), (1, 4, 6)
    stages = [nn.Sequential(ToldConv(i, o), ToldNorm(o), nn.ReLU()) for i, o in ((a, b), (b, b), (b, a))]
    entries = {0: nn.Sequential(ToldConv(image, a), ToldNorm(a)), 2: ToldConv(image, b)}
    heads = {
        i: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), ToldLinear(o, (3, 3, 3)))
        for i, o in ((0, b), (1, b), (2, a))
    }
    return Nested(stages, entries, heads, groups=3, **options)


def transformer() -> Nested:
    """Whole features between stages, hidden units in two widths, two exits."""
    torch.manual_seed(0)
    heads = {i: nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for i in (0, 1)}
    return Nested([Block(4, (2, 8)), Block(4, (1, 6))], {0: nn.Linear(4, 4)}, heads, groups=2)
