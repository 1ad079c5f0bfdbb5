"""Claim: what is killed with -9 at a random moment and run again ends as if never killed, and leaves nothing behind.

A hundred short runs of NSN on the digits, each in a process of its own, with a checkpoint after every batch. Each is
killed at a random moment between the start of `fit` and its end, the writing of bundle and catalogue included; every
second one is killed again when it has gone on. Weights (the best and the last epoch's), the optimizer's state, the
history, the bundle and the catalogue must be the same to the last bit, and the folder must hold the same files and no
others. Then reports are killed while they are written into one of these folders, over an older one: each time the page
that is there is a whole one. Writes results/kill.json:

    python benchmarks/kill.py [--runs 100] [--reports 20] [--epochs 3] [--seed 0]
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import telescopic as tl
from telescopic.run import Source
from telescopic.train.checkpoint import read_facts

import results

LAST = "last.safetensors"
DATA = tl.data.load("digits")


def train(out: Path, seed: int, epochs: int) -> None:
    """Train, or go on."""
    torch.manual_seed(seed)
    net, recipe = tl.papers.nsn.experiment("model0-1-2", epochs=epochs, inputs=64)
    how: Any = {"precision": "fp32", "cpu": True, "progress": False, "checkpoint_seconds": 0}
    tl.fit(net, DATA, recipe, out=out, resume=True, seed=seed, **how)


def state(out: Path) -> dict[str, Any]:
    """What a run came to: a checksum of all that does not depend on time, and the files there are."""
    digest = hashlib.sha256()
    for name in (LAST, "best.safetensors", "model.safetensors"):
        for key, tensor in sorted(load_file(out / name).items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    history = Source.open(str(out)).history()
    assert history is not None
    rows = [{k: v for k, v in asdict(epoch).items() if k not in ("seconds", "images_per_s")} for epoch in history]
    digest.update(json.dumps(rows).encode() + (out / "catalogue.json").read_bytes())
    return {"epochs": len(rows), "sha256": digest.hexdigest(), "files": sorted(path.name for path in out.iterdir())}


def killed(work: Callable[[], None], after: float | None) -> bool:
    """Do some work in a process of its own, and kill it some seconds after its start; whether it was at work still.

    It is a fork: a fresh Python with torch takes longer to start than the whole work.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a process ended with exit code {code}")
    return code != 0


def where(out: Path) -> str:
    """What a kill left."""
    if not (out / LAST).exists():
        return "nothing saved yet"
    position = read_facts(out / LAST)["position"]
    return f"epoch {position.epoch}, batch {position.batch}"


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("runs", 100), ("reports", 20), ("epochs", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    config = vars(parser.parse_args())
    torch.set_num_threads(1)  # a fork has no other
    for module in ("torch._dynamo", "torch.distributed.tensor", "torch.optim", "matplotlib.pyplot"):
        importlib.import_module(module)
    # All that needs no gradient is done once here, or each process would spend most of its time on imports.
    Accelerator(cpu=True)
    tl.measure(tl.papers.nsn.experiment("model0-1-2", epochs=1, inputs=64)[0], DATA)
    chance = random.Random(config["seed"])
    rows: list[dict[str, Any]] = []
    left, litter = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        killed(lambda: train(Path(folder) / "whole", config["seed"], config["epochs"]), None)
        seconds, whole = time.monotonic() - began, state(Path(folder) / "whole")
        for number in range(config["runs"]):
            out = Path(folder) / f"{number}"
            found: list[str] = []
            for _ in range(1 + number % 2):
                while not killed(lambda: train(out, config["seed"], config["epochs"]), chance.uniform(0, seconds)):  # noqa: B023
                    shutil.rmtree(out)  # it was faster than the first one, so that nothing was killed: another one
                    found = []
                found.append(where(out))
            drafts = [path.name for path in out.glob(".telescopic-*")] if out.exists() else []
            litter += len(drafts)
            killed(lambda: train(out, config["seed"], config["epochs"]), None)  # noqa: B023
            same = state(out) == whole
            rows.append({"killed in": found, "drafts left by kills": len(drafts), "identical, nothing left over": same})
            print(f"run {number}: killed in {' and '.join(found)}: {'identical' if same else state(out)}", flush=True)
        pages, whole_pages, report_kills = Path(folder) / "whole", 0, 0

        def report(title: str) -> None:
            found = Source.open(str(pages))
            history, source = found.history(), str(pages)
            tl.write_report(pages, found.network(), found.catalogue(), history=history, title=title, source=source)

        def ends_well() -> bool:
            return (pages / "report.html").read_text().rstrip().endswith("</html>")

        began = time.monotonic()
        killed(lambda: report("whole"), None)
        report_s, files = time.monotonic() - began, sorted(path.name for path in pages.iterdir())
        for number in range(config["reports"]):
            report_kills += killed(lambda: report(f"page {number}"), chance.uniform(0, report_s))  # noqa: B023
            whole_pages += ends_well()
        killed(lambda: report("whole"), None)
        left = len(set(path.name for path in pages.iterdir()) ^ set(files))
    identical = sum(row["identical, nothing left over"] for row in rows)
    kills = sum(len(row["killed in"]) for row in rows)
    figures = {
        "identical, nothing left over": f"{identical} of {len(rows)} runs, after {kills} kills",
        "drafts that kills left, swept since": litter,
        "training, s": round(seconds, 2),
        "reports": f"{whole_pages} of {config['reports']} whole after {report_kills} kills, {left} files left over",
        "whole": whole,
        "runs": rows,
    }
    results.write("kill", config, figures)
    return 0 if identical == len(rows) and whole_pages == config["reports"] and not left else 1


if __name__ == "__main__":
    sys.exit(main())
