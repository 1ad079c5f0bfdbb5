"""Filters are put into a network of anyone's."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from telescopic.ambient import plain
from telescopic.layers.filter import Filter, Filtered, TokenFilter
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import price_, remove_, watched
from telescopic.shrink.example import examples, unchanged
from telescopic.shrink.rules import FUNCTIONS, LAYERS
from telescopic.shrink.watch import Watch

Module = TypeVar("Module", bound=nn.Module)

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@plain()
def add_filters(
    model: Module,
    example: Tensor | Sequence[Tensor],
    *,
    where: Callable[[str], bool] | None = None,
    absorb: bool = False,
) -> Module:
    """A copy of a network with a `Filter` behind each convolution and linear layer, or behind the norm that follows it.

    The layer, or norm, is replaced by a `Filtered` of it and its filter, so that names of weights get a `0` inside, as
    in `conv1.0.weight`; `fold` takes the filters out again. Layers whose outputs are the network's, or are added to
    its inputs, get none, for these do not change their size.

    What the filters could remove is tried on a copy before it is returned.

    Args:
        model: the network. It is run on the example, in training and in eval mode, and not changed.
        example: a batch of inputs `[batch, ...]`, or several for a network that takes several. Two are remembered, as
            `model.shrink_example`.
        where: which layers get filters, by their path; all by default.
        absorb: whether `compact_` will be told to absorb constants.

    Raises:
        ValueError: if there is no place for a filter, or there is one where no channel could ever be removed.
    """
    if any(isinstance(part, Filter) for part in model.modules()):
        raise ValueError("the network has filters already")
    made = copy.deepcopy(model)
    inputs = examples(made, example)
    places, tokens = _places(made, inputs)
    chosen = [(path, place) for path, place in places.items() if where is None or where(path)]
    if not chosen:
        raise ValueError(
            "there is no place for a filter: no convolution or linear layer was chosen whose outputs are not the "
            "network's own, and which its forward pass calls"
        )
    paths: dict[str, str] = {}
    for path, place in chosen:
        layer = made.get_submodule(place)
        maker: Any = made.get_submodule(path)
        part = TokenFilter(maker.out_features) if path in tokens else Filter(_channels(maker))
        filtered = Filtered(layer, part.to(next(maker.parameters())))
        names = [name for name, part in made.named_modules(remove_duplicate=False) if part is layer]
        for name in names:
            made.set_submodule(name, filtered)
        paths |= {f"{name}.1": path for name in names}
    made.shrink_example = tuple(x.cpu() for x in inputs)  # type: ignore[assignment]
    _try(made, paths, inputs, absorb)
    price_(made)
    return made


def _channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _places(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[dict[str, str], set[str]]:
    """For each layer that makes channels, by path, behind what its filter stands; and which of them make tokens."""
    channels = Channels()
    watch = Watch(model, channels, FUNCTIONS, LAYERS, absorb=False, price=False)
    with unchanged(model, training=False):
        watch.run(inputs)
    reads = {(path, id(x)): id(out) for path, x, out in watch.made}
    outer = channels.outer()
    behind: dict[str, set[str]] = {}
    tokens: set[str] = set()
    for path, _, out in watch.made:
        layer = model.get_submodule(path)
        ids = watch.known[id(out)][1].ids if isinstance(layer, nn.Linear | _ConvNd) else None
        if ids is not None and not outer[ids].any():
            (user,) = users if len(users := watch.users.get(id(out), [])) == 1 else [path]
            norm = isinstance(model.get_submodule(user), _NORMS) and (user, id(out)) in reads
            behind.setdefault(path, set()).add(user if norm else path)
            if isinstance(layer, nn.Linear) and out.ndim > 2:
                tokens.add(path)
    alone = [place for places in behind.values() for place in places]
    found = {
        path: place if len(places) == 1 and alone.count(place := next(iter(places))) == 1 else path
        for path, places in behind.items()
    }
    return found, tokens


def _try(model: nn.Module, paths: dict[str, str], inputs: Sequence[Tensor], absorb: bool) -> None:
    """Remove channels from a copy.

    Raises:
        ValueError: if one of the filters cannot remove any, whatever is dead, or the network does something else then.
    """
    trial = copy.deepcopy(model)
    filters = {path: part for path, part in trial.named_modules() if isinstance(part, Filter)}
    _kill({part: torch.ones_like(part.alive) for part in filters.values()})
    channels = watched(trial, inputs, absorb=absorb)
    removed = channels.removed()
    held = channels.reasons(removed)
    for path, part in filters.items():
        if len(part.theta) > 1 and path in channels.filters and not removed[channels.theta(path)].any():
            _refuse(paths[path], held.get(path, "what needs all of its channels or none"))
    # Every second of those that go together, so that outputs tell whether the right ones are left.
    label, alive, dead = channels.labels(), set[int](), set[int]()
    for path in channels.filters:
        for channel in label[channels.theta(path)].tolist():
            if channel not in alive | dead:
                (alive if len(alive) <= len(dead) else dead).add(channel)
    gone = torch.tensor(sorted(dead), dtype=torch.long)
    trial = copy.deepcopy(model)
    _kill({trial.get_submodule(path): torch.isin(label[channels.theta(path)], gone) for path in channels.filters})
    *_, found = remove_(trial, (), inputs, watched(trial, inputs, absorb=absorb))
    for path, why in found.items():
        _refuse(paths[path], why)


@torch.no_grad()
def _kill(dead: Mapping[nn.Module, Tensor]) -> None:
    for part, which in dead.items():
        theta = part.get_parameter("theta")
        theta.masked_fill_(which.to(theta.device), 0)


def _refuse(path: str, reason: str) -> NoReturn:
    raise ValueError(
        f"a filter behind {path} could never remove a channel, because of {reason}. Leave it out with where="
        + (
            ", give all branches that are added together filters, have nothing behind the filter that makes something "
            "else of 0, or say absorb=True here and to compact_"
            if "else than 0" in reason
            else ", or register a rule for that layer with shrink.register_rule"
            if "not known to treat" in reason
            else ""
        )
    )
