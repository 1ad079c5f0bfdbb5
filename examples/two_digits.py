"""Several labels at once: which digits are in a picture that shows two.

The pictures are made of MNIST, which has to be there: `telescopic data get mnist`, or TELESCOPIC_DATA names its folder.
`python examples/two_digits.py` takes about a minute.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from sklearn.metrics import f1_score
from torch import nn

import telescopic as tl

TASK = tl.tasks.multilabel()


def pictures(split: tl.data.Split, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 `[number, 1, 14, 28]` of two digits, which may overlap, and their labels `[number, 10]`."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(len(split), (2, 2 * number), generator=generator)
    different = (split.labels[left] != split.labels[right]).nonzero()[:number, 0]
    left, right = left[different], right[different]
    seen, labels = torch.zeros(number, 1, 28, 56, dtype=torch.uint8), torch.zeros(number, 10)
    for place, (one, other) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        near, far = torch.randint(15, (2,), generator=generator).tolist()
        for digit, column in ((one, near), (other, 28 - far)):
            part = seen[place, :, :, column : column + 28]
            part.copy_(torch.maximum(part, split.images[digit]))
            labels[place, split.labels[digit]] = 1
    small = nn.functional.avg_pool2d(seen.float(), 2).round().to(torch.uint8)  # half of the size, to be quick
    return small, labels


def load(seed: int = 0) -> tl.data.Dataset:
    """6,000 pictures to train with, 1,000 to choose by, 2,000 to test with, of MNIST's training and test images."""
    mnist = tl.data.load("mnist", seed=seed, download=False)
    parts = {"validation": (mnist.validation, 1000), "test": (mnist.test, 2000)}
    apart = {name: pictures(split, number, seed) for name, (split, number) in parts.items()}
    classes = [str(digit) for digit in range(10)]
    return tl.data.of(*pictures(mnist.train, 6_000, seed), **apart, classes=classes, name="two digits")


def family(data: tl.data.Dataset) -> tl.Nested:
    """A small convolutional network, with a second entry and a second exit.

    Heads that read the mean of a whole picture, as `nest` makes them by default, see few of its places.
    """

    def block(given: int, made: int, last: nn.Module) -> nn.Sequential:
        conv = nn.Conv2d(given, made, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU(), last)

    def head(features: tuple[int, ...], labels: int) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(features), labels))

    blocks = [
        block(1, 16, nn.MaxPool2d(2)),
        block(16, 32, nn.MaxPool2d(2)),
        block(32, 32, nn.Identity()),
        head((32, 3, 7), 10),
    ]
    return tl.nest(blocks, input_shape=data.input_shape, entries=[1], exits=[1], head=head)


def recipe(data: tl.data.Dataset, epochs: int = 6) -> tl.Recipe:
    """How it is trained."""
    return tl.Recipe(
        epochs=epochs,
        batch_size=100,
        optimizer="adamw",
        learning_rate=0.004,
        schedule="one-cycle",
        distillation=0.3,
        preprocess=tl.Preprocess.fit(data.train),
    )


def main() -> None:
    """Train every size, choose the cheapest that is good enough, and run it as ONNX."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/two-digits"))
    args = parser.parse_args()

    data = load()
    how = recipe(data, args.epochs)
    torch.manual_seed(0)
    net = family(data)
    tl.fit(net, data, how, task=TASK, out=args.out)
    catalogue = tl.measure(net, data, preprocess=how.preprocess, task=TASK)
    print(catalogue.table())
    best = catalogue.choose().score
    enough = next(member for member in catalogue if member.score >= best - 0.02)
    print(f"{enough.label} is enough: F1 {enough.score:.3f} of {best:.3f} on validation pictures")

    member, example = tl.extract(net, enough.subnet), data.test.inputs[:50]
    path = tl.export(member, args.out / "member.onnx", example, preprocess=how.preprocess)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    answers = np.concatenate([session.run(None, {name: some.numpy()})[0] for some in data.test.inputs.split(50)])
    said, true = answers > 0, data.test.targets.bool().numpy()
    print(f"{path}: {path.stat().st_size:,} bytes, both digits and no other in {(said == true).all(1).mean():.1%}")
    print(f"F1 {f1_score(true, said, average='micro'):.4f} on test examples; the network itself: "
          f"{enough.test_score:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
