"""Your own network learns its widths in your own training loop, and leaves as a file: filter, train, remove, fold.

Run it with `python examples/shrink_own_network.py` (no download, seconds), or on more:
`--data fashion-mnist --epochs 10 --penalty 1e-3`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich import print
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", choices=["digits", "fashion-mnist", "mnist"], default="digits")
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--penalty", type=float, default=1e-2, help="λ: how much a channel must be worth")
parser.add_argument("--out", type=Path, default=Path("runs/shrink-own-network"))
args = parser.parse_args()


class Network(nn.Module):
    """Written by hand as if telescopic did not exist."""

    def __init__(self, channels: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.hidden = nn.Linear(64 * pixels // 16, 256)
        self.logits = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        return self.logits(functional.relu(self.hidden(x.flatten(1))))


data = tl.data.load(args.data)
preprocess = tl.Preprocess.fit(data.train)
channels, height, width = data.input_shape


def train(net: nn.Module, penalty: float = 0.0) -> None:
    """An ordinary training loop; what is new in it says so."""
    groups = [{"params": list(net.parameters())}]
    if penalty:
        groups = tl.shrink.parameter_groups(net)  # new: θ are not decayed,
        groups[1]["lr"] = 1e-2  # and learn faster, for a run as short as this
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=1e-2)
    for epoch in range(args.epochs):
        began = time.perf_counter()
        for images, labels in tl.data.batches(data.train, 64, seed=0, epoch=epoch):
            loss = functional.cross_entropy(net.train()(preprocess(images)), labels)
            if penalty:
                loss = loss + penalty * tl.shrink.size(net)  # new
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - began
        text = f"epoch {epoch + 1}: {seconds:.2f} s"
        if penalty:
            log = tl.shrink.compact_(net, optimizer)  # new: the same network and optimizer, smaller
            text += f", and {log.seconds:.2f} s to remove {sum(log.removed.values())} channels; left: "
            text += ", ".join(f"{path.removesuffix('.filter')} {number}" for path, number in log.left.items())
        print(text)


# 1. As it is, for comparison.
print("[bold]The network as it is[/bold]")
torch.manual_seed(0)
original = Network(channels, height * width, len(data.classes))
start = {name: tensor.clone() for name, tensor in original.state_dict().items()}
train(original)

# 2. The same weights to begin with, and filters: behind each norm and behind the hidden layer.
print("[bold]With filters[/bold]")
network = Network(channels, height * width, len(data.classes))
network.load_state_dict(start)
shrinking = tl.shrink.add_filters(network, preprocess(data.train.images[:2]))
train(shrinking, args.penalty)

# 3. Filters become part of the weights: what is left has the names and the classes that it had, and is a Network.
folded = tl.shrink.fold(shrinking)
assert folded.state_dict().keys() == start.keys()

# 4. Both become files for the device, with the preprocessing inside; what these say of the test images counts.
table = Table("", "parameters", "MACs", "file, kB", "ms for 1 image", "ms for 64", "test accuracy")
images, labels = data.test.images, data.test.labels.numpy()
for name, module in (("as it is", original), ("shrunk", folded)):
    path = tl.export(
        module, args.out / f"{name.replace(' ', '-')}.onnx", images[:64], preprocess=preprocess, classes=data.classes
    )
    session = onnxruntime.InferenceSession(path)
    logits = np.concatenate([session.run(None, {"images": batch.numpy()})[0] for batch in images.split(500)])
    price = tl.cost(module, data.input_shape)
    times = [tl.latency(module, data.input_shape, batch=batch).median_ms for batch in (1, 64)]
    sizes = [f"{price.params:,}", f"{price.macs:,}", f"{path.stat().st_size / 1000:,.0f}"]
    table.add_row(name, *sizes, *(f"{ms:.3f}" for ms in times), f"{(logits.argmax(1) == labels).mean():.2%}")
print(table)
