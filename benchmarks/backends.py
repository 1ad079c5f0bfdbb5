"""Question: where does OpenVINO serve the engine better than ONNX Runtime?

Plain ONNX graphs in float32 and in int8 (the engine's own quantisation), on one thread; processor time for batches of 1
and 32, ways in turns, medians of ratios within a round:

- members alone, each one graph; and the memory (proportional set size) that a fresh process takes more with the largest
  of them, with all, and with an engine that has all, once each has run;
- the smallest and the largest member in the engine, with one or the other as its backend.

Writes results/backends.json:

    pip install openvino
    python benchmarks/backends.py [--rounds 60] [--only "ResNet-32, exits"]
"""

import argparse
import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from telescopic.engine.engine import Engine
from telescopic.engine.host import memory
from telescopic.engine.openvino import OpenVino
from telescopic.subnet import Subnet

import engine
import results

BACKENDS = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino"}
NAMES = ("CNSN's VGG", "CNSN's VGG, a quarter", "causal ResNet, 4 x 16", "ResNet-32, exits", "MLP")


def opened(file: Path, backend: str) -> Callable[[Any], Any]:
    """A graph as a function of a batch."""
    if backend == "ONNX Runtime":
        session = engine.session(file, 1)
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]
    request = compiled(file)
    return lambda x: request.infer({0: x}, share_inputs=True)[0]


def compiled(file: Path) -> Any:
    """A graph in OpenVINO, ready to run on one thread."""
    return OpenVino().open(file, 1).create_infer_request()


def grown(folder: Path, backend: str, what: str) -> float:
    """Megabytes that this process takes more with one member, all, or the engine with all."""
    files = sorted(folder.glob("alone*.onnx"))
    shape = json.loads((folder / "shape.json").read_text())
    x = np.zeros((1, *shape), np.float32)
    opened(files[0], backend)(x)  # what the library itself takes is not counted
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    trim(0)
    before = memory() or 0
    if what == "engine":
        ours = Engine(folder / "pack", cache=folder / "cache", threads=1, backend=BACKENDS[backend])
        held: list[Callable[[Any], Any]] = [partial(ours.run, subnet=member.subnet) for member in ours.members]
    else:
        held = [opened(file, backend) for file in (files[-1:] if what == "one" else files)]
    for run in held:
        run(x)
    trim(0)
    return ((memory() or 0) - before) / 1e6


def timed(runs: Mapping[str, Callable[[Any], Any]], shape: Sequence[int], rounds: int) -> dict[str, float]:
    """A function of a batch, which gives logits, by both backends."""
    row = {}
    for batch in (1, 32):
        x = np.random.default_rng(0).standard_normal((batch, *shape), np.float32)
        calls: dict[str, Callable[[], Any]] = {name: partial(run, x) for name, run in runs.items()}
        one, other = (call() for call in calls.values())
        row["largest difference"] = round(float(np.abs(one - other).max() / np.abs(one).max()), 6)
        times = engine.timed(calls, max(8, rounds // (1 if batch == 1 else 4)), 1)
        row[f"OpenVINO / ONNX Runtime, batch {batch}"] = engine.ratio(times, "OpenVINO", "ONNX Runtime")
    return row


def compared(folder: Path, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Both backends on the members alone that are in a folder."""
    figures: dict[str, Any] = {}
    for file in sorted(folder.glob("alone*.onnx")):
        figures[file.stem] = timed({backend: opened(file, backend) for backend in BACKENDS}, shape, rounds)
    (folder / "shape.json").write_text(json.dumps(shape))
    for backend in BACKENDS:
        for what in ("one", "all", "engine"):
            if what == "engine":  # as at any start but the first
                Engine(folder / "pack", cache=folder / "cache", threads=1, backend=BACKENDS[backend])
            words = [sys.executable, __file__, "--grown", str(folder), backend, what]
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            figures[f"MB, {backend}, {what}"] = round(float(told.splitlines()[-1]), 2)
    return figures


def in_engine(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The smallest and the largest member in the engine, on both backends."""
    engines = {
        name: Engine(folder / "pack", cache=folder / "cache", threads=1, backend=backend)
        for name, backend in BACKENDS.items()
    }
    figures, (first, *_, last) = {}, engines["OpenVINO"].members
    for member in (first, last):

        def run(opened: Engine, x: Any, subnet: Subnet = member.subnet) -> Any:
            return opened.run(x, subnet=subnet).logits

        runs = {name: partial(run, opened) for name, opened in engines.items()}
        row = timed(runs, engines["OpenVINO"].input_shape, rounds)
        figures[member.label] = {"segments": len(member.chain), **row}
    return figures


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", choices=NAMES)
    parser.add_argument("--grown", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("openvino") is None:
        sys.exit("OpenVINO is not installed: pip install openvino")
    if args.grown:
        print(grown(Path(args.grown[0]), *args.grown[1:]))
        return
    figures: dict[str, Any] = {}
    for name in NAMES:
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as made:
                folder, shape = Path(made), engine.networks()[name][1]
                engine.prepare(name, folder, int8=True)
                figures[name] = {
                    precision: {"alone": compared(at, shape, args.rounds), "in the engine": in_engine(at, args.rounds)}
                    for precision, at in (("float32", folder), ("int8", folder / "int8"))
                }
                print(json.dumps({name: figures[name]}, indent=1), file=sys.stderr)
    import openvino

    results.write("backends", {"rounds": args.rounds, "only": args.only, "openvino": openvino.__version__}, figures)


if __name__ == "__main__":
    main()
