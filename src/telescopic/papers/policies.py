"""What each policy for BatchNorm's statistics makes of one and the same training run.

The policy decides what a network remembers of its images, not what it learns: the weights are the same under all of
them. So one run answers for all three, if a second set of statistics is kept beside the first.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from telescopic.data import Dataset
from telescopic.nested import Nested, rebuilt
from telescopic.statistics import norms
from telescopic.train import Recipe, evaluate, recalibrate
from telescopic.wrappers import twin


def keep_shared(net: Nested) -> Nested:
    """Let a network with statistics per entry keep, while it is trained, those that all entries would share.

    Args:
        net: the network, without BatchNorm in its heads. It gets one more submodule, `shared`, which its checkpoints
            hold too, so do this before resuming as well.

    Returns:
        The submodule: the same network with the policy `shared`.
    """
    stages = [twin(stage) for stage in net.stages]
    for i, stage in enumerate(stages):
        for seen in [net.stages[i], *(part for key, part in net.twins.items() if key.endswith(f"-{i}"))]:
            for norm, other in zip(norms(seen), norms(stage), strict=True):
                _follow(norm, other)
    shared = rebuilt(net, stages=stages, statistics="shared")
    net.add_module("shared", shared)
    return shared


def by_policy(net: Nested, data: Dataset, recipe: Recipe) -> dict[str, list[float]]:
    """Policy → test accuracy of every member, for a network on which `keep_shared` was called before it was trained."""
    shared = net.get_submodule("shared")
    again = recalibrate(shared, data.train, recipe.preprocess, augment=recipe.augment)
    policies = {"shared": shared, "per-entry": net, "recalibrated": again}
    return {
        name: evaluate(one, [data.test], recipe.preprocess)[0].tolist()
        for name, one in policies.items()
        if isinstance(one, Nested)
    }


def _follow(norm: _BatchNorm, other: _BatchNorm) -> None:
    """Let `other` see every batch that `norm` sees in training."""

    @torch.no_grad()
    def follow(module: nn.Module, args: Any, out: Any) -> None:
        if module.training:
            other(*args)

    norm.register_forward_hook(follow)
