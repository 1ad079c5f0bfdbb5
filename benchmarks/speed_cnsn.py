"""Claims: a joint step of CNSN's three members costs at most 2.4 steps of its full network (FLOP bound 2.27).

Everything is timed in turn in one process, on random images, and the ratios are medians of ratios within a round, so
that a machine whose speed drifts or is shared hits all alike. Also measured: what channels-last and bf16 gain in a
joint step, and whether an extracted member is as fast as the same network written by hand (ratio 1.00 ± 0.02), in torch
and in ONNX Runtime (two files by two exports), at batch 1. Writes results/speed-cnsn.json:

    python benchmarks/speed_cnsn.py [--threads 2] [--rounds 15]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from torch import Tensor, nn

from telescopic.export import export
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.papers import cnsn
from telescopic.subnet import Subnet
from telescopic.train import Objective
from telescopic.train.layout import layout_for
from telescopic.train.optimizer import groups_for

import results


def training_step(
    net: Nested, batch: int, *, channels_last: bool | None = None, bf16: bool = False
) -> Callable[[], None]:
    """One step as the loop does it, in the layout that the loop takes or in the one said."""
    layout = layout_for(net, torch.device("cpu"), "bf16" if bf16 else "fp32")
    if channels_last is not None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
    net.train().to(memory_format=layout)
    recipe = cnsn.recipe()
    objective = Objective(net, recipe)
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=1e-3, momentum=0.9, fused=True)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(10, (batch,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = objective(x, labels)
        optimizer.zero_grad()
        (loss / batch).backward()
        optimizer.step()

    return step


def by_hand(entry: int, scale: float) -> nn.Sequential:
    """A member as one would write it without telescopic."""
    config = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
    layers: list[nn.Module] = []
    channels, convolutions = 3, 0
    for size in config:
        if size == "M":
            layers += [nn.MaxPool2d(2)] if convolutions > entry else []
            continue
        made = round(int(size) * scale)
        if convolutions >= entry:
            if convolutions == entry and entry:
                patch = {2: 2, 7: 8}[entry]
                layers += [nn.Conv2d(3, channels, patch, patch), nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
        channels, convolutions = made, convolutions + 1
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()


def timed(calls: Mapping[str, Callable[[], object]], rounds: int, warm: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warm):
        # In turns forwards and backwards, so that none always follows the same other one.
        for name in list(calls)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            calls[name]()
            if number >= warm:
                times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over rounds."""
    return round(median(a / b for a, b in zip(times[one], times[other], strict=True)), 3)


def training(scale: float, batch: int, rounds: int) -> dict[str, object]:
    """Joint steps against steps of the full network alone, and what layout and precision gain."""

    def joint() -> Nested:
        return cnsn.network(scale=scale, statistics="per-entry")

    times = timed(
        {
            "joint": training_step(joint(), batch),
            "full alone": training_step(cnsn.alone(joint(), 0), batch),
            "joint, channels first": training_step(joint(), batch, channels_last=False),
            "joint, channels last": training_step(joint(), batch, channels_last=True),
            "joint, bf16, channels first": training_step(joint(), batch, channels_last=False, bf16=True),
            "joint, bf16, channels last": training_step(joint(), batch, channels_last=True, bf16=True),
        },
        rounds,
    )
    gains = {f"{name} / joint": ratio(times, name, "joint") for name in times if name.startswith("joint, ")}
    return {
        "ms": {name: round(median(values) * 1e3, 1) for name, values in times.items()},
        "joint / full alone (FLOP bound 2.27, reach 2.4)": ratio(times, "joint", "full alone"),
        **gains,
    }


def inference(scale: float, rounds: int, threads: int) -> dict[str, object]:
    """Extracted members against the same networks by hand, in torch and in ONNX Runtime, twenty passes at a time."""
    net = cnsn.network(scale=scale).eval()
    figures: dict[str, object] = {}
    x = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for entry in (0, 2, 7):
            modules = {"extracted": extract(net, Subnet(entry=entry)), "by hand": by_hand(entry, scale)}
            state = modules["extracted"].state_dict().values()
            hand = modules["by hand"]
            hand.load_state_dict(dict(zip(hand.state_dict(), state, strict=True)))
            runtime = {
                name: session(export(module, Path(folder) / f"{name}.onnx", x), threads)
                for name, module in modules.items()
            }
            for engine, runs in (("torch", modules), ("ONNX Runtime", runtime)):
                calls = {name: partial(passes, run, x, 20) for name, run in runs.items()}
                times = timed(calls, 6 * rounds)
                figures[f"entry={entry}, {engine}"] = {
                    "ms": round(median(times["extracted"]) / 20 * 1e3, 3),
                    "extracted / by hand": ratio(times, "extracted", "by hand"),
                    "identical output": torch.equal(runs["extracted"](x), runs["by hand"](x)),
                }
    return figures


def session(path: Path, threads: int) -> Callable[[Tensor], Tensor]:
    """A file run by ONNX Runtime, whose threads sleep when they have nothing to do: two sessions are alive here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = onnxruntime.InferenceSession(path, options)
    return lambda x: torch.from_numpy(opened.run(None, {"input": x.numpy()})[0])


def passes(run: Callable[[Tensor], Tensor], x: Tensor, number: int) -> None:
    """Several in a row."""
    for _ in range(number):
        run(x)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    figures = {
        f"training, scale {scale}, batch {batch}": training(scale, batch, args.rounds)
        for scale, batch in ((1.0, 32), (1.0, 128), (0.25, 128))
    }
    torch.set_num_threads(1)  # more of them add more noise than speed at batch 1
    figures["inference, batch 1, 1 thread"] = inference(1.0, args.rounds, 1)
    results.write("speed-cnsn", vars(args), figures)


if __name__ == "__main__":
    main()
