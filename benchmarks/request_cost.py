"""Claim: a request costs half of what it did before the server was hardened, and its bounds cost no honest client more.

The server of a commit (by default the last one without bounds) and that of this checkout run side by side with one
pack, and are asked in turns, by one client and by sixteen, for one image in the format of NumPy and in JSON: requests a
second, the median of their times, and the processor time that the server took for each. That last one says the same on
a busy machine. Each server has a processor of its own, where there are several. Writes results/request-cost.json:

    python benchmarks/request_cost.py [--before 9132fa9] [--seconds 2] [--rounds 5]
"""

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import attack_server
import results
import serving

HERE = Path(__file__).parents[1]
SHAPE = (1, 28, 28)


def started(source: Path, *arguments: str) -> subprocess.Popen[str]:
    """`telescopic` of some source."""
    command = [sys.executable, "-m", "telescopic", *arguments]
    more = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=more)


def serve(source: Path, pack: Path) -> tuple[subprocess.Popen[str], int]:
    """A server that answers, and its port."""
    with attack_server.of_its_own():
        process = started(source, "serve", str(pack), "--port", "0", "--slo-ms", "1000", "--threads", "1")
    assert process.stdout is not None
    return process, int(process.stdout.readline().split("127.0.0.1:")[1].split(",")[0])


def request(kind: str) -> bytes:
    """As it goes over the wire."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    body = json.dumps({"pixels": pixels.tolist()}).encode() if kind == "json" else serving.saved(pixels)
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/{kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def asked(port: int, message: bytes, clients: int, seconds: float) -> list[float]:
    """So many clients, each of which asks again when it has its answer; what each request took, in seconds."""
    times: list[float] = []
    with selectors.DefaultSelector() as waiting:
        for _ in range(clients):
            wire = socket.create_connection(("127.0.0.1", port), timeout=60)
            wire.sendall(message)
            waiting.register(wire, selectors.EVENT_READ, [time.perf_counter(), b""])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for key, _ in waiting.select():
                wire: Any = key.fileobj
                key.data[1] += wire.recv(2**16)
                head, _, body = key.data[1].partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if length and len(body) == int(length):
                    assert head.startswith(b"HTTP/1.1 200"), head
                    now = time.perf_counter()
                    times.append(now - key.data[0])
                    key.data[:] = [now, b""]
                    wire.sendall(message)
        for key in [*waiting.get_map().values()]:
            key.fileobj.close()  # type: ignore[union-attr]
    return times


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default="9132fa9", help="a commit")
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "archive", given.before, "src"], cwd=HERE, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", name], input=archive.stdout, check=True)
        pack = folder / "packed.telescope"  # by the older, which cannot read what the newer writes
        assert started(folder / "src", "pack", "nsn-mnist", "--to", str(pack)).wait() == 0
        servers = {"before": serve(folder / "src", pack), "now": serve(HERE / "src", pack)}
        try:
            for kind in ("x-npy", "json"):
                message = request(kind)
                for clients in (1, 16):
                    rows: dict[str, list[list[float]]] = {which: [] for which in servers}
                    for number in range(given.rounds + 1):
                        for which, (process, port) in servers.items():
                            before = sum(psutil.Process(process.pid).cpu_times()[:2])
                            times = asked(port, message, clients, given.seconds)
                            took = sum(psutil.Process(process.pid).cpu_times()[:2]) - before
                            row = [len(times) / given.seconds, 1000 * float(np.median(times)), 1000 * took / len(times)]
                            rows[which] += [row] if number else []  # the first one warms up
                    middle = {which: np.median(each, axis=0).tolist() for which, each in rows.items()}
                    names = ("requests a second", "p50 ms", "processor ms a request")
                    found[f"{kind}, clients: {clients}"] = {
                        what: {which: round(each[place], 3) for which, each in middle.items()}
                        | {"now / before": round(middle["now"][place] / middle["before"][place], 3)}
                        for place, what in enumerate(names)
                    }
        finally:
            for process, _ in servers.values():
                process.kill()
                process.wait()
    results.write("request-cost", vars(given), found)


if __name__ == "__main__":
    main()
