"""Claim: a run killed with -9 at a random moment and resumed ends exactly as the run that was never killed.

Twenty short runs of NSN on the digits, each in a fresh process that saves at least every 50 ms; each is killed at a
random moment of its training, half of them twice, and resumed. Weights (the best and the last epoch's), the
optimizer's state and the history must be the same to the last bit. Writes results/kill.json:

    python benchmarks/kill.py [--runs 20] [--epochs 12] [--seed 0] [--threads 1]
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

BEGUN = "training"


def train(out: Path, config: dict[str, Any]) -> None:
    """What each process does: train, or go on; then print what it came to."""
    import torch
    from safetensors.torch import load_file

    from telescopic.data import load
    from telescopic.nested import Nested
    from telescopic.papers import nsn
    from telescopic.train import fit

    torch.set_num_threads(config["threads"])
    torch.manual_seed(config["seed"])
    net, recipe = nsn.experiment("model0-1-2", epochs=config["epochs"], inputs=64)
    data = load("digits")

    def begin(module: Nested, args: object) -> None:  # not the start of `fit`, which first imports for a second
        print(BEGUN, flush=True)
        hook.remove()

    hook = net.stages[0].register_forward_pre_hook(begin)
    history = fit(
        net,
        data,
        recipe,
        out=out,
        resume=True,
        seed=config["seed"],
        precision="fp32",
        cpu=True,
        progress=False,
        checkpoint_seconds=0.05,
    )
    digest = hashlib.sha256()
    files = [load_file(out / name) for name in ("last.safetensors", "best.safetensors")]
    for tensors in (net.state_dict(), *files):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    epochs = [{k: v for k, v in asdict(e).items() if k not in ("seconds", "images_per_s")} for e in history]
    digest.update(json.dumps(epochs).encode())
    print(json.dumps({"epochs": len(history), "test": history.best().test, "sha256": digest.hexdigest()}))


def process(out: Path, config: dict[str, Any], kill_after: float | None = None) -> tuple[float, dict[str, Any] | None]:
    """Run `train` in a fresh process, and kill it some seconds after its first step: (seconds it trained, result)."""
    command = [sys.executable, __file__, "--child", str(out), "--config", json.dumps(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(config["threads"])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        first = child.stdout.readline().strip()
        began = time.perf_counter()
        if first == BEGUN and kill_after is not None:
            time.sleep(kill_after)
            child.send_signal(signal.SIGKILL)
        last = child.stdout.readline().strip() if first == BEGUN else first
        seconds = time.perf_counter() - began
        code = child.wait()
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with exit code {code}")
    return seconds, json.loads(last) if code == 0 else None


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("runs", 20), ("epochs", 12), ("seed", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        train(arguments.child, arguments.config)
        return 0
    from telescopic.train.checkpoint import read_facts

    import results

    config = {name: getattr(arguments, name) for name in ("runs", "epochs", "seed", "threads")}
    chance = random.Random(config["seed"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        whole_s, whole = process(Path(folder) / "whole", config)
        assert whole is not None
        while len(rows) < config["runs"]:
            out = Path(folder) / str(time.monotonic_ns())
            moments = [chance.uniform(0, whole_s / n) for n in range(1, 2 + len(rows) % 2)]
            found: list[str] = []
            for moment in moments:
                result = process(out, config, moment)[1]
                if result is None and (out / "last.safetensors").exists():
                    position = read_facts(out / "last.safetensors")["position"]
                    found.append(f"epoch {position.epoch}, batch {position.batch}")
                elif result is None:
                    found.append("nothing saved yet")
            if not found:  # it was quicker than the first one, so that nothing was killed: another one
                continue
            result = process(out, config)[1]
            assert result is not None
            rows.append({"killed after, s": [round(moment, 3) for moment in moments], "killed in": found})
            rows[-1]["identical"] = result == whole
            print(f"run {len(rows)}: killed in {' and '.join(found)}: ", end="")
            print("identical" if result == whole else f"DIFFERENT: {result}", flush=True)
    identical = sum(row["identical"] for row in rows)
    figures = {
        "identical": f"{identical} of {len(rows)}",
        "training, s": round(whole_s, 2),
        "whole": whole,
        "runs": rows,
    }
    results.write("kill", config, figures)
    return 0 if identical == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
