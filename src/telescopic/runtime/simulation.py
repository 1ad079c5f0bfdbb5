"""A queue in front of an engine, in simulated time: to compare policies without a machine, and the same every time."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from telescopic.runtime.manifest import Packed

Policy = Callable[[float, Sequence[float]], tuple[Packed, int]]
"""From the time and the deadlines of all that wait, in order, to a member and how many of them to run, in seconds."""


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
