"""Claims: refining through 4 depths takes at most 1.2 times one shot of the full network, through 8 at most 1.35 times.

Answers are identical. Also measured: 16 depths, and widths. Batch 1, one thread, torch eager. One shot is the full
network extracted: stock layers, nothing of ours in between. The ways take turns, and the ratios are medians of ratios
within a round, so that a machine whose speed drifts hits all alike. With one thread it is the processor's time that is
measured, which other programs disturb less. Weights are random. Writes results/anytime.json:

    python benchmarks/anytime.py [--groups 16] [--rounds 60] [--threads 1]
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from telescopic.anytime import anytime, deepening
from telescopic.extract import extract
from telescopic.nest import nest
from telescopic.nested import Nested
from telescopic.networks import causal_resnet, resnet
from telescopic.subnet import Subnet

import results


def spread(path: Sequence[Subnet], number: int) -> tuple[Subnet, ...]:
    """Some of a path's members, evenly spaced, the last among them."""
    return tuple(path[round((k + 1) * len(path) / number) - 1] for k in range(number))


def refine(net: Nested, x: Tensor, path: Sequence[Subnet]) -> Tensor:
    """The last answer of a path."""
    for answer in anytime(net, x, path=path):
        logits = answer.logits
    return logits


def again(modules: Sequence[nn.Module], x: Tensor) -> None:
    """What refining saves: each member from the beginning."""
    for module in modules:
        module(x)


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, warm: int = 5) -> dict[str, list[float]]:
    """Seconds of each call, round by round; each behind one of its own, so that all find caches as they left them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for number in range(rounds + warm):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            calls[name]()
            began = clock()
            calls[name]()
            if number >= warm:
                times[name].append(clock() - began)
    return times


def measured(net: Nested, paths: Mapping[str, Sequence[Subnet]], rounds: int) -> dict[str, object]:
    """Each path against one shot of the full network, and against computing each of its members anew."""
    net.eval()
    x = torch.randn(1, 3, 32, 32)
    full = extract(net)
    figures: dict[str, object] = {}
    with torch.inference_mode():
        for name, path in paths.items():
            modules = [extract(net, subnet) for subnet in path]
            times = timed(
                {
                    "one shot": lambda: full(x),
                    "refined": lambda path=path: refine(net, x, path),
                    "anew": lambda modules=modules: again(modules, x),
                },
                rounds,
            )
            apart = max(
                (answer.logits - module(x)).abs().max().item()
                for answer, module in zip(anytime(net, x, path=path), modules, strict=True)
            )
            macs = [answer.macs for answer in anytime(net, x, path=path)][-1]
            figures[name] = {
                "one shot ms": round(median(times["one shot"]) * 1e3, 2),
                "refined / one shot": ratio(times, "refined", "one shot"),
                "each anew / one shot": ratio(times, "anew", "one shot"),
                "largest difference of an answer": apart,
                "MACs of all steps": macs,
            }
    return figures


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over rounds."""
    return round(median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    figures: dict[str, object] = {}
    causal = causal_resnet(args.groups)
    plain = nest(resnet(32), input_shape=(3, 32, 32), exits=range(15))
    aligned = causal_resnet(4, (16, 32, 64))
    for name, net in (
        (f"causal ResNet, {args.groups} groups", causal),
        ("ResNet-32, one width", plain),
        ("causal ResNet, 4 groups of 16, 32, 64 channels", aligned),
    ):
        path = deepening(net)
        paths = {f"{number} depths": spread(path, number) for number in (4, 8)} | {f"{len(path)} depths": path}
        if net.groups > 1:
            paths |= {
                f"{number} widths": spread([Subnet(width=width) for width in net.grid.widths], number)
                for number in (2, 4)
            }
        figures[name] = measured(net, paths, args.rounds)
    results.write("anytime", vars(args), figures)


if __name__ == "__main__":
    main()
