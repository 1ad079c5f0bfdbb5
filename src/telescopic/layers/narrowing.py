"""How a part is made as narrow as a member: ordinary layers that hold the first channel groups."""

import copy
from collections.abc import Sequence

from torch import nn

from telescopic.layers.causal import filled, narrow_norm, prefix
from telescopic.wrappers import hooked

NARROW = "use the Causal layers and SharedHead of telescopic.layers, or give it a method narrow(width) that returns"


def narrow(part: nn.Module, width: int, _done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """What a part computes for the first `width` channel groups, as a module of its own.

    A module with a method `narrow(width)`, as the causal layers have, says so itself. Any other is kept with its
    children narrowed: nothing that it computes by itself may depend on how many channels there are. What stands in it
    twice does so still.

    Raises:
        ValueError: if a module has parameters or buffers of its own and no such method.
    """
    done = {} if _done is None else _done
    if part not in done:
        done[part] = _narrowed(part, width, done)
    return done[part]


def _narrowed(part: nn.Module, width: int, done: dict[nn.Module, nn.Module]) -> nn.Module:
    own = getattr(part, "narrow", None)
    if callable(own):
        _refuse_hooks(part)
        narrowed: nn.Module = own(width)
        return narrowed
    if any(True for _ in part.parameters(recurse=False)) or any(True for _ in part.buffers(recurse=False)):
        raise ValueError(f"a {type(part).__name__} cannot be made narrower: {NARROW} what it is for the first groups")
    made = copy.copy(part)
    made._modules = {name: child and narrow(child, width, done) for name, child in part._modules.items()}
    return made


def _refuse_hooks(part: nn.Module) -> None:
    if hooked(part):
        raise ValueError(
            f"a {type(part).__name__} with hooks, as filters are, cannot be made narrower: what is narrow would not "
            "have them. Fold filters with telescopic.shrink.fold_family, and remove others"
        )


def no_end(part: nn.Module) -> str:
    """Why the outputs of an adapter cannot be made fewer."""
    kind = f"{type(part).__name__}{' with hooks, which are in the way' if hooked(part) else ''}"
    return (
        "the adapter of a network with several widths ends in a convolution or a linear layer, with norms and "
        f"activations behind it; this one has none: {kind}"
    )


def narrow_outputs(part: nn.Module, width: int, groups: int) -> nn.Module:
    """A part that gives the first `width` of `groups` channel groups only, from all of its input.

    Its last ordinary convolution or linear layer keeps the first rows of its weight, and what follows as many channels:
    BatchNorms, and whatever `narrow` takes.

    Raises:
        ValueError: if it is none that ends in a convolution or linear layer, with norms and activations behind it.
    """
    layers = flat(part)
    last = last_mixing(layers)
    if last is None:
        raise ValueError(no_end(part))
    return nn.Sequential(*layers[:last], *(_first_rows(layer, width, groups) for layer in layers[last:]))


def last_mixing(layers: Sequence[nn.Module]) -> int | None:
    """Place of the last ordinary convolution or linear layer, of which narrow members use the first rows."""
    # By type, for a subclass may compute something else: a causal one does.
    return next((i for i in reversed(range(len(layers))) if type(layers[i]) in (nn.Conv2d, nn.Linear)), None)


def flat(part: nn.Module) -> list[nn.Module]:
    """The layers of a part, with those of `nn.Sequential`s in it that have no hooks laid out in a row."""
    plain = type(part) is nn.Sequential and not hooked(part)
    return [leaf for child in part for leaf in flat(child)] if plain else [part]  # type: ignore[attr-defined]


def _first_rows(layer: nn.Module, width: int, groups: int) -> nn.Module:
    """The first groups of what a layer gives, from all that it takes; or for layers that treat each channel alone."""
    if type(layer) in (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d):
        _refuse_hooks(layer)
    if type(layer) is nn.Conv2d and layer.groups == 1:
        rows = prefix(layer.out_channels, groups, width)
        how = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1, layer.bias is not None)
        made: nn.Module = nn.Conv2d(layer.in_channels, rows, *how, layer.padding_mode, device="meta")  # type: ignore[arg-type]
        return filled(made, layer, layer.weight[:rows], layer.bias if layer.bias is None else layer.bias[:rows])
    if type(layer) is nn.Linear:
        rows = prefix(layer.out_features, groups, width)
        made = nn.Linear(layer.in_features, rows, layer.bias is not None, device="meta")
        return filled(made, layer, layer.weight[:rows], layer.bias if layer.bias is None else layer.bias[:rows])
    if type(layer) is nn.BatchNorm1d:
        return narrow_norm(nn.BatchNorm1d, layer, prefix(layer.num_features, groups, width))
    if type(layer) is nn.BatchNorm2d:
        return narrow_norm(nn.BatchNorm2d, layer, prefix(layer.num_features, groups, width))
    return narrow(layer, width)
