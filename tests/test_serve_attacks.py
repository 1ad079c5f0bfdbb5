"""Requests and connections that are meant to hurt, against a server of its own process: what each came to."""

import contextlib
import functools
import http.client
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from packs import small_pack

SHAPE = (1, 6, 5)
PIXELS = np.arange(30, dtype=np.uint8).reshape(1, *SHAPE)
JSON, NPY = "application/json", "application/x-npy"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Victim:
    """`telescopic serve` in a process, or what a test runs instead, with short limits."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "127.0.0.1:" in line, line
        self.process, self.port = process, int(line.split("127.0.0.1:")[1].split(",")[0])
        self.before = self.memory()

    def memory(self) -> float:
        """MB of the server and of what decodes for it."""
        own = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (own, *own.children())) / 1e6

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, body: bytes, kind: str = NPY, path: str = "/predict", **headers: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST" if body else "GET", path, body, {"Content-Type": kind} | headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    def watch(self) -> "Watch":
        return Watch(self)


class Watch:
    """Asks for `/health` again and again while a block runs: the longest answer, and the most memory."""

    def __init__(self, victim: Victim) -> None:
        self._victim, self._end = victim, threading.Event()
        self.slowest = self.most = 0.0
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.is_set():
            began = time.perf_counter()
            assert self._victim.ask(b"", path="/health")[0] == 200
            self.slowest = max(self.slowest, time.perf_counter() - began)
            self.most = max(self.most, self._victim.memory() - self._victim.before)
            time.sleep(0.02)

    def __enter__(self) -> "Watch":
        self._victim.before = self._victim.memory()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


SERVE = """
import sys
from pathlib import Path
import telescopic as tl
from telescopic.serve import application, listening, run_on
from telescopic.limits import Limits
limits = Limits(connections=40, head_seconds=1.5, body_seconds=1.5, idle_seconds=4, stalled_seconds=2,
                decoding_seconds=1, stop_seconds=2)
taken = listening("127.0.0.1", 0)
engine = tl.Engine(sys.argv[1], cache=False, threads=1)
app = application(engine, slo_ms=20_000, max_batch=8, limits=limits)
print(f"http://127.0.0.1:{taken.getsockname()[1]},", flush=True)
run_on(taken, app, limits)
"""

# The same on a loop of Python's own, which tells at its end how many seconds of the processor its longest step took.
WATCHED = f"""
import asyncio, sys, time
sys.modules["uvloop"] = None
longest, run = 0.0, asyncio.Handle._run
def timed(step):
    global longest
    began = time.thread_time()
    run(step)
    longest = max(longest, time.thread_time() - began)
asyncio.Handle._run = timed
try:
{textwrap.indent(SERVE, "    ")}
except KeyboardInterrupt:  # which a shell's background jobs do not get
    pass
print(longest, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pack(tmp_path_factory.mktemp("packs") / "small.telescope", SHAPE)


@contextlib.contextmanager
def served(folder: Path, script: str = SERVE) -> Iterator[Victim]:
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        victim = Victim(process)
        try:
            for _ in range(100):  # until those that decode are there, too
                victim.before = victim.memory()
                time.sleep(0.02)
            yield victim
            assert process.poll() is not None or victim.ask(npy(PIXELS))[0] == 200  # it answers as before
        finally:
            process.kill()
            assert process.stderr is not None and "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def victim(folder: Path) -> Iterator[Victim]:
    with served(folder) as victim:
        yield victim


def png(width: int, height: int) -> bytes:
    """Much black in little."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    # A hundred rows, compressed to what may come again and again; and the checksum of as many zeros.
    packer, rows, times = zlib.compressobj(9, wbits=-15), bytes(100 * (1 + 4 * width)), height // 100
    packed = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)
    check = struct.pack(">HH", times * len(rows) % 65521, 1)
    data = b"\x78\xda" + packed * times + packer.flush() + check
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def scans(side: int, number: int) -> bytes:
    """A progressive JPEG in which the last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True, quality=5)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * number + whole[-2:]


JSON_BOMBS = {
    "texts": b'{"inputs":["' + b"a" * 1_000_000 + b'"' + b',""' * 500 + b"]}",
    "more texts": b'{"inputs":[' + b'"aaaaaaa",' * 700_000 + b'""]}',
    "keys": b"{" + b",".join(b'"%d":0' % i for i in range(700_000)) + b',"inputs":[0]}',
    "objects": b'{"inputs":[' + b"{}," * 2_000_000 + b"0]}",
    "numbers": b'{"inputs":[' + b"0," * 4_000_000 + b"0]}",
    "digits": b'{"inputs":[' + b"9" * 8_000_000 + b"]}",
    "levels": b'{"inputs":' + b"[" * 8_000_000,
    "blanks": b'{"inputs":[0]' + b" " * 8_000_000 + b"}",
}


def test_json_is_bounded_before_it_is_parsed(victim: Victim) -> None:
    with victim.watch() as seen:
        for name, bomb in JSON_BOMBS.items():
            began = time.perf_counter()
            status, told = victim.ask(bomb, JSON)
            assert status == 422 and "error" in told, (name, status, told)
            assert time.perf_counter() - began < 5, name
    assert seen.most < 150 and seen.slowest < 1, (seen.most, seen.slowest)  # on a busy machine


def test_no_step_of_the_loop_is_long(folder: Path) -> None:
    bombs = [(bomb, JSON) for bomb in JSON_BOMBS.values()]
    bombs += [(scans(4000, 400), "image/jpeg"), (png(4000, 4000), "image/png"), (b"\x93NUMPY" + b"x" * 8_000_000, NPY)]
    with served(folder, WATCHED) as victim:
        for body, kind in bombs:
            victim.ask(body, kind)
        victim.process.send_signal(signal.SIGINT)
        assert victim.process.stdout is not None
        longest = float(victim.process.stdout.readline())
        victim.process.wait(30)
    assert 0 < longest < 0.1, longest  # of the processor: a busy machine does not lengthen it


def test_images_are_decoded_elsewhere_in_bounded_time_and_memory(victim: Victim) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(file, "WEBP", lossless=True)
    bombs = [(png(12_000, 12_000), "image/png", 413), (scans(4000, 400), "image/jpeg", 422)]
    bombs += [(file.getvalue(), "image/webp", (200, 422, 503))] * 10  # what is in time depends on the machine
    with victim.watch() as seen:
        threads = [threading.Thread(target=victim.ask, args=(body, kind)) for body, kind, _ in bombs[2:]]
        for thread in threads:
            thread.start()
        for body, kind, status in bombs[:2]:
            while (told := victim.ask(body, kind))[0] == 503:
                time.sleep(0.1)
            assert told[0] == status, told
        for thread in threads:
            thread.join()
        Image.fromarray(PIXELS[0, 0]).save(small := io.BytesIO(), "PNG")
        while (told := victim.ask(small.getvalue(), "image/png"))[0] == 503:
            time.sleep(0.1)
        assert told[0] == 200, told  # by a process that is started anew
    assert seen.most < 500 and seen.slowest < 1, (seen.most, seen.slowest)


@pytest.mark.parametrize("attack", ["one header", "many headers", "many lines", "a long address", "trailers", "crumbs"])
def test_heads_end(victim: Victim, attack: str) -> None:
    begin = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
    chunked = begin + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    first, then, statuses = {
        "one header": (begin + b"X: ", b"x" * 65536, {431}),
        "many headers": (begin, b"X: y\r\n" * 1000, {431}),
        "many lines": (begin, b"X%d: y\r\n" % 7 * 60, {431}),
        "a long address": (b"GET /", b"x" * 65536, {431, 400}),
        "trailers": (chunked + b"0\r\nX: ", b"x" * 65536, {431, 422}),
        "crumbs": (begin + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10_000, {413}),
    }[attack]
    with victim.watch() as seen, victim.connect() as wire:
        sent = 0
        try:
            wire.sendall(first)
            while sent < 30_000_000:
                wire.sendall(then)
                sent += len(then)
        except ConnectionError:
            pass
        try:
            line = wire.makefile("rb").readline()
        except ConnectionError:
            line = b""
        assert not line or int(line.split()[1]) in statuses, line
        assert sent < 10_000_000
    assert seen.most < 50 and seen.slowest < 1, (seen.most, seen.slowest)


def test_who_asks_nothing_makes_room(victim: Victim) -> None:
    idle = [victim.connect() for _ in range(200)]
    with victim.watch() as seen:
        assert victim.ask(npy(PIXELS))[0] == 200
        idle += [victim.connect() for _ in range(200)]
        assert victim.ask(npy(PIXELS))[0] == 200
        for wire in idle:
            with suppressed():
                wire.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: ")  # and a head that never ends
        assert victim.ask(npy(PIXELS))[0] == 200
    assert seen.slowest < 1
    time.sleep(3)
    assert len(psutil.Process(victim.process.pid).net_connections()) < 10  # all of them were shown out
    for wire in idle:
        wire.close()


def test_a_slow_body_is_408_and_an_idle_connection_is_closed(victim: Victim) -> None:
    with victim.connect() as wire:
        wire.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n")
        wire.sendall(b"Content-Length: 100\r\n\r\n\x93")
        assert wire.makefile("rb").readline().split()[1] == b"408"
    with victim.connect() as wire:
        wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
        began = time.monotonic()
        while wire.recv(4096):
            pass
        assert time.monotonic() - began < 10


def test_pipelined_requests_are_answered_in_turn_and_not_without_end(victim: Victim) -> None:
    one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with victim.connect() as wire:
        wire.sendall(one * 10)
        answers, end = b"", time.monotonic() + 20
        while answers.count(b"200 OK") < 10:
            assert time.monotonic() < end
            answers += wire.recv(65536)
    with victim.connect() as wire:
        wire.sendall(one * 1000)
        told = b"".join(iter(lambda: received(wire), b""))
        assert b" 429 " in told or not told


def received(wire: socket.socket) -> bytes:
    try:
        return wire.recv(65536)
    except ConnectionError:
        return b""


def suppressed() -> contextlib.suppress:
    return contextlib.suppress(OSError)


def test_sigterm_ends_soon_and_answers_what_was_taken_in(folder: Path) -> None:
    with served(folder) as victim:
        stopped_under_load(victim)


def stopped_under_load(victim: Victim) -> None:
    hostile = [victim.connect() for _ in range(10)]
    for wire in hostile[:5]:  # asks and never reads
        with suppressed():
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.sendall(b"GET /members HTTP/1.1\r\nHost: localhost\r\n\r\n" * 15)
    for wire in hostile[5:]:  # begins and never ends
        wire.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n")
    idle = victim.connect()
    told: list[int | str] = []

    def honest(pause: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", victim.port, timeout=30)
        while True:
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionError:
                break  # nobody listens any more
            try:
                connection.request("POST", "/predict", npy(PIXELS), {"Content-Type": NPY})
                answer = connection.getresponse()
                answer.read()
                told.append(answer.status)
            except OSError as error:
                told.append(repr(error))
                break
            time.sleep(pause)
        connection.close()

    threads = [threading.Thread(target=honest, args=(pause,)) for pause in (0, 0, 0, 0.1, 0.2, 0.3)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    victim.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert received(idle) == b""  # who asks nothing is told that it ends
    assert victim.process.wait(10) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 6
    for thread in threads:
        thread.join()
    # The connection of one who comes while the port is closed may be reset; of all others none.
    resets = [each for each in told if each not in (200, 503)]
    assert len(resets) <= 1 and told.count(200) >= len(threads) - 1, (resets, told)
    for wire in (*hostile, idle):
        wire.close()
