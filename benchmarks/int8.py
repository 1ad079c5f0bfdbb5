"""Claim: a pack in int8 gives the same answers on every processor, whoever runs its graphs.

Without VNNI an x86 processor adds two products of uint8 and int8 in 16 bits, which overflow if weights have 8 bits.
The families that come with the package, quantised with weights of 7 bits (as `telescopic pack` does) and of 8, are run
by what there is on this machine: the engine in ONNX Runtime, which asks for exact sums where they might overflow; its
graphs in ONNX Runtime as they are; the engine in OpenVINO; and, for what is right, in ONNX Runtime with all its
optimisations off, where integers are computed as floats and none is too large. On validation images, over members: by
how many points accuracy differs from float32, how many images have the same class, and the median error of an image's
logits in percent of these. Writes results/int8.json:

    python benchmarks/int8.py [--images 500] [--threads 1]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from telescopic.engine import Engine
from telescopic.engine.ort import onnx_runtime, sessions
from telescopic.packing import pack, quantise
from telescopic.run import Source

import results

FAMILIES = ("nsn-mnist", "doubly-nested-cifar10")


def engines(folder: Path, threads: int) -> dict[str, Callable[[], Engine]]:
    """What runs a pack → what opens it so."""
    opened, processor = onnx_runtime.open_session, sessions.processor

    def plain() -> Engine:
        sessions.processor = lambda: "vnni"  # nothing is asked for
        try:
            return Engine(folder, threads=threads, cache=False)
        finally:
            sessions.processor = processor

    def exact() -> Engine:
        onnx_runtime.open_session = lambda graph, n: opened(graph, n, optimised=True)
        try:
            return Engine(folder, threads=threads, cache=False)
        finally:
            onnx_runtime.open_session = opened

    return {
        "engine": lambda: Engine(folder, threads=threads, cache=False),
        "graphs as they are": plain,
        "OpenVINO": lambda: Engine(folder, threads=threads, cache=False, backend="openvino"),
        "exact": exact,
    }


def answers(engine: Engine, x: np.ndarray) -> list[np.ndarray]:
    """Logits of each member."""
    parts = [x[start : start + 100] for start in range(0, len(x), 100)]
    return [np.concatenate([engine.run(p, subnet=m.subnet).logits for p in parts]) for m in engine.members]


def compared(ours: list[np.ndarray], theirs: list[np.ndarray], labels: np.ndarray) -> dict[str, float]:
    """How answers in int8 compare with those in float32, over members."""
    points, same, errors = [], [], []
    for a, b in zip(ours, theirs, strict=True):
        points.append(100 * float((a.argmax(1) == labels).mean() - (b.argmax(1) == labels).mean()))
        same.append(100 * float((a.argmax(1) == b.argmax(1)).mean()))
        errors.append(100 * float(np.median(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1))))
    return {
        "accuracy, points, mean": round(float(np.mean(points)), 2),
        "accuracy, points, worst": round(min(points), 2),
        "same class, %, mean": round(float(np.mean(same)), 2),
        "same class, %, worst": round(min(same), 2),
        "median error, %, mean": round(float(np.mean(errors)), 2),
        "median error, %, worst": round(max(errors), 2),
    }


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds for 7 bits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    holds = True
    for name in FAMILIES:
        source = Source.open(name)
        data, prepare = source.data(None, None), source.preprocess()
        places = slice(None, None, max(1, len(data.validation) // arguments.images))
        x = prepare(data.validation.images[places][: arguments.images]).numpy()
        labels = data.validation.labels[places][: arguments.images].numpy()
        given = prepare(data.train.images[:: len(data.train) // 340])  # a fourth of them judges
        with tempfile.TemporaryDirectory() as folder:
            catalogue = source.catalogue()
            float32 = answers(Engine(pack(source.bundle, Path(folder, "float32"), catalogue=catalogue), cache=False), x)
            for bits in (7, 8):
                quantise.BITS = bits
                to = pack(source.bundle, Path(folder, str(bits)), catalogue=catalogue, int8=given, max_loss=1)
                found = {how: answers(engine(), x) for how, engine in engines(to, arguments.threads).items()}
                rows = {how: compared(logits, float32, labels) for how, logits in found.items()}
                figures.setdefault(name, {})[f"{bits} bits"] = rows
                print(name, bits, rows, flush=True)
                if bits == 7:
                    holds = holds and all(
                        np.median(np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)) < 0.02
                        for logits in found.values()
                        for a, b in zip(logits, found["exact"], strict=True)
                    )
    results.write("int8", vars(arguments), figures)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
