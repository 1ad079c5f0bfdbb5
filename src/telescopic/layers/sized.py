"""Which parts know of widths: given the first groups of channels, dimension 1, they give the first groups.

A layer with tensors of its own says so by a method `narrow(width)`, which returns what it is for the first groups: the
channel-causal layers have it, and a layer of yours may. One without tensors is known to treat each channel alone, says
so by `narrow` or `new_groups`, or is tried. A class with a forward of its own around layers that know of widths was
made for them; whether it keeps to it only running it in its network tells, as `causal_`, `nest` and `check_nested` do.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from telescopic.layers.causal import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, prefix
from telescopic.layers.heads import GlobalAvgPool2d, GradientScale, SharedHead
from telescopic.layers.narrowing import NARROW, flat, last_mixing, no_end
from telescopic.wrappers import copied

CAUSAL = (CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, SharedHead)
"""Our own layers that know of widths."""
NOTHING: set[type[nn.Module]] = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout}
"""They let features through in eval mode."""
NOTHING |= {nn.FeatureAlphaDropout, GradientScale}
ALONE: set[type[nn.Module]] = {nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish}
"""They treat each channel alone, whatever the number of channels."""
ALONE |= {nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh}
ALONE |= {nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Upsample, GlobalAvgPool2d}
ALONE |= {nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d}
ALONE |= {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.AdaptiveAvgPool1d}
ALONE |= {nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}

_OVER_CHANNELS = "it takes statistics over channels of later groups too: use nn.BatchNorm2d in its place"
MIXING: dict[type[nn.Module], str] = {
    nn.GroupNorm: _OVER_CHANNELS,
    nn.LayerNorm: _OVER_CHANNELS,
    nn.RMSNorm: _OVER_CHANNELS,
    nn.LocalResponseNorm: _OVER_CHANNELS,
    nn.InstanceNorm1d: "torch's own is made for one number of channels: use nn.BatchNorm1d in its place",
    nn.InstanceNorm2d: "torch's own is made for one number of channels: use nn.BatchNorm2d in its place",
    nn.PReLU: "torch's own cannot be made narrower: use nn.ReLU or nn.LeakyReLU in its place",
    nn.MultiheadAttention: "every feature that it gives reads every feature of its input",
    nn.ChannelShuffle: "it moves channels of later groups into earlier ones",
}
"""Layers of torch that no width can have, and why."""


def require_sized(parts: Iterable[tuple[str, nn.Module]], groups: int) -> None:
    """Refuse adapters, stages and heads that do not know of widths.

    Args:
        parts: name, such as `stages.3`, and module.
        groups: number of channel groups of the network.

    Raises:
        ValueError: naming the part, the layer in it, and the reason.
    """
    for name, part in parts:
        for layer in part.modules():
            own = getattr(layer, "width_groups", groups)
            if own != groups:
                raise ValueError(
                    f"{name} has a {type(layer).__name__} of {own} channel groups in a network of {groups}: give it "
                    f"width_groups={groups}"
                )
        check = {"entries": _of_adapter, "exits": _of_head}.get(name.partition(".")[0], _of_stage)
        if why := check(part, groups):
            raise ValueError(f"{name} knows nothing of the {groups} channel groups of this network: {why}")


def require_channels_first(adapter: nn.Module, x: Tensor) -> None:
    """Refuse what an adapter gives if it ends in a linear layer of tokens: groups are those of dimension 1.

    Raises:
        ValueError: if the channels of the features are their last dimension.
    """
    if x.ndim < 3:
        return
    layers = flat(adapter)
    last = last_mixing(layers)
    reshaped = last is None or any(isinstance(layer, nn.Flatten | nn.Unflatten) for layer in layers[last:])
    if not reshaped and last is not None and type(layers[last]) is nn.Linear:
        raise ValueError(
            f"the adapter gives features {tuple(x.shape)} with channels in their last dimension, and widths are groups "
            "of dimension 1: a network of tokens cannot have several widths yet"
        )


def _of_adapter(part: nn.Module, groups: int) -> str | None:
    layers = flat(part)
    last = last_mixing(layers)
    if last is None or (isinstance(layers[last], nn.Conv2d) and layers[last].groups != 1):
        return no_end(part)
    behind = [layer for layer in layers[last + 1 :] if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d)]
    return next((why for layer in behind if (why := _of_stage(layer, groups))), None)


def _of_head(part: nn.Module, groups: int) -> str | None:
    """A head may read any width as it likes; what stands before a `SharedHead` reads all widths at once."""
    layers = flat(part)
    if layers and isinstance(layers[-1], SharedHead):
        return next((why for layer in layers if (why := _of_stage(layer, groups))), None)
    if all(type(layer) in ALONE | NOTHING or _keeps_order(layer) for layer in layers):
        return "a head gives all classes at every width, and this one fewer where there are fewer channels"
    return _unsized(part)


def _of_stage(part: nn.Module, groups: int) -> str | None:
    if type(part) is nn.Sequential:
        return next((why for layer in part if (why := _of_stage(layer, groups))), None)
    if why := _unsized(part):
        return why
    if any(callable(getattr(layer, way, None)) for layer in part.modules() for way in ("narrow", "new_groups")):
        return None
    if type(part) in ALONE | NOTHING or _keeps_order(part):
        return None
    reason = MIXING.get(type(part)) or _by_trying(part, groups)
    return reason and f"a {type(part).__name__} cannot be in it: {reason}"


def _unsized(part: nn.Module) -> str | None:
    """Whether a layer has tensors, and does not say what it is for fewer channels."""
    if callable(getattr(part, "narrow", None)):
        return None
    own = [name for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]
    if own:
        reason = MIXING.get(type(part)) or f"{NARROW} what it is for the first groups"
        return f"a {type(part).__name__} cannot be made narrower: {reason}"
    return next((why for child in part.children() if (why := _unsized(child))), None)


def _keeps_order(part: nn.Module) -> bool:
    """Whether it reshapes features, and dimension 1 is channels, or groups of them, before and after."""
    if type(part) is nn.Flatten:
        return part.start_dim >= 1
    if type(part) is nn.Unflatten:
        return (part.dim == 1 and part.unflattened_size[0] == -1) or (isinstance(part.dim, int) and part.dim > 1)
    return False


_MANY = 144  # channels in a group: what puts channels into pixels, or takes them from there, divides them


@torch.no_grad()
def _by_trying(part: nn.Module, groups: int) -> str | None:
    """Why a module without tensors does not give the first groups of the first groups, by features of some shapes."""
    part, tried = copied(part).eval(), False
    generator = torch.Generator().manual_seed(0)
    for sizes in ((), (4,), (4, 4)):
        x = torch.randn((2, _MANY * groups, *sizes), generator=generator, dtype=torch.float64)
        try:
            whole = part(x.clone())
        except Exception:  # made for features of another shape
            continue
        if not isinstance(whole, Tensor) or whole.ndim < 2:
            return f"it gives no features [batch, channels, ...] of features {tuple(x.shape)}"
        tried = True
        for width in range(1, groups):
            given, wanted = (f[:, : prefix(f.shape[1], groups, width)] for f in (x, whole))
            some = f"of the first {width} of {groups} channel groups it"
            try:
                made = part(given.clone())
            except Exception as error:
                return f"{some} makes nothing: {error}"
            if made.shape != wanted.shape or not torch.allclose(made, wanted, rtol=0, atol=1e-9, equal_nan=True):
                return f"{some} does not make the first groups of what it makes of all"
    return (
        None
        if tried
        else (
            "it could not be tried on features; if it treats each channel alone, give it a method narrow(width) that "
            "returns itself"
        )
    )
