"""Claim: of thousands of malformed requests none crashes the server, gets a 5xx or leaves memory behind.

Requests are made by breaking good ones: bodies cut, flipped, nested, grown, of another type; headers that lie; queries
of all sorts; and bytes that are no HTTP at all. After every hundred a good request must be answered as before. Writes
results/fuzz-server.json:

    python benchmarks/fuzz_server.py [--requests 20000] [--seed 0]
"""

import argparse
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

import telescopic as tl

import results

SHAPE = (1, 28, 28)
WORDS = (
    "null",
    "true",
    "-1",
    "1e999",
    "NaN",
    '"x"',
    "[]",
    "{}",
    "[[[]]]",
    "9" * 400,
    '"\\ud800"',
    "0.5",
    "256",
    "[" * 900,
)
NAMES = ("inputs", "pixels", "deadline_ms", "max_latency_ms", "quality", "subnet", "__proto__", "x" * 300)
KINDS = (
    "application/json",
    "application/x-npy",
    "application/octet-stream",
    "image/png",
    "image/jpeg",
    "image/webp",
    "text/html",
    "",
    "application/json; charset=utf-7",
    "\x7f\x01",
)


def good(number: random.Random) -> tuple[str, bytes]:
    """A request's content type and body that the server would like."""
    pixels = np.frombuffer(number.randbytes(784), np.uint8).reshape(1, *SHAPE)
    kind = number.choice(("json", "npy", "PNG", "JPEG", "WEBP"))
    if kind == "json":
        return "application/json", json.dumps({"pixels": pixels.tolist(), "quality": 0.5}).encode()
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, pixels)
        return "application/x-npy", file.getvalue()
    from PIL import Image

    Image.fromarray(pixels[0, 0]).save(file, kind)
    return f"image/{kind.lower()}", file.getvalue()


def broken(number: random.Random) -> tuple[bytes, bool]:
    """A request as it goes over the wire, with something wrong; and whether the server has reason to wait for more."""
    kind, body = good(number)
    query = ""
    for _ in range(number.randint(1, 3)):
        what = number.randrange(8)
        place = number.randrange(max(1, len(body)))
        if what == 0:
            body = body[:place]
        elif what == 1:
            body = body[:place] + number.randbytes(number.randint(1, 8)) + body[place + 4 :]
        elif what == 2:
            body += number.randbytes(number.choice((1, 1000, 100_000)))
        elif what == 3:
            kind = number.choice(KINDS)
        elif what == 4:
            fields = ",".join(f'"{number.choice(NAMES)}":{number.choice(WORDS)}' for _ in range(number.randint(0, 4)))
            kind, body = "application/json", f"{{{fields}}}".encode()
        elif what == 5:
            query = "?" + "&".join(f"{number.choice(NAMES)}={number.choice(WORDS)[:50]}" for _ in range(2))
        elif what == 6:
            shape = number.choice(("(1,1,28,28)", "(9999999999,)", "(-1,)", "()", "(1,1,28,28", "(1e9,)", "(2**60,1)"))
            kind_of = number.choice(("<f4", "|u1", "|O", "<f8", ">f4", "<U9", "<M8[s]", "V4"))
            head = f"{{'descr': '{kind_of}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
            kind = "application/x-npy"
            body = b"\x93NUMPY" + number.choice((b"\1\0", b"\2\0", b"\3\0", b"\9\0")) + len(head).to_bytes(2, "little")
            body += head + number.randbytes(number.choice((0, 784, 3136)))
        else:
            garbage = number.randbytes(200), b"GET / HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\n" * 50
            return number.choice(garbage), True
    method = number.choice(("POST",) * 12 + ("PUT", "GET", "BREW"))
    path = number.choice(("/predict",) * 12 + ("/members", "/../etc", "/%00"))
    size = number.choice((len(body),) * 8 + (-1, len(body) + 5, 10**12))
    head = f"{method} {path}{query} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n"
    return head.encode("utf-8", "replace") + b"Connection: close\r\n\r\n" + body, size > len(body)


def sent(port: int, message: bytes, unfinished: bool = False) -> int:
    """The status of the answer; 0 if the server said nothing. Of what is unfinished we say that nothing will follow."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        try:
            wire.sendall(message)
            if unfinished:
                wire.shutdown(socket.SHUT_WR)
            line = wire.makefile("rb").readline().split()
        except TimeoutError as error:
            raise AssertionError(f"20 s without a word after {message[:500]!r} ({len(message)} bytes)") from error
        except OSError:  # it was closed, of which we hear in several ways
            return 0
    return int(line[1]) if len(line) > 1 else 0


def main() -> None:
    """Break it, if you can."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    number, statuses, memory = random.Random(given.seed), Counter[int](), []
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        pack = tl.pack("nsn-mnist", Path(folder) / "packed.telescope")
        command = [sys.executable, "-m", "telescopic", "serve", str(pack), "--port", "0", "--slo-ms", "1000"]
        # Not a pipe: one that nobody reads stops the server when it is full.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        port = int(process.stdout.readline().split("127.0.0.1:")[1].split(",")[0])
        try:
            for done in range(given.requests):
                statuses[sent(port, *broken(number))] += 1
                if done % 100 == 99:
                    kind, body = good(number)
                    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                    head += f"Content-Length: {len(body)}\r\n\r\n"
                    assert sent(port, head.encode() + body) == 200, "a good request was not answered"
                    memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            assert process.poll() is None, "the server has ended"
            process.terminate()
            process.wait(30)
        finally:
            process.kill()
        log.seek(0)
        stderr = log.read()
    figures = {
        "statuses": {str(status): statuses[status] for status in sorted(statuses)},
        "5xx": sum(count for status, count in statuses.items() if status >= 500),
        "MB after a tenth": round(memory[len(memory) // 10], 1),
        "MB at the end": round(memory[-1], 1),
        "tracebacks": stderr.count("Traceback"),
    }
    results.write("fuzz-server", vars(given), figures)


if __name__ == "__main__":
    main()
