"""Filters are put into a network of anyone's."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from telescopic.ambient import plain
from telescopic.inputs import Tensors, each
from telescopic.layers.filter import Filter, TokenFilter, attach_, filters_of
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import UNREACHED, price_, remove_, watched
from telescopic.shrink.example import Inputs, Run, examples, unchanged
from telescopic.shrink.folding import fold
from telescopic.shrink.rules import observed
from telescopic.wrappers import copied, unwrapped

Module = TypeVar("Module", bound=nn.Module)

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@plain()
def add_filters(
    model: Module,
    example: Tensors | Inputs,
    *,
    where: Callable[[str], bool] | None = None,
) -> Module:
    """A copy of a network with a `Filter` behind each convolution and linear layer, or behind the norm that follows it.

    The layer, or norm, stays as it is and gets the filter as a child, such as `conv1.filter`, through which all goes
    that it gives when it is called; `fold` takes the filters out again. Layers whose outputs are the network's, or are
    added to its inputs or an embedding, get none, for these do not change their size.

    What the filters could remove, and that they can be folded, is tried on a copy before it is returned.

    Args:
        model: the network. It is run on the example, in training and in eval mode, and not changed. Of what
            `torch.compile` returned the network inside is taken: compile what comes back.
        example: a batch of inputs `[batch, ...]`, or several for a network that takes several. Two are remembered, as
            `model.shrink_example`. If a training loop calls other parts than the forward pass does, a function that is
            given the network and does so too, such as `lambda net: (net(x), net.project(net.features(x)))`.
        where: which layers get filters, by their path; all by default.

    Raises:
        ValueError: if there is no place for a filter; if there is one where no channel could ever be removed, or that
            would do nothing in one of the modes, because the layer's weights are used without it; or if the example
            does not reach all parameters.
    """
    model = unwrapped(model)
    if filters_of(model):
        raise ValueError("the network has filters already")
    inputs = examples(model, example)
    made = copied(model)
    places, tokens = _places(made, inputs)
    chosen = [(path, place) for path, place in places.items() if where is None or where(path)]
    if not chosen:
        raise ValueError(
            "there is no place for a filter: no convolution or linear layer was chosen whose outputs are not the "
            "network's own, and which its forward pass calls in eval mode"
        )
    paths: dict[str, str] = {}
    for path, place in chosen:
        maker: Any = made.get_submodule(path)
        kind = TokenFilter if path in tokens else Filter
        part = kind(maker.out_features if isinstance(maker, nn.Linear) else maker.out_channels)
        attach_(made.get_submodule(place), part.to(next(maker.parameters())))
        paths[f"{place}.filter"] = path
    for encoder in made.modules():
        if isinstance(encoder, nn.TransformerEncoder) and filters_of(encoder):
            # In eval mode it would pack padded tokens, which torch refuses to do around layers with hooks.
            encoder.use_nested_tensor = False
    made.shrink_example = inputs if callable(inputs) else tuple(each(Tensor.cpu, x) for x in inputs)  # type: ignore[assignment]
    _try(made, paths, inputs)
    price_(made)
    return made


def _places(model: nn.Module, inputs: Inputs) -> tuple[dict[str, str], set[str]]:
    """For each layer that makes channels, by path, behind what its filter stands; and which of them make tokens."""
    channels = Channels()
    watch = observed(model, inputs, channels)
    reads = {(path, id(x)): id(out) for path, x, out in watch.made}
    outer, label = channels.outer(), channels.labels()
    for axis in channels.axes.values():  # no filter stands behind an embedding, so what is added to it never dies
        if isinstance(model.get_submodule(axis.name.rpartition(".")[0]), nn.Embedding | nn.EmbeddingBag):
            outer |= torch.isin(label, label[axis.ids])
    behind: dict[str, set[str]] = {}
    tokens: set[str] = set()
    for path, _, out in watch.made:
        layer = model.get_submodule(path)
        ids = watch.known[id(out)][1].ids if isinstance(layer, nn.Linear | _ConvNd) and not out.is_complex() else None
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


def _try(model: nn.Module, paths: dict[str, str], inputs: Inputs) -> None:
    """Remove channels from copies, and fold one.

    Raises:
        ValueError: if one of the filters does nothing, or cannot remove any channel, whatever is dead, or the network
            does something else then.
    """
    trial = copied(model)
    for training in (True, False):
        for path in _idle(trial, inputs, training):
            raise ValueError(
                f"a filter behind {paths[path]} would do nothing in {'training' if training else 'eval'} mode: the "
                "layer is not called then, though a function may use its weights. Leave it out with where="
            )
    filters = filters_of(trial)
    _kill({part: torch.ones_like(part.alive) for part in filters.values()})
    channels = watched(trial, inputs)
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
    trial = copied(model)
    filters = filters_of(trial)
    _kill({filters[path]: torch.isin(label[channels.theta(path)], gone) for path in channels.filters})
    *_, found = remove_(trial, (), inputs, watched(trial, inputs))
    for path, why in found.items():
        _refuse(paths[path], why)
    fold(model, inputs)  # what fx generates forgets attributes when it is copied


@torch.no_grad()
def _kill(dead: Mapping[Filter, Tensor]) -> None:
    for part, which in dead.items():
        part.theta.masked_fill_(which.to(part.theta.device), 0)


def _refuse(path: str, reason: str) -> NoReturn:
    raise ValueError(
        f"a filter behind {path} could never remove a channel, because of {reason}. Leave it out with where="
        + (
            ", give all branches that are added together filters, or have nothing behind the filter that makes "
            "something else of 0"
            if "else than 0" in reason
            else ", or register a rule for that layer with shrink.register_rule"
            if "not known to treat" in reason
            else ", let example be a function of the network that calls what uses them too, or delete them from it"
            if UNREACHED in reason
            else ""
        )
    )


def _idle(model: nn.Module, inputs: Inputs, training: bool) -> list[str]:
    """Filters that a network does not call in a mode."""
    filters, called = filters_of(model), set[nn.Module]()
    with ExitStack() as hooks, unchanged(model, training), torch.no_grad():
        for part in filters.values():
            hooks.enter_context(part.register_forward_pre_hook(lambda part, _: called.add(part)))
        Run(model, inputs)()
    return [path for path, part in filters.items() if part not in called]
