"""Claims: all members take at most 1.15 times the memory of one session, and run in 1.05 times their time alone.

In int8, at most 1.3 times the memory of one int8 session.

For CNSN's VGG; the same with a quarter of the channels (shared statistics; and per entry, where BatchNorm cannot be
folded without copies), the causal ResNet with 4 groups of 16, 32 and 64 channels, ResNet-32 with 15 exits (reach 1.1;
five of its members are also exported alone), and the MLP:

- memory: proportional set size that a fresh process takes more, for the engine with all members loaded and run, one
  session of the largest member, and a session for each; the engine finds its graphs optimised, as at any start but the
  first;
- time: each member in the engine against the same member exported alone, both called as a user calls them, and against
  that session with its buffers bound;
- switching: members in turns against one alone;
- overhead: a call of the engine for a member of one segment, against its session;
- anytime: all refinements of the default path, and four of them, against one shot of the largest member;
- distance from the machine's limit: multiply-adds a second over those of ONNX Runtime's product of two 1024 × 1024
  matrices on as many threads ("of peak"), and the least time that the machine could need over the time needed ("of
  roofline"): the larger of the multiply-adds at that speed, and weights and input once through memory at the speed of a
  large copy. Feature maps are not counted, for they may stay in the cache: the real limit is nearer. Float32 only.

With --int8 all of these are of int8: the pack, and members alone, quantised by the same inputs and in the same way;
and each member in the float32 engine is timed against the int8 engine.

Ways take turns, and ratios are medians of ratios within a round. With one thread it is the processor's time that is
measured. Weights are random. Writes results/engine.json, or results/engine-int8.json:

    python benchmarks/engine.py [--rounds 100] [--threads 1] [--int8] [--only MLP]
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from telescopic.engine.engine import Engine
from telescopic.engine.host import memory
from telescopic.subnet import Subnet


def networks() -> dict[str, tuple[Callable[[], Any], tuple[int, ...], Sequence[Subnet] | str, bool]]:
    """Name → network, shape of an input, members, whether to fold BatchNorm into copies."""
    from telescopic.nest import nest
    from telescopic.networks import causal_resnet, mlp, resnet
    from telescopic.papers import cnsn

    cells = ((4, 1), (9, 1), (9, 2), (14, 2), (14, 3), (14, 4))
    widths = [Subnet(exit=exit_, width=width) for exit_, width in cells]
    image = (3, 32, 32)
    per_entry = partial(cnsn.network, scale=0.25, statistics="per-entry")
    return {
        "CNSN's VGG": (cnsn.network, image, "all", False),
        "CNSN's VGG, a quarter": (partial(cnsn.network, scale=0.25), image, "all", False),
        "CNSN's VGG, a quarter, per entry": (per_entry, image, "all", False),
        "CNSN's VGG, a quarter, per entry, folded": (per_entry, image, "all", True),
        "causal ResNet, 4 x 16": (partial(causal_resnet, 4, (16, 32, 64)), image, widths, False),
        "ResNet-32, exits": (lambda: nest(resnet(32), input_shape=image, exits=range(15)), image, "all", False),
        "MLP": (partial(mlp, 784, (784, 784), 10), (784,), "all", False),
    }


def prepare(name: str, folder: Path, int8: bool) -> None:
    """Pack the members, and export each alone; in int8 too, in a folder of its own, if that is wanted."""
    import onnx
    import torch

    from telescopic.export import export
    from telescopic.extract import extract
    from telescopic.packing.pack import pack

    torch.manual_seed(0)
    make, shape, members, fold_bn = networks()[name]
    net = make().eval()
    pack(net, folder / "pack", members=members, input_shape=shape, fold_bn=fold_bn)  # type: ignore[arg-type]
    packed = Engine(folder / "pack", cache=folder / "cache").members
    if int8:
        to, x = folder / "int8", torch.randn(32, *shape)
        pack(net, to / "pack", members=members, input_shape=shape, fold_bn=fold_bn, int8=x, max_loss=1)  # type: ignore[arg-type]
        Engine(to / "pack", cache=to / "cache")
        for place in spread(len(packed)):
            alone = pack(net, to / str(place), members=[packed[place].subnet], input_shape=shape, int8=x, max_loss=1)
            (file,) = alone.glob("*.onnx")  # of one member it is one graph
            onnx.save(onnx.load(file), to / f"alone{place:03}.onnx")
    for place in spread(len(packed)):
        module = extract(net, packed[place].subnet, fold_bn=True)
        export(module, folder / f"alone{place:03}.onnx", torch.randn(2, *shape))


def spread(number: int) -> list[int]:
    """Places of all members, or of five of many, the last among them."""
    return list(range(number)) if number <= 6 else sorted({round(i * (number - 1) / 4) for i in range(5)})


def session(path: Path, threads: int) -> Any:
    """A member alone, with the threads that the engine has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def grown(folder: Path, what: str, threads: int) -> float:
    """Megabytes that this process takes more with an engine, one session, or all of them."""
    ends = [sorted(folder.glob("alone*.onnx"))[0]]
    session(ends[0], threads)  # what ONNX Runtime itself takes is not counted
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    trim(0)  # or what that session has left would be used again
    before = memory() or 0
    if what == "engine":
        engine = Engine(folder / "pack", threads=threads, cache=folder / "cache")
        held: list[Any] = [engine]
        for member in engine.members:
            engine.run(np.zeros((1, *engine.input_shape), np.float32), subnet=member.subnet)
    else:
        files = sorted(folder.glob("alone*.onnx"))[-1 if what == "one" else 0 :]
        held = [session(file, threads) for file in files]
        for opened in held:
            given = opened.get_inputs()[0]
            opened.run(None, {given.name: np.zeros((1, *given.shape[1:]), np.float32)})
    trim(0)
    return ((memory() or 0) - before) / 1e6 if held else 0.0


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round; each behind one of its own, so that all find caches as they left them."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        for name in list(calls)[:: 1 if number % 2 else -1]:
            calls[name]()
            began = clock()
            calls[name]()
            if number >= 3:
                times[name].append(clock() - began)
    return times


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over rounds."""
    return round(median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)


def bound(opened: Any, x: np.ndarray) -> Callable[[], None]:
    """A session with its buffers in place."""
    binding = opened.io_binding()
    out = np.zeros((len(x), opened.get_outputs()[0].shape[1]), np.float32)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    binding.bind_ortvalue_input(opened.get_inputs()[0].name, value(x))
    binding.bind_ortvalue_output(opened.get_outputs()[0].name, value(out))
    return partial(opened.run_with_iobinding, binding)


def limits(folder: Path, threads: int) -> tuple[float, float]:
    """Multiply-adds a second of a large product, and bytes a second of a large copy, at best."""
    import onnx
    from onnx import TensorProto, helper

    size = 1024
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((size, size), np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "product")
    product, x = session(folder / "product", threads), rng.standard_normal((size, size), np.float32)
    source = np.ones(2**26, np.float32)
    target = np.zeros_like(source)
    calls = {"product": partial(product.run, None, {"x": x}), "copy": partial(np.copyto, target, source)}
    times = timed(calls, 20, threads)
    return size**3 / min(times["product"]), 2 * source.nbytes / min(times["copy"])


def speed(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Members in the engine and alone; in turns; refined."""
    engine = Engine(folder / "pack", threads=threads, cache=folder / "cache")
    peak, bandwidth = limits(folder, threads)
    figures: dict[str, Any] = {"peak, G multiply-adds/s": round(peak / 1e9, 1), "copy, GB/s": round(bandwidth / 1e9, 1)}
    for batch in (1, 32):
        x = np.random.default_rng(0).standard_normal((batch, *engine.input_shape), np.float32)
        number = max(10, rounds // (1 if batch == 1 else 8))
        rows = {}
        for place in spread(len(engine.members)):
            member = engine.members[place]
            alone = session(folder / f"alone{place:03}.onnx", threads)
            calls: dict[str, Callable[[], object]] = {
                "engine": partial(engine.run, x, subnet=member.subnet),
                "alone": partial(alone.run, None, {alone.get_inputs()[0].name: x}),
                "bound": bound(alone, x),
            }
            times = timed(calls, number, threads)
            rows[member.label] = {
                "ms": round(1e3 * median(times["engine"]), 3),
                "segments": len(member.chain),
                "engine / alone": ratio(times, "engine", "alone"),
                "engine / bound": ratio(times, "engine", "bound"),
            }
            if engine.precision == "float32":
                needed, computed = median(times["engine"]), batch * member.macs / peak
                moved = (4 * member.params + x.nbytes) / bandwidth
                rows[member.label]["of peak"] = round(computed / needed, 3)
                rows[member.label]["of roofline"] = round(max(computed, moved) / needed, 3)
        figures[f"batch {batch}"] = rows
    x = x[:1]
    steady, turns = [], []
    in_blocks = [member for member in engine.members for _ in range(4)]
    clock = time.process_time if threads == 1 else time.perf_counter
    for _ in range(rounds):
        for seconds, order in ((steady, in_blocks), (turns, [*engine.members] * 4)):
            began = clock()
            for member in order:
                engine.run(x, subnet=member.subnet)
            seconds.append(clock() - began)
    figures["switching: in turns / steady"] = round(median(a / b for a, b in zip(turns, steady, strict=True)), 3)
    path = [answer.subnet for answer in engine.anytime(x)]
    calls = {"refined": lambda: list(engine.anytime(x)), "one shot": lambda: engine.run(x)}
    figures[f"anytime: {len(path)} answers / one shot"] = ratio(timed(calls, rounds, threads), "refined", "one shot")
    if len(path) > 4:
        four = [path[round(i * (len(path) - 1) / 3)] for i in range(4)]
        calls["refined"] = lambda: list(engine.anytime(x, path=four))
        figures["anytime: 4 answers / one shot"] = ratio(timed(calls, rounds, threads), "refined", "one shot")
    lane = engine._runner.lanes.take(1)
    smallest = engine.members[0]
    calls = {
        "engine": lambda: engine.run(x, subnet=smallest.subnet),
        "chain": lambda: (lane.start(x), lane.run(engine._runner.members[smallest])),
    }
    times = timed(calls, 5 * rounds, threads)
    gaps = [a - b for a, b in zip(times["engine"], times["chain"], strict=True)]
    figures["overhead of a call, us"] = round(1e6 * median(gaps), 1)
    return figures


def gained(folder: Path, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Times of members in float32 over those in int8, in two engines."""
    engines = [Engine(path / "pack", threads=threads, cache=path / "cache") for path in (folder, folder / "int8")]
    figures: dict[str, dict[str, float]] = {}
    for batch in (1, 32):
        x = np.random.default_rng(0).standard_normal((batch, *engines[0].input_shape), np.float32)
        for place in spread(len(engines[0].members)):
            member = engines[0].members[place]
            one, other = (partial(engine.run, x, subnet=member.subnet) for engine in engines)
            times = timed({"float32": one, "int8": other}, max(10, rounds // (1 if batch == 1 else 8)), threads)
            figures.setdefault(f"batch {batch}", {})[member.label] = ratio(times, "float32", "int8")
    return figures


def sizes(folder: Path, threads: int) -> dict[str, float]:
    """Megabytes, each in a process of its own."""
    found = {}
    for what in ("engine", "one", "all"):
        words = [sys.executable, __file__, "--grown", str(folder), what, "--threads", str(threads)]
        found[what] = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="one network")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--grown", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.grown:
        print(grown(Path(args.grown[0]), args.grown[1], args.threads))
        return
    if args.only not in (None, *networks()):
        parser.error(f"--only takes one of {', '.join(networks())}; not {args.only}")
    figures: dict[str, Any] = {}
    for name in networks():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as made:
            prepare(name, Path(made), args.int8)
            folder = Path(made, "int8") if args.int8 else Path(made)
            size = sizes(folder, args.threads)
            figures[name] = {
                "MB": {what: round(value, 2) for what, value in size.items()},
                "memory: engine / one session": round(size["engine"] / size["one"], 3),
                **speed(folder, args.rounds, args.threads),
            }
            if args.int8:
                figures[name]["float32 / int8"] = gained(Path(made), args.rounds, args.threads)
            print(json.dumps({name: figures[name]}, indent=1), file=sys.stderr)
    import results

    config = {key: value for key, value in vars(args).items() if key != "grown"}
    results.write("engine-int8" if args.int8 else "engine", config, figures)


if __name__ == "__main__":
    main()
