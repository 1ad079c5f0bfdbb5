"""How much of the joint loss reaches a weight, and gradients made even by it.

The weights of a joint loss add up to 1 over all members. A weight that all members use hears all of it; one that only
the widest and deepest use hears their share, perhaps 1 / 352, and so learns that much more slowly than in a network by
itself. Balanced, its gradient is the weighted mean over the members that use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from telescopic.layers.causal import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, group_of
from telescopic.layers.heads import SharedHead
from telescopic.layers.narrowing import flat, last_mixing
from telescopic.nested import Nested

_ROWS = (CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear)


def loss_shares(net: Nested, weights: Sequence[float]) -> dict[nn.Parameter, Tensor]:
    """Of each parameter, the sum of the loss weights of the members that use it.

    In a network of several widths that differs from channel to channel. A layer of one's own counts as used by all
    widths of the members that run it.

    Args:
        net: the network.
        weights: of the members' losses, in grid order.

    Returns:
        Parameter → tensor of a shape that broadcasts to the parameter's.
    """
    each: dict[str, Tensor] = {}
    for member, weight in zip(net.grid, weights, strict=True):
        for name, _ in net.path(member):
            each.setdefault(name, torch.zeros(net.groups, dtype=torch.float64))[member.width - 1] += weight
    found: dict[nn.Parameter, Tensor] = {}
    for name, own in each.items():
        part, wider = net.get_submodule(name), own.flip(0).cumsum(0).flip(0)  # [groups]: all of this width or more
        cut = _cut(part) if name.startswith("entries.") else []
        for module in part.modules():
            for kind, parameter in module.named_parameters(recurse=False):
                if isinstance(module, SharedHead) and kind in ("scale", "shift"):
                    found[parameter] = own[:, None]
                elif isinstance(module, SharedHead) and kind == "weight":
                    found[parameter] = _by_channel(parameter.shape[1], wider)
                elif isinstance(module, _ROWS) or any(module is layer for layer in cut):
                    rows = _by_channel(len(parameter), wider)
                    found[parameter] = rows.view(-1, *[1] * (parameter.ndim - 1))
                else:
                    found[parameter] = wider[0]
    return found


def gradient_factors(net: Nested, weights: Sequence[float]) -> list[tuple[nn.Parameter, Tensor]]:
    """What to multiply each parameter's gradient by, so that it is the mean over the members that use it; 0 if none."""
    return [
        (parameter, torch.where(share > 0, 1 / share, 0).to(parameter))
        for parameter, share in loss_shares(net, weights).items()
    ]


def _by_channel(channels: int, by_group: Tensor) -> Tensor:
    """A value of each group, for each channel."""
    return by_group[group_of(channels, len(by_group))]


def _cut(adapter: nn.Module) -> list[nn.Module]:
    """The layers of an adapter of which a narrow member uses the first rows: see `layers.narrowing`."""
    layers = flat(adapter)
    last = last_mixing(layers)
    return [] if last is None else layers[last:]
