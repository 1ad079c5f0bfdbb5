"""How a member is taken out: as an ordinary module of its own, with no import of ours needed to run it."""

from collections.abc import Sequence

from torch import nn

from telescopic import folding
from telescopic.ambient import plain
from telescopic.layers.narrowing import flat, narrowed
from telescopic.nested import Nested
from telescopic.subnet import Subnet
from telescopic.wrappers import copied, unwrapped


@plain()
def extract(net: Nested, subnet: Subnet | None = None, *, fold_bn: bool = False) -> nn.Sequential:
    """Take one member out of a nested network.

    The result is independent of the network (a copy), in eval mode, and computes `net(x, subnet)` of eval mode
    exactly. Channel-causal layers become ordinary ones of the first channels. Nested `nn.Sequential`s are laid flat and
    `nn.Identity` is left out, so that the result is what one would have written by hand. With statistics per entry it
    carries the statistics of its own entry.

    Args:
        net: the nested network.
        subnet: which member; parts left open take the full network's value.
        fold_bn: whether BatchNorms directly behind a convolution become part of it, which makes the result smaller
            and faster, and its answers equal up to rounding only. Inside blocks of yours `nn.Identity` takes their
            place. What stays, and when, says `folding.fold_bn`.

    Returns:
        A module from the raw input `[batch, ...]` to logits `[batch, classes]`.

    Raises:
        ValueError: if the grid has no such member, a part cannot be made narrower, or BatchNorms are to be folded in a
            part that `torch.fx` cannot trace.
    """
    net = unwrapped(net)
    member = net.grid.resolve(subnet)
    taken = joined(net, [module for _, module in net.path(member)], member.width)
    if fold_bn:
        return nn.Sequential(*_flat(folding.fold_bn(taken))).eval()
    return copied(taken).eval()


def joined(net: Nested, path: Sequence[nn.Module], width: int) -> nn.Sequential:
    """An adapter, stages and a head of a network in one, in ordinary layers; not copied where nothing is cut."""
    parts = narrowed(path, width, net.groups, causal=net.causal)
    return nn.Sequential(*(layer for part in parts for layer in _flat(part)))


def _flat(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in flat(module) if type(layer) is not nn.Identity]
