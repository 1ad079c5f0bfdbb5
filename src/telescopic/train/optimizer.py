"""What takes the steps."""

import torch

from telescopic.nested import Nested
from telescopic.train.objective import parameter_groups
from telescopic.train.recipe import Recipe


def optimizer_for(net: Nested, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer, for the parameters of a network."""
    groups, fused = parameter_groups(net, recipe), device.type in ("cpu", "cuda", "mps")
    if recipe.optimizer == "sgd":
        momentum, nesterov = recipe.momentum, recipe.nesterov
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.learning_rate, fused=fused)
