"""What pushes θ to 0: the paper's penalty, and two other ways."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from telescopic.layers.filter import Filter, filters_of

By = Literal["channels", "params", "macs"]


def size(model: nn.Module, by: By = "channels") -> Tensor:
    """Σ max(0, θ) over all filters: times λ, the penalty (section 2.2, with max(0, θ) as in the authors' code).

    The draft prints |θ|, which would push a dead channel back to life.

    Args:
        model: a network with filters.
        by: what a channel weighs: 1, the number of parameters that go with it, or its multiply-adds. The two others
            make λ as many times smaller.

    Returns:
        A scalar with a gradient.
    """
    return torch.stack([(part.scale() * weight).sum() for part, weight in _weighed(model, by)]).sum()


@torch.no_grad()
def soft_threshold_(model: nn.Module, amount: float, by: By = "channels") -> None:
    """A proximal step of the penalty: θ ← max(0, θ − amount), called after the optimizer's step instead of adding it.

    For plain gradient descent `amount` is learning rate × λ.
    """
    for part, weight in _weighed(model, by):
        part.theta.copy_(torch.where(part.dead(), part.theta, (part.theta - amount * weight).clamp(min=0)))
        part.alive.logical_and_(part.theta > 0)


@torch.no_grad()
def drop_(model: nn.Module, level: float, generator: torch.Generator | None = None) -> None:
    """Randomised removal: channels with 0 < θ < level die with probability 1 − θ / level; for the others θ is level.

    On average each θ stays what it was, and so does what its channel gives; but not all small ones die at once.

    Args:
        model: a network with filters.
        level: below which channels may die.
        generator: of the CPU; with several processes, one of the same seed in each.
    """
    for part in _filters(model):
        chance = torch.rand(part.theta.shape, generator=generator).to(part.theta)
        small = ~part.dead() & (part.theta < level)
        part.theta.copy_(torch.where(small, torch.where(chance * level < part.theta, level, 0.0), part.theta))
        part.alive.logical_and_(part.theta > 0)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters for an optimizer with weight decay, which must not decay θ: the filters' θ are a group of their own.

    What the groups do not say, such as the learning rate and the decay of the first, they get from the optimizer.
    """
    thetas = [part.theta for part in _filters(model)]
    known = {id(theta) for theta in thetas}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": others}, {"params": thetas, "weight_decay": 0.0}]


def _filters(model: nn.Module) -> list[Filter]:
    filters = [*filters_of(model).values()]
    if not filters:
        raise ValueError("the network has no filters: see shrink.add_filters")
    return filters


def _weighed(model: nn.Module, by: By) -> Iterator[tuple[Filter, Tensor]]:
    for part in _filters(model):
        weight = {"channels": torch.ones_like(part.theta), "params": part.params, "macs": part.macs}[by]
        if by != "channels" and weight.isnan().any():  # a look waits for the device
            raise ValueError(f"it is not known what channels cost in {by}: call shrink.price_(model, example) first")
        yield part, weight
