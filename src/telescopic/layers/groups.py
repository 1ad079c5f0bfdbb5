"""How much of its gradient a group of channels gives on to the groups before it, which narrower members have too."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from telescopic.layers.causal import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear
from telescopic.layers.heads import SharedHead

_SCALED = (CausalConv2d, CausalLinear, SharedHead)
_ALONE = (CausalBatchNorm1d, CausalBatchNorm2d)


@contextmanager
def between_groups(net: nn.Module, share: float) -> Iterator[None]:
    """In which groups give on a share of their gradient, which is a property of the graph made here; no output changes.

    Args:
        net: what `require_groups_apart` has accepted.
        share: 1 is all of it; with 0 no width learns from wider ones.
    """
    layers = [part for part in net.modules() if isinstance(part, _SCALED)] if share < 1 else []
    for layer in layers:
        layer.group_gradient = share
    try:
        yield
    finally:
        for layer in layers:
            del layer.group_gradient


def require_groups_apart(stages: Iterable[nn.Module], heads: Sequence[nn.Module], share: float) -> None:
    """Refuse a share of the gradient between groups that does not reach all layers in which groups meet.

    Args:
        stages: which are to be made of this library's channel-causal layers.
        heads: which are to end in a `SharedHead`.
        share: see `between_groups`; 1 asks nothing of a network.

    Raises:
        ValueError: if the share is below 1 and the network is made otherwise.
    """
    if share == 1:
        return
    layers = [layer for part in (*stages, *heads) for layer in part.modules()]
    others = [
        layer
        for layer in layers
        if not isinstance(layer, (*_SCALED, *_ALONE)) and any(True for _ in layer.parameters(recurse=False))
    ]
    without = [head for head in heads if not any(isinstance(part, SharedHead) for part in head.modules())]
    why = ""
    if not any(isinstance(layer, CausalConv2d | CausalLinear) for layer in layers):
        why = "it has no channel-causal layer"
    elif without:
        why = f"{type(without[0]).__name__} is a head without a SharedHead"
    elif others:
        why = f"what passes between groups in {type(others[0]).__name__}, a layer not of this library, cannot be told"
    if why:
        raise ValueError(
            f"the gradient between groups of channels cannot be scaled by {share:g} in this network: {why}"
        )
