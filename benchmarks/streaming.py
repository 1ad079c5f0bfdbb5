"""Claim: training from a DataLoader with workers is as fast as a plain loop over it, to within 5 %.

Photos as JPEG files of 160 × 120 pixels are decoded and brought to 96 × 96 by two workers, for a family of convolutions
with three exits. `tl.fit` from `tl.data.Loaders`, and a loop of one's own over the same loader with the same objective
and optimizer, take turns. Images a second, the median of several rounds; two minutes:

    python benchmarks/streaming.py [--rounds 5] [--images 960]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import telescopic as tl
from telescopic.images import decode

import results

SIZE, BATCH, WORKERS = 96, 32, 2


class Photos(Dataset[tuple[Tensor, int]]):
    """Files by class, decoded when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.from_numpy(decode(self.files[place], channels=3, size=(SIZE, SIZE))), place % 3


def family() -> tl.Nested:
    """Three stages, each with an exit."""
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(given, made, 3, 2, 1), nn.BatchNorm2d(made), nn.ReLU())
        for given, made in ((3, 16), (16, 32), (32, 64))
    ]
    heads = {i: tl.layers.pooled_head((size, 1, 1), 3) for i, size in enumerate((16, 32, 64))}
    return tl.Nested(stages, exits=heads)


def plain(loader: "DataLoader[tuple[Tensor, Tensor]]", recipe: tl.Recipe) -> float:
    """Images a second of a loop as one writes it."""
    net = family().train()
    objective = tl.Objective(net, recipe)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    began, images = time.perf_counter(), 0
    for inputs, targets in loader:
        loss, _ = objective(recipe.preprocess(inputs), targets)
        optimizer.zero_grad()
        (loss / len(targets)).backward()
        optimizer.step()
        images += len(targets)
    return images / (time.perf_counter() - began)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=960)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = tl.Recipe(epochs=1, batch_size=BATCH, optimizer="adamw", learning_rate=1e-3)
    found: dict[str, list[float]] = {"plain": [], "fit": []}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(args.images)]
        random = np.random.default_rng(0)
        for file in files:
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
            coarse.resize((160, 120)).save(file, quality=90)
        loader = DataLoader(Photos(files), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
        data = tl.data.Loaders(train=loader)
        for turn in range(args.rounds + 1):  # of which the first warms up
            each = {"plain": plain(loader, recipe)}
            each["fit"] = tl.fit(family(), data, recipe, precision="fp32", progress=False, cpu=True)[0].images_per_s
            for name, rate in each.items():
                if turn:
                    found[name].append(rate)
            print(f"round {turn}: " + ", ".join(f"{name} {rate:.0f} images/s" for name, rate in each.items()))
    rates = {name: round(statistics.median(each), 1) for name, each in found.items()}
    ratios = sorted(fit / loop for fit, loop in zip(found["fit"], found["plain"], strict=True))
    figures = {
        "images/s": rates,
        "fit by plain": {"median": round(statistics.median(ratios), 3), "each round": [round(r, 3) for r in ratios]},
    }
    config = vars(args) | {"size": SIZE, "batch": BATCH, "workers": WORKERS, "threads": 1}
    results.write("streaming", config, figures)


if __name__ == "__main__":
    main()
