"""Filters become part of the weights in front of them, and what is left is an ordinary network."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from telescopic.ambient import plain
from telescopic.inputs import Tensors
from telescopic.layers.filter import Filter, attached, detach_
from telescopic.shrink.channels import Channels
from telescopic.shrink.compact import answers, prove
from telescopic.shrink.example import Inputs, examples
from telescopic.shrink.rules import observed
from telescopic.shrink.watch import Watch
from telescopic.wrappers import copied, unwrapped

Module = TypeVar("Module", bound=nn.Module)


@plain()
def fold(model: Module, example: Tensors | Inputs | None = None) -> Module:
    """A copy of a network without filters, which gives the same outputs.

    Each filter's max(0, θ) is multiplied into the weights and bias of the convolution, linear layer, BatchNorm or
    InstanceNorm in front of it. What `add_filters` put in is taken out, so that the network has the classes and names
    that it had before; in place of filters that stood there by themselves is `nn.Identity`.

    Args:
        model: the network.
        example: see `add_filters`; not needed if that got one.

    Raises:
        ValueError: if something else is in front of a filter, or reads what the filter reads; or if something else
            than the layer in front, or what shares its weights, reads these.
    """
    model = unwrapped(model)
    inputs = examples(model, example)
    made = copied(model)
    watch = observed(made, inputs, Channels())
    before = answers(model, inputs)
    scales: dict[str, tuple[str, Tensor]] = {}
    for path, part in watch.channels.filters.items():
        for layer in _in_front(made, watch, path):
            scales[layer] = (path, part.scale().detach())
    for layer, (_, scale) in scales.items():
        _scale(made.get_submodule(layer), scale)
    for filtered in [module for module in made.modules() if attached(module)]:
        detach_(filtered)
    for name, part in list(made.named_modules(remove_duplicate=False)):
        if isinstance(part, Filter):
            made.set_submodule(name, nn.Identity())
    made.__dict__.pop("shrink_example", None)
    try:
        prove(made, inputs, before)
    except ValueError as error:
        raise ValueError(f"without its filters the network would not give the same: {error}") from error
    return made


def _in_front(model: nn.Module, watch: Watch, path: str) -> set[str]:
    """The layers that make what a filter reads, and nothing else reads."""
    layers = set()
    for x in [x for user, x, _ in watch.made if user == path]:
        makers = {p for p, _, out in watch.made if out is x and _can_scale(model.get_submodule(p))}
        if len(makers) != 1:
            raise ValueError(
                f"filter {path} cannot be folded: in front of it is no convolution, linear layer, BatchNorm or "
                "InstanceNorm whose weights could be scaled"
            )
        layers |= makers
    for layer in layers:
        for name, weight in model.get_submodule(layer).named_parameters(recurse=False):
            for user in watch.users.get(id(weight), []):
                if not any(weight is own for own in model.get_submodule(user).parameters(recurse=False)):
                    who = user or "a function in the network's forward pass"
                    raise ValueError(f"filter {path} cannot be folded into {layer}, whose {name} is read by {who} too")
        for out in [out for p, _, out in watch.made if p == layer]:
            if others := set(watch.users.get(id(out), ["the network's output"])) - {path}:
                who = min(others) or "a function in the network's forward pass"
                raise ValueError(f"filter {path} cannot be folded into {layer}, whose output goes to {who} too")
    return layers


def _can_scale(layer: Any) -> bool:
    if isinstance(layer, _NormBase):
        return layer.weight is None or isinstance(layer.weight, nn.Parameter)
    return isinstance(layer, nn.Linear | _ConvNd) and isinstance(getattr(layer, "weight", None), nn.Parameter)


@torch.no_grad()
def _scale(layer: Any, scale: Tensor) -> None:
    """Have a layer give its outputs times a factor for each channel. Its weights become its own if they were shared."""
    if isinstance(layer, _NormBase) and layer.weight is None:
        layer.affine, layer.weight, layer.num_features = True, nn.Parameter(scale.clone()), len(scale)
        layer.bias = nn.Parameter(torch.zeros_like(scale))
        return
    weight, bias = layer.weight, layer.bias
    if isinstance(layer, _ConvNd) and layer.transposed:
        groups = weight.unflatten(0, (layer.groups, -1))  # [groups, inputs, outputs, ...]
        factor = scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        scaled = (groups * factor).flatten(0, 1)
    else:
        scaled = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter(scaled, weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias * scale, bias.requires_grad)
