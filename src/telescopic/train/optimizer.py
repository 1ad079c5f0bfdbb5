"""What takes the steps."""

from typing import Any

import torch
from torch import nn

from telescopic.layers.filter import filters_of
from telescopic.nested import Nested
from telescopic.train.objective import objective_weights
from telescopic.train.recipe import Recipe


def optimizer_for(net: Nested, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer, for the parameters of a network."""
    groups, fused = groups_for(net, recipe), device.type in ("cpu", "cuda", "mps")
    if recipe.optimizer == "sgd":
        momentum, nesterov = recipe.momentum, recipe.nesterov
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.learning_rate, fused=fused)


def groups_for(net: Nested, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of parameters, with the L2 penalty of the full network's loss as their weight decay.

    The gradient of λ·w² is 2λw, so a weight owned by o decays by 2λ · weight(full) · mix[full][o]: exactly what the
    penalty's own gradient would be after the mix, for free. The recipe's plain weight decay is added for all but the
    filters' θ, which it would kill. In each phase of the recipe that may be another: `decays` has them in order.
    """
    full = net.grid.index(net.grid.full)
    weights = [objective_weights(net, phase)[full] for phase in recipe.by_phase()]
    owners, inside = net.owners(), {name for name, _ in net.path(net.grid.full)}
    thetas = {id(part.theta) for part in filters_of(net).values()}
    groups: dict[tuple[float, ...], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        part = ".".join(name.split(".")[:2])
        decays = [0.0 if id(parameter) in thetas else recipe.weight_decay] * len(weights)
        if parameter.ndim > 1 and part in inside:
            share = recipe.mix[full][owners[part]] if recipe.mix is not None else 1.0
            decays = [decay + 2 * recipe.l2 * weight * share for decay, weight in zip(decays, weights, strict=True)]
        groups.setdefault(tuple(decays), []).append(parameter)
    return [{"params": some, "weight_decay": decays[0], "decays": decays} for decays, some in groups.items()]


def remember_(optimizer: torch.optim.Optimizer) -> None:
    """Let momentum begin at 0 for all parameters at once, which comes to the same as at their first gradients.

    Some have theirs later than others, such as heads of members that are not drawn yet; torch's fused optimizer cannot
    do with half of the momenta.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.requires_grad:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
