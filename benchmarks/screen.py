"""Claim: of the ways to train all members of a Doubly Nested Network together, one is the best for its price.

Each way trains the same small network, all members together, on the same few images; twins are single members trained
alone for as long. What came out is written after each, beside what is there already, and a run that was killed goes on:

    python benchmarks/screen.py WAY [WAY ...] [--out runs/screen] [--images 10000] [--epochs 8] [--blocks 2] [--seed 0]
    python benchmarks/screen.py WAY [WAY ...] --groups 2 --channels 16 32 64 --name screen-aligned  (the one that ships)

Ways are names of `telescopic.papers.doubly_nested.experiment`, twins among them, such as `alone-w8`, `alone-x2` and
`dense-w8`; and `slim`, the dense network with the same exits in four widths, each of which is a pass.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import telescopic as tl
from telescopic.cost import machine
from telescopic.evaluate import evaluate
from telescopic.papers import doubly_nested
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST

import results


def slim(name: str, *, groups: int, blocks: int, epochs: int, preprocess: tl.Preprocess) -> tuple[tl.Nested, tl.Recipe]:
    """The ordinary ResNet of as many channels, with an exit behind each block, in four widths."""
    layers = [*tl.networks.resnet(6 * blocks + 2, shortcut="projection")]
    net = tl.nest(layers, input_shape=(3, 32, 32), exits=range(len(layers) - 1))
    family = tl.slim(net, torch.randn(2, 3, 32, 32), (0.25, 0.5, 0.75, 1), multiple_of=groups // 4)
    usual = doubly_nested.recipe(epochs=epochs, preprocess=preprocess)
    first = tl.Phase(name="full alone", until=round(0.4 * epochs), weights="full", distillation=0.0)
    told = {"weights": "sum", "drawn": 4, "distillation": 0.7, "learning_rate": usual.learning_rate / 2}
    return family, replace(usual, phases=(first,), **told)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--out", type=Path, default=Path("runs/screen"))
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--name", default="screen", help="of the file in results")
    sizes = ("images", 10_000), ("epochs", 8), ("blocks", 2), ("groups", 16), ("seed", 0)
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--channels", type=int, nargs=3, default=doubly_nested.CHANNELS, help="of a group in each part")
    args = parser.parse_args()
    data = tl.data.load(args.data)
    few, test = (tl.data.Split(s.images[:n], s.labels[:n]) for s, n in ((data.train, args.images), (data.test, None)))
    none = tl.data.Split(test.images[:0], test.labels[:0])  # the test images are looked at once, at the end
    data = tl.data.Dataset(data.name, few, data.validation, none, data.classes, data.source)
    config = {name: getattr(args, name) for name, _ in sizes[:-1]} | {"data": args.data}
    if (channels := tuple(args.channels)) != doubly_nested.CHANNELS:
        config["channels"] = " ".join(map(str, channels))
    path = results.FOLDER / f"{args.name}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    for way in args.ways:
        torch.manual_seed(args.seed)
        sizes_of = {"groups": args.groups, "blocks": args.blocks, "epochs": args.epochs}
        make = slim if way == "slim" else partial(doubly_nested.experiment, channels=channels)
        net, recipe = make(way, preprocess=tl.Preprocess.fit(few), **sizes_of)
        name = way if not args.seed else f"{way}-seed{args.seed}"
        out = args.out / name
        history = tl.fit(net, data, recipe, out=out, resume=True, seed=args.seed, cpu=True, precision="fp32")
        scores = evaluate(net, [test], recipe.preprocess)[0].tolist()
        best, percent = history.best(), [100 * score for score in scores]
        rows: dict[str, list[str]] = {f"exit {exit_}": [] for exit_ in net.grid.exits}
        for member, score in zip(net.grid, percent, strict=True):
            rows[f"exit {member.exit}"].append(f"{score:.1f}")
        figures[name] = {
            "test %, narrowest first": {exit_: " ".join(row) for exit_, row in rows.items()},
            "mean": round(mean(percent), 2),
            "full": round(percent[history.full], 2),
            "mean on validation": round(100 * mean(best.validation), 2),
            "epoch": best.epoch,
            "minutes": round(sum(epoch.seconds for epoch in history) / 60, 1),
            "threads": read_facts(out / LAST)["threads"],
            "machine": machine(),
        }
        results.write(args.name, config, figures)


if __name__ == "__main__":
    main()
