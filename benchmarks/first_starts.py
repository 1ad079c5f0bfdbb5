"""Claim: of processes that open a pack for the first time at once, each runs prepared graphs and answers rightly.

Six processes wait until all are there, and then open an engine with one empty cache; this six times. Then the same with
each process in a process-id namespace of its own, as in containers that share a cache on a volume: there all have the
same process id (Linux; needs `unshare` and the right to use it). An answer is right if it is that of an engine without
a cache, of every member. Writes results/first-starts.json:

    python benchmarks/first_starts.py [--processes 6] [--rounds 6]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def start(pack: str, cache: str) -> None:
    """What each process does: be there, wait for the word, open the engine, and tell how it went."""
    import numpy as np

    import telescopic.engine.ort.onnx_runtime
    from telescopic.engine.engine import Engine

    telescopic.engine.ort.onnx_runtime.runtime()  # what takes long to import is there before the word
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    engine = Engine(pack, threads=1, cache=cache)
    seconds = time.perf_counter() - began
    plain = Engine(pack, threads=1, cache=False)
    x = np.random.default_rng(0).standard_normal((4, *engine.input_shape), np.float32)
    pairs = [[one.run(x, subnet=member.subnet).logits for one in (engine, plain)] for member in engine.members]
    right = all(np.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs)
    print(json.dumps({"right": right, "prepared": engine._graphs.prepared, "seconds": round(seconds, 3)}))


def begun_at_once(pack: Path, cache: Path, processes: int, before: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Open a pack in so many processes at once.

    Args:
        pack: the folder.
        cache: a folder that all of them share.
        processes: how many.
        before: what stands before the command, such as what makes a namespace.

    Returns:
        Of each process its id, as it sees it itself; and whether its answers were right, whether its graphs were
        prepared, and the seconds it took to open the engine; or the last lines of its error.
    """
    command = [*before, sys.executable, __file__, "--child", str(pack), str(cache)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    ids = [child.stdout.readline().strip() for child in children]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    told: list[dict[str, Any]] = []
    for child, number in zip(children, ids, strict=True):
        out, error = child.communicate()
        row = json.loads(out) if child.returncode == 0 else {"error": error[-500:], "exit code": child.returncode}
        told.append({"process": number, **row})
    return told


def good(row: dict[str, Any]) -> bool:
    """Whether a start went as it should."""
    return bool(row.get("right") and row.get("prepared"))


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--child", nargs=2, metavar=("PACK", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        start(*arguments.child)
        return 0
    from telescopic.packing import pack

    import results

    config = {"processes": arguments.processes, "rounds": arguments.rounds, "pack": "nsn-mnist, all members"}
    figures: dict[str, Any] = {}
    whole = True
    with tempfile.TemporaryDirectory() as folder:
        made = pack("nsn-mnist", Path(folder, "pack"), members="all")
        for where, before in (("one namespace", ()), ("a namespace for each process", NAMESPACE)):
            rounds = []
            for number in range(arguments.rounds):
                cache = Path(folder, f"cache {where} {number}")
                rounds.append(begun_at_once(made, cache, arguments.processes, before))
                print(f"{where}, round {number + 1}: {sum(map(good, rounds[-1]))} of {arguments.processes}", flush=True)
                (kept,) = cache.iterdir()
                left = sorted(file.name for file in kept.iterdir())
                whole = whole and all(map(good, rounds[-1])) and left == ["graphs"]
            rows = [row for one in rounds for row in one]
            figures[where] = {
                "right and prepared": f"{sum(map(good, rows))} of {len(rows)}",
                "right": sum(bool(row.get("right")) for row in rows),
                "prepared": sum(bool(row.get("prepared")) for row in rows),
                "died": sum("error" in row for row in rows),
                "longest start, s": max((row.get("seconds", 0.0) for row in rows), default=0.0),
                "ids of processes": len({row["process"] for row in rows}),
                "errors": [row["error"] for row in rows if "error" in row],
            }
    results.write("first-starts", config, figures)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
