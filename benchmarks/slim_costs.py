"""Claims: a step of a slim family costs what its members cost apart; what is taken out is as written by hand.

A ResNet-20 for CIFAR-10 in four widths, on one thread. A step of the sandwich rule (the widest, the narrowest and one
other, the widest teaching) stands beside steps of the three as plain modules, and beside the widest alone and the bound
by multiply-adds. Times are the processor's, turns change places, and a ratio is the median of those within rounds:

    python benchmarks/slim_costs.py [--rounds 9] [--batch 64]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import telescopic as tl
from telescopic.train.objective import Objective

import results

SHARES = (0.25, 0.5, 0.75, 1.0)
SHAPE = (3, 32, 32)


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Of each call, in rounds in which each has its turn; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in sorted(calls, reverse=number % 2 == 1):
            start = time.process_time()
            calls[name]()
            if number:
                times[name].append(time.process_time() - start)
    return times


def ratio(one: list[float], *others: list[float]) -> float:
    """Median over the rounds of one time by the sum of others."""
    return round(median(a / sum(b) for a, *b in zip(one, *others, strict=True)), 3)


def stepping(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """A training step of a plain module."""
    net.train()

    def step() -> None:
        functional.cross_entropy(net(x), labels).backward()
        net.zero_grad()

    return step


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(*tl.networks.resnet(20))
    x, labels = torch.randn(args.batch, *SHAPE), torch.randint(10, (args.batch,))
    family = tl.slim(network, x, SHARES)
    costs = tl.measure(family, input_shape=SHAPE)
    members = [tl.extract(family, member.subnet) for member in costs]
    figures: dict[str, Any] = {}
    share = [member.macs / costs[-1].macs for member in costs]
    for middle in (1, 2):
        three = tl.slim(network, x, [SHARES[i] for i in (0, middle, 3)]).train()
        objective = Objective(three, tl.recipes.slim(1, drawn=None))

        def sandwich(objective: Objective = objective, net: nn.Module = three) -> None:
            objective(x, labels)[0].backward()
            net.zero_grad()

        calls = {f"width {i + 1}": stepping(members[i], x, labels) for i in (0, middle, 3)} | {"sandwich": sandwich}
        times = seconds(calls, args.rounds)
        figures[f"step with {SHARES[middle]:g}"] = {
            "ms": round(1000 * median(times["sandwich"]), 1),
            "by the full network alone": ratio(times["sandwich"], times["width 4"]),
            "bound by multiply-adds": round(1 + share[0] + share[middle], 3),
            "by its three members apart": ratio(times["sandwich"], *(times[f"width {i + 1}"] for i in (0, middle, 3))),
        }
    half, hand = tl.extract(family, tl.Subnet(width=2)), nn.Sequential(*tl.networks.resnet(20, width=8)).eval()
    hand.load_state_dict(dict(zip(hand.state_dict(), half.state_dict().values(), strict=True)))
    with torch.inference_mode():
        times = seconds({"extracted": lambda: half(x), "by hand": lambda: hand(x)}, 5 * args.rounds)
        identical = torch.equal(half(x), hand(x))
    figures["extracted by hand-written"] = {
        "ratio": ratio(times["extracted"], times["by hand"]), "identical": identical,
    }  # fmt: skip
    results.write("slim-costs", {k: v for k, v in vars(args).items()} | {"threads": 1}, figures)


if __name__ == "__main__":
    main()
