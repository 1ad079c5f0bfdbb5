"""What the server has done: for Prometheus, and second by second for the page."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from telescopic.serve.waiting import Pass

_SECONDS = 120  # that are remembered
_BUCKETS = tuple(step * 10.0**power for power in range(-4, 1) for step in (1, 2, 5))  # 0.1 ms to 5 s


@dataclass
class Second:
    """One second of the server's life.

    Attributes:
        second: which, since it began.
        refused: requests refused because too much waited.
        late: answers that came after their deadline.
        members: label → examples that this member has answered.
    """

    second: int
    refused: int = 0
    late: int = 0
    members: dict[str, int] = field(default_factory=dict)


class Records:
    """Counts. Any number of threads may tell it something.

    Args:
        state: gives what waits at present, see `Worker.state`.
        clock: what time it is, in seconds.
    """

    def __init__(self, state: Callable[[], Mapping[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._lock, self._seconds = threading.Lock(), deque[Second](maxlen=_SECONDS)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("telescopic_requests", "Requests answered, by status.", ["code"], registry=registry)
        self._by_code: dict[int, Counter] = {}
        self._examples = Counter("telescopic_examples", "Examples, by member.", ["member"], registry=registry)
        self._late = Counter("telescopic_late", "Answers after their deadline.", registry=registry)
        self._time = Histogram(
            "telescopic_request_seconds", "From request to answer.", registry=registry, buckets=_BUCKETS
        )
        self._passes = Histogram("telescopic_pass_seconds", "Of a pass.", registry=registry, buckets=_BUCKETS)
        for name, key, about in (
            ("telescopic_waiting_examples", "waiting", "Examples that wait."),
            ("telescopic_slowdown", "slowdown", "How much longer than measured passes take at present."),
        ):
            Gauge(name, about, registry=registry).set_function(partial(lambda key: float(state()[key]), key))

    def passed(self, run: Pass, seconds: float, late: int) -> None:
        """A pass has ended."""
        with self._lock:
            now = self._now()
            now.members[run.member.label] = now.members.get(run.member.label, 0) + run.examples
            now.late += late
        self._examples.labels(run.member.label).inc(run.examples)
        self._late.inc(late)
        self._passes.observe(seconds)

    def answered(self, code: int, seconds: float) -> None:
        """A request for a prediction was answered, or refused."""
        if code not in self._by_code:
            self._by_code[code] = self._requests.labels(str(code))
        self._by_code[code].inc()
        if code == 200:
            self._time.observe(seconds)
        elif code == 503:
            with self._lock:
                self._now().refused += 1

    def prometheus(self) -> bytes:
        """All counts in Prometheus' text format."""
        return generate_latest(self._registry)

    def seconds(self) -> tuple[int, list[dict[str, Any]]]:
        """The present second, and those of the last two minutes in which something happened."""
        present = int(self._clock() - self._began)
        with self._lock:
            return present, [asdict(second) for second in self._seconds if second.second > present - _SECONDS]

    def _now(self) -> Second:
        second = int(self._clock() - self._began)
        if not self._seconds or self._seconds[-1].second != second:
            self._seconds.append(Second(second))
        return self._seconds[-1]
