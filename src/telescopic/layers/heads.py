"""What reads a prediction off a stage's features."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.layers.causal import (
    causal_mask,
    filled,
    first,
    group_of,
    prefix,
    require_groups,
    width_of,
)

Head = Callable[[Sequence[int], int], nn.Module]
"""Makes a head from the features' shape, without the batch, and the number of classes."""

_POOLS: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def pooled_head(
    shape: Sequence[int], classes: int, *, width_groups: int = 1, channels_last: bool = False
) -> nn.Sequential:
    """The mean of each channel, and a linear layer to the logits; for plain features the linear layer alone.

    Args:
        shape: the features' shape without the batch: channels, and up to three sizes; or those first.
        classes: number of classes.
        width_groups: number of channel groups; with several, the linear layer is a `SharedHead` for every width.
        channels_last: whether the channels are the last size, as they are in features of tokens. Shapes do not tell.

    Raises:
        ValueError: if the features have more than three sizes, or fewer channels than groups.
    """
    if not 1 <= len(shape) <= 1 + len(_POOLS):
        raise ValueError(f"features of shape {tuple(shape)} have no pooled head: give a head of your own for this exit")
    if channels_last and len(shape) > 1:
        if width_groups > 1:
            raise ValueError(f"widths are groups of channels in front, and those of {tuple(shape)} are the last size")
        # What is an image of one channel for torch, [tokens, channels] for each example, loses its height.
        flat = [nn.Flatten(1, -2)] if len(shape) > 2 else []
        return nn.Sequential(*flat, nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(shape[-1], classes))
    pool: list[nn.Module] = [_POOLS[len(shape) - 2](1), nn.Flatten()] if len(shape) > 1 else []
    if width_groups > 1:
        pool = [GlobalAvgPool2d()] if len(shape) == 3 else pool
        return nn.Sequential(*pool, SharedHead(shape[0], classes, width_groups=width_groups))
    return nn.Sequential(*pool, nn.Linear(shape[0], classes))


def token_head(shape: Sequence[int], classes: int) -> nn.Linear:
    """A linear layer at each position, from features `[positions, channels]` to scores `[positions, classes]`."""
    return nn.Linear(shape[-1], classes)


class GlobalAvgPool2d(nn.Module):
    """The mean of each channel over the image, whose gradient is cheap to add to that of the next stage.

    The same numbers as `nn.AdaptiveAvgPool2d(1)` and `nn.Flatten()`. Those write the gradient, which is one number for
    all pixels, out as a whole image, and with 16 heads that took 16 % of a training step. Here only a row of it is
    written, as long as a vector unit likes, and read again for every row.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Features `[batch, channels, height, width]` to `[batch, channels]`."""
        if not (torch.is_grad_enabled() and input.requires_grad):
            return functional.adaptive_avg_pool2d(input, 1).flatten(1)
        pooled: Tensor = _Pool.apply(input)  # type: ignore[no-untyped-call]
        return pooled

    def narrow(self, width: int) -> nn.Sequential:
        """Torch's own layers."""
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.rows = x.shape, x.is_contiguous(memory_format=torch.channels_last)
        # torch's mean is as slow in bf16 as its sum is fast.
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3]) if x.dtype == torch.bfloat16 else x.mean((2, 3))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        each: Tensor = (grad / (height * width)).view(batch, channels, 1, 1)
        if ctx.rows:
            each = each.expand(-1, -1, 1, width).contiguous(memory_format=torch.channels_last)
        return each.expand(ctx.shape)


class GradientScale(nn.Module):
    """Lets features through, and scales the gradient that comes back.

    At the start of a head it says how much the stages before it listen to that exit.

    Args:
        scale: factor; 0 lets the head learn without changing what it reads.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Features of any shape to the same."""
        if self.scale == 1 or not input.requires_grad:
            return input
        if self.scale == 0:
            return input.detach()
        view = input.view_as(input)
        view.register_hook(lambda grad: grad * self.scale)  # type: ignore[no-untyped-call]
        return view

    def narrow(self, width: int) -> nn.Identity:
        """Nothing is left of it outside training."""
        return nn.Identity()


def _with_gradient(value: Tensor, path: Tensor) -> Tensor:
    """A value, exactly, that sends back the gradient of another one."""
    return value.detach() + (path - path.detach())


class SharedHead(nn.Linear):
    """One linear layer that serves every width (Doubly Nested Network, section 3): each group adds to the logits.

    Logits of width w = bias + Σ over the groups k ≤ w of W_k f_k, where f_k are the features of group k. That is the
    paper's formula; its text says "averaging", which divides the sum by w and is there to choose.

    *Conditioned*, each width reads the features in its own way: it has a factor γ_w for each of them, and adds a vector
    β_w to the logits (feature-wise linear modulation, FiLM). A shift of the features would be multiplied by W, and come
    to such a vector: the same functions where a width has as many features as there are classes, at a higher price.
    `scale` holds γ - 1, so that a new head equals one that is not conditioned, and weight decay draws it back there.

    *Separate*, each width adds to the shared weights a matrix of its own, `own`, and a vector to the logits. Both begin
    at 0 and do not ask for gradients: `telescopic.fit_heads` sets them once the features are final. A member that is
    taken out is one linear layer all the same.

    Args:
        in_features: features, such as the mean of each channel.
        classes: number of classes.
        width_groups: number of groups of features.
        average: whether to divide the sum by the number of groups.
        conditioned: whether each width has a scale and a shift of its own: rows of `scale`, `[width_groups,
            in_features]`, of which it reads its own features' part, and of `shift`, `[width_groups, classes]`.
        separate: whether each width has weights of its own beside the shared ones: `own`, `[width_groups, classes,
            in_features]`, of which it reads its own features' part, and a row of `shift`.

    Raises:
        ValueError: if there are more groups than features.
    """

    scale: nn.Parameter | None
    shift: nn.Parameter | None
    own: nn.Parameter | None
    group_gradient = 1.0

    def __init__(
        self,
        in_features: int,
        classes: int,
        *,
        width_groups: int,
        average: bool = False,
        conditioned: bool = False,
        separate: bool = False,
    ) -> None:
        require_groups(width_groups, in_features)
        super().__init__(in_features, classes)
        self.classes, self.width_groups, self.average = classes, width_groups, average
        self.conditioned, self.separate = conditioned, separate
        for name, size, kept, learns in (
            ("scale", (in_features,), conditioned, True),
            ("shift", (classes,), conditioned or separate, conditioned),
            ("own", (classes, in_features), separate, False),
        ):
            zeros = nn.Parameter(torch.zeros(width_groups, *size), requires_grad=learns) if kept else None
            self.register_parameter(name, zeros)

    def forward(self, input: Tensor) -> Tensor:
        """The first groups of features `[batch, features]` to logits `[batch, classes]`."""
        if self.group_gradient < 1 and torch.is_grad_enabled():
            return self.every_width(input)[-1]
        weight, bias = self.of_width(width_of(input.shape[1], self.in_features, self.width_groups))
        return functional.linear(input, weight, bias)

    def every_width(self, input: Tensor) -> Tensor:
        """The first groups of features `[batch, features]` to the logits of every width up to theirs.

        By a running sum over the groups; conditioned, by one matrix product with the weights of all widths.

        Returns:
            Logits `[widths, batch, classes]`.
        """
        widths = width_of(input.shape[1], self.in_features, self.width_groups)
        if self.shift is not None:
            return self._every_row(input, widths, self.shift[:widths])
        weight = self.weight[:, : input.shape[1]]
        if self.in_features % self.width_groups == 0:
            size = self.in_features // self.width_groups
            grouped = (tensor.reshape(len(tensor), widths, size) for tensor in (input, weight))
            each = torch.einsum("bgc,kgc->gbk", *grouped)
        else:
            ends = [prefix(self.in_features, self.width_groups, width) for width in range(widths + 1)]
            sizes = [end - begin for begin, end in pairwise(ends)]
            pairs = zip(torch.split(input, sizes, 1), torch.split(weight, sizes, 1), strict=True)
            each = torch.stack([functional.linear(features, rows) for features, rows in pairs])
        total = each.cumsum(0)
        if (share := self.group_gradient) < 1:
            total = _with_gradient(total, (1 - share) * each + share * total)
        if self.average:
            total = total / torch.arange(1, widths + 1, device=total.device).view(-1, 1, 1)
        return total + self.bias

    def _every_row(self, input: Tensor, widths: int, shift: Tensor) -> Tensor:
        """The same where each width weighs all of its features in its own way."""
        features = input.shape[1]
        reads = causal_mask(self.width_groups, self.in_features, self.width_groups, input.device)
        scale, own = (None if rows is None else rows[:widths, ..., :features] for rows in (self.scale, self.own))

        def of_all(weight: Tensor, scale: Tensor | None, own: Tensor | None) -> Tensor:
            """Weights of all widths `[widths, classes, features]`."""
            weight = weight[:, :features]
            rows = weight if scale is None else weight * (1 + scale[:, None])
            rows = rows if own is None else rows + own
            if self.average:
                rows = rows / torch.arange(1, widths + 1, device=weight.device).view(-1, 1, 1)
            return torch.where(reads[:widths, None, :features], rows, 0)

        each = functional.linear(input, of_all(self.weight, scale, own).flatten(0, 1))
        if self.group_gradient < 1:
            # What a width has of its own learns from all of it; what it shares with those before, from a part.
            group = group_of(self.in_features, self.width_groups, input.device)[:features]
            before = torch.arange(widths, device=input.device)[:, None, None] > group
            fixed = (None if rows is None else rows.detach() for rows in (scale, own))
            shared = of_all(self.weight, *fixed) * torch.where(before, self.group_gradient, 1.0)
            path = functional.linear(input, shared.flatten(0, 1))
            path = path + functional.linear(input.detach(), of_all(self.weight.detach(), scale, own).flatten(0, 1))
            each = _with_gradient(each, path)
        each = each.view(len(input), widths, self.classes)
        return each.transpose(0, 1) + (self.bias + shift)[:, None]

    def of_width(self, width: int) -> tuple[Tensor, Tensor]:
        """Weight `[classes, features]` and bias `[classes]` of the first groups."""
        features = prefix(self.in_features, self.width_groups, width)
        weight: Tensor = self.weight[:, :features]
        bias: Tensor = self.bias
        if self.scale is not None:
            weight = weight * (1 + self.scale[width - 1, :features])
        if self.own is not None:
            weight = weight + self.own[width - 1, :, :features]
        if self.shift is not None:
            bias = bias + self.shift[width - 1]
        return weight / width if self.average else weight, bias

    def used(self, width: int) -> dict[str, Tensor]:
        """Which elements of each parameter a width uses: bool, to be broadcast to its shape."""
        mine = torch.arange(self.width_groups)[:, None] == width - 1
        features = first(self.in_features, self.width_groups, width)
        rows = {"scale": mine & features, "shift": mine, "own": (mine & features)[:, None]}
        return {"weight": features, "bias": torch.ones(1, dtype=torch.bool), **rows}

    def narrow(self, width: int) -> nn.Linear:
        """The first groups' part as an ordinary linear layer with a copy of its weights."""
        weight, bias = self.of_width(width)
        return filled(nn.Linear(weight.shape[1], self.classes, device="meta"), self, weight, bias)
