"""The method of a network that learns its widths while it is trained."""

import math
import time

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telescopic.inputs import Tensors
from telescopic.layers.filter import Filter
from telescopic.nested import Nested
from telescopic.shrink.compact import compact_, price_
from telescopic.shrink.example import as_one
from telescopic.shrink.family import Every, filters
from telescopic.shrink.penalty import drop_, size, soft_threshold_
from telescopic.train.recipe import Shrink


class Shrinking:
    """Penalises channels and removes the dead ones, when the recipe says so.

    Args:
        net: a network with filters.
        how: the recipe's part about it.
        optimizer: of the network's parameters.
        example: a batch of inputs `[batch, ...]`, or a dict or tuple of several.
        seed: of what is random.

    Attributes:
        seconds: time spent removing since it was last set to 0.

    Raises:
        ValueError: if the network has no filters.
    """

    def __init__(self, net: Nested, how: Shrink, optimizer: Optimizer, example: Tensors, *, seed: int) -> None:
        self.every, self.how, self.optimizer, self.seed = Every(net), how, optimizer, seed
        self.example = as_one(example)
        # Each θ once: streams with statistics of their own have filters of their own, which share it.
        self.filters = nn.ModuleList(filters(net).values())
        if not self.filters:
            raise ValueError(
                "the recipe says how the network shrinks, but it has no filters: see telescopic.shrink.add_filters"
            )
        self.seconds = 0.0
        price_(self.every, self.example)

    def minimised(self, mean: Tensor) -> Tensor:
        """The mean loss and the penalty."""
        if self.how.method == "proximal" or not self.how.penalty:
            return mean
        return mean + self.how.penalty * size(self.filters, self.how.by)

    def after_step(self, step: int) -> bool:
        """Take the penalty's step, if it is one by itself, and remove channels if that is due: whether any were."""
        if self.how.method == "proximal":
            self._take_off()
        due = self.how.collect
        return isinstance(due, int) and step % due == 0 and self._collect(step)

    def after_epoch(self, step: int) -> bool:
        """Remove channels if that is due: whether any were."""
        return self.how.collect == "epoch" and self._collect(step)

    def _collect(self, step: int) -> bool:
        began = time.perf_counter()
        if self.how.method == "random":
            drop_(self.filters, self.how.level, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        log = compact_(self.every, self.optimizer, example=self.example, multiple_of=self.how.multiple_of)
        self.seconds += time.perf_counter() - began
        return bool(log)

    @torch.no_grad()
    def _take_off(self) -> None:
        """The proximal step: θ ← max(0, θ − step size · λ).

        With momentum m the step size is rate / (1 − m), which is what a constant gradient amounts to. Under Adam it is
        what Adam makes of a gradient of λ beside those that θ has had, which is never more than the rate.
        """
        group = self.optimizer.param_groups[0]
        if "betas" not in group:
            amount = group["lr"] / (1 - group["momentum"]) * self.how.penalty
            soft_threshold_(self.filters, amount, self.how.by)
            return
        for part in self.filters.children():
            assert isinstance(part, Filter)
            state = self.optimizer.state[part.theta]
            debiased = state["exp_avg_sq"] / -torch.expm1(state["step"] * math.log(group["betas"][1]))
            usual = debiased.sqrt() + group["eps"]
            weight = 1.0 if self.how.by == "channels" else getattr(part, self.how.by)
            amount = group["lr"] * (self.how.penalty * weight / usual).clamp(max=1)
            part.theta.copy_(torch.where(part.dead(), part.theta, (part.theta - amount).clamp(min=0)))
            part.alive.logical_and_(part.theta > 0)
