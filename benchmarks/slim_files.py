"""Claims: widths share their bytes in a bundle and in a pack, at no cost in time; of a bundle a narrow one reads less.

- Loading: a ResNet-18 (47 MB) in four widths. Each is loaded from the family's bundle, from one as before
  (checksums of whole tensors, so all bytes are read), and from a bundle of that member alone: bytes read, the
  processor's time with the file in memory, and the time on the clock when the system has forgotten it.
- Packs: a ResNet-20 of CIFAR-10, as it is and four times as wide, in four widths: bytes of the pack, of the bundle, of
  four ONNX files, and of the widest alone.
- Blocks, the way that was not taken: each convolution as a sum over blocks of its inputs, whose weights lie apart, so
  that all widths can have them in memory once. BatchNorm, which differs, cannot be folded. Of the wider ResNet-20,
  optimised by ONNX Runtime: time of a batch on one thread, and memory that a fresh process takes more with all widths
  opened and run (proportional set size, weights mapped), beside the engine on the pack.

Ways take turns. Of loading the fastest time counts, for others use the disk, too; of packs the median ratio of turns:

    python benchmarks/slim_files.py [--rounds 15] [--only "loading a ResNet-18"]
"""

import argparse
import copy
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import telescopic as tl
from telescopic.engine.host import memory
from telescopic.layers import Residual
from telescopic.tensorfile import TensorFile

import results

SHARES = (0.25, 0.5, 0.75, 1.0)
SHAPE = (3, 32, 32)


def resnet18() -> nn.Sequential:
    """For ImageNet, 11.7 million weights."""

    def conv(given: int, made: int, stride: int, size: int = 3) -> list[nn.Module]:
        return [nn.Conv2d(given, made, size, stride, size // 2, bias=False), nn.BatchNorm2d(made)]

    layers, given = [*conv(3, 64, 2, 7), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for made in (64, 128, 256, 512):
        for stride in (1 if made == 64 else 2, 1):
            body = nn.Sequential(*conv(given, made, stride), nn.ReLU(), *conv(made, made, 1))
            layers.append(Residual(body, nn.Sequential(*conv(given, made, stride, 1)) if stride > 1 else nn.Identity()))
            given = made
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def family(network: nn.Module, shape: tuple[int, ...]) -> tl.Nested:
    """In four widths, with statistics of their own."""
    net = tl.slim(network, torch.randn(4, *shape), SHARES).train()
    with torch.no_grad():
        for _ in range(3):
            net.all(torch.randn(8, *shape))
    return net.eval()


# Loading -----------------------------------------------------------


def as_before(bundle: Path, to: Path) -> Path:
    """The same bundle with checksums of whole tensors alone."""
    content = bundle.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sums = json.loads(header["__metadata__"]["checksums"])
    header["__metadata__"]["checksums"] = json.dumps({key: sums[key] for key in ("document", "tensors")})
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    to.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return to


def bytes_read(load: Callable[[], Any]) -> int:
    """Of tensors."""
    number, read = [0], TensorFile.read

    def noted(self: TensorFile, name: str, rows: int | None = None) -> Tensor:
        tensor = read(self, name, rows)
        number[0] += self._file.tell() - self._start - self.places[name].first
        return tensor

    TensorFile.read = noted  # type: ignore[method-assign]
    load()
    TensorFile.read = read  # type: ignore[method-assign]
    return number[0]


def forget(path: Path) -> None:
    """Have the system read a file from the disk when it is wanted next."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(folder: Path, rounds: int) -> dict[str, Any]:
    """Of each width, from the family and alone."""
    net = family(resnet18(), (3, 64, 64))
    bundle = tl.save(net, folder / "resnet18.safetensors")
    before = as_before(bundle, folder / "before.safetensors")
    figures = {}
    for width, share in enumerate(SHARES, 1):
        subnet = tl.Subnet(width=width)
        alone = tl.save(tl.extract(net, subnet), folder / f"alone{width}.safetensors")
        files = {"family": (bundle, subnet), "as before": (before, subnet), "alone": (alone, None)}
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in files}
        for _ in range(rounds):
            for name, (path, which) in files.items():
                warm, cold = times[name]
                start = time.process_time()
                tl.load(path, which)
                warm.append(1000 * (time.process_time() - start))
                forget(path)
                start = time.perf_counter()
                tl.load(path, which)
                cold.append(1000 * (time.perf_counter() - start))
        figures[f"{share:g}"] = {
            name: {
                "MB read": round(bytes_read(partial(tl.load, path, which)) / 1e6, 1),
                "ms, in memory": round(min(times[name][0])),
                "ms, not in memory": round(min(times[name][1])),
            }
            for name, (path, which) in files.items()
        }
    return figures


# Blocks ------------------------------------------------------------


class Blocks(nn.Module):
    """A convolution as a sum over blocks of its inputs, of which it has the first rows."""

    def __init__(self, blocks: list[nn.Parameter], like: nn.Conv2d) -> None:
        super().__init__()
        self.blocks, self.like = nn.ParameterList(blocks), (like.out_channels, like.stride, like.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Features of all rows."""
        rows, stride, padding = self.like
        parts = x.split([block.shape[1] for block in self.blocks], 1)
        made = [functional.conv2d(x, b[:rows], None, stride, padding) for x, b in zip(parts, self.blocks, strict=True)]
        return sum(made[1:], made[0])


def blockwise(members: list[nn.Module]) -> list[nn.Module]:
    """Members of several widths whose convolutions share their blocks."""
    made = [copy.deepcopy(member) for member in members]
    for name, conv in members[-1].named_modules():
        if isinstance(conv, nn.Conv2d):
            ends = [0, *sorted({member.get_submodule(name).in_channels for member in members})]  # type: ignore[type-var]
            blocks = [nn.Parameter(conv.weight[:, a:b].detach().clone()) for a, b in pairwise(ends)]
            for member in made:
                place, _, last = name.rpartition(".")
                own = member.get_submodule(name)
                number = ends.index(own.in_channels)  # type: ignore[arg-type]
                setattr(member.get_submodule(place), last, Blocks(blocks[:number], own))  # type: ignore[arg-type]
    return made


def optimised(graphs: list[Path], name: str) -> list[Path]:
    """Graphs as ONNX Runtime optimises them, with one file of weights: what begins another tensor is there once."""
    made = []
    for number, graph in enumerate(graphs):
        made.append(graph.with_name(f"{name}{number}.onnx"))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(made[-1]), 3
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    models, known, content = [onnx.load(path) for path in made], list[tuple[int, bytes]](), bytearray()
    tensors = [(onnx.numpy_helper.to_array(one).tobytes(), one) for m in models for one in m.graph.initializer]
    for data, tensor in sorted(tensors, key=lambda pair: -len(pair[0])):
        if len(data) < 1024:
            continue
        place = next((place for place, longer in known if longer.startswith(data)), None)
        if place is None:
            content += bytes(-len(content) % 4096)
            place = len(content)
            content += data
            known.append((place, data))
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", f"{name}.bin"), ("offset", place), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
    (made[0].parent / f"{name}.bin").write_bytes(content)
    for path, model in zip(made, models, strict=True):
        path.write_bytes(model.SerializeToString())
    return made


def session(graph: Path) -> Callable[[Any], Any]:
    """A call of an optimised graph, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    opened = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda x: opened.run(None, {opened.get_inputs()[0].name: x})[0]


def answer(engine: tl.Engine, subnet: tl.Subnet, x: Any) -> Any:
    """Logits of a member."""
    return engine.run(x, subnet=subnet).logits


def taken(what: str, folder: Path) -> float:
    """MB that this process takes more for all widths: of the pack in the engine, of graphs, or the widest of these."""
    x, trim = np.zeros((1, *SHAPE), np.float32), ctypes.CDLL("libc.so.6").malloc_trim
    held: list[Any] = [session(folder / "alone0.onnx")]  # what ONNX Runtime itself takes is not counted
    held[0](x)
    trim(0)
    before = memory() or 0
    if what == "pack":
        held.append(tl.Engine(folder / "pack", threads=1, cache=folder / "cache"))
        for member in held[-1].members:
            held[-1].run(x, subnet=member.subnet)
    else:
        held += [session(graph) for graph in sorted(folder.glob("alone3.onnx" if what == "one" else f"{what}?.onnx"))]
        for opened in held[1:]:
            opened(x)
    trim(0)
    return ((memory() or 0) - before) / 1e6


def packing(folder: Path, width: int, rounds: int, *, blocks: bool) -> dict[str, Any]:
    """Of one network: what is on disk; and with blocks, time and memory."""
    net, x = family(nn.Sequential(*tl.networks.resnet(20, width=width)), SHAPE), torch.randn(2, *SHAPE)
    members = [tl.extract(net, member) for member in net.grid]
    files = [tl.export(member, folder / f"member{n}.onnx", x) for n, member in enumerate(members)]
    pack = tl.pack(net, folder / "pack", members="all", input_shape=SHAPE)
    figures: dict[str, Any] = {
        "bytes": {
            "pack": sum(file.stat().st_size for file in pack.iterdir()),
            "bundle": tl.save(net, folder / "family.safetensors").stat().st_size,
            "four ONNX files": sum(file.stat().st_size for file in files),
            "the widest alone": files[-1].stat().st_size,
        }
    }
    if not blocks:
        return figures
    alone = optimised(files, "alone")
    parted = [tl.export(m, folder / f"parted{n}.onnx", x) for n, m in enumerate(blockwise(members))]
    parted = optimised(parted, "blocks")
    figures["bytes"] |= {f"weights, {name}": (folder / f"{name}.bin").stat().st_size for name in ("alone", "blocks")}
    figures["MB in memory"] = {}
    # The first prepares the pack. Nothing is open here meanwhile, for pages of several processes count in parts.
    for what in ("pack", "pack", "alone", "blocks", "one"):
        command = [sys.executable, __file__, "--memory", what, str(folder)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        figures["MB in memory"][what] = round(float(found.stdout), 1)
    engine = tl.Engine(pack, threads=1, cache=folder / "cache")
    for batch in (1, 32):
        given = np.random.default_rng(0).standard_normal((batch, *SHAPE)).astype(np.float32)
        for number, member in enumerate(engine.members):
            calls: dict[str, Callable[[Any], Any]] = {
                "alone": session(alone[number]),
                "engine": partial(answer, engine, member.subnet),
                "blocks": session(parted[number]),
            }
            assert all(np.allclose(call(given), calls["alone"](given), atol=1e-4) for call in calls.values())
            times: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(4 * rounds if batch == 1 else rounds):
                for name in sorted(calls, reverse=turn % 2 == 1):
                    start = time.process_time()
                    calls[name](given)
                    times[name].append(time.process_time() - start)
            figures[f"batch {batch}, {SHARES[number]:g}"] = {"ms alone": round(1000 * median(times["alone"]), 2)} | {
                f"{name} / alone": round(median(a / b for a, b in zip(times[name], times["alone"], strict=True)), 3)
                for name in ("engine", "blocks")
            }
    return figures


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="measure this part anew, and leave the others' figures")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(taken(args.memory[0], Path(args.memory[1])))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {
        "loading a ResNet-18": lambda folder: loading(folder, args.rounds),
        "ResNet-20": lambda folder: packing(folder, 16, args.rounds, blocks=False),
        "ResNet-20, four times as wide": lambda folder: packing(folder, 64, args.rounds, blocks=True),
    }
    figures: dict[str, Any] = {}
    for name in parts if args.only is None else [args.only]:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = parts[name](Path(folder))
    if args.only is not None:
        figures = json.loads((results.FOLDER / "slim-files.json").read_text())["figures"] | figures
    results.write("slim-files", {"rounds": args.rounds, "threads": 1}, figures)


if __name__ == "__main__":
    main()
