"""Which precision training is faster in, on this machine."""

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from telescopic.data import Dataset, prepared
from telescopic.inputs import Tensors
from telescopic.nested import Nested
from telescopic.shrink.example import unchanged
from telescopic.tasks import Task
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST
from telescopic.train.layout import laid_out, lay_out_, layout_for
from telescopic.train.objective import Objective
from telescopic.train.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
ROUNDS, ENOUGH_S = 3, 2.0
WORTH = 1.2
"""So many times as fast bf16 has to be: it rounds to 8 bits, and what a clock says differs from time to time."""


def step_seconds(
    net: Nested, recipe: Recipe, inputs: Tensors, targets: Tensor, task: Task | None = None
) -> tuple[float, float]:
    """Seconds of a training step in fp32 and in bf16, without the optimizer's part, which is the same in both.

    Weights, buffers, modes and torch's random state are as before afterwards; gradients are gone, and kernels may lie
    in another layout.

    Args:
        net: the network, on the device that it is trained on.
        recipe: how it is trained.
        inputs: a batch of them, on the same device.
        targets: theirs.
        task: what is learned.

    Returns:
        Two medians; infinity for bf16, and nothing is timed, where it is known not to pay: on processors without
        instructions for it, on devices other than CPU and CUDA, and for weights that are not float32.
    """
    first = next(net.parameters())
    device = first.device
    if first.dtype != torch.float32 or device.type not in ("cpu", "cuda") or not _has_bf16(device):
        return 0.0, math.inf
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    try:
        with unchanged(net, training=True):
            last = replace(recipe.by_phase()[-1], teacher="full")  # nobody else would take the longer for it
            objective, x = Objective(net, last, task).to(device), prepared(inputs, recipe.preprocess, first)
            began = time.perf_counter()
            for round_ in range(1 + ROUNDS):  # the first of them warms up
                for precision, times in seconds.items():
                    layout = layout_for(net, device, precision)
                    lay_out_(net, layout)
                    given = laid_out(x, layout)
                    objective.zero_grad()
                    now = _now(device)
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        loss, _ = objective(given, targets)
                    (loss / len(targets)).backward()
                    if round_:
                        times.append(_now(device) - now)
                if round_ and time.perf_counter() - began > ENOUGH_S:
                    break
    finally:
        net.zero_grad()
    return median(seconds["fp32"]), median(seconds["bf16"])


def faster(fp32: float, bf16: float) -> Literal["fp32", "bf16"]:
    """The precision to take, from the seconds of a step in each."""
    return "bf16" if WORTH * bf16 < fp32 else "fp32"


def precision_for(
    net: Nested, recipe: Recipe, data: Dataset, task: Task, accelerator: "Accelerator", out: Path | None, told: bool
) -> Literal["fp32", "bf16"]:
    """That in which the run in `out` began; of a new one, that in which a step takes less time, the same for all."""
    if out is not None and (out / LAST).exists():
        return "bf16" if read_facts(out / LAST).get("precision") == "bf16" else "fp32"
    size = math.ceil(min(recipe.batch_size, len(data.train)) / accelerator.num_processes)
    some = data.train[:size].to(accelerator.device)
    times = torch.tensor(step_seconds(net, recipe, some.inputs, some.targets, task), device=accelerator.device)
    fp32, bf16 = accelerator.reduce(times, "sum").tolist()  # the sums, which no process has different ones of
    chosen = faster(fp32, bf16)
    if told:
        why = f"a step: {1e3 * fp32:.1f} ms in fp32, {1e3 * bf16:.1f} in bf16"
        why = why if math.isfinite(bf16) else "bf16 is not faster here"
        print(f"precision: {chosen} ({why})", file=sys.stderr, flush=True)
    return chosen


def _has_bf16(device: torch.device) -> bool:
    """Whether the processor is not known to lack instructions for bf16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch have none
    flags = [value for name, value in known.items() if "bf16" in name]
    return not flags or any(flags)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
