"""Claim: checksums cost about a tenth of the time of loading a bundle that the system has in memory.

The families that come with the package, and one of 100 MB; each loaded with its checksums, without them (as a file of
telescopic 0.1.0), and with CRC-32 of all bytes, by turns. It writes results/loading.json:

    python benchmarks/loading.py [--rounds 41]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from telescopic import tensorfile
from telescopic.bundle import load, save
from telescopic.cost import machine
from telescopic.networks import mlp
from telescopic.provenance import commit, versions

ROOT = Path(__file__).parents[1]
SHIPPED = ("nsn-mnist", "doubly-nested-cifar10")


def without_checksums(path: Path, to: Path) -> Path:
    """The same bundle as telescopic 0.1.0 wrote it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]["checksums"]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    to.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return to


def seconds(path: Path) -> float:
    """How much processor time one loading takes, which is all of it: the file is in memory."""
    start = time.process_time()  # not the clock on the wall, which others on this machine slow down
    load(path)
    return time.process_time() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    config = vars(parser.parse_args())
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big = save(mlp(3072, (2400, 2400), 10), folder / "100-mb.safetensors")
        shipped = [ROOT / "src" / "telescopic" / "models" / f"{family}.safetensors" for family in SHIPPED]
        for path in (*shipped, big):
            plain = without_checksums(path, folder / f"plain-{path.name}")
            with patch.object(tensorfile, "_checksum", zlib.crc32):
                other = save(load(plain), folder / f"crc-{path.name}")
            times: dict[str, list[float]] = {"without": [], "with": [], "crc-32 of all bytes": []}
            for _ in range(config["rounds"] + 1):
                times["without"].append(seconds(plain))
                times["with"].append(seconds(path))
                with patch.object(tensorfile, "_checksum", zlib.crc32):
                    times["crc-32 of all bytes"].append(seconds(other))
            ms = {how: 1000 * statistics.median(values[1:]) for how, values in times.items()}
            # Of the rounds' ratios, for what else the machine does falls on neighbours alike.
            pairs = zip(times["with"][1:], times["without"][1:], strict=True)
            ratio = statistics.median(more / less for more, less in pairs)
            figures[path.stem] = {
                "mb": round(path.stat().st_size / 1e6, 1),
                "ms": {how: round(value, 2) for how, value in ms.items()},
                "with / without": round(ratio, 3),
                "fastest with / fastest without": round(min(times["with"]) / min(times["without"]), 3),
            }
    report = {
        "claim": __doc__.splitlines()[0].removeprefix("Claim: "),
        "config": config,
        "figures": figures,
        "versions": versions("safetensors", "numpy"),
        "commit": commit(),
        "machine": machine(),
    }
    print(json.dumps(report, indent=1))
    (ROOT / "results" / "loading.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
