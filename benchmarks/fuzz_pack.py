"""Claim: whatever happens to a pack's files, opening it succeeds or raises PackError, soon and in little memory.

A small pack's manifest and graphs are mutated: bytes flipped, cut and added; values of the manifest exchanged for
hostile ones; nodes, attributes, shapes and weights of the graphs exchanged for others. Checksums fit, as an attacker's
would. A foreign exception, an opening of more than 2 s of processor time, or 500 MB more memory at the peak counts as a
failure; a crash or a minute's hang ends the program. It writes results/fuzz-pack.json:

    python benchmarks/fuzz_pack.py [--cases 10000] [--seed 0]
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

import telescopic as tl
from telescopic.engine import PackError
from telescopic.layers import Residual

import fuzz_bundle
import results

SLOW_S = 2.0
OPERATORS = "Relu Loop If Scan ConstantOfShape Tile Expand Range Identity Reshape Conv Gemm MatMul Pad Resize NonZero"
SIZES = (0, -1, 1, 2, 7, 10**4, 10**6, 10**9, 2**31, 2**62)


def small(folder: Path) -> Path:
    """A pack of two stages and two exits."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU())
    first = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    heads = {n: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 30, 3)) for n in (0, 1)}
    net = tl.Nested([first, Residual(block)], exits=heads).eval()
    return tl.pack(
        net, folder / "whole", members="all", input_shape=(1, 6, 5), preprocess=tl.Preprocess((0.5,), (0.5,))
    )


def mutated_graph(text: bytes, chance: random.Random) -> bytes:
    """Another graph."""
    if chance.random() < 0.4:
        changed = bytearray(text)
        for _ in range(chance.randint(1, 6)):
            place = chance.randrange(len(changed))
            action = chance.random()
            if action < 0.6:
                changed[place] ^= 1 << chance.randrange(8)
            elif action < 0.8:
                del changed[place : place + chance.randint(1, 20)]
            else:
                changed[place:place] = chance.randbytes(chance.randint(1, 20))
            if not changed:
                break
        return bytes(changed)
    model = onnx.load_model_from_string(text)
    graph = model.graph
    for _ in range(chance.randint(1, 3)):
        node, action = chance.choice(graph.node), chance.randrange(8)
        if action == 0:
            node.op_type = chance.choice(OPERATORS.split())
        elif action == 1:
            node.domain = chance.choice(("com.microsoft", "own", "ai.onnx.ml"))
        elif action == 2 and node.attribute:
            attribute = chance.choice(node.attribute)
            attribute.ints[:] = [chance.choice(SIZES) for _ in attribute.ints]
            attribute.i = chance.choice(SIZES)
        elif action == 3 and graph.initializer:
            tensor = chance.choice(graph.initializer)
            tensor.dims[:] = [chance.choice(SIZES) for _ in range(chance.randint(0, 4))]
        elif action == 4 and graph.initializer:
            tensor = chance.choice(graph.initializer)
            for entry in tensor.external_data:
                entry.value = str(chance.choice((*SIZES, "/etc/passwd", "../weights.bin", "manifest.json")))
        elif action == 5:
            sizes = np.array([chance.choice(SIZES) for _ in range(chance.randint(1, 4))])
            makes = chance.choice(("ConstantOfShape", "Expand", "Tile"))
            given = ["s"] if makes == "ConstantOfShape" else ["in0", "s"]
            graph.node.insert(0, helper.make_node(makes, given, ["z"]))
            graph.initializer.append(numpy_helper.from_array(sizes, "s"))
        elif action == 6:
            for value in (*graph.input, *graph.output):
                for dim in value.type.tensor_type.shape.dim:
                    if chance.random() < 0.3:
                        dim.dim_value = chance.choice(SIZES)
        else:
            names = [name for each in graph.node for name in (*each.input, *each.output)]
            side = node.input if chance.random() < 0.5 else node.output
            if side:
                side[chance.randrange(len(side))] = chance.choice(names)
    return model.SerializeToString()


def mutated(whole: Path, to: Path, chance: random.Random) -> None:
    """Another pack."""
    shutil.copytree(whole, to, dirs_exist_ok=True)
    manifest: Any = json.loads((whole / "manifest.json").read_text())
    if chance.random() < 0.5:
        name = chance.choice([*manifest["segments"].values()])
        (to / name).write_bytes(mutated_graph((whole / name).read_bytes(), chance))
    for name, facts in manifest["files"].items():
        content = (to / name).read_bytes()
        facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(manifest).encode()
    if chance.random() < 0.6:
        text = fuzz_bundle.mutate_json(text, chance)
    (to / "manifest.json").write_bytes(text)


def opened(pack: Path) -> None:
    """Open a pack, and run it."""
    engine = tl.Engine(pack, cache=False, threads=1)
    engine.run(np.zeros((1, *engine.input_shape), np.float32))


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole, changed = small(Path(name)), Path(name) / "changed"
        opened(whole)

        def made(chance: random.Random) -> Callable[[], object]:
            mutated(whole, changed, chance)
            return partial(opened, changed)

        figures = fuzz_bundle.fuzzed(
            {"pack": (made, PackError)}, {"pack": given.cases}, random.Random(given.seed), SLOW_S
        )
    results.write("fuzz-pack", vars(given), figures)
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
