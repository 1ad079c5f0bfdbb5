"""Your own network, from your modules to a deployed file: nest it, train it, choose by latency, run it as ONNX.

Run it with `python examples/own_network.py` (no download, seconds), or on more: `--data cifar10 --epochs 20`.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from torch import nn

import telescopic as tl

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", default="digits", help="a data set's name, an .npz file, or a folder of images by class")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--max-latency-ms", type=float, help="default: halfway from the fastest member to the slowest")
parser.add_argument("--out", type=Path, default=Path("runs/own-network"))
args = parser.parse_args()


def convolution(given: int, made: int, stride: int = 1) -> nn.Sequential:
    """One block: it is entered and left as a whole."""
    conv = nn.Conv2d(given, made, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU())


# 1. The network, written by hand as if telescopic did not exist.
data = tl.data.load(args.data)
torch.manual_seed(0)
network = nn.Sequential(
    convolution(data.input_shape[0], 32),
    convolution(32, 32),
    convolution(32, 64, stride=2),
    convolution(64, 64),
    convolution(64, 128, stride=2),
    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, len(data.classes))),
)

# 2. A family: the image may also enter before blocks 2 and 4, and the prediction be read behind block 2.
net = tl.nest(network, input_shape=data.input_shape, entries=[2, 4], exits=[2])

# 3. All members are trained together.
preprocess = tl.Preprocess.fit(data.train)
augment = tl.Augment(pad=4, flip=True) if args.data == "cifar10" else tl.Augment()
recipe = tl.Recipe(
    epochs=args.epochs,
    batch_size=64,
    learning_rate=0.05,
    schedule="one-cycle",
    nesterov=True,
    weight_decay=5e-4,
    preprocess=preprocess,
    augment=augment,
)
tl.fit(net, data, recipe)

# 4. Every size, measured here; one of them chosen by a budget.
catalogue = tl.measure(net, data, preprocess=preprocess, latency=True)
print(catalogue.table())
times = [member.latency_p95_ms for member in catalogue]
choice = catalogue.choose(max_latency_ms=args.max_latency_ms or (min(times) + max(times)) / 2)
print(f"{choice.label}: {choice.accuracy:.1%} on validation images. {choice.why}")

# 5. A file for the device, with the preprocessing inside: uint8 images in, logits out.
images, labels = data.test.images, data.test.labels.numpy()
member = tl.extract(net, choice.subnet)
path = tl.export(member, args.out / "member.onnx", images[:64], preprocess=preprocess, classes=data.classes)

# 6. On the device: neither torch nor telescopic, only the file.
session = onnxruntime.InferenceSession(path)
logits = np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in images.split(500)])
accuracy = float((logits.argmax(1) == labels).mean())
print(f"{path}: {path.stat().st_size:,} bytes, {accuracy:.2%} of {len(labels)} test images;", end=" ")
print(f"the network itself: {choice.test_accuracy:.2%}")
