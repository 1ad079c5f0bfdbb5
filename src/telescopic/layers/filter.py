"""A layer that switches channels off for good (Leclerc et al., ShrinkNets, section 2.1)."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Filter(nn.Module):
    """Multiplies channel c by max(0, θ_c); once θ_c ≤ 0 the channel is dead and gives zeros for ever.

    Momentum, Adam's moments or weight decay may carry θ of a dead channel back above 0. So that it stays dead, a
    buffer remembers which channels are alive: each forward pass with gradients strikes off those whose θ ≤ 0. Between
    two such passes an optimizer steps once, so none can die and come back unseen.

    Args:
        channels: number of channels.

    Attributes:
        theta: θ, `[channels]`, uniform in (0, 1] at first. Weight decay is not for it: see `shrink.parameter_groups`.
        alive: which channels had θ > 0 at every pass, `[channels]`.
        params: parameters that go with each channel, `[channels]`; set by `shrink.price_`, NaN before.
        macs: multiply-adds that go with each channel, `[channels]`; likewise.
    """

    dim: ClassVar[int] = 1
    """Along which channels lie."""

    alive: Tensor
    params: Tensor
    macs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(1 - torch.rand(channels))
        self.register_buffer("alive", torch.ones(channels, dtype=torch.bool))
        self.register_buffer("params", torch.full((channels,), torch.nan), persistent=False)
        self.register_buffer("macs", torch.full((channels,), torch.nan), persistent=False)

    def scale(self) -> Tensor:
        """What each channel is multiplied by, `[channels]`: max(0, θ), and 0 for the dead."""
        return torch.where(self.alive & (self.theta > 0), self.theta, 0.0)

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Which channels are dead, `[channels]`."""
        return ~self.alive | (self.theta <= 0)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[batch, channels, ...]`, or as `dim` says, to features."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.alive.logical_and_(self.theta > 0)
        return x * self.scale().view([-1 if d == self.dim % x.ndim else 1 for d in range(x.ndim)])

    def extra_repr(self) -> str:
        """Number of channels."""
        return str(len(self.theta))


class TokenFilter(Filter):
    """A filter of tokens, `[batch, tokens, channels]`: channels are the last dimension."""

    dim = -1


class Filtered(nn.Sequential):
    """A layer and the filter behind it, which stand where the layer stood: what `shrink.add_filters` makes."""

    def __init__(self, layer: nn.Module, filter: Filter) -> None:
        super().__init__(layer, filter)
