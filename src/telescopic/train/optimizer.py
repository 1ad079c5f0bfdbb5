"""What takes the steps."""

import torch
from torch import nn

from telescopic.layers.filter import Filter
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


def groups_for(net: Nested, recipe: Recipe) -> list[dict[str, object]]:
    """Groups of parameters, with the L2 penalty of the full network's loss as their weight decay.

    The gradient of λ·w² is 2λw, so a weight owned by o decays by 2λ · weight(full) · mix[full][o]: exactly what the
    penalty's own gradient would be after the mix, for free. The recipe's plain weight decay is added for all but the
    filters' θ, which it would kill.
    """
    full = net.grid.index(net.grid.full)
    weight = objective_weights(net, recipe)[full]
    owners, inside = net.owners(), {name for name, _ in net.path(net.grid.full)}
    thetas = {id(part.theta) for part in net.modules() if isinstance(part, Filter)}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        part = ".".join(name.split(".")[:2])
        decay = 0.0 if id(parameter) in thetas else recipe.weight_decay
        if parameter.ndim > 1 and part in inside:
            decay += 2 * recipe.l2 * weight * (recipe.mix[full][owners[part]] if recipe.mix is not None else 1.0)
        groups.setdefault(decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
