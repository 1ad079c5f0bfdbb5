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


def loss_shares(
    net: Nested, weights: Sequence[float], between: float = 1.0, features: Sequence[float] | None = None
) -> dict[nn.Parameter, Tensor]:
    """Of each parameter, the sum of the loss weights of the members that use it.

    In a network of several widths that differs from element to element. A layer of one's own without a method `used`
    counts as used by all widths of the members that run it.

    Args:
        net: the network.
        weights: of the members' losses, in grid order.
        between: the recipe's `group_gradient`, a share of which groups of channels hear of wider members than the first
            that has them. (Of a way that goes through several groups they hear less.)
        features: the recipe's `feature_weights`; None is the same as `weights`.

    Returns:
        Parameter → tensor of a shape that broadcasts to the parameter's.
    """
    each: dict[tuple[str, int], float] = {}
    for member, weight, feature in zip(net.grid, weights, features or weights, strict=True):
        for name, _ in net.path(member):
            heard = weight if name.startswith("exits.") else feature
            each[name, member.width] = each.get((name, member.width), 0.0) + heard
    found: dict[nn.Parameter, Tensor] = {}
    none = torch.zeros((), dtype=torch.float64)

    def read(name: str, width: int) -> dict[nn.Parameter, Tensor | None]:
        """Which elements of a part's parameters are used in a width."""
        part = net.get_submodule(name)
        cut = used_outputs(part, width, net.groups) if net.causal and name.startswith("entries.") else {}
        return {parameter: cut.get(parameter, told) for parameter, told in used(part, width)}

    for (name, width), weight in sorted(each.items(), key=lambda item: -item[0][1]):
        narrower = read(name, width - 1) if between < 1 and width > 1 else {}
        for parameter, elements in read(name, width).items():
            part = torch.ones((), dtype=torch.float64) if elements is None else elements.double()
            before = narrower.get(parameter)
            if before is not None and before.numel() > 1:  # else it is of no group
                part = torch.where(before, between * part, part)
            found[parameter] = found.get(parameter, none) + weight * part
    return found


def gradient_factors(
    net: Nested, weights: Sequence[float], between: float = 1.0, features: Sequence[float] | None = None
) -> list[tuple[nn.Parameter, Tensor]]:
    """What to multiply each parameter's gradient by, so that it is the mean over the members that use it; 0 if none."""
    return [
        (parameter, torch.where(share > 0, 1 / share, 0).to(parameter))
        for parameter, share in loss_shares(net, weights, between, features).items()
    ]
