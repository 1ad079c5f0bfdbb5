"""Claim: networks of many kinds become families of widths, none of them wrong in silence.

For each: which channels became narrow, which stay whole and why, how far the full member is from the network given,
and the multiply-adds of four widths. Each narrower member, taken out, must answer as the family's member does. Writes
results/slim-zoo.json:

    python benchmarks/slim_zoo.py [--only NAME ...]
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl
from telescopic import networks

import results


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    """A convolution, its norm, and an activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), *([act()] if act else []))


def head(channels: int, classes: int = 10) -> nn.Sequential:
    """Pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Inverted(nn.Module):
    """An inverted residual, with squeeze and excitation if asked for (MobileNetV2 and V3)."""

    def __init__(self, inputs: int, outputs: int, stride: int, gate: bool = False) -> None:
        super().__init__()
        inner, act = 4 * inputs, nn.Hardswish if gate else nn.ReLU6
        self.up, self.each = conv(inputs, inner, 1, act=act), conv(inner, inner, 3, stride, inner, act=act)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, inner // 4, 1), nn.ReLU(),
                                  nn.Conv2d(inner // 4, inner, 1), nn.Hardsigmoid()) if gate else None  # fmt: skip
        self.down, self.same = conv(inner, outputs, 1, act=None), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        y = self.each(self.up(x))
        y = self.down(y if self.gate is None else y * self.gate(y))
        return x + y if self.same else y


class ConvNext(nn.Module):
    """A block of ConvNeXt, with the norm over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.each, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        y = self.norm(self.each(x).permute(0, 2, 3, 1))
        return x + self.down(functional.gelu(self.up(y))).permute(0, 3, 1, 2)


class DenseBlock(nn.Module):
    """Layers that read all before them."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(inputs + growth * i), nn.ReLU(), nn.Conv2d(inputs + growth * i, growth, 3, 1, 1)
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features to more of them."""
        for layer in self.layers:
            x = torch.cat((x, layer(x)), 1)
        return x


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2: one half passes, and channels change places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, 1, half, act=None), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        left, right = x.chunk(2, 1)
        y = torch.cat((left, self.branch(right)), 1)
        return y.view(len(y), 2, y.shape[1] // 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)


class UNet(nn.Module):
    """Two levels down and up; it gives a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.up = conv(3, 16), conv(16, 32, 3, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join, self.out = conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to a map of scores."""
        y = self.down(x)
        return self.out(self.join(torch.cat((y, self.up(self.low(y))), 1)))


class Recurrent(nn.Module):
    """A GRU between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gru, self.last = nn.Linear(8, 32), nn.GRU(32, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Series `[batch, steps, 8]` to scores."""
        return self.last(self.gru(torch.relu(self.first(x)))[0][:, -1])


class Encoder(nn.Module):
    """A classifier of the library transformers, given pictures or words."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import transformers

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        if kind == "vit":
            self.model = transformers.ViTForImageClassification(
                transformers.ViTConfig(image_size=16, patch_size=4, num_labels=10, **sizes)
            )
        else:
            self.model = transformers.BertForSequenceClassification(
                transformers.BertConfig(vocab_size=50, num_labels=10, **sizes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to scores."""
        return self.model(x).logits  # type: ignore[no-any-return]


IMAGE = (3, 16, 16)


def chain(*parts: nn.Module) -> nn.Sequential:
    """Parts one after the other, the last of which is a head."""
    return nn.Sequential(*parts)


def vgg() -> nn.Sequential:
    """Convolutions, a flatten and two linear layers."""
    features = (conv(3, 32), nn.MaxPool2d(2), conv(32, 64), nn.MaxPool2d(2), conv(64, 64), nn.Flatten())
    return chain(*features, nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


def mobile(gate: bool) -> nn.Sequential:
    """MobileNetV2, or V3 with gates."""
    first = conv(3, 16, 3, 2, act=nn.Hardswish if gate else nn.ReLU6)
    return chain(first, Inverted(16, 24, 2, gate), Inverted(24, 24, 1, gate), conv(24, 96, 1), head(96))


def series() -> nn.Sequential:
    """Two convolutions over time."""
    first = (nn.Conv1d(2, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 5, 2), nn.ReLU())
    return chain(*first, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


def encoder() -> nn.Sequential:
    """A layer of torch's own transformer."""
    return chain(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), nn.Flatten(), nn.Linear(256, 10))


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "ResNet-20": (lambda: networks.resnet(20), IMAGE),
    "ResNet-20 that pads": (lambda: networks.resnet(20, shortcut="pad"), IMAGE),
    "VGG with flatten": (vgg, IMAGE),
    "MobileNetV2": (lambda: mobile(False), IMAGE),
    "MobileNetV3": (lambda: mobile(True), IMAGE),
    "ConvNeXt": (lambda: chain(nn.Conv2d(3, 32, 4, 4), ConvNext(32), ConvNext(32), head(32)), IMAGE),
    "DenseNet": (
        lambda: chain(conv(3, 16), DenseBlock(16, 16, 3), conv(64, 32, 1), DenseBlock(32, 16, 2), head(64)),
        IMAGE,
    ),
    "ShuffleNetV2": (lambda: chain(conv(3, 32, 3, 2), Shuffle(32), Shuffle(32), head(32)), IMAGE),
    "U-Net": (UNet, IMAGE),
    "1-d CNN": (series, (2, 32)),
    "GRU": (Recurrent, (12, 8)),
    "ResNeXt": (
        lambda: chain(conv(3, 32), conv(32, 64, 1), conv(64, 64, 3, 1, 4), conv(64, 32, 1), head(32)),
        IMAGE,
    ),
    "transformer of torch": (encoder, (8, 32)),
    "ViT of transformers": (lambda: Encoder("vit"), IMAGE),
    "BERT of transformers": (lambda: Encoder("bert"), ("int64", 8)),
}


def example(shape: tuple[Any, ...], number: int) -> Tensor:
    """Numbers, or words of a vocabulary of 50."""
    return torch.randint(50, (number, *shape[1:])) if "int64" in shape else torch.randn(number, *shape)


def examined(name: str) -> dict[str, Any]:
    """What becomes of one network."""
    build, shape = ZOO[name]
    torch.manual_seed(0)
    net = build()
    with torch.no_grad():
        for _ in range(3):
            net.train()(example(shape, 8))
    net.eval()
    x = example(shape, 3)
    start = time.process_time()
    try:
        family = tl.slim(net, x, 4)
    except ValueError as error:
        return {"refused": str(error)}
    seconds, found = round(time.process_time() - start, 1), vars(family)["narrowing"]
    macs = []
    with torch.no_grad():
        difference = float((family(x) - net(x)).abs().max() / net(x).abs().max())
        for member in family.grid:
            taken = tl.extract(family, member)
            assert torch.equal(taken(x), family(x, member)), f"{name}: {member} is another one when taken out"
            macs.append(tl.cost(taken, shape).macs)
    narrow = {", ".join(layers): sizes for layers, sizes in found.channels.items()}
    return {"narrow": narrow, "whole": dict(found.whole), "difference of the full member": difference,
            "macs": macs, "seconds": seconds}  # fmt: skip


def main() -> int:
    """Run the benchmark; the exit status tells whether a full member differs from the network given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=ZOO, default=[])
    args = parser.parse_args()
    figures = {name: examined(name) for name in args.only or ZOO}
    results.write("slim-zoo", vars(args), figures)
    return int(any(made.get("difference of the full member", 0) > 1e-5 for made in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
