"""A task of your own data: patients described by ten numbers, and how their diabetes proceeds within a year.

Run it with `python examples/regression.py` (no download, seconds). The same from the command line, once the numbers are
in an .npz file: `telescopic train examples/regression.py:family --data diabetes.npz --task regression`.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from torch import nn

import telescopic as tl

TASK = tl.tasks.regression()


def load(seed: int = 0) -> tl.data.Dataset:
    """The patients. The squared error is in the targets' own units: learning goes best where their deviation is 1."""
    x, y = load_diabetes(return_X_y=True)
    return tl.data.of(x, ((y - y.mean()) / y.std())[:, None], name="diabetes", seed=seed)


def family(data: tl.data.Dataset) -> tl.Nested:
    """Three layers, and an exit behind each."""
    inputs, outputs, width = data.input_shape[0], data.train.targets.shape[1], 32
    stages = [nn.Sequential(nn.Linear(given, width), nn.ReLU()) for given in (inputs, width, width)]
    return tl.Nested(stages, exits={i: nn.Linear(width, outputs) for i in range(3)})


def recipe(data: tl.data.Dataset, epochs: int = 30) -> tl.Recipe:
    """How it is trained."""
    return tl.Recipe(
        epochs=epochs,
        batch_size=64,
        optimizer="adamw",
        learning_rate=0.003,
        weight_decay=0.01,
        schedule="one-cycle",
        preprocess=tl.Preprocess.fit(data.train),
    )


def main() -> None:
    """Train every size, choose one by its score, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/regression"))
    args = parser.parse_args()

    # 1. The data, and how they are brought to mean 0 and deviation 1 in each column.
    data = load()
    how = recipe(data, args.epochs)

    # 2. All members are trained together. With a folder, every command of telescopic works on what is left there.
    torch.manual_seed(0)
    net = family(data)
    tl.fit(net, data, how, task=TASK, out=args.out)

    # 3. Every size; the cheapest whose R² is near that of the best.
    catalogue = tl.measure(net, data, preprocess=how.preprocess, task=TASK)
    print(catalogue.table())
    best = max(member.score for member in catalogue)
    enough = next(member for member in catalogue if member.score > best - 0.05)
    print(f"{enough.label} is enough: R² {enough.score:.3f} of {best:.3f} on validation examples")

    # 4. A file for the device, which takes the numbers as they are in the table.
    member, example = tl.extract(net, enough.subnet), data.test.inputs[:64]
    path = tl.export(member, args.out / "member.onnx", example, preprocess=how.preprocess)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: some.numpy()})[0] for some in data.test.inputs.split(64)])
    score = r2_score(data.test.targets.numpy(), answers)
    print(f"{path}: {path.stat().st_size:,} bytes, R² {score:.4f} on test examples; the network itself: "
          f"{enough.test_score:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
