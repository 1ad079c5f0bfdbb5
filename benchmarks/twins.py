"""Claim: a member of NSN's and of CNSN's families can be as good as a network of its size trained alone for as long.

Experiments of a paper and the members' references learn from the same images for the same epochs, with each seed. What
came out is written after each, beside what is there already, and a run that was killed goes on:

    python benchmarks/twins.py nsn NAME [NAME ...] [--images 55000] [--epochs 15] [--seeds 0 1 2] [--out runs/twins]
    python benchmarks/twins.py cnsn NAME [NAME ...] --images 10000 --epochs 8  (a quarter of the channels, short recipe)

Names are of `telescopic.papers.nsn.experiment` and `cnsn.experiment`. Beside those, of model0-1-2: `owners`, where what
a member has beyond the smaller ones learns from its loss alone; `head`, where the second hidden layer also learns from
the largest member's; a number behind it is the learning rate, as in `owners-0.1`. The test images are looked at once.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import telescopic as tl
from telescopic.evaluate import evaluate
from telescopic.papers import cnsn, nsn

import results

MIXES = {"owners": ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)), "head": ((1.0, 0, 0), (0, 1.0, 0), (0, 1.0, 1.0))}
ALONE = {"ref-model0": "entry=2", "ref-model1": "entry=1", "ref-model2": "entry=0"}
ALONE |= {name: f"entry={name.split('-')[1]}" for name in cnsn.EXPERIMENTS if name.startswith("alone")}
DATA = {"nsn": "mnist", "cnsn": "cifar10"}


def of_nsn(name: str, epochs: int, preprocess: tl.Preprocess) -> tuple[tl.Nested, tl.Recipe]:
    """A network and its recipe."""
    kind, _, rate = name.partition("-")
    if kind not in MIXES:
        return nsn.experiment(name, epochs=epochs)
    net, how = nsn.experiment("joint", epochs=epochs)
    return net, replace(how, mix=MIXES[kind], learning_rate=float(rate))


def of_cnsn(name: str, epochs: int, preprocess: tl.Preprocess) -> tuple[tl.Nested, tl.Recipe]:
    """A network and its recipe."""
    return cnsn.experiment(name, scale=0.25, short=True, epochs=epochs, preprocess=preprocess)


MAKE: dict[str, Callable[[str, int, tl.Preprocess], tuple[tl.Nested, tl.Recipe]]] = {"nsn": of_nsn, "cnsn": of_cnsn}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paper", choices=MAKE)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in (("images", 55_000), ("epochs", 15)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    data = tl.data.load(DATA[args.paper])
    few = tl.data.Split(data.train.images[: args.images], data.train.labels[: args.images])
    none = tl.data.Split(data.test.images[:0], data.test.labels[:0])
    shown = tl.data.Dataset(data.name, few, data.validation, none, data.classes, data.source)
    config = {"data": data.name, "images": len(few), "epochs": args.epochs, "precision": "fp32"}
    path = results.FOLDER / f"twins-{args.paper}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    for seed in args.seeds:
        for name in args.names:
            torch.manual_seed(seed)
            net, recipe = MAKE[args.paper](name, args.epochs, tl.Preprocess.fit(few))
            out = args.out / args.paper / f"{name}-{seed}"
            history = tl.fit(net, shown, recipe, out=out, resume=True, seed=seed, cpu=True, precision="fp32")
            scores = evaluate(net, [data.test], recipe.preprocess)[0].tolist()
            of_name = figures.setdefault(name, {})
            for member, score in zip(net.grid, scores, strict=True):
                of_name.setdefault(ALONE.get(name) or net.grid.label(member), {})[str(seed)] = round(100 * score, 2)
            of_name.setdefault("minutes", {})[str(seed)] = round(sum(epoch.seconds for epoch in history) / 60, 1)
            results.write(path.stem, config, figures)


if __name__ == "__main__":
    main()
