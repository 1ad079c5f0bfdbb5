"""Claim: no layer crashes or reckons wrongly in the layouts that the training loop takes, whatever the processor.

Every kind of layer, with 1 to 16 channels, several kernels and steps, in both memory layouts, with one thread and two,
in float32 and under bf16's autocast: a pass forward and back on three inputs, in processes of their own. The output and
all gradients are compared with those of float64. Behind every buffer stands a guard (overruns.c, built with cc), so
that writing past its end is seen even if it happens to hit nothing. All of it is done once for each instruction set
that the machine has: oneDNN and torch are told to use no newer one, as if the processor were older.

Writes what crashed or was wrong to results/crashes.json; those that are the loop's own choice fail the claim:

    python benchmarks/crashes.py [--channels 1 2 3 4 5 7 8 16] [--only Conv2d ...]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from telescopic.train.layout import layout_for

import results

PROCESSORS = {
    "as it is": {},
    "AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE41": {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
}
OVERRUN = 86
"""Exit status of a process in which something was written past the end of a buffer."""
ALLOWED = {"fp32": 1e-4, "bf16": 0.03}
"""Root mean square of an error, over that of the right numbers: in bf16, which has 8 bits, some roundings in a row."""
SIZES = ((2, 8), (3, 7), (17, 5))
"""Examples, and pixels a side."""
ASKED = """import torch
torch.nn.Conv2d(8, 8, 3)(torch.ones(16, 8, 8, 8))
print(torch.backends.cpu.get_cpu_capability())
"""
TOGETHER = 24
"""Cases for which one process is forked, as long as it does not crash."""
LAYOUTS = {
    "contiguous": (torch.contiguous_format,) * 3,
    "channels_last": (None, torch.channels_last, torch.channels_last_3d),
}


class Case(NamedTuple):
    """A layer of torch.nn by its name and arguments, what it takes, and how it is run."""

    layer: str
    arguments: dict[str, Any]
    channels: int
    dimensions: int
    layout: str
    threads: int
    precision: str
    image: bool = False  # whether it reads one, so that nobody asks for its input's gradient

    def __str__(self) -> str:
        """All but the numbers of channels."""
        sizes = {"in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels"}
        shown = "".join(f" {k.removesuffix('_size')} {v}" for k, v in self.arguments.items() if k not in sizes)
        shown += " of an image" * self.image
        return f"{self.layer}{shown}, {self.layout}, {self.threads} thread{'s' * (self.threads > 1)}, {self.precision}"

    def build(self) -> nn.Module:
        """The layer, with the same weights whenever it is built."""
        torch.manual_seed(0)
        module: nn.Module = getattr(nn, self.layer)(**self.arguments)
        return module

    def is_the_loops(self) -> bool:
        """Whether the training loop would take this layout for a network of this layer."""
        if self.layout == "channels_last" and self.channels in (1, 3) and not self.image:
            return False  # layout.py takes what reads so many channels to read the image
        taken = layout_for(self.build(), torch.device("cpu"), self.precision)
        return self.layout == ("contiguous" if taken is torch.contiguous_format else "channels_last")


def layers(channels: Sequence[int]) -> Iterator[tuple[str, dict[str, Any], int, int]]:
    """Kind, arguments, channels and spatial dimensions of every layer."""
    shapes = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (3, 2))
    windows = [{"kernel_size": k, "stride": s, "padding": k // 2} for k, s in shapes]
    for given in channels:
        for dimensions, window in product((1, 2, 3), windows):
            if dimensions != 2 and window["kernel_size"] == 2:
                continue
            for made in (1, 4, 8, 16) if dimensions == 2 else (3, 8):
                yield f"Conv{dimensions}d", {"in_channels": given, "out_channels": made, **window}, given, dimensions
            for made in (3, 8):
                sizes = {"in_channels": given, "out_channels": made, **window}
                yield f"ConvTranspose{dimensions}d", sizes, given, dimensions
            for made, groups in {(given, given), (2 * given, given), (given, 2 - given % 2)}:
                sizes = {"in_channels": given, "out_channels": made, **window, "groups": groups}
                yield f"Conv{dimensions}d", sizes, given, dimensions
                yield f"ConvTranspose{dimensions}d", sizes, given, dimensions
        for made in (1, 4, 8, 16):
            yield "Linear", {"in_features": given, "out_features": made}, given, 0
        for dimensions in (1, 2, 3):
            yield f"BatchNorm{dimensions}d", {"num_features": given}, given, dimensions
            yield f"InstanceNorm{dimensions}d", {"num_features": given, "affine": True}, given, dimensions
            for k, s in ((2, 2), (3, 1), (3, 2)):
                yield f"MaxPool{dimensions}d", {"kernel_size": k, "stride": s}, given, dimensions
                yield f"AvgPool{dimensions}d", {"kernel_size": k, "stride": s}, given, dimensions
            for to in (1, 3):
                yield f"AdaptiveAvgPool{dimensions}d", {"output_size": to}, given, dimensions
                yield f"AdaptiveMaxPool{dimensions}d", {"output_size": to}, given, dimensions
        if given > 2:  # of fewer, nothing but signs is left, and no gradient
            yield "LayerNorm", {"normalized_shape": given}, given, 0
        yield "GroupNorm", {"num_groups": 2 - given % 2, "num_channels": given}, given, 2
        yield "PReLU", {"num_parameters": given}, given, 2
        yield "GELU", {}, given, 2
        yield "Softmax", {"dim": 1}, given, 2
        yield "Upsample", {"scale_factor": 2, "mode": "nearest"}, given, 2
        yield "Upsample", {"scale_factor": 2, "mode": "bilinear"}, given, 2
        if given % 4 == 0:
            yield "PixelShuffle", {"upscale_factor": 2}, given, 2


def cases(channels: Sequence[int], only: Sequence[str] = ()) -> list[Case]:
    """Every layer in every way; only kinds of some names if there are any."""
    ways = list(product(LAYOUTS, (1, 2), ALLOWED))
    found = [Case(*layer, *way) for layer in layers(channels) for way in ways if not only or layer[0] in only]
    found += [case._replace(image=True) for case in found if case.layer == "Conv2d" and case.channels in (1, 3)]
    return [case for case in found if case.dimensions > 1 or case.layout == "contiguous"]


def outcome(case: Case) -> str:
    """Run it, in this process: what is wrong with it, if anything."""
    torch.set_num_threads(case.threads)
    for batch, side in SIZES:
        exact, layer = case.build().double(), case.build()
        # All of one sign: sums that cancel each other out would say little of what was added up.
        x = torch.rand(batch, case.channels, *[side] * case.dimensions).add(0.5).bfloat16().float()
        layout = LAYOUTS[case.layout][max(case.dimensions, 1) - 1]
        # In bf16, also what autocast leaves alone is given what the layer before would give it.
        given = x.bfloat16() if case.precision == "bf16" else x
        wanted = passed(exact, x.double(), torch.float64, case.image)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16"):
                layer.to(memory_format=layout)
                found = passed(layer, given.contiguous(memory_format=layout), torch.float32, case.image)
        except (RuntimeError, ValueError) as error:
            return f"refused: {' '.join(str(error).split())[:120]}"
        for name, right in wanted.items():
            # What should be 0, such as the gradient of a normalised constant, is compared with numbers of size 1.
            scale = max(right.square().mean().sqrt().item(), 1e-2)
            error = (found[name].double() - right).square().mean().sqrt().item() / scale
            if not error <= ALLOWED[case.precision]:
                return f"wrong: {name} by {100 * error:.2g} %"
    return "right"


def passed(layer: nn.Module, x: Tensor, dtype: torch.dtype, image: bool) -> dict[str, Tensor]:
    """The output and all gradients of a pass whose loss weighs every output differently."""
    x = x.detach().requires_grad_(not image)
    y = layer(x)
    weights = torch.arange(y.numel(), dtype=torch.float64).mul(0.7).sin().add(1.5).view(y.shape)
    (y.to(dtype) * weights.to(dtype)).sum().backward()
    found = {"output": y.detach()} | ({} if x.grad is None else {"gradient of the input": x.grad})
    return found | {f"gradient of {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}


def outcomes(some: Sequence[Case]) -> list[str]:
    """The outcome of each case, in a process that is forked for them; if it crashes, in one for each."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what glibc says before it aborts
        signal.alarm(300)
        os.write(writing, json.dumps([outcome(case) for case in some]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return list(json.loads(said))
    if len(some) > 1:
        return [one for case in some for one in outcomes([case])]
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return [f"crashed: {'wrote past the end of a buffer' if status == OVERRUN else how}"]


def worker(every: Sequence[Case]) -> None:
    """What the process of one instruction set does: print every case that is not right. It never computes itself."""
    for start in range(0, len(every), TOGETHER):
        for number, said in enumerate(outcomes(every[start : start + TOGETHER]), start):
            if said != "right":
                print(json.dumps([number, said]), flush=True)


def guard(folder: Path) -> Path:
    """The library to be preloaded, which sees writing past the end of a buffer."""
    made = folder / "overruns.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", made, Path(__file__).with_name("overruns.c")], check=True)
    return made


def instructions(environment: dict[str, str]) -> str:
    """Which instruction set oneDNN and torch then really use."""
    command = [sys.executable, "-c", ASKED]
    environment = os.environ | environment | {"ONEDNN_VERBOSE": "1"}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    told = [line.rpartition("isa:")[2] for line in lines if "info,cpu,isa:" in line]
    return f"oneDNN: {told[0]}; torch: {lines[-1]}"


def examined(environment: dict[str, str], channels: Sequence[int], only: Sequence[str] = ()) -> dict[str, Any]:
    """All cases with one instruction set: how many, and those that are not right, by what they have in common."""
    command = [sys.executable, __file__, "--worker", "--channels", *map(str, channels), "--only", *only]
    every = cases(channels, only)
    with tempfile.TemporaryDirectory() as folder:
        # Threads that wait must not keep a processor busy: there may be fewer than threads.
        more = {"LD_PRELOAD": str(guard(Path(folder))), "OMP_WAIT_POLICY": "PASSIVE"}
        made = os.environ | environment | more
        done = subprocess.run(command, env=made, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, list[str]]] = {"crashed": {}, "wrong": {}, "refused": {}}
    own: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        number, said = json.loads(line)
        case, kind = every[number], said.partition(":")[0]
        sizes = [v for k, v in case.arguments.items() if k in ("in_channels", "out_channels", "in_features")]
        what = "→".join(map(str, sizes or [case.channels]))
        if kind == "refused":
            rows = found[kind].setdefault(said.removeprefix("refused: "), [])
            rows += [str(case)] * (str(case) not in rows)
        else:
            found[kind].setdefault(str(case), []).append(what)
        own[kind] += case.is_the_loops()
    return {"cases": len(every), "of them in the loop's layout": dict(own), **found}


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 2, 3, 4, 5, 7, 8, 16])
    parser.add_argument("--only", nargs="*", default=[], help="layers by name, such as Conv2d; by default all")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(cases(args.channels, args.only))
        return 0
    figures: dict[str, Any] = {}
    for name, environment in PROCESSORS.items():
        used = instructions(environment)
        same = next((other for other, made in figures.items() if made.get("instructions") == used), None)
        if same is None:
            figures[name] = {"instructions": used, **examined(environment, args.channels, args.only)}
        else:
            figures[name] = {"instructions": used, "the same as": same}
    results.write("crashes", {"channels": args.channels, "only": args.only}, figures)
    own = [made.get("of them in the loop's layout", {}) for made in figures.values()]
    return 1 if any(counts.get("crashed") or counts.get("wrong") for counts in own) else 0


if __name__ == "__main__":
    sys.exit(main())
