"""Claims: at twice the load that the full network can serve none is lost, and more are right than by the smallest.

`telescopic serve` in a process of its own, on loopback, with a shipped family; requests with several test images each,
so that computing and not HTTP is the work, come from this process at random (Poisson), whether or not those before are
answered. The load is in terms of what the full network can serve in full passes, as the engine measured it on this
machine. Compared: the server decides; the full network always; the smallest always, which a client gets by naming it.
An answer that comes after its deadline, or not at all, counts as wrong. Then the server is killed under load, and how
long a new one takes to answer is measured. It ends by itself. Writes results/serving.json:

    python benchmarks/serving.py [--family doubly-nested-cifar10] [--slo-ms 100] [--seconds 4]
"""

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import telescopic as tl
from telescopic.engine.host import num_cpus

import results

LOADS = (0.5, 1.0, 2.0, 4.0)
CONNECTIONS = 256


class Server:
    """`telescopic serve`, from which requests are taken as soon as it listens."""

    def __init__(self, pack: Path, slo_ms: float, max_batch: int, threads: int) -> None:
        options = ["--port", "0", "--slo-ms", str(slo_ms), "--max-batch", str(max_batch), "--threads", str(threads)]
        command = [sys.executable, "-m", "telescopic", "serve", str(pack), *options]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.port = int(line.split("127.0.0.1:")[1].split(",")[0])
        asyncio.run(ask_all(self.port, [request("GET", "/health")], [0.0]))
        self.ready_in = time.perf_counter() - began

    def kill(self) -> None:
        """At once, as kill -9 does."""
        self.process.kill()
        self.process.wait()


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\nContent-Length: {len(body)}"
    )
    return f"{head}\r\n\r\n".encode() + body


def saved(images: np.ndarray) -> bytes:
    """Images in the format of numpy.save."""
    file = io.BytesIO()
    np.save(file, images)
    return file.getvalue()


async def ask_all(port: int, requests: Sequence[bytes], times: Sequence[float]) -> list[tuple[float, int, Any]]:
    """Send requests at their times, in seconds; what came back: seconds it took, status (0 if none), answer."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    room = asyncio.Semaphore(CONNECTIONS)
    began = time.perf_counter()

    async def ask(message: bytes, at: float) -> tuple[float, int, Any]:
        await asyncio.sleep(max(0.0, at - (time.perf_counter() - began)))
        sent = time.perf_counter()
        async with room:
            try:
                reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
                writer.write(message)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
            except (OSError, asyncio.IncompleteReadError):
                return time.perf_counter() - sent, 0, None
            idle.append((reader, writer))
        return time.perf_counter() - sent, int(head.split()[1]), json.loads(body)

    answers = await asyncio.gather(*(ask(*each) for each in zip(requests, times, strict=True)))
    for _, writer in idle:
        writer.close()
    return answers


def poisson(rate: float, seconds: float) -> list[float]:
    """Arrivals at random."""
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    return list(np.cumsum(gaps))


def figures(answers: list[tuple[float, int, Any]], labels: list[np.ndarray], slo_ms: float) -> dict[str, Any]:
    """Of one run."""
    times = np.array([1000 * seconds for seconds, status, _ in answers if status == 200])
    right = [
        np.mean([guess["index"] == label for guess, label in zip(told["predictions"], known, strict=True)])
        if status == 200 and 1000 * seconds <= slo_ms
        else 0.0
        for (seconds, status, told), known in zip(answers, labels, strict=True)
    ]
    members: dict[str, int] = {}
    for _, status, told in answers:
        if status == 200:
            members[told["member"]["label"]] = members.get(told["member"]["label"], 0) + 1
    count = len(answers)
    return {
        "requests": count,
        "right in time": round(float(np.mean(right)), 4),
        "p50 ms": round(float(np.quantile(times, 0.5)), 1),
        "p99 ms": round(float(np.quantile(times, 0.99)), 1),
        "late": round(float(np.sum(times > slo_ms)) / count, 4),
        "refused (503)": round(sum(status == 503 for _, status, _ in answers) / count, 4),
        "lost": round(sum(status not in (200, 503) for _, status, _ in answers) / count, 4),
        "members": members,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="doubly-nested-cifar10")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--slo-ms", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--images", type=int, default=8, help="in a request")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()

    test = tl.data.load(given.data).test
    starts = range(0, 2000, given.images)
    bodies = [saved(test.images[start : start + given.images].numpy()) for start in starts]
    labels = [test.labels[start : start + given.images].numpy() for start in starts]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pack = tl.pack(given.family, Path(folder) / "packed.telescope")
        engine = tl.Engine(pack, threads=given.threads)
        engine.calibrate(batches=sorted({1, 2, 4, 8, 16, 32} & set(range(given.max_batch)) | {given.max_batch}))
        full, small = engine.members[-1], engine.members[0]
        capacity = 1000 * given.max_batch / engine.timing(full.subnet, given.max_batch).median_ms
        capacity /= given.images
        found: dict[str, Any] = {"the full network's capacity, requests/s": round(capacity, 1), "cores": num_cpus()}
        server = Server(pack, given.slo_ms, given.max_batch, given.threads)
        stack.callback(lambda: server.kill())
        for load in LOADS:
            times = poisson(load * capacity, given.seconds)
            for name, path in (
                ("server decides", "/predict"),
                ("full always", f"/predict?subnet={full.subnet}"),
                ("smallest always", f"/predict?subnet={small.subnet}"),
            ):
                requests = [request("POST", path, bodies[i % len(bodies)]) for i in range(len(times))]
                answers = asyncio.run(ask_all(server.port, requests, times))
                truth = [labels[i % len(labels)] for i in range(len(times))]
                found.setdefault(f"load {load:g}", {})[name] = figures(answers, truth, given.slo_ms)
                time.sleep(0.5)
        found["after kill -9, answers again in s"] = killed(server, pack, given, bodies[0], capacity)
    results.write("serving", vars(given), found)


def killed(server: Server, pack: Path, given: argparse.Namespace, body: bytes, capacity: float) -> float:
    """Kill it under load, and start it again."""

    async def under_load() -> None:
        times = poisson(capacity, 1.0)
        asking = asyncio.create_task(ask_all(server.port, [request("POST", "/predict", body)] * len(times), times))
        await asyncio.sleep(0.5)
        server.kill()
        assert 0 in {status for _, status, _ in await asking}, "it was not killed under load"

    asyncio.run(under_load())
    again = Server(pack, given.slo_ms, given.max_batch, given.threads)
    again.kill()
    return round(again.ready_in, 2)


if __name__ == "__main__":
    main()
