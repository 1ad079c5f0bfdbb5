"""Claims: a joint step of NSN costs at most 1.75 steps of its full network; data feeding at most 5 % of a step.

Everything is timed in turn in one process, on random images of MNIST's shape, batch 128, and the ratios are medians of
ratios within a round, so that a machine whose speed drifts or is shared hits all alike. "The authors' way" is three
models with copies of the shared weights, three backward passes, averaged gradients written to each copy, and three
optimizers, as NSN's section 3 describes it. Writes results/speed.json:

    python benchmarks/speed.py [--threads 2] [--rounds 300]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.data import Dataset, Split, batches
from telescopic.papers import nsn
from telescopic.train import Objective, Recipe, fit
from telescopic.train.optimizer import groups_for

import results

BATCH = 128


def ours(reference: bool, data: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """One step of the joint network, or of the full network alone, as the loop does it."""
    net = nsn.network(2, reference=reference).train()
    recipe = nsn.reference_recipe(2) if reference else nsn.recipe(2)
    objective = Objective(net, recipe)
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        images, labels = next(data)
        loss, _ = objective(recipe.preprocess(images), labels)
        optimizer.zero_grad()
        (loss / BATCH).backward()
        optimizer.step()

    return step


def authors_way(data: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Three models; shared weights are copied up before, and their gradients averaged pairwise after, the passes."""

    def model(hidden: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        for index in range(hidden):
            layers += [nn.Linear(784, 784), nn.ReLU(), nn.Dropout(0.2 if index == 0 else 0.5)]
        return nn.Sequential(*layers, nn.Linear(784, 10))

    models = [model(hidden) for hidden in range(3)]
    linears = [[layer for layer in m if isinstance(layer, nn.Linear)] for m in models]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, fused=True) for m in models]

    def step() -> None:
        images, labels = next(data)
        x = images.float() / 255
        with torch.no_grad():
            for small, large in pairwise(linears):
                for source, target in zip(reversed(small), reversed(large), strict=False):
                    target.weight.copy_(source.weight)
                    target.bias.copy_(source.bias)
        for m, (net, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x), labels)
            if m == 2:
                loss = loss + 9e-5 * sum(linear.weight.square().sum() for linear in linears[2])
            loss.backward()
        for small, large in pairwise(linears):
            # Only the owner's pair: the smallest model that has a weight, and the next larger one.
            for a, b in ((small[0].weight, large[1].weight), (small[0].bias, large[1].bias)):
                assert a.grad is not None and b.grad is not None
                mean = (a.grad + b.grad) / 2
                a.grad.copy_(mean)
                b.grad.copy_(mean)
        for optimizer in optimizers:
            optimizer.step()

    return step


def forever(split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches without end."""
    epoch = 0
    while True:
        epoch += 1
        yield from (b for b in batches(split, BATCH, seed=0, epoch=epoch) if len(b[1]) == BATCH)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    split = Split(torch.randint(256, (55_000, 1, 28, 28)).to(torch.uint8), torch.randint(10, (55_000,)))
    data = forever(split)
    steps = {
        "joint": ours(False, data),
        "full": ours(True, data),
        "authors": authors_way(data),
        "feed": lambda: nsn.recipe(2).preprocess(next(data)[0]) is None,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(args.rounds + 20):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number >= 20:
                times[name].append(time.perf_counter() - began)

    def ratio(one: str, other: str) -> float:
        return round(median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)

    few = Split(split.images[:5_000], split.labels[:5_000])
    recipe: Recipe = replace(nsn.recipe(2), epochs=3)
    images = Dataset("random", split, few, Split(split.images[:10_000], split.labels[:10_000]), (), "")
    history = fit(nsn.network(2), images, recipe, precision="fp32", progress=False)
    figures = {
        "ms": {name: round(median(values) * 1e3, 3) for name, values in times.items()},
        "joint / full (FLOP bound 1.51, reach 1.75)": ratio("joint", "full"),
        "authors' way / joint (reach 1.15)": ratio("authors", "joint"),
        "feeding / joint step (reach 0.05)": ratio("feed", "joint"),
        "epoch of 55 000 images, training, s": round(min(55_000 / e.images_per_s for e in history), 2),
        "epoch with evaluation on 15 000 images, s": round(min(e.seconds for e in history), 2),
        "epoch of 60 000 images at that rate, s (reach 5.5)": round(min(60_000 / e.images_per_s for e in history), 2),
    }
    results.write("speed", {**vars(args), "batch": BATCH}, figures)


if __name__ == "__main__":
    main()
