"""A queue in front of an engine, in simulated time: to compare policies without a machine, and the same every time."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from telescopic.engine.engine import Prediction
from telescopic.engine.manifest import Floats, Packed
from telescopic.engine.timings import Timing, Timings
from telescopic.subnet import Coordinates, Subnet

Policy = Callable[[float, Sequence[float]], tuple[Packed, int]]
"""From the time and the deadlines of all that wait, in order, to a member and how many of them to run, in seconds."""


class Machine:
    """Stands for a calibrated engine whose members take exactly what a table says, times how slow it is now.

    Args:
        members: accuracy and milliseconds for one example of each, rising; medians, of which p95 are 1.2 times.
        batches: numbers of examples that the table has.
        each: a batch of n examples takes 1 − each + each · n times as long.

    Attributes:
        now: seconds that have passed, as `run` counts them.
        slow: how many times longer passes take than measured.
    """

    def __init__(self, members: Sequence[tuple[float, float]], batches: Sequence[int], *, each: float) -> None:
        self.now, self.slow, self.input_shape = 0.0, 1.0, (3,)
        self.members = tuple(
            Packed(
                Coordinates(entry=0, exit=place, width=1), f"exit={place}", accuracy, None, place + 1, 10, (), "logits"
            )
            for place, (accuracy, _) in enumerate(members)
        )
        rows = [
            (member.subnet, batch, ms * (1 - each + each * batch))
            for member, (_, ms) in zip(self.members, members, strict=True)
            for batch in batches
        ]
        self.timings = Timings([Timing(subnet, batch, 1, ms, 1.2 * ms) for subnet, batch, ms in rows])

    def front(self, batch: int = 1) -> tuple[Packed, ...]:
        """All members: each is slower than the one before, and more accurate."""
        return self.members

    def timing(self, subnet: Subnet, batch: int = 1) -> Timing:
        """From the table; between two batch sizes on a straight line."""
        found = self.timings.at(subnet, batch, 1)
        assert found is not None
        return found

    def run(self, x: Floats, subnet: Subnet) -> Prediction:
        """Logits of 0, after the time that it takes."""
        seconds = self.slow * self.timing(subnet, len(x)).median_ms / 1000
        self.now += seconds
        return Prediction(np.zeros((len(x), 2), np.float32), subnet, str(subnet), None, seconds)


@dataclass(frozen=True)
class Request:
    """What happened to one request; times in seconds.

    Attributes:
        arrived: when it came.
        finished: when it was answered.
        deadline: by when it was due.
        member: who answered.
    """

    arrived: float
    finished: float
    deadline: float
    member: Packed


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        requests: in the order in which they came.
        switches: how often a pass was run by another member than the one before.
    """

    requests: tuple[Request, ...]
    switches: int

    @property
    def late(self) -> float:
        """Fraction of the requests answered after their deadline."""
        return float(np.mean([request.finished > request.deadline for request in self.requests]))

    @property
    def p99_ms(self) -> float:
        """99 % of the requests waited at most so long."""
        return float(np.quantile([1000 * (request.finished - request.arrived) for request in self.requests], 0.99))

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the members that answered; an answer that came late counts as wrong."""
        worth = [(r.member.accuracy or 0.0) * (r.finished <= r.deadline) for r in self.requests]
        return float(np.mean(worth))


def simulate(
    policy: Policy,
    arrivals: Sequence[float],
    seconds: Callable[[Packed, int, float], float],
    *,
    slo_ms: float,
    told: Callable[[Packed, int, float], None] = lambda member, batch, seconds: None,
) -> Outcome:
    """Serve requests one batch after the other; none is lost.

    Args:
        policy: what to run.
        arrivals: when requests come, in seconds, rising.
        seconds: what a member takes for a batch at a time.
        slo_ms: milliseconds within which each request is due.
        told: is told each pass that has ended: member, batch size, seconds.
    """
    waiting: deque[float] = deque()
    done: list[Request] = []
    now, coming, switches = 0.0, 0, 0
    before: Packed | None = None
    while coming < len(arrivals) or waiting:
        if not waiting:
            now = max(now, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= now:
            waiting.append(arrivals[coming])
            coming += 1
        member, number = policy(now, [arrived + slo_ms / 1000 for arrived in waiting])
        batch = [waiting.popleft() for _ in range(min(max(number, 1), len(waiting)))]
        took = seconds(member, len(batch), now)
        now += took
        done += [Request(arrived, now, arrived + slo_ms / 1000, member) for arrived in batch]
        switches += before is not None and member is not before
        before = member
        told(member, len(batch), took)
    return Outcome(tuple(done), switches)
