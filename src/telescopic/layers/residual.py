"""A block whose input is added to its output."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """`activation(body(x) + shortcut(x))` (He et al. 2016).

    Args:
        body: the layers of the block.
        shortcut: what its input passes on the way around them; the identity if shapes agree.
        activation: after the sum; by default ReLU, and `nn.Identity()` is none.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.ReLU() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        """Features `[batch, channels, ...]` to features."""
        out: Tensor = self.activation(torch.add(self.body(x), self.shortcut(x)))
        return out
