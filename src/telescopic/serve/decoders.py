"""Images and long JSON read by other processes, few at a time, within a time."""

import os
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from telescopic import decoder
from telescopic.serve.bodies import BodyError, Takes
from telescopic.serve.limits import Limits

Read = tuple[NDArray[Any], dict[str, Any]]

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
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()
            process.communicate()

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
            return decoder.ask(to, source, body, kind, takes.shape, most=most, seconds=seconds)
        except decoder.DecodeError as error:
            what = "" if kind == decoder.JSON else "the image "
            raise BodyError(413 if error.large else 422, f"{what}{error}") from error
        except OSError as error:
            process.kill()
            raise BodyError(422, f"the request cannot be decoded within {seconds:g} s") from error

    def _process(self) -> "subprocess.Popen[bytes]":
        """This thread's."""
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
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
                self._all = [each for each in self._all if each.poll() is None] + [process]
            self._own.process = process
        return process
