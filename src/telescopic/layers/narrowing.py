"""How a part is made as narrow as a member: ordinary layers that hold the first channel groups."""

import copy
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from telescopic.layers.causal import filled, first, narrow_norm, prefix
from telescopic.wrappers import hooked

NARROW = "use the Causal layers and SharedHead of telescopic.layers, or give it a method narrow(width) that returns"

_ROWS: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)


def takes_width(part: nn.Module) -> bool:
    """Whether a part has to be told its width, by a layer's method `in_width`, and does not see it in its input."""
    return any(callable(getattr(layer, "in_width", None)) for layer in part.modules())


def in_width(part: nn.Module, width: int, _done: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A part as members of some width run it: the same parameters, and buffers of its own where these are its own.

    A layer with a method `in_width(width)` says so itself. Any other is kept, with what its children are in this
    width; so what no layer in it has to be told is the part itself.
    """
    return _exchanged(part, lambda layer: _told(layer, "in_width", width), {} if _done is None else _done)


def narrow(
    part: nn.Module, width: int, _done: dict[nn.Module, nn.Module] | None = None, *, causal: bool = True
) -> nn.Module:
    """What a part computes in some width, in ordinary layers: copies, where it is less than the whole.

    A module with a method `narrow(width)`, as the causal layers have, says so itself. Any other is kept with its
    children narrowed: nothing that it computes by itself may depend on how many channels there are. What stands in it
    twice does so still.

    Args:
        part: the part.
        width: number of channel groups.
        causal: whether all features have the first groups of channels only, so that nothing may stay whole.

    Raises:
        ValueError: if a module has parameters or buffers of its own, no such method, and may not stay whole.
    """

    def made(layer: nn.Module) -> nn.Module | None:
        if (told := _told(layer, "narrow", width)) is not None:
            return told
        if causal and any(True for own in (layer._parameters, layer._buffers) for t in own.values() if t is not None):
            raise ValueError(
                f"a {type(layer).__name__} cannot be made narrower: {NARROW} what it is for the first groups"
            )
        return None

    return _exchanged(part, made, {} if _done is None else _done)


def narrowed(path: Sequence[nn.Module], width: int, groups: int, *, causal: bool) -> list[nn.Module]:
    """What `narrow` makes of an adapter, stages and a head; the adapter of a causal network gives fewer outputs.

    Raises:
        ValueError: as `narrow` and `narrow_outputs` do.
    """
    done: dict[nn.Module, nn.Module] = {}  # one activation may stand in several stages
    if groups == 1:
        return list(path)
    first = [narrow_outputs(path[0], width, groups)] if causal else []
    return [*first, *(narrow(part, width, done, causal=causal) for part in path[len(first) :])]


def _told(layer: nn.Module, method: str, width: int) -> nn.Module | None:
    own = getattr(layer, method, None)
    if not callable(own):
        return None
    _refuse_hooks(layer)
    made: nn.Module = own(width)
    return made


def _exchanged(
    part: nn.Module, of: Callable[[nn.Module], nn.Module | None], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """A part with other modules where `of` gives some; itself, if that is nowhere."""
    if part not in done:
        if (made := of(part)) is None:
            children = {name: child and _exchanged(child, of, done) for name, child in part._modules.items()}
            made = part
            if any(child is not part._modules[name] for name, child in children.items()):
                made = copy.copy(part)
                made.__dict__ |= {name: copy.copy(own) for name, own in vars(part).items() if name.endswith("_hooks")}
                made._modules = children
        done[part] = made
    return done[part]


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


def used_outputs(part: nn.Module, width: int, groups: int) -> dict[nn.Parameter, Tensor]:
    """Of the parameters that `narrow_outputs` cuts, which elements it keeps: bool, to be broadcast to their shape."""
    layers = flat(part)
    last = last_mixing(layers)
    return {
        parameter: first(len(parameter), groups, width).view(-1, *[1] * (parameter.ndim - 1))
        for layer in ([] if last is None else layers[last:])
        if type(layer) in _ROWS
        for parameter in layer.parameters(recurse=False)
    }


def used(part: nn.Module, width: int) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
    """Which elements of its parameters a part uses in some width: bool, to be broadcast to their shape.

    A layer with a method `used(width)` says so itself, as the causal ones do; None is all, as of any other.
    """
    told: dict[nn.Parameter, Tensor] = {}
    for layer in part.modules():
        if callable(getattr(layer, "used", None)):
            named = dict(layer.named_parameters())
            told |= {named[name]: mask for name, mask in layer.used(width).items() if name in named}  # type: ignore[operator]
    yield from ((parameter, told.get(parameter)) for parameter in part.parameters())


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
    if type(layer) in _ROWS:
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
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and type(layer) in _ROWS:
        return narrow_norm(type(layer), layer, prefix(layer.num_features, groups, width))
    return narrow(layer, width)
