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
import contextlib
import io
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import telescopic as tl
from telescopic.engine.host import num_cpus

import results

LOADS = (0.5, 1.0, 2.0, 4.0)


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
        Load(self.port, [request("GET", "/health")], [0.0])
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


class Answer(NamedTuple):
    """What came of a request: seconds since it was due, status (0 if nothing came), and what was told."""

    seconds: float
    status: int
    told: Any


class Wire:
    """A connection, and the request that is under way on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.number: int | None = None
        self.left, self.got, self.wanted = memoryview(b""), b"", 0

    def send(self) -> bool:
        """As much as goes; whether that was all."""
        with contextlib.suppress(BlockingIOError):
            self.left = self.left[self.socket.send(self.left) :]
        return not self.left

    def receive(self) -> tuple[int, bytes, bool] | None:
        """Status, body, and whether the connection stays; None if the answer is not whole."""
        piece = self.socket.recv(2**18)
        if not piece:
            raise ConnectionResetError("it was closed")
        self.got += piece
        head, end, body = self.got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0) if end else 0
        if not end or len(body) < length:
            return None
        self.got = b""
        return int(head[9:12]), body, b"connection: close" not in head.lower()


class Load:
    """Requests that are sent when they are due, whether or not those before are answered, and what came back.

    One thread, which waits for all connections at once and reads no answer before the end: what asks must take little
    of a machine that it shares with what it asks. A request is sent on a connection that is free, or on a new one.

    Attributes:
        answers: of each request. Its time begins when it was due, however late it was sent.
        behind: seconds from when each was due to when it was begun to be sent.
        processor: seconds of it that this thread took.
        wall: seconds that all of it took.
        most: connections at once.
    """

    def __init__(self, port: int, requests: Sequence[bytes], times: Sequence[float], *, patience: float = 30.0) -> None:
        self._port, self._requests = port, requests
        self._idle: list[Wire] = []
        self._raw: list[tuple[float, int, bytes]] = [(patience, 0, b"")] * len(requests)
        self.behind, self.most, self._open, self._left = [0.0] * len(requests), 0, 0, len(requests)
        self._waiting = selectors.DefaultSelector()
        self._began, processor = time.perf_counter(), time.thread_time()
        self._due = [self._began + at for at in times]
        end = self._due[-1] + patience
        number = 0
        while self._left and (now := time.perf_counter()) < end:
            while number < len(requests) and self._due[number] <= now:
                self._ask(number, now)
                number, now = number + 1, time.perf_counter()
            until = self._due[number] if number < len(requests) else end
            for key, _ in self._waiting.select(max(until - now, 0)):
                self._go_on(key.data)
        for key in [*self._waiting.get_map().values()]:
            key.data.socket.close()
        self._waiting.close()
        self.processor, self.wall = time.thread_time() - processor, time.perf_counter() - self._began
        self.answers = [Answer(took, status, json.loads(body) if body else None) for took, status, body in self._raw]

    def _ask(self, number: int, now: float) -> None:
        self.behind[number] = now - self._due[number]
        wire = self._idle.pop() if self._idle else Wire(self._port)
        wire.number, wire.left = number, memoryview(self._requests[number])
        if wire.wanted:
            self._go_on(wire)
        else:  # it is not connected yet
            wire.wanted = selectors.EVENT_WRITE
            self._waiting.register(wire.socket, wire.wanted, wire)
            self._open += 1
            self.most = max(self.most, self._open)

    def _go_on(self, wire: Wire) -> None:
        """Send, or read."""
        try:
            if wire.left:
                wanted = selectors.EVENT_READ if wire.send() else selectors.EVENT_WRITE
                if wanted != wire.wanted:
                    self._waiting.modify(wire.socket, wanted, wire)
                    wire.wanted = wanted
                return
            if (answer := wire.receive()) is None:
                return
            status, body, stays = answer
            assert wire.number is not None
            self._end(wire, status, body)
            if stays:
                self._idle.append(wire)
                return
        except OSError:
            if wire.number is not None:
                self._end(wire, 0, b"")
            elif wire in self._idle:
                self._idle.remove(wire)
        self._waiting.unregister(wire.socket)
        wire.socket.close()
        self._open -= 1

    def _end(self, wire: Wire, status: int, body: bytes) -> None:
        assert wire.number is not None
        self._raw[wire.number] = (time.perf_counter() - self._due[wire.number], status, body)
        wire.number, self._left = None, self._left - 1

    def figures(self) -> dict[str, Any]:
        """Of the asking itself."""
        return {
            "sent late by ms, p99": round(1000 * float(np.quantile(self.behind, 0.99)), 1),
            "of a processor": round(self.processor / self.wall, 3),
            "connections at most": self.most,
        }


def poisson(rate: float, seconds: float) -> list[float]:
    """Arrivals at random."""
    gaps = np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))
    return list(np.cumsum(gaps))


def figures(answers: list[Answer], labels: list[np.ndarray], slo_ms: float) -> dict[str, Any]:
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
                answers = Load(server.port, requests, times).answers
                truth = [labels[i % len(labels)] for i in range(len(times))]
                found.setdefault(f"load {load:g}", {})[name] = figures(answers, truth, given.slo_ms)
                time.sleep(0.5)
        found["after kill -9, answers again in s"] = killed(server, pack, given, bodies[0], capacity)
    results.write("serving", vars(given), found)


def killed(server: Server, pack: Path, given: argparse.Namespace, body: bytes, capacity: float) -> float:
    """Kill it under load, and start it again."""
    times = poisson(capacity, 1.0)
    threading.Timer(0.5, server.kill).start()
    load = Load(server.port, [request("POST", "/predict", body)] * len(times), times)
    assert 0 in {answer.status for answer in load.answers}, "it was not killed under load"
    again = Server(pack, given.slo_ms, given.max_batch, given.threads)
    again.kill()
    return round(again.ready_in, 2)


if __name__ == "__main__":
    main()
