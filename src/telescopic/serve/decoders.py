"""Images and long JSON read by other processes, few at a time, within a time."""

import contextlib
import os
import subprocess
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from telescopic import decoder
from telescopic.limits import Limits
from telescopic.serve.bodies import Arrays, BodyError, Takes

Read = tuple[Arrays, dict[str, Any]]

_SOURCE = str(Path(__file__).parents[2])


class Decoders:
    """Threads that have a process each, which is started when it is first needed, and again when it has ended.

    Args:
        limits: see `Limits`.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.decoders, "telescopic-decoder")
        self._lock, self._waiting = threading.Lock(), 0
        self._own, self._all = threading.local(), list[subprocess.Popen[bytes]]()
        self._over = weakref.finalize(self, _end, self._all)  # if nobody closes it

    def start(self) -> None:
        """Start the processes, without waiting for them."""
        for _ in range(self._limits.decoders):
            self._pool.submit(self._started)

    def submit(self, body: bytes, kind: str, takes: Takes) -> Future[Read]:
        """Have a body read: JSON, or an image file of a format that Pillow knows by this name.

        Raises:
            BodyError: at once, if too many wait; else it is the future's, if the body cannot be taken.
        """
        with self._lock:
            if self._waiting >= self._limits.decoding:
                raise BodyError(503, f"{self._waiting} requests wait already to be decoded: try again in 1 s")
            self._waiting += 1
        future = self._pool.submit(self._read, body, kind, takes, time.monotonic())
        future.add_done_callback(self._done)
        return future

    def close(self) -> None:
        """End the processes; what waits is given up."""
        for process in list(self._all):  # so that no thread waits for it
            process.kill()
        self._pool.shutdown(cancel_futures=True)
        self._over()

    def _started(self) -> None:
        self._process()
        time.sleep(0.05)  # so that each thread takes one

    def _done(self, future: Future[Read]) -> None:
        with self._lock:
            self._waiting -= 1

    def _read(self, body: bytes, kind: str, takes: Takes, since: float) -> Read:
        seconds = self._limits.decoding_seconds
        if time.monotonic() - since > seconds:
            raise BodyError(503, f"the request waited longer than {seconds:g} s to be decoded: try again in 1 s")
        process, most = self._process(), takes.examples if kind == decoder.JSON else self._limits.pixels
        assert process.stdin is not None and process.stdout is not None
        to, source = process.stdin, process.stdout
        try:
            return decoder.ask(to, source, body, kind, takes.inputs, most=most, seconds=seconds)
        except decoder.DecodeError as error:
            what = "" if kind == decoder.JSON else "the image "
            raise BodyError(413 if error.large else 422, f"{what}{error}") from error
        except OSError as error:
            with self._lock:
                self._all.remove(process)
            _end([process])
            self._own.process = None
            raise BodyError(422, f"the request cannot be decoded within {seconds:g} s") from error

    def _process(self) -> "subprocess.Popen[bytes]":
        """This thread's."""
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None:
            path = os.pathsep.join(filter(None, (_SOURCE, os.environ.get("PYTHONPATH"))))
            process = subprocess.Popen(
                decoder.command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the server, which ends them when it has answered
            )
            with self._lock:
                self._all.append(process)
            self._own.process = process
        return process


def _end(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        process.kill()
        with contextlib.suppress(OSError, ValueError):  # what was not sent never will be
            process.communicate()
