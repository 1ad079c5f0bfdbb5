"""How much of the joint loss reaches a weight, and gradients made even by it.

The weights of a joint loss add up to 1 over all members. A weight that all members use hears all of it; one that only
the widest and deepest use hears their share, perhaps 1 / 352, and so learns that much more slowly than in a network by
itself. Balanced, its gradient is the weighted mean over the members that use it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from telescopic.layers.narrowing import used, used_outputs
from telescopic.nested import Nested


def loss_shares(net: Nested, weights: Sequence[float]) -> dict[nn.Parameter, Tensor]:
    """Of each parameter, the sum of the loss weights of the members that use it.

    In a network of several widths that differs from element to element. A layer of one's own without a method `used`
    counts as used by all widths of the members that run it.

    Args:
        net: the network.
        weights: of the members' losses, in grid order.

    Returns:
        Parameter → tensor of a shape that broadcasts to the parameter's.
    """
    each: dict[tuple[str, int], float] = {}
    for member, weight in zip(net.grid, weights, strict=True):
        for name, _ in net.path(member):
            each[name, member.width] = each.get((name, member.width), 0.0) + weight
    found: dict[nn.Parameter, Tensor] = {}
    none = torch.zeros((), dtype=torch.float64)
    for (name, width), weight in sorted(each.items(), key=lambda item: -item[0][1]):
        part = net.get_submodule(name)
        cut = used_outputs(part, width, net.groups) if net.causal and name.startswith("entries.") else {}
        for parameter, told in used(part, width):
            elements = cut.get(parameter, told)
            found[parameter] = found.get(parameter, none) + (weight if elements is None else weight * elements.double())
    return found


def gradient_factors(net: Nested, weights: Sequence[float]) -> list[tuple[nn.Parameter, Tensor]]:
    """What to multiply each parameter's gradient by, so that it is the mean over the members that use it; 0 if none."""
    return [
        (parameter, torch.where(share > 0, 1 / share, 0).to(parameter))
        for parameter, share in loss_shares(net, weights).items()
    ]
