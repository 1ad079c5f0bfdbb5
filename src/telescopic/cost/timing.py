"""How long a plain module takes on this machine."""

import functools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from telescopic.ambient import plain
from telescopic.cost.counting import with_tensors
from telescopic.inputs import Tensors, dtype_and_device, examples, explained
from telescopic.provenance import processor
from telescopic.shapes import Shape

_ROUNDS = 5
_MIN_RUNS = 3


@dataclass(frozen=True)
class Latency:
    """How long a forward pass took.

    Attributes:
        median_ms: median over all runs, in milliseconds.
        p95_ms: 95 % of the runs took at most this many milliseconds.
        batch: examples in a pass.
        threads: threads torch used within an operation.
        runs: passes timed.
        device: kind of device, such as `cpu`.
        machine: where, as `machine()` calls it.
    """

    median_ms: float
    p95_ms: float
    batch: int
    threads: int
    runs: int
    device: str
    machine: str


@plain()
def latency(
    module: nn.Module,
    input_shape: Shape,
    *,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 0.5,
) -> Latency:
    """Time a module's forward pass in eval mode, on the device it lies on; the module is not changed.

    Args:
        module: a plain module.
        input_shape: shape of one example, without the batch; see `cost`. Random numbers are made of it, and ones of
            whole numbers and truth values.
        batch: examples in a pass.
        threads: threads within an operation, restored afterwards; None keeps torch's present number.
        seconds: time to spend, a fifth of it on warming up. At least three passes are timed, whatever they take.

    Raises:
        ValueError: if the module does not take this shape, or a number is below its least value.
    """
    return latencies([lambda: module], input_shape, batch=batch, threads=threads, seconds=seconds)[0]


@plain()
def latencies(
    modules: Sequence[Callable[[], nn.Module]],
    input_shape: Shape,
    *,
    batch: int = 1,
    threads: int | None = None,
    seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> list[Latency]:
    """Time several modules in turns, five rounds over all of them, so that a machine's drift hits all alike.

    Args:
        modules: functions that return a module each. One is held at a time, and the call itself is not timed.
        input_shape: as in `latency`, and so are the other arguments.
        batch: examples in a pass.
        threads: threads within an operation.
        seconds: time to spend on each module.
        progress: called with the number of turns done and of turns in all.

    Raises:
        ValueError: as in `latency`.
    """
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    if threads < 1 or not 0 < seconds < math.inf:
        raise ValueError(f"latency needs 1 thread or more, not {threads}, and more than 0 seconds, not {seconds}")
    runs: list[list[float]] = [[] for _ in modules]
    device = torch.device("cpu")
    try:
        torch.set_num_threads(threads)
        for turn in range(_ROUNDS * len(modules)):
            times = runs[turn % len(modules)]
            if len(times) < _MIN_RUNS or sum(times) < seconds:
                module = modules[turn % len(modules)]()
                dtype, device = dtype_and_device(module)
                _take_turn(module, examples(batch, input_shape, dtype, device), device, seconds / _ROUNDS, times)
            if progress is not None:
                progress(turn + 1, _ROUNDS * len(modules))
    finally:
        torch.set_num_threads(before)
    ranked = [[1000 * s for s in sorted(times)] for times in runs]
    return [
        Latency(median(ms), ms[math.ceil(0.95 * len(ms)) - 1], batch, threads, len(ms), device.type, machine())
        for ms in ranked
    ]


@torch.inference_mode()
def _take_turn(module: nn.Module, x: Tensors, device: torch.device, seconds: float, times: list[float]) -> None:
    """Warm up, then append the seconds of each pass; at least one, and until the time is over."""
    if any(part.training for part in module.modules()):
        module = with_tensors(module, lambda tensor: tensor)

    def run() -> float:
        module(x)
        finished(device)
        return time.perf_counter()

    with explained(module, x):
        begin = time.perf_counter()
        while run() < begin + seconds / 5:
            pass
        while True:
            start = time.perf_counter()
            stop = run()
            times.append(stop - start)
            if stop >= begin + seconds:
                break


def finished(device: torch.device) -> None:
    """Wait until a device has done what it was told: calls return before that."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@functools.cache
def machine() -> str:
    """Fingerprint of this machine, for latencies: processor, number of CPUs, GPU if there is one, system, torch.

    The same text on every call, and another one where speed may differ.
    """
    parts = [f"{processor()[0]} ({torch.backends.cpu.get_cpu_capability()})", f"{os.cpu_count()} CPUs"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}", f"torch {torch.__version__}"])
