"""Claim: members of a family for a task that is no classification are about as good as twins trained alone.

Regression on scikit-learn's diabetes (442 patients, 10 numbers each): an MLP with an exit behind each of three layers,
trained together; and each member with new weights, trained alone by the same recipe. R² on the test patients, at the
last epoch, so that nothing is chosen by the few validation patients. Within a minute:

    python benchmarks/tasks.py [--seeds 3] [--epochs 30]
"""

import argparse
import statistics
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import nn

import telescopic as tl

import results


def family(width: int) -> tl.Nested:
    """Three layers, and an exit behind each."""
    stages = [nn.Sequential(nn.Linear(given, width), nn.ReLU()) for given in (10, width, width)]
    return tl.Nested(stages, exits={i: nn.Linear(width, 1) for i in range(3)})


def alone(member: nn.Module, seed: int) -> tl.Nested:
    """The same layers with new weights."""
    torch.manual_seed(seed)
    for layer in member.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return tl.Nested([member])


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("seeds", 3), ("epochs", 30), ("width", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)  # layers this small are slower with more
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(args.seeds):
        data = tl.data.of(x, y[:, None], seed=seed)  # each seed divides the patients anew
        recipe = tl.Recipe(
            epochs=args.epochs,
            batch_size=64,
            optimizer="adamw",
            learning_rate=0.003,
            weight_decay=0.01,
            schedule="one-cycle",
            preprocess=tl.Preprocess.fit(data.train),
        )
        how: dict[str, Any] = {"task": tl.tasks.regression(), "seed": seed, "keep": "last", "precision": "fp32"}
        torch.manual_seed(seed)
        net = family(args.width)
        together = tl.fit(net, data, recipe, cpu=True, progress=False, **how)[-1].test
        for place, subnet in enumerate(net.grid):
            twin = alone(tl.extract(net, subnet), seed)
            (score,) = tl.fit(twin, data, recipe, cpu=True, progress=False, **how)[-1].test
            row = found.setdefault(net.grid.label(subnet), {"member": [], "twin": []})
            row["member"].append(together[place])
            row["twin"].append(score)
    figures = {
        label: {
            name: {"mean": round(statistics.mean(each), 3), "each seed": [round(one, 3) for one in each]}
            for name, each in row.items()
        }
        for label, row in found.items()
    }
    results.write("regression", vars(args) | {"data": "diabetes", "score": "test R2"}, figures)


if __name__ == "__main__":
    main()
