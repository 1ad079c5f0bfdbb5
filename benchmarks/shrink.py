"""Claims: removing dead channels makes 100 epochs of ShrinkNets' Figure 1 at λ = 1e-2 at least 8 times as fast.

And how well the method does beside a pruning library, at equal multiply-adds and in equal time.

**Collecting.** One hidden layer of 10 000 units on MNIST, Adam 1e-3, batch 256, as in Figure 1, trained twice from the
same seed: one network loses its dead units after each epoch, the other keeps them. Each has a process of its own, so
that its memory can be told, and they take turns, epoch by epoch, so that a machine whose speed drifts hits both alike.
The one that keeps them does the same work in each epoch, so it stops after `--full-epochs`, and its time is
extrapolated. Peaks of memory are those of an epoch (Linux).

**Pruning.** One small CNN and `--seconds` of training for each way to a smaller one. ShrinkNets goes first, and the
multiply-adds it ends with are what the others get: Torch-Pruning (trained for half of the time, pruned by the norms of
groups over all layers, fine-tuned for the other half), and the same CNN with all widths scaled down before training.
The rate falls linearly to 0 in each phase. Only training, removing and pruning count as time, not evaluation.
Besides a network's own seconds, what other programs do to them matters: run it on a quiet machine.

Writes results/shrink.json, or results/shrink-collecting.json and results/shrink-pruning.json, if only one is wanted:

    pip install torch-pruning==1.6.1
    python benchmarks/shrink.py [--only pruning] [--epochs 100] [--full-epochs 5] [--seconds 120] [--seeds 3]
"""

import argparse
import copy
import importlib.util
import math
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic import shrink
from telescopic.cost import cost
from telescopic.data import Dataset, Preprocess, Split, batches, load
from telescopic.layers import Filter

import results

BATCH = 256
CNN_BATCH = 64


# Collecting -----------------------------------------------------------------------------------------------------------


def perceptron(units: int) -> nn.Sequential:
    """Figure 1's network: weights Xavier-normal with a gain of √2."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, units), Filter(units), nn.ReLU(), nn.Linear(units, 10))
    for part in (net[1], net[4]):
        nn.init.xavier_normal_(part.weight, math.sqrt(2))
    return net


def peak_mb() -> int:
    """Largest resident memory of this process since the peak was forgotten."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024


def worker(pipe: Connection, args: argparse.Namespace, collects: bool) -> None:
    """Train a network; for each True from the pipe one more epoch, about which it tells."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    data = load("mnist")
    train = Split(data.train.images[: args.images], data.train.labels[: args.images])
    preprocess = Preprocess.fit(data.train)
    net, epoch = perceptron(args.units), 0
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    example = torch.zeros(2, 1, 28, 28)
    while pipe.recv():
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        began, collecting = time.perf_counter(), 0.0
        for images, labels in batches(train, BATCH, seed=0, epoch=epoch):
            loss = functional.cross_entropy(net(preprocess(images)), labels) + args.penalty * shrink.size(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if collects:
            collecting = shrink.compact_(net, optimizer, example=example).seconds
        seconds, epoch, peak = time.perf_counter() - began, epoch + 1, peak_mb()
        pipe.send(
            {
                "seconds": seconds,
                "collecting": collecting,
                "units": int((~net[2].dead()).sum()),
                "test": accuracy(net, data.test, preprocess),
                "peak MB": peak,
            }
        )


def collecting(args: argparse.Namespace) -> dict[str, Any]:
    """Time and memory with and without removal."""
    context = multiprocessing.get_context("spawn")
    told: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    pipes, processes = {}, []
    for collects in told:
        pipes[collects], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(theirs, args, collects), daemon=True))
        processes[-1].start()
    for epoch in range(args.epochs):
        for collects, epochs in told.items():
            if collects or epoch < args.full_epochs:
                pipes[collects].send(True)
                epochs.append(pipes[collects].recv())
                print(f"epoch {epoch + 1}, {'removed' if collects else 'kept'}: {epochs[-1]}", flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    ours, full = told[True], told[False]
    seconds, each = sum(epoch["seconds"] for epoch in ours), [epoch["seconds"] for epoch in full]
    whole = sum(each) + mean(each) * (args.epochs - len(full))
    both = ours[: len(full)]
    return {
        "epochs": args.epochs,
        "epochs of the one that keeps them (its time is extrapolated from these)": len(full),
        "s, removed": round(seconds, 2),
        "s, kept": round(whole, 2),
        "times as fast (reach 8)": round(whole / seconds, 2),
        "times as fast over the epochs that both did": round(sum(each) / sum(e["seconds"] for e in both), 2),
        "s of removing": round(sum(epoch["collecting"] for epoch in ours), 3),
        "share of removing (reach 0.03)": round(sum(epoch["collecting"] for epoch in ours) / seconds, 4),
        "peak MB in the first epoch and in the last, removed": [ours[0]["peak MB"], ours[-1]["peak MB"]],
        "peak MB in the first epoch and in the last, kept": [full[0]["peak MB"], full[-1]["peak MB"]],
        "s by epoch, removed": [round(epoch["seconds"], 3) for epoch in ours],
        "s by epoch, kept": [round(seconds, 3) for seconds in each],
        "units by epoch, removed": [epoch["units"] for epoch in ours],
        "units by epoch, kept": [epoch["units"] for epoch in full],
        "test accuracy after the epochs that both did, removed": both[-1]["test"],
        "test accuracy after the epochs that both did, kept": full[-1]["test"],
        "test accuracy in the end": ours[-1]["test"],
    }


# Pruning --------------------------------------------------------------------------------------------------------------


def cnn(channels: int, scale: float = 1.0) -> nn.Sequential:
    """A small CNN as one writes it, for images of 28 × 28."""
    first, second, hidden = (max(1, round(scale * wide)) for wide in (16, 32, 128))
    return nn.Sequential(
        *(nn.Conv2d(channels, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(second * 49, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


def accuracy(net: nn.Module, split: Split, preprocess: Preprocess) -> float:
    """Share of right answers, in eval mode."""
    net.eval()
    with torch.no_grad():
        right = sum(int((net(preprocess(images)).argmax(1) == y).sum()) for images, y in batches(split, 1000))
    net.train()
    return right / len(split)


class Phase:
    """Training for so many seconds, at a rate that falls to 0."""

    def __init__(self, data: Dataset, preprocess: Preprocess, seed: int) -> None:
        self.data, self.preprocess, self.seed = data, preprocess, seed
        self.steps, self.seconds = 0, 0.0

    def endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of epoch after epoch."""
        epoch = 0
        while True:
            yield from batches(self.data.train, CNN_BATCH, seed=self.seed, epoch=epoch)
            epoch += 1

    def __call__(
        self,
        net: nn.Module,
        seconds: float,
        penalty: Callable[[], Tensor] | None = None,
        after: Callable[[torch.optim.Optimizer, int], None] | None = None,
    ) -> None:
        """Train; the penalty is added to the loss, and `after` is called after each step."""
        groups = shrink.parameter_groups(net) if penalty else [{"params": list(net.parameters())}]
        rates = [1e-3, 5e-3]  # θ has a way to go in a short run
        optimizer = torch.optim.Adam([{**group, "lr": rate} for group, rate in zip(groups, rates, strict=False)])
        began = time.perf_counter()
        for step, (images, labels) in enumerate(self.endless(), 1):
            gone = time.perf_counter() - began
            if gone >= seconds:
                self.seconds += gone
                return
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate * (1 - gone / seconds)
            loss = functional.cross_entropy(net(self.preprocess(images)), labels)
            if penalty is not None:
                loss = loss + penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.steps += 1
            if after is not None:
                after(optimizer, step)


def shrunk(net: nn.Sequential, train: Phase, args: argparse.Namespace, example: Tensor) -> tuple[nn.Module, float]:
    """ShrinkNets; and the seconds it spent removing."""
    model = shrink.add_filters(net, example)
    costs = torch.cat([getattr(part, args.by) for part in model.modules() if isinstance(part, Filter)])
    each, removing = args.cnn_penalty / float(costs.mean()), [0.0]

    def collect(optimizer: torch.optim.Optimizer, step: int) -> None:
        if step % args.every == 0:
            removing[0] += shrink.compact_(model, optimizer).seconds

    train(model, args.seconds, lambda: each * shrink.size(model, by=args.by), collect)
    last = shrink.compact_(model).seconds
    train.seconds += last
    return shrink.fold(model), removing[0] + last


def pruned(
    net: nn.Sequential, train: Phase, args: argparse.Namespace, example: Tensor, macs: int
) -> tuple[nn.Module, float]:
    """Torch-Pruning; and the seconds it spent pruning."""
    import torch_pruning

    train(net, args.seconds / 2)
    began = time.perf_counter()
    pruner = torch_pruning.pruner.BasePruner(
        net.eval(),
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=100,
        ignored_layers=[net[-1]],
    )
    for _ in range(100):
        if cost(net, example.shape[1:]).macs <= macs:
            break
        pruner.step()
    seconds = time.perf_counter() - began
    train(net.train(), args.seconds / 2 - seconds)
    return net, seconds


def scaled(train: Phase, args: argparse.Namespace, example: Tensor, macs: int) -> nn.Module:
    """The widest CNN of even proportions that keeps to these multiply-adds."""
    net, scale = cnn(len(example[0]), 1 / 16), 1 / 16
    while cost(wider := cnn(len(example[0]), scale), example.shape[1:]).macs <= macs and scale <= 1:
        net, scale = wider, scale + 1 / 128
    train(net, args.seconds)
    return net


def pruning(args: argparse.Namespace) -> dict[str, Any]:
    """Three ways to a small CNN."""
    torch.set_num_threads(args.threads)
    data = load(args.data)
    preprocess = Preprocess.fit(data.train)
    example = preprocess(data.train.images[:2])
    shrink.fold(shrink.add_filters(cnn(len(example[0])), example))  # so that what is only loaded once is loaded
    whole = cost(cnn(len(example[0])), example.shape[1:])
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        start, macs = cnn(len(example[0])), 0
        for way in ("ShrinkNets", "Torch-Pruning", "scaled down before"):
            train, net, removing = Phase(data, preprocess, seed), copy.deepcopy(start), 0.0
            made: nn.Module
            if way == "ShrinkNets":
                made, removing = shrunk(net, train, args, example)
                macs = cost(made, example.shape[1:]).macs
            elif way == "Torch-Pruning":
                made, removing = pruned(net, train, args, example, macs)
            else:
                made = scaled(train, args, example, macs)
            price, seconds = cost(made, example.shape[1:]), train.seconds + removing * (way == "Torch-Pruning")
            row = {"test": accuracy(made, data.test, preprocess), "MACs": price.macs, "params": price.params}
            row |= {"s": round(seconds, 2), "s of it removing": round(removing, 3), "steps": train.steps}
            print(f"seed {seed}, {way}: {row}", flush=True)
            rows.setdefault(way, []).append(row)
    table = {
        way: {name: round(mean(row[name] for row in runs), 4) for name in runs[0]}
        | {"sd of test": round(stdev(row["test"] for row in runs), 4) if len(runs) > 1 else None}
        for way, runs in rows.items()
    }
    return {"whole network": {"MACs": whole.macs, "params": whole.params}, "means": table, "runs": rows}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["collecting", "pruning"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--full-epochs", type=int, default=5, help="of the network that keeps its dead units")
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--images", type=int, help="of MNIST's training images; default: all")
    parser.add_argument("--penalty", type=float, default=1e-2, help="λ of the perceptron")
    parser.add_argument("--data", default="fashion-mnist", help="for the CNN: images of 28 × 28 in ten classes")
    parser.add_argument("--seconds", type=float, default=120, help="of training for each CNN")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cnn-penalty", type=float, default=5e-3, help="λ of a channel of average cost")
    parser.add_argument("--by", choices=["macs", "params"], default="macs", help="what a channel costs")
    parser.add_argument("--every", type=int, default=100, help="steps of the CNN between removals")
    args = parser.parse_args()
    if args.only != "collecting" and importlib.util.find_spec("torch_pruning") is None:
        sys.exit("Torch-Pruning is not installed: pip install torch-pruning==1.6.1, or say --only collecting")
    figures = {}
    if args.only != "pruning":
        figures["collecting"] = collecting(args)
    if args.only != "collecting":
        figures["pruning"] = pruning(args)
    library = {"torch-pruning": version("torch-pruning")} if args.only != "collecting" else {}
    results.write("shrink" + f"-{args.only}" * bool(args.only), vars(args) | library, figures)


if __name__ == "__main__":
    main()
