"""Claim: of the ways to train all members of a Doubly Nested Network together, one is the best for its price.

Each way trains the same small network, all members together, on the same few images; twins are single members trained
alone for as long. What came out is written after each, beside what is there already, and a run that was killed goes on:

    python benchmarks/screen.py WAY [WAY ...] [--out runs/screen] [--images 15000] [--epochs 10] [--blocks 2] [--seed 0]

Ways are names of `telescopic.papers.doubly_nested.experiment`, twins among them, such as `alone-w8` and `alone-x2`.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import telescopic as tl
from telescopic.papers import doubly_nested
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST

import results


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--out", type=Path, default=Path("runs/screen"))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--name", default="screen", help="of the file in results")
    sizes = ("images", 15_000), ("epochs", 10), ("blocks", 2), ("groups", 16), ("seed", 0)
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    data = tl.data.load(args.data)
    few = tl.data.Split(data.train.images[: args.images], data.train.labels[: args.images])
    data = tl.data.Dataset(data.name, few, data.validation, data.test, data.classes, data.source)
    config = {name: getattr(args, name) for name, _ in sizes[:-1]} | {"data": args.data}
    path = results.FOLDER / f"{args.name}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    for way in args.ways:
        torch.manual_seed(args.seed)
        sizes_of = {"groups": args.groups, "blocks": args.blocks, "epochs": args.epochs}
        net, recipe = doubly_nested.experiment(way, preprocess=tl.Preprocess.fit(few), **sizes_of)
        name = way if not args.seed else f"{way}-seed{args.seed}"
        out = args.out / name
        history = tl.fit(net, data, recipe, out=out, resume=True, seed=args.seed, cpu=True, precision="fp32")
        chosen, last = history.best(), history[-1]
        figures[name] = {
            "members": list(history.labels),
            "validation": [round(score, 4) for score in chosen.validation],
            "test": [round(score, 4) for score in chosen.test],
            "epoch": chosen.epoch,
            "mean test %": round(100 * mean(chosen.test), 2),
            "full test %": round(100 * chosen.test[history.full], 2),
            "last epoch: full test %": round(100 * last.test[history.full], 2),
            "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
            "threads": read_facts(out / LAST)["threads"],
        }
        print(name, {k: v for k, v in figures[name].items() if k not in ("members", "validation", "test")}, flush=True)
        results.write(args.name, config, figures)


if __name__ == "__main__":
    main()
