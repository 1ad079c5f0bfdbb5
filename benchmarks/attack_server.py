"""Claim: whoever attacks the server from a few connections, honest clients are served, and it ends when it is told to.

`telescopic serve` in a process of its own, on loopback, attacked by this one: JSON of texts and keys, images that are
much in little, heads without end, connections that ask nothing, bodies that do not come. Meanwhile `/health` is asked,
and an honest client asks for predictions; the slowest `/health`, the client's p50 and p99, and memory (the server's and
that of the processes that decode for it) are told for each. Then four times the load that the full network can serve,
by a clock and not by answers, alone and while all of the above goes on: what was answered shall be in time, and by
members that are better than the smallest. What the full network can serve is asked of the server, in the same way, by
naming that member; times begin when a request was due, and how late it was sent, and how much of a processor that took,
is told, too. Then SIGTERM, under load and among clients that begin and never end: all that
was taken in is answered, and no connection reset. The server has a processor of its own, where there are several: what
attacks and what asks would be other machines, and attackers let those who ask go first. It ends by itself, and attacks
nothing but its own server. Writes results/attack-server.json:

    python benchmarks/attack_server.py [--seconds 10] [--load-seconds 60] [--idle 1200]
"""

import argparse
import contextlib
import http.client
import io
import multiprocessing
import os
import resource
import signal
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

import telescopic as tl

import results
import serving

KINDS = ("JSON", "images", "heads", "idle connections", "slow bodies")
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n"


def png(side: int) -> bytes:
    """Much black in little."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), b"\0" * (1 + 4 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    begin = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + begin + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(side: int, kind: str, **how: Any) -> bytes:
    """One colour."""
    Image.new("L" if kind == "JPEG" else "RGB", (side, side), 128).save(file := io.BytesIO(), kind, **how)
    return file.getvalue()


def scans(number: int) -> bytes:
    """A progressive JPEG of which the last scan comes again and again."""
    whole = encoded(4000, "JPEG", progressive=True, quality=5)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * number + whole[-2:]


JSON_BOMBS = (
    b'{"inputs":["' + b"a" * 1_000_000 + b'"' + b',""' * 500 + b"]}",
    b"{" + b",".join(b'"%d":0' % i for i in range(700_000)) + b',"inputs":[0]}',
    b'{"inputs":[' + b"{}," * 2_000_000 + b"0]}",
    b'{"inputs":[' + b"0.5," * 2_000_000 + b"0]}",
    b'{"inputs":' + b"[" * 8_000_000,
)


class Attacks:
    """Threads that attack a port until they are told to end."""

    def __init__(self, port: int, idle: int, end: Any) -> None:
        self._port, self._number, self._end = port, idle, end
        self.statuses: Counter[int] = Counter()
        self._images = ((b"image/png", png(4096)), (b"image/jpeg", scans(450)))
        self._images += ((b"image/webp", encoded(4096, "WEBP", lossless=True)),)
        self.kinds: dict[str, tuple[Callable[[], None], int]] = {
            "JSON": (self.json, 2),
            "images": (self.images, 6),
            "heads": (self.heads, 2),
            "idle connections": (self.idle, 1),
            "slow bodies": (self.slow, 1),
        }

    def go_on(self, kinds: Sequence[str]) -> None:
        """Attack in these ways until the end is set."""
        for each in [threading.Thread(target=self.kinds[k][0]) for k in kinds for _ in range(self.kinds[k][1])]:
            each.start()

    def wire(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self._port), timeout=20)

    def json(self) -> None:
        """Texts, keys, objects, numbers, levels."""
        self._sent([(b"application/json", bomb) for bomb in JSON_BOMBS])

    def images(self) -> None:
        """Pixels and scans."""
        self._sent(list(self._images))

    def heads(self) -> None:
        """A header without end, and headers without end."""
        while not self._end.is_set():
            for then in (b"x" * 65536, b"X: y\r\n" * 5000):
                with contextlib.suppress(OSError), self.wire() as wire:
                    wire.sendall(HEAD % b"application/json" + b"X: ")
                    for _ in range(1000):
                        wire.sendall(then)

    def idle(self) -> None:
        """Connections that ask nothing."""
        with contextlib.ExitStack() as stack:
            while not self._end.is_set():
                for _ in range(self._number):
                    with contextlib.suppress(OSError):
                        stack.enter_context(self.wire())
                self._end.wait(5)
                stack.close()

    def slow(self) -> None:
        """A byte of a body now and then."""
        with contextlib.ExitStack() as stack:
            wires = []
            for _ in range(200):
                with contextlib.suppress(OSError):
                    wires.append(wire := stack.enter_context(self.wire()))
                    wire.sendall(HEAD % b"application/x-npy" + b"Content-Length: 8000000\r\n\r\n")
            while not self._end.wait(0.5):
                for wire in wires:
                    with contextlib.suppress(OSError):
                        wire.sendall(b"x")

    def _sent(self, bodies: list[tuple[bytes, bytes]]) -> None:
        while not self._end.is_set():
            for kind, body in bodies:
                with contextlib.suppress(OSError), self.wire() as wire:
                    wire.sendall(HEAD % kind + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
                    line = wire.makefile("rb").readline().split()
                    self.statuses[int(line[1]) if len(line) > 1 else 0] += 1
                if self._end.is_set():
                    return


def attacker(port: int, idle: int, kinds: Sequence[str], end: Any, told: Any) -> None:
    """A process that attacks, so that this one has time to look."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    os.nice(10)
    attacks = Attacks(port, idle, end)
    told.put("ready")
    attacks.go_on(kinds)
    end.wait()
    time.sleep(0.5)
    told.put(dict(attacks.statuses))


@contextlib.contextmanager
def attacked(port: int, idle: int, kinds: Sequence[str], statuses: Counter[int]) -> Iterator[None]:
    """By these, for the time of a block."""
    if not kinds:
        yield
        return
    context = multiprocessing.get_context("spawn")
    end, told = context.Event(), context.Queue()
    process = context.Process(target=attacker, args=(port, idle, kinds, end, told), daemon=True)
    process.start()
    assert told.get(timeout=120) == "ready"
    try:
        yield
    finally:
        end.set()
        statuses.update(told.get(timeout=60))
        process.join(30)
        process.kill()


class Witness:
    """What an honest client and `/health` see, and how much memory is taken, while something goes on."""

    def __init__(self, server: serving.Server, body: bytes) -> None:
        self._port, self._body = server.port, body
        self._process, self._end = psutil.Process(server.process.pid), threading.Event()
        self.health: list[float] = []
        self.times: list[float] = []
        self.failed, self.most = 0, 0.0

    def memory(self) -> float:
        """MB."""
        found = 0.0
        for each in (self._process, *self._process.children()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += each.memory_info().rss / 1e6
        return found

    def _ask(self, path: str, body: bytes | None, times: list[float], pause: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._end.is_set():
            began = time.perf_counter()
            try:
                connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/x-npy"})
                answer = connection.getresponse()
                answer.read()
                self.failed += answer.status not in (200, 503)
            except (OSError, http.client.HTTPException):
                connection.close()  # an idle connection may be closed; what is asked again counts from the beginning
                self.failed += 1
            times.append(time.perf_counter() - began)
            time.sleep(pause)
        connection.close()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            self.most = max(self.most, self.memory())

    def __enter__(self) -> "Witness":
        self.before = self.memory()
        jobs = (
            (self._ask, ("/health", None, self.health, 0.02)),
            (self._ask, ("/predict", self._body, self.times, 0.005)),
        )
        self._threads = [threading.Thread(target=job, args=args) for job, args in (*jobs, (self._look, ()))]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, Any]:
        """Of all that was seen."""
        return {
            "/health, slowest ms": round(1000 * max(self.health), 1),
            "honest p50 ms": round(1000 * float(np.quantile(self.times, 0.5)), 2),
            "honest p99 ms": round(1000 * float(np.quantile(self.times, 0.99)), 1),
            "honest failed": self.failed,
            "MB more at most": round(self.most - self.before, 1),
        }


def stopped(server: serving.Server, body: bytes) -> dict[str, Any]:
    """SIGTERM under load, among clients that begin and never end."""
    statuses: Counter[str] = Counter()
    hostile = []
    for number in range(100):
        hostile.append(wire := socket.create_connection(("127.0.0.1", server.port), timeout=20))
        unread = b"GET /members HTTP/1.1\r\nHost: localhost\r\n\r\n" * 12
        wire.sendall(unread if number % 2 else HEAD % b"application/x-npy" + b"Content-Length: 100\r\n\r\nx")

    def honest() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while True:
            try:
                if connection.sock is None:  # an answer has said that it is the connection's last
                    connection.connect()
            except OSError:
                statuses["nobody listens"] += 1
                return
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "application/x-npy"})
                answer = connection.getresponse()
                answer.read()
                statuses[str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                statuses[f"no answer ({type(error).__name__})"] += 1
                return

    threads = [threading.Thread(target=honest) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    server.process.send_signal(signal.SIGTERM)
    began = time.perf_counter()
    server.process.wait(30)
    took = time.perf_counter() - began
    for thread in threads:
        thread.join()
    for wire in hostile:
        wire.close()
    return {"ended after s": round(took, 2), "honest": dict(statuses)}


@contextlib.contextmanager
def of_its_own() -> Iterator[None]:
    """What is started within has a processor of its own, if there are several; then this process has the others."""
    if not hasattr(os, "sched_setaffinity") or len(all_of_them := os.sched_getaffinity(0)) < 2:
        yield
        return
    first = min(all_of_them)
    os.sched_setaffinity(0, {first})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them - {first})


def served_by(server: serving.Server, engine: tl.Engine, bodies: Sequence[bytes], seconds: float = 5.0) -> float:
    """Requests a second that the full network answers when twice as much is asked as it computes in full passes."""
    full, images = engine.members[-1], len(bodies[0]) // int(np.prod(engine.input_shape))
    times = serving.poisson(2 * 1000 * 32 / engine.timing(full.subnet, 32).median_ms / images, seconds)
    path = f"/predict?subnet={full.subnet}"
    requests = [serving.request("POST", path, bodies[i % len(bodies)]) for i in range(len(times))]
    load = serving.Load(server.port, requests, times)
    return sum(answer.status == 200 for answer in load.answers) / seconds


def accuracy(answers: Sequence[serving.Answer]) -> float:
    """Of those who answered, as was measured when they were packed: noise shows nothing of it."""
    return round(float(np.mean([each.told["member"]["accuracy"] for each in answers if each.status == 200])), 4)


def main() -> None:
    """Attack, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--load-seconds", type=float, default=60)
    parser.add_argument("--idle", type=int, default=1200)
    parser.add_argument("--family", default="doubly-nested-cifar10")
    parser.add_argument("--load", type=float, default=4, help="of what the full network can serve")
    parser.add_argument("--slo-ms", type=float, default=100)
    parser.add_argument("--images", type=int, default=8, help="in a request of the load")
    parser.add_argument("--most", type=float, default=2000, help="requests a second that this process can send")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    chance = np.random.default_rng(0)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pack = tl.pack(given.family, Path(folder) / "packed.telescope")
        with of_its_own():
            engine = tl.Engine(pack, threads=1)
            engine.calibrate(batches=[1, 2, 4, 8, 16, 32])
            server = serving.Server(pack, given.slo_ms, 32, 1)
        one = serving.saved(chance.integers(0, 256, (1, *engine.input_shape), np.uint8))
        try:
            statuses: Counter[int] = Counter()
            for kind in ("nobody", *KINDS):
                kinds = () if kind == "nobody" else (kind,)
                with attacked(server.port, given.idle, kinds, statuses), Witness(server, one) as seen:
                    time.sleep(given.seconds)
                found[kind] = seen.figures()
                print(kind, found[kind], flush=True)
            bodies = [
                serving.saved(chance.integers(0, 256, (given.images, *engine.input_shape), np.uint8)) for _ in range(50)
            ]
            labels = [np.zeros(given.images, np.int64)] * len(bodies)
            capacity = served_by(server, engine, bodies)
            found["full network's capacity, requests a second"] = round(capacity, 1)
            rate = min(given.load * capacity, given.most)
            for name, kinds in (("open loop", ()), ("open loop, attacked", KINDS)):
                times = serving.poisson(rate, given.load_seconds)
                requests = [serving.request("POST", "/predict", bodies[i % len(bodies)]) for i in range(len(times))]
                own = psutil.Process(server.process.pid)
                with attacked(server.port, given.idle, kinds, statuses):
                    before = sum(own.cpu_times()[:2])
                    load = serving.Load(server.port, requests, times)
                    took = sum(own.cpu_times()[:2]) - before
                answers = load.answers
                truth = [labels[i % len(labels)] for i in range(len(times))]
                found[name] = {"requests a second": round(rate), **serving.figures(answers, truth, given.slo_ms)}
                found[name].pop("right in time")
                in_time = sum(each.status == 200 and 1000 * each.seconds <= given.slo_ms for each in answers)
                found[name] |= {"in time, requests a second": round(in_time / given.load_seconds, 1)}
                found[name] |= {"accuracy": accuracy(answers), "of the smallest": engine.members[0].accuracy}
                found[name] |= {"server, of a processor": round(took / load.wall, 3), "client": load.figures()}
                print(name, found[name], flush=True)
            found["attackers got"] = {str(status): statuses[status] for status in sorted(statuses)}
            found["SIGTERM"] = stopped(server, one)
        finally:
            server.kill()
    results.write("attack-server", vars(given), found)


if __name__ == "__main__":
    main()
