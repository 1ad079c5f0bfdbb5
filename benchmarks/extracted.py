"""Claim: an extracted member is as fast as the same MLP written by hand (ratio 1.00 ± 0.02), with identical output.

The two are timed in turn, a hundred passes at a time, and the ratio is the median over the rounds. The network itself,
called for the same member, stands beside it. Writes results/extracted.json:

    python benchmarks/extracted.py [--threads 1] [--rounds 200]
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

from telescopic import Subnet, extract
from telescopic.papers import nsn

import results


def by_hand(hidden: int) -> nn.Sequential:
    """The member as one would write it."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(hidden):
        layers += [nn.Linear(784, 784), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(784, 10)).eval()


@torch.inference_mode()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net = nsn.network(2).eval()
    figures = {}
    for hidden in range(3):
        subnet = Subnet(entry=2 - hidden)
        member, hand = extract(net, subnet), by_hand(hidden)
        for own, theirs in zip(hand.parameters(), member.parameters(), strict=True):
            own.copy_(theirs)
        for batch in (1, 128):
            x = torch.rand(batch, 1, 28, 28)
            identical = torch.equal(member(x), hand(x)) and torch.equal(member(x), net(x, subnet))
            calls = {"extracted": lambda m=member, x=x: m(x), "by hand": lambda m=hand, x=x: m(x),
                     "network": lambda s=subnet, x=x: net(x, s)}  # fmt: skip
            times: dict[str, list[float]] = {name: [] for name in calls}
            passes = 100 if batch == 1 else 10
            for number in range(args.rounds + 5):
                # Turns change places, so that none always runs behind the same other.
                for name in sorted(calls, reverse=number % 2 == 1):
                    began = time.perf_counter()
                    for _ in range(passes):
                        calls[name]()
                    if number >= 5:
                        times[name].append((time.perf_counter() - began) / passes)
            figures[f"model{hidden}, batch {batch}"] = {
                "identical output": identical,
                "us": {name: round(median(values) * 1e6, 1) for name, values in times.items()},
                "extracted / by hand": round(
                    median(a / b for a, b in zip(times["extracted"], times["by hand"], strict=True)), 3
                ),
            }
    results.write("extracted", vars(args), figures)


if __name__ == "__main__":
    main()
