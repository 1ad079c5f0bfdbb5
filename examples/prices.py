"""A larger table: what 53,940 diamonds cost, by weight, cut, colour, clarity and size; R² of the price's logarithm.

The table comes with the package plotnine: `pip install plotnine`, or without what it needs to draw,
`pip install --no-deps --target FOLDER plotnine` and `PYTHONPATH=FOLDER`. `python examples/prices.py` takes a minute.
"""

import argparse
import csv
import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from sklearn.metrics import r2_score
from torch import nn

import telescopic as tl

TASK = tl.tasks.regression()
ORDERS = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": tuple("JIHGFED"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}


def load(seed: int = 0) -> tl.data.Dataset:
    """Each diamond by six numbers and three qualities, these as steps from worst to best; a fifth is for the test."""
    package = importlib.util.find_spec("plotnine")
    if package is None or package.origin is None:
        raise SystemExit("the table comes with plotnine: pip install plotnine")
    with (Path(package.origin).parent / "data" / "diamonds.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    numbers = ("carat", "depth", "table", "x", "y", "z")
    inputs = [
        [*(float(row[name]) for name in numbers), *(float(ORDERS[name].index(row[name])) for name in ORDERS)]
        for row in rows
    ]
    price = np.log([float(row["price"]) for row in rows])
    return tl.data.of(inputs, ((price - price.mean()) / price.std())[:, None], name="diamonds", seed=seed)


def family(data: tl.data.Dataset) -> tl.Nested:
    """Four layers, and an exit behind each."""
    inputs, width = data.input_shape[0], 64
    stages = [nn.Sequential(nn.Linear(given, width), nn.ReLU()) for given in (inputs, width, width, width)]
    return tl.Nested(stages, exits={i: nn.Linear(width, 1) for i in range(4)})


def recipe(data: tl.data.Dataset, epochs: int = 8) -> tl.Recipe:
    """How it is trained."""
    return tl.Recipe(
        epochs=epochs,
        batch_size=256,
        optimizer="adamw",
        learning_rate=0.005,
        schedule="one-cycle",
        preprocess=tl.Preprocess.fit(data.train),
    )


def main() -> None:
    """Train every size, choose the cheapest that is good enough, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/prices"))
    args = parser.parse_args()

    data = load()
    how = recipe(data, args.epochs)
    torch.manual_seed(0)
    net = family(data)
    tl.fit(net, data, how, task=TASK, out=args.out)
    catalogue = tl.measure(net, data, preprocess=how.preprocess, task=TASK)
    print(catalogue.table())
    enough = next(member for member in catalogue if member.score >= catalogue.choose().score - 0.005)
    print(f"{enough.label} is enough: R² {enough.score:.4f} on validation examples")

    member, example = tl.extract(net, enough.subnet), data.test.inputs[:64]
    path = tl.export(member, args.out / "member.onnx", example, preprocess=how.preprocess)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: some.numpy()})[0] for some in data.test.inputs.split(1000)])
    score = r2_score(data.test.targets.numpy(), answers)
    print(f"{path}: {path.stat().st_size:,} bytes, R² {score:.4f} on test examples; the network itself: "
          f"{enough.test_score:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
