"""Time series: six kinds of trees, told apart by the outlines of their leaves (OSULeaf of the UCR archive).

The series come with the package aeon: `pip install aeon`, or without what it computes with,
`pip install --no-deps --target FOLDER aeon` and `PYTHONPATH=FOLDER`. `python examples/series.py` takes a minute.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from torch import nn

import telescopic as tl

TASK = tl.tasks.classification()
NAME, POINTS = "OSULeaf", 424  # of 427, since entries shrink a series by whole numbers


def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Series `[n, 1, points]` and classes from 0 of the TRAIN or TEST file, a line each: points, then its class."""
    package = importlib.util.find_spec("aeon")
    if package is None or package.origin is None:
        raise SystemExit("the series come with aeon: pip install aeon")
    file = Path(package.origin).parent / "datasets" / "data" / NAME / f"{NAME}_{part}.ts"
    lines = file.read_text(encoding="utf-8").split("@data")[1].split()
    points, classes = zip(*(line.split(":") for line in lines), strict=True)
    series = torch.tensor([[float(point) for point in one.split(",")] for one in points])
    return series[:, None, :POINTS], torch.tensor([int(one) - 1 for one in classes])


def load(seed: int = 0) -> tl.data.Dataset:
    """The archive's own division: 200 series to train and to choose with, 242 to test with."""
    return tl.data.of(*read("TRAIN"), test=read("TEST"), validation=30, name=NAME, seed=seed)


def family(data: tl.data.Dataset) -> tl.Nested:
    """A 1-d convolutional network; the series enters before two of its blocks, each in three widths."""

    def block(given: int, made: int, kernel: int, step: int) -> nn.Sequential:
        conv = nn.Conv1d(given, made, kernel, step, padding=kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm1d(made), nn.ReLU())

    blocks = [block(1, 24, 7, 2), block(24, 48, 5, 2), block(48, 48, 5, 2), block(48, 48, 3, 1)]
    last = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 6))
    entered = tl.nest([*blocks, last], input_shape=data.input_shape, entries=[2])
    return tl.slim(entered, data.train.inputs[:8], widths=(0.25, 0.5, 1.0))


def recipe(data: tl.data.Dataset, epochs: int = 40) -> tl.Recipe:
    """How it is trained: all members at every step, for none of them has learned anything yet.

    (`tl.recipes.slim`, which draws some and lets the widest teach, is for widths inside a network that is trained.)
    """
    return tl.Recipe(
        epochs=epochs, batch_size=20, optimizer="adamw", learning_rate=0.004, schedule="one-cycle", weight_decay=0.01
    )


def main() -> None:
    """Train every size, choose one within a budget, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/series"))
    args = parser.parse_args()

    data = load()
    torch.manual_seed(0)
    net = family(data)
    # 30 series are few to choose the best epoch by; at the last one the learning rate has come to rest.
    tl.fit(net, data, recipe(data, args.epochs), task=TASK, out=args.out, keep="last")
    catalogue = tl.measure(net, data, task=TASK)
    print(catalogue.table())
    choice = catalogue.choose(max_macs=500_000)
    print(f"{choice.label}: {choice.why}")

    path = tl.export(tl.extract(net, choice.subnet), args.out / "member.onnx", data.test.inputs[:8])
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: some.numpy()})[0] for some in data.test.inputs.split(50)])
    right = (answers.argmax(1) == data.test.labels.numpy()).mean()
    print(f"{path}: {path.stat().st_size:,} bytes, {right:.4f} right on test examples; the network itself: "
          f"{choice.test_accuracy:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
