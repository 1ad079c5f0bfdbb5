"""A layer that switches channels off for good (Leclerc et al., ShrinkNets, section 2.1)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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
    # Kept with the filter of a layer, not only to remove it: loaded from a file, it tells torch that its number is
    # taken, without which the next hook on the layer would take the place of this one.
    handle: RemovableHandle | None = None

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


def filters_of(model: nn.Module) -> dict[str, Filter]:
    """The filters of a network, by their paths."""
    return {path: part for path, part in model.named_modules() if isinstance(part, Filter)}


def attach_(layer: nn.Module, part: Filter) -> None:
    """Have a layer's outputs go through a filter.

    The layer stays the object that it is, of its class and with its attributes and names, for whatever reads these;
    the filter is a child of it, `filter`. It is the first of the hooks: what a user's own see has been filtered.

    Raises:
        ValueError: if the layer has an attribute of this name.
    """
    if hasattr(layer, "filter"):
        raise ValueError(f"the {type(layer).__name__} has an attribute 'filter' of its own, where its filter would be")
    layer.add_module("filter", part)
    part.handle = layer.register_forward_hook(_filtered, prepend=True)
    # Code that was compiled without a hook runs again where there is one, for torch does not look; but it looks whether
    # a layer has a forward of its own.
    layer.forward = layer.forward


def detach_(layer: nn.Module) -> None:
    """Take a layer's filter away."""
    part = attached(layer)
    assert part is not None and part.handle is not None
    part.handle.remove()
    del layer._modules["filter"], layer.__dict__["forward"]


def attached(layer: nn.Module) -> Filter | None:
    """The filter that a layer's outputs go through, if it has one."""
    part = layer._modules.get("filter")
    return part if isinstance(part, Filter) and part.handle is not None else None


def _filtered(layer: Any, _: Any, out: Tensor) -> Tensor:
    # A function of the layer that is called: a copy of it has a filter of its own.
    made: Tensor = layer.filter(out)
    return made
