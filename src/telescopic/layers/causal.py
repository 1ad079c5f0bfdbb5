"""Channel-causal layers: channel group i reads groups up to i only, so the first w groups never depend on the rest.

(Doubly Nested Network 2018, arXiv 1806.07568, section 3.) Width travels in the data: a layer that is given the first w
groups returns the first w groups, and computes for them just what the full layer computes there; in training mode too,
for a channel's mean and variance depend on no other channel.

Of C channels in G groups, the first w groups are the first C·w // G channels, so C need not be a multiple of G.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)
Norm = TypeVar("Norm", bound=_BatchNorm)


def prefix(channels: int, groups: int, width: int) -> int:
    """How many of `channels` channels the first `width` of `groups` groups have."""
    return channels * width // groups


def width_of(given: int, channels: int, groups: int) -> int:
    """How many groups the first `given` of `channels` channels are.

    Raises:
        ValueError: if they are no whole number of groups.
    """
    width = -(-given * groups // channels)
    if not 0 < width <= groups or prefix(channels, groups, width) != given:
        sizes = [prefix(channels, groups, w) for w in range(1, groups + 1)]
        raise ValueError(
            f"{given} channels are not the first groups of {channels} channels in {groups} groups; nearest are "
            f"{min(sizes, key=lambda size: abs(size - given))}"
        )
    return width


def group_of(channels: int, groups: int, device: torch.device | None = None) -> Tensor:
    """The group of each channel, counted from 0: int64 `[channels]`."""
    # Channel c is in group i if prefix(i) <= c < prefix(i + 1): i is the largest with channels·i < (c + 1)·groups.
    return (torch.arange(1, channels + 1, device=device) * groups - 1) // channels


def first(channels: int, groups: int, width: int) -> Tensor:
    """Which channels the first `width` groups have: bool `[channels]`."""
    return torch.arange(channels) < prefix(channels, groups, width)


def causal_mask(outputs: int, inputs: int, groups: int, device: torch.device | None = None) -> Tensor:
    """Which output channel reads which input channel: bool `[outputs, inputs]`, for a kernel with more axes behind."""
    rows, columns = (group_of(channels, groups, device) for channels in (outputs, inputs))
    return rows[:, None] >= columns


class _Causal(nn.Module):
    """What both layers with weights have in common; it stands in front of torch's own among their bases."""

    weight: Tensor
    bias: Any
    width_groups: int
    depthwise = False
    group_gradient = 1.0

    def of_width(self, width: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that the first groups use; gradients reach only what may be read."""
        weight, bias, groups = self.weight, self.bias, self.width_groups
        outputs, inputs = weight.shape[:2]
        rows, columns = prefix(outputs, groups, width), prefix(inputs, groups, width)
        if width < groups:
            weight, bias = weight[:rows], bias if bias is None else bias[:rows]
            weight = weight if self.depthwise else weight[:, :columns]
        if self.depthwise or weight.is_meta:  # which has no values; the mask would take most of the time of counting
            return weight, bias
        # Made anew each time, it needs no keeping with copies, devices and files. Not a product: a weight that may not
        # be read may have any value, infinity too, after a state dict of a dense layer was loaded.
        mask = causal_mask(outputs, inputs, groups, weight.device)[:rows, :columns]
        return torch.where(mask.view(*mask.shape, *[1] * (weight.ndim - 2)), weight, 0), bias

    def used(self, width: int) -> dict[str, Tensor]:
        """Which elements of each parameter the first groups use: bool, to be broadcast to its shape."""
        outputs, inputs = self.weight.shape[:2]
        rows = first(outputs, self.width_groups, width)
        reads = rows[:, None] if self.depthwise else rows[:, None] & causal_mask(outputs, inputs, self.width_groups)
        return {"weight": reads.view(*reads.shape, *[1] * (self.weight.ndim - 2)), "bias": rows}

    def _graded(self, input: Tensor, weight: Tensor, bias: Tensor | None, how: Any = ()) -> Tensor:
        """What a layer gives; of its gradient a group gives only the share `group_gradient` on to those before it.

        Args:
            input: what it is given.
            weight: of the width that it is given.
            bias: likewise.
            how: stride, padding and dilation of a convolution.
        """
        if how and input.ndim == 3:  # an image without a batch
            return self._graded(input[None], weight, bias, how)[0]
        rows, columns = (group_of(size, self.width_groups, weight.device) for size in self.weight.shape[:2])
        outside = rows[: len(weight), None] > columns[: weight.shape[1]]
        back = weight.detach() * torch.where(outside, self.group_gradient, 1.0).to(weight.dtype).view(
            *outside.shape, *[1] * (weight.ndim - 2)
        )
        given, device = (input, weight, back, bias), input.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and input.dtype != torch.float64:  # which no function of one's own is told of
            given = tuple(one if one is None else one.to(torch.get_autocast_dtype(device)) for one in given)  # type: ignore[assignment]
        result: Tensor = _Graded.apply(*given, how)  # type: ignore[no-untyped-call]
        return result


class CausalConv2d(_Causal, nn.Conv2d):
    """A convolution whose output group i reads the input groups up to i.

    The kernel is dense, with zeros where it may not read: of all ways to train one, measured as the fastest. Weights
    that may not be read are zero at the start and get no gradient, so they stay zero, with weight decay and momentum.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel_size: see `torch.nn.Conv2d`, as for `stride`, `padding`, `dilation` and `bias`.
        stride: of the kernel.
        padding: of the image, with zeros.
        dilation: of the kernel.
        bias: whether there is one.
        width_groups: number of channel groups, at both ends.
        depthwise: whether each channel reads itself alone.

    Raises:
        ValueError: if there are more groups than channels, or depthwise channels differ in number.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        width_groups: int,
        depthwise: bool = False,
    ) -> None:
        require_groups(width_groups, in_channels, out_channels)
        if depthwise and in_channels != out_channels:
            raise ValueError(
                f"a depthwise convolution gives as many channels as it takes, not {out_channels} of {in_channels}"
            )
        groups = in_channels if depthwise else 1
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.width_groups, self.depthwise = width_groups, depthwise
        with torch.no_grad():
            self.weight.copy_(self.of_width(width_groups)[0])

    def forward(self, input: Tensor) -> Tensor:
        """The first groups of features `[batch, channels, height, width]` to as many groups."""
        given = input.shape[-3] if input.ndim > 2 else self.in_channels  # torch takes an image without a batch too
        weight, bias = self.of_width(width_of(given, self.in_channels, self.width_groups))
        groups = given if self.depthwise else 1
        if self.group_gradient < 1 and not self.depthwise and input.requires_grad:
            # What torch calls same may be one more behind than in front.
            padded = isinstance(self.padding, str)
            input = functional.pad(input, self._reversed_padding_repeated_twice) if padded else input
            how = (self.stride, (0, 0) if padded else self.padding, self.dilation)
            return self._graded(input, weight, bias, how)
        return functional.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, groups)

    def narrow(self, width: int) -> nn.Conv2d:
        """The first groups as an ordinary convolution with a copy of their weights."""
        weight, bias = self.of_width(width)
        inputs = prefix(self.in_channels, self.width_groups, width)
        how = (self.kernel_size, self.stride, self.padding, self.dilation, inputs if self.depthwise else 1)
        return filled(nn.Conv2d(inputs, len(weight), *how, bias is not None, device="meta"), self, weight, bias)  # type: ignore[arg-type]


class CausalLinear(_Causal, nn.Linear):
    """A linear layer whose output group i reads the input groups up to i; see `CausalConv2d`.

    Args:
        in_features: input features.
        out_features: output features.
        bias: whether there is one.
        width_groups: number of groups of features, at both ends.

    Raises:
        ValueError: if there are more groups than features.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, width_groups: int) -> None:
        require_groups(width_groups, in_features, out_features)
        super().__init__(in_features, out_features, bias)
        self.width_groups = width_groups
        with torch.no_grad():
            self.weight.copy_(self.of_width(width_groups)[0])

    def forward(self, input: Tensor) -> Tensor:
        """The first groups of features `[..., features]` to as many groups."""
        weight, bias = self.of_width(width_of(input.shape[-1], self.in_features, self.width_groups))
        if self.group_gradient < 1 and input.requires_grad:
            return self._graded(input, weight, bias)
        return functional.linear(input, weight, bias)

    def narrow(self, width: int) -> nn.Linear:
        """The first groups as an ordinary linear layer with a copy of their weights."""
        weight, bias = self.of_width(width)
        outputs, inputs = weight.shape
        return filled(nn.Linear(inputs, outputs, bias is not None, device="meta"), self, weight, bias)


class _CausalBatchNorm(_BatchNorm):
    """What both have in common; it stands in front of torch's own among their bases."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        width_groups: int,
    ) -> None:
        require_groups(width_groups, num_features)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.width_groups = width_groups

    def forward(self, input: Tensor) -> Tensor:
        """The first groups of features `[batch, channels, ...]` to the same."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        width_of(input.shape[1], self.num_features, self.width_groups)
        factor = self.momentum or 0.0
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else factor
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, variance, weight, bias = (tensor if tensor is None else tensor[: input.shape[1]] for tensor in tensors)
        own = self.training or mean is None
        return functional.batch_norm(input, mean, variance, weight, bias, own, factor, self.eps)

    def used(self, width: int) -> dict[str, Tensor]:
        """See `CausalConv2d.used`."""
        return dict.fromkeys(("weight", "bias"), first(self.num_features, self.width_groups, width))


class CausalBatchNorm1d(_CausalBatchNorm, nn.BatchNorm1d):
    """BatchNorm of the first groups of channels that it is given.

    Args:
        num_features: channels.
        eps: see `torch.nn.BatchNorm1d`, as for the next three.
        momentum: of the running statistics. With None they are means over all batches, which are counted once for all
            channels: then train with all groups always, as `Nested.all` does.
        affine: whether there is a weight and a bias.
        track_running_stats: whether there are running statistics.
        width_groups: number of channel groups.
    """

    def narrow(self, width: int) -> nn.BatchNorm1d:
        """The first groups as an ordinary BatchNorm with a copy of their parameters and statistics."""
        return narrow_norm(nn.BatchNorm1d, self, prefix(self.num_features, self.width_groups, width))


class CausalBatchNorm2d(_CausalBatchNorm, nn.BatchNorm2d):
    """BatchNorm of the first groups of channels that it is given; see `CausalBatchNorm1d`."""

    def narrow(self, width: int) -> nn.BatchNorm2d:
        """The first groups as an ordinary BatchNorm with a copy of their parameters and statistics."""
        return narrow_norm(nn.BatchNorm2d, self, prefix(self.num_features, self.width_groups, width))


def narrow_norm(kind: type[Norm], norm: _BatchNorm, channels: int) -> Norm:
    """The first channels of a BatchNorm as an ordinary one with a copy of their parameters and statistics."""
    tracks = norm.running_mean is not None
    made = kind(channels, norm.eps, norm.momentum, norm.affine, tracks, device="meta")
    for name in ("running_mean", "running_var", "num_batches_tracked") if tracks else ():
        tensor = getattr(norm, name)
        setattr(made, name, (tensor[:channels] if tensor.ndim else tensor).clone())
    weight, bias = (t if t is None else t[:channels] for t in (norm.weight, norm.bias))
    return filled(made, norm, weight, bias)


def filled(made: Module, source: nn.Module, weight: Tensor | None, bias: Tensor | None) -> Module:
    """A module made on the meta device, with a copy of these parameters, and otherwise in the state of its source."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        learns = tensor is not None and getattr(source, name).requires_grad
        setattr(made, name, None if tensor is None else nn.Parameter(tensor.detach().clone(), learns))
    return made.train(source.training)


class _Graded(torch.autograd.Function):
    """A linear layer, or a convolution, that sends gradients back to its input by other weights than its own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, back: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(input, back)
        ctx.how = how
        return functional.conv2d(input, weight, bias, *how) if how else functional.linear(input, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input, back), wanted, of_bias = ctx.saved_tensors, ctx.needs_input_grad, None
        if ctx.how:
            # The weight's own gradient does not depend on it.
            told = (grad, input, back, None, *ctx.how, False, (0, 0), 1, (wanted[0], wanted[1], False))
            of_input, of_weight, _ = torch.ops.aten.convolution_backward(*told)
        else:
            of_input = grad @ back
            rows, read = (one.reshape(-1, one.shape[-1]) for one in (grad, input))
            of_weight = rows.T @ read if wanted[1] else None
        if wanted[3]:
            of_bias = grad.sum((0, 2, 3)) if ctx.how else rows.sum(0)
        return of_input, of_weight, None, of_bias, None


def require_groups(groups: int, *channels: int) -> None:
    """Refuse more groups than channels."""
    if isinstance(groups, bool) or not isinstance(groups, int) or not 1 <= groups <= min(channels):
        raise ValueError(f"{min(channels)} channels make 1 to {min(channels)} groups, not {groups!r}")
