"""Claim: of the ways to train all members of a Doubly Nested Network together, one is the best for its price.

Each way trains the same small network, all members together, on the same few images; twins are single members trained
alone for as long. What came out is written after each, beside what is there already, and a run that was killed goes on.
Each has a second row, `-fitted`: the same network after `tl.fit_heads`.

    python benchmarks/screen.py WAY [WAY ...] [--out runs/screen] [--images 10000] [--epochs 8] [--blocks 2] [--seed 0]
    python benchmarks/screen.py WAY [WAY ...] --groups 2 --channels 16 32 64 --name screen-aligned  (the one that ships)

Ways are names of `telescopic.papers.doubly_nested.experiment`, twins among them, such as `alone-w8`, `alone-x2` and
`dense-w8`; and `slim`, the dense network with the same exits in four widths, each of which is a pass.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import telescopic as tl
from telescopic.cost import machine
from telescopic.data import Split
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


def scored(net: tl.Nested, validation: Split, test: Split, preprocess: tl.Preprocess) -> dict[str, Any]:
    """How good all members are, in percent."""
    of_validation, of_test = (100 * evaluate(net, [validation, test], preprocess)).tolist()
    rows: dict[str, list[str]] = {f"exit {exit_}": [] for exit_ in net.grid.exits}
    for member, score in zip(net.grid, of_test, strict=True):
        rows[f"exit {member.exit}"].append(f"{score:.1f}")
    return {
        "test %, narrowest first": {exit_: " ".join(row) for exit_, row in rows.items()},
        "mean": round(mean(of_test), 2),
        "full": round(of_test[net.grid.index(net.grid.full)], 2),
        "mean on validation": round(mean(of_validation), 2),
    }


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
        best, threads = history.best(), read_facts(out / LAST)["threads"]
        about: dict[str, Any] = {"epoch": best.epoch, "threads": threads, "machine": machine()}
        minutes = sum(epoch.seconds for epoch in history) / 60
        figures[name] = scored(net, data.validation, test, recipe.preprocess) | {"minutes": round(minutes, 1)} | about
        if way != "slim" and not recipe.fit_heads:
            began = time.monotonic()
            fitted = tl.fit_heads(net, data, recipe.preprocess, seed=args.seed)
            minutes += (time.monotonic() - began) / 60
            row = scored(fitted, data.validation, test, recipe.preprocess) | {"minutes": round(minutes, 1)} | about
            figures[name.replace(way, f"{way}-fitted")] = row
        results.write(args.name, config, figures)


if __name__ == "__main__":
    main()
