"""What answers what waits, pass after pass: a thread; or, where a pass is shorter than the way to it, who asks."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telescopic.engine.controller import Controller
from telescopic.engine.engine import Engine
from telescopic.engine.given import Inputs, size_of, together
from telescopic.engine.manifest import Floats, Packed
from telescopic.serve.waiting import Job, Pass, Served, UnansweredError, Waiting

_BATCHES = (1, 2, 4, 8, 16, 32)
_SHORT_MS = 2.0  # a pass that is run by who asks; two threads that take turns take longer than that
_GAIN = 0.2  # of the newest pause between passes in their mean
_AIM = 0.5  # of the time, in which an answer is expected where more is asked than can be answered: some take longer
_SAID = 60.0  # seconds from one line in the log to the next of its kind
_TRIED = 1.0  # seconds for which it is known whether a member can compute anything
_log = logging.getLogger("telescopic.serve")


def _softmax(logits: Floats) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return shares


def _sigmoid(logits: Floats) -> NDArray[np.float64]:
    return np.where(np.isinf(logits), np.nan, 1 / (1 + np.exp(-logits.astype(np.float64))))


_SHARES = {"classification": _softmax, "multilabel": _sigmoid}


def _zeros(x: Inputs) -> Inputs:
    return {name: np.zeros_like(one) for name, one in x.items()} if isinstance(x, Mapping) else np.zeros_like(x)


class Closed(UnansweredError):
    """The server is shutting down and takes nothing in."""

    retry_after = 5


class Refused(UnansweredError):
    """A pass failed for this request alone: what it holds is nothing that the network can compute with."""

    status = 422


class Broken(UnansweredError):
    """A pass failed, and so does one of zeros, which any network can compute with: nobody's request did it."""

    status = 500


class Worker:
    """Answers requests, one pass at a time: an engine's passes use as many processors as its threads.

    Args:
        engine: what runs the members; what was not measured of it on this machine is measured now.
        slo_ms: milliseconds within which an answer is due, if a request says nothing else.
        max_batch: most examples in a pass.
        max_waiting: most examples that wait, see `Waiting`.
        told: is told each pass that has ended: the pass, its seconds, and how many of its answers were late.
        progress: called with the number of cases measured, and of all, while the engine is calibrated.
        clock: what time it is, in seconds.

    Raises:
        ValueError: if a number is below 1, or the objective not above 0.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        slo_ms: float,
        max_batch: int = 32,
        max_waiting: int | None = None,
        told: Callable[[Pass, float, int], None] = lambda run, seconds, late: None,
        progress: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine, self.slo_ms, self.clock, self._told = engine, slo_ms, clock, told
        sizes = sorted({size for size in _BATCHES if size < max_batch} | {max(max_batch, 1)})
        known = {(row.subnet, row.batch) for row in engine.timings if row.threads == engine.threads}
        new = [size for size in sizes if any((member.subnet, size) not in known for member in engine.members)]
        if new:
            engine.calibrate(batches=new, seconds=0.1, progress=progress)
        self.controller = Controller(engine, slo_ms=slo_ms, clock=clock)
        self._waiting = Waiting(self.controller, max_batch=max_batch, max_waiting=max_waiting)
        self.max_batch = max_batch
        self._change = threading.Condition()
        self._open = False
        self._running = False  # whether a pass is, in the thread or with who asked
        self._handed: Pass | None = None
        self._parts: list[Pass] = []  # of passes that failed, to find who is to blame
        self._said: dict[type, float] = {}  # when the log was told of one
        self._tried: dict[tuple[str, int], tuple[float, bool]] = {}  # when zeros were, and whether they failed
        self._ended: float | None = None  # when the last pass did, if something waited then
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer, if it does not already."""
        if self._open:
            return
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="telescopic-worker", daemon=True)
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Take nothing in any more, and return when all that was taken in is answered.

        Args:
            seconds: after which to return in any case; by default never.
        """
        with self._change:
            self._open = False
            self._change.notify()
        if self._thread is not None:
            self._thread.join(seconds)

    def submit(
        self,
        x: Inputs,
        *,
        deadline_ms: float | None = None,
        member: Packed | None = None,
        longest_ms: float | None = None,
        turns: bool = False,
        lag: float = 0.0,
    ) -> Job:
        """Take a request in; the first one starts the thread, if nothing did.

        Args:
            x: inputs `[batch, ...]` as `Engine.prepared` gives them, no more of them than a pass takes.
            deadline_ms: milliseconds from its arrival within which the answer is due; by default the objective.
            member: who shall answer; by default the controller picks.
            longest_ms: milliseconds that its pass may take, or the answer is late; by default any.
            turns: whether the caller will call `turn` before long.
            lag: seconds since its arrival. As long, it is thought, an answer waits before it is sent.

        Returns:
            The request, whose `answer` is there later.

        Raises:
            ValueError: if there are more examples than a pass takes.
            Overloaded: if the queue is full.
            Closed: if the server is shutting down.
        """
        if (number := size_of(x)) > self._waiting.max_batch:
            raise ValueError(f"a request has at most {self._waiting.max_batch} examples, not {number}: send several")
        now = self.clock()
        longest = math.inf if longest_ms is None else longest_ms / 1000
        due = (self.slo_ms if deadline_ms is None else deadline_ms) / 1000
        job = Job(x, now - lag, now + due - 2 * lag, member, longest)
        with self._change:
            if self._thread is None:
                self.start()
            if not self._open:
                raise Closed("the server is shutting down")
            self._waiting.put(job, lag=lag)
            if not turns:
                self._change.notify()
        return job

    def room(self, lag: float, due: float, requests: int) -> bool:
        """Whether so many more requests of the usual size would be taken in and, as far as can be foreseen, be in time.

        Args:
            lag: seconds that will have passed since the last one's arrival when it is handed in.
            due: seconds from its arrival within which its answer is due.
            requests: how many, it among them.
        """
        waiting, aim = self._waiting, _AIM * due
        return 2 * lag < aim and waiting.examples + (requests - 1) * waiting.usual < _AIM * waiting.most(lag, aim)

    def turn(self) -> bool:
        """Run the next pass here if it is short and nothing else runs; otherwise see to it that the thread does.

        Returns:
            Whether to call it again, for there is more.
        """
        with self._change:
            if self._running or self._handed:
                return False  # who runs it looks for more
            run = self._next()
            if run is None:
                return False
            timing = self.engine.timing(run.member.subnet, run.examples)
            if timing.p95_ms * self.controller.slowdown >= _SHORT_MS:
                self._handed = run
                self._change.notify()
                return False
            self._running = True
        self._run(run)
        with self._change:
            self._running = False
            if not self._open:
                self._change.notify()
            return self._more()

    @property
    def state(self) -> Mapping[str, Any]:
        """What waits, of what may, and how much longer than measured passes take at present."""
        waiting = self._waiting
        return {
            "waiting": waiting.examples,
            "max_waiting": waiting.max_waiting,
            "max_batch": waiting.max_batch,
            "slowdown": self.controller.slowdown,
        }

    def _serve(self) -> None:
        while True:
            with self._change:
                self._running = False
                while self._running or (self._open and not self._handed and not self._more()):
                    self._change.wait()
                run, self._handed = self._handed or self._next(), None
                if run is None and not self._open:
                    return
                self._running = run is not None
            if run is not None:
                self._run(run)

    def _more(self) -> bool:
        return bool(self._parts or self._waiting.examples)

    def _next(self) -> Pass | None:
        run = self._parts.pop() if self._parts else self._waiting.take(self.clock())
        if run is None:
            self._ended = None
        return run

    def _failed(self, run: Pass, error: Exception) -> None:
        """One of several may be to blame, and is alone in the end: each half is a pass of its own, run in its turn."""
        if len(run.jobs) > 1:
            middle = len(run.jobs) // 2
            self._parts += [Pass(run.member, jobs) for jobs in (run.jobs[middle:], run.jobs[:middle])]
            return
        why = f"{run.member.label} cannot compute this: {(str(error).splitlines() or [repr(error)])[0]:.300}"
        told: Exception = Refused(why)
        if self._fails(run.member, run.jobs[0].x):
            told = Broken(f"{run.member.label} fails whatever is asked: the server's log says why")
        told.__cause__ = error
        # Not for each: strangers would fill the disk. Before the answer, which sends its reader to the log.
        if (now := self.clock()) > self._said.get(type(told), -math.inf) + _SAID:
            self._said[type(told)] = now
            if isinstance(told, Broken):
                _log.error("%s, even zeros", why, exc_info=error)
            else:
                _log.warning("a request was refused, and others may have been: %r", why)  # strangers named what it says
        run.jobs[0].answer.set_exception(told)

    def _fails(self, member: Packed, x: Inputs) -> bool:
        """Whether a member fails on as many zeros. Once in a while: who is refused shall cost no second pass."""
        key = str(member.subnet), size_of(x)
        tried, failed = self._tried.get(key, (-math.inf, False))
        if self.clock() > tried + _TRIED:
            try:
                self.engine.run(_zeros(x), subnet=member.subnet)
                failed = False
            except Exception:
                failed = True
            self._tried[key] = self.clock(), failed
        return failed

    def _run(self, run: Pass) -> None:
        began, ended_before, self._ended = self.clock(), self._ended, None
        try:
            inputs = together([job.x for job in run.jobs])
            answer = self.engine.run(inputs, subnet=run.member.subnet)
        except Exception as error:  # whoever waits must hear of it, and the others be served
            self._failed(run, error)
            return
        ended = self.clock()
        if ended_before is not None:
            self._waiting.between += _GAIN * (began - ended_before - self._waiting.between)
        self._ended = ended if self._more() else None
        self.controller.observe(run.member.subnet, run.examples, answer.seconds)
        self._told(run, ended - began, sum(job.late(began, ended) for job in run.jobs))
        with np.errstate(invalid="ignore", over="ignore"):  # infinite logits have no shares
            shares = _SHARES.get(self.engine.task, lambda outputs: outputs.astype(np.float64))(answer.logits)
        place = 0
        for job in run.jobs:
            own = slice(place, place := place + job.examples)
            waited, ran, late = began - job.arrived, ended - began, job.late(began, ended)
            job.answer.set_result(Served(answer.logits[own], shares[own], run.member, run.examples, waited, ran, late))
