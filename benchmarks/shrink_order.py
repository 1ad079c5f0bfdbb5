"""Claim: of a network that learned its widths, the first channels in the order of θ are the ones to keep.

A CNN is trained with filters on digits, once without and once with a penalty. Then each layer keeps a share of its
channels and loses the others: the first in the order of θ, the first in the order in which they stand, or random ones;
with BatchNorm's statistics as they are and measured again. No weight is trained anew.

And what a channel-causal family of four widths is worth that begins with such a network, its channels in the order of θ
or as they stand, beside one that begins at random and trains as long as both trainings together. Writes
results/shrink-order.json (digits, about three minutes):

    python benchmarks/shrink_order.py [--epochs 12] [--family-epochs 6] [--seeds 3]
"""

import argparse
import copy
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic import shrink
from telescopic.causal import causal_
from telescopic.data import Preprocess, batches, load
from telescopic.layers import Filter
from telescopic.nest import nest
from telescopic.nested import Nested

import results

GROUPS = 4
SHARES = (0.75, 0.5, 0.25)

data = load("digits")
preprocess = Preprocess.fit(data.train)
images, labels = preprocess(data.test.images), data.test.labels

Choose = Callable[[Filter, int], Tensor]
"""From a filter and a number, so many channels that stay."""


def cnn(first: int = 32, second: int = 64, third: int = 64) -> nn.Sequential:
    """Three convolutions and the mean over what they see."""

    def conv(given: int, made: int) -> nn.Sequential:
        layer = nn.Conv2d(given, made, 3, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(made), nn.ReLU())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, 10))
    return nn.Sequential(conv(1, first), conv(first, second), nn.MaxPool2d(2), conv(second, third), head)


def trained(net: nn.Module, epochs: int, seed: int, penalty: float | None = None) -> nn.Module:
    """Train a network, or all members of a family; with a penalty channels die."""
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if penalty is not None:
        groups = shrink.parameter_groups(net)
        groups[1]["lr"] = 1e-2
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=1e-2)
    for epoch in range(epochs):
        for x, y in batches(data.train, 64, seed=seed, epoch=epoch):
            net.train()
            logits = net.all(preprocess(x)) if isinstance(net, Nested) else net(preprocess(x))[None]
            loss = functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))
            if penalty:
                loss = loss + penalty * shrink.size(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if penalty:
            shrink.compact_(net, optimizer, multiple_of=GROUPS)
    return net


@torch.no_grad()
def percent(net: nn.Module) -> list[float]:
    """Test accuracy, of each member of a family."""
    net.eval()
    logits = net.all(images) if isinstance(net, Nested) else net(images)[None]
    return [100 * float((row.argmax(-1) == labels).float().mean()) for row in logits]


def filters(net: nn.Module) -> list[Filter]:
    """All of them."""
    return [part for part in net.modules() if isinstance(part, Filter)]


def sliced(net: nn.Module, share: float, choose: Choose) -> nn.Module:
    """A copy in which each filter keeps a share of its channels."""
    net = copy.deepcopy(net)
    for part in filters(net):
        dead = torch.ones(len(part.theta), dtype=torch.bool)
        dead[choose(part, max(1, int(share * len(part.theta))))] = False
        part.theta.data[dead] = 0
    shrink.compact_(net)
    return net


@torch.no_grad()
def measured_again(net: nn.Module) -> nn.Module:
    """A copy whose BatchNorms have the statistics of the training images."""
    net = copy.deepcopy(net).train()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
    for x, _ in batches(data.train, 128):
        net(preprocess(x))
    return net


def first(part: Filter, number: int) -> Tensor:
    """As they stand."""
    return torch.arange(number)


def anyhow(part: Filter, number: int) -> Tensor:
    """At random."""
    return torch.randperm(len(part.theta))[:number]


def family(network: nn.Module) -> Nested:
    """A network of four widths."""
    network = causal_(network, GROUPS, input_shape=data.input_shape)
    return nest(network, input_shape=data.input_shape, groups=GROUPS, statistics="shared")


def main() -> None:
    """Train, cut and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--family-epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--penalty", type=float, default=1e-2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = {}
    widths = []
    for seed in range(args.seeds):
        for penalty in (0.0, args.penalty):
            torch.manual_seed(seed)
            net = trained(shrink.add_filters(cnn(), images[:2]), args.epochs, seed, penalty)
            ordered = copy.deepcopy(net)
            shrink.order_(ordered)
            ways: dict[str, tuple[nn.Module, Choose]] = {
                "by θ": (ordered, first),
                "as they stand": (net, first),
                "random": (net, anyhow),
            }
            found.setdefault(f"λ={penalty:g}, whole", []).append(percent(net))
            for share in SHARES:
                for way, (model, choose) in ways.items():
                    cut = sliced(model, share, choose)
                    row = percent(cut) + percent(measured_again(cut))
                    found.setdefault(f"λ={penalty:g}, {share:g} of each layer, {way}", []).append(row)
        widths.append([len(part.theta) for part in filters(net)])
        fresh = cnn(*widths[-1])
        for way, network in {
            "by θ": shrink.fold(ordered),
            "as they stand": shrink.fold(net),
            "at random": fresh,
        }.items():
            made = family(network)
            found.setdefault(f"family, begun {way}, untrained", []).append(percent(made))
            trained(made, args.family_epochs, seed)
            found.setdefault(f"family, begun {way}, {args.family_epochs} epochs", []).append(percent(made))
            if network is fresh:
                trained(made, args.epochs, seed + args.seeds)
                total = args.family_epochs + args.epochs
                found.setdefault(f"family, begun {way}, {total} epochs", []).append(percent(made))
    means = {name: [round(mean(column), 1) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    figures = {
        "test accuracy in %: slices [as they are, measured again], families [narrowest, ..., widest]": means,
        "of each seed": {name: [[round(x, 1) for x in row] for row in rows] for name, rows in found.items()},
        "widths learned": widths,
    }
    results.write("shrink-order", vars(args), figures)


if __name__ == "__main__":
    main()
