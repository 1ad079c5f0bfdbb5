"""Claim: what makes members learn better costs at most 5 % of a step over `balanced-macs`, but for a teacher apart.

Steps of the last phase of each way, of all 256 members of a Doubly Nested Network with 16 groups, take turns in one
process on random images, in fp32; ratios are medians of ratios within a round. Writes results/levers.json:

    python benchmarks/levers.py [--threads 1] [--rounds 9] [--batch 128]
"""

import argparse
import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from telescopic.papers import doubly_nested
from telescopic.train import Objective
from telescopic.train.balance import gradient_factors
from telescopic.train.layout import layout_for
from telescopic.train.loop import average_
from telescopic.train.objective import objective_weights
from telescopic.train.optimizer import groups_for, remember_

import results
from speed_cnsn import ratio, timed

WAYS = (
    "balanced-macs",
    "taught",
    "taught-exits",
    "apart-5",
    "apart-taught",
    "delayed-ema",
    "balanced-conditioned",
    "heard-6",
)


def step(way: str, batch: int) -> Callable[[], None]:
    """One training step as the loop does it, in the last phase."""
    net, recipe = doubly_nested.experiment(way, groups=16)
    layout = layout_for(net, torch.device("cpu"), "fp32")
    net.train().to(memory_format=layout)
    average = copy.deepcopy(net).requires_grad_(False) if recipe.ema else None
    objective = Objective(net, recipe, teacher=average if recipe.teacher == "ema" else None)
    objective.begin(recipe.epochs)
    factors = gradient_factors(net, objective_weights(net, recipe), recipe.group_gradient, recipe.feature_weights)
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    remember_(optimizer)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(10, (batch,))

    def run() -> None:
        optimizer.zero_grad()
        (objective(x, labels)[0] / batch).backward()
        for parameter, factor in factors:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        optimizer.step()
        if average is not None:
            average_(average, net, recipe.ema)

    return run


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("threads", 1), ("rounds", 9), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    times = timed({way: step(way, args.batch) for way in WAYS}, args.rounds)
    figures: dict[str, Any] = {"ms": {way: round(median(some) * 1e3, 1) for way, some in times.items()}}
    figures |= {f"{way} / {WAYS[0]}": ratio(times, way, WAYS[0]) for way in WAYS[1:]}
    results.write("levers", vars(args), figures)


if __name__ == "__main__":
    main()
