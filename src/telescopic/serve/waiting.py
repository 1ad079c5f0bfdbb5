"""What waits to be answered, and which of it goes into the next pass. No thread, no clock of its own, no web.

Requests wait in the order of their deadlines. The next pass is run for the most urgent one and as many others as may
share it: those that leave the member to the server, or those that want the same member. It takes no more of them than
the fastest member, or the one they want, could answer before the most urgent one is due, and within the time that a
pass may take for it; where that one is late in any case, as many as may be. The controller, which sees all that waits
behind, picks the member. Nobody is taken in who would make the queue longer than its bound.
"""

import math
from bisect import insort
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from telescopic.engine.given import Inputs, size_of
from telescopic.engine.manifest import Floats, Packed
from telescopic.shapes import parted, several

if TYPE_CHECKING:
    from telescopic.engine.controller import Controller

_MOST_WAITING, _MOST_BYTES = 1024, 2**26
_GAIN = 0.1  # of the newest in what is usual


class UnansweredError(Exception):
    """A request to which the network gives no answer.

    Attributes:
        status: of the HTTP response.
        retry_after: whole seconds after which to ask again; None if that would not help.
    """

    status = 503
    retry_after: int | None = None


class Overloaded(UnansweredError):
    """More waits than can be answered in time."""

    def __init__(self, why: str, retry_after: int) -> None:
        super().__init__(f"{why}: try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Served:
    """How a request was answered.

    Attributes:
        logits: float32 `[batch, classes]`.
        shares: what a softmax makes of them, float64, or of several labels a sigmoid; of any other task they
            themselves. Not finite where they are not.
        member: who answered.
        examples: in the pass, those of other requests among them.
        waited: seconds from the request's arrival to the pass.
        ran: seconds of the pass.
        late: whether the answer came after its deadline, or its pass took longer than was wished.
    """

    logits: Floats
    shares: NDArray[np.float64]
    member: Packed
    examples: int
    waited: float
    ran: float
    late: bool


@dataclass(frozen=True, eq=False)
class Job:
    """A request that waits.

    Attributes:
        x: inputs `[batch, ...]`, one or several, as `Engine.prepared` gives them.
        arrived: when it came, in seconds.
        deadline: when it is due, in seconds.
        member: who shall answer; None to leave it to the controller.
        longest: seconds that its pass may take.
        answer: what the one who asked waits for.
    """

    x: Inputs
    arrived: float
    deadline: float
    member: Packed | None = None
    longest: float = math.inf
    answer: "Future[Served]" = field(default_factory=Future)

    @property
    def examples(self) -> int:
        """Examples in it."""
        return size_of(self.x)

    def late(self, began: float, ended: float) -> bool:
        """Whether a pass from one time to another answers it too late."""
        return ended > self.deadline or ended - began > self.longest


@dataclass(frozen=True)
class Pass:
    """What is run next.

    Attributes:
        member: by whom.
        jobs: for whom, the most urgent first.
    """

    member: Packed
    jobs: tuple[Job, ...]

    @property
    def examples(self) -> int:
        """Examples in it."""
        return sum(job.examples for job in self.jobs)


class Waiting:
    """The queue. One thread at a time.

    Args:
        controller: picks members, and knows what they take.
        max_batch: most examples in a pass.
        max_waiting: most examples that wait. By default as many as the fastest member, in full passes, could answer
            within the objective, so that whoever is taken in can be answered in time; at least one pass, and at most
            1024 examples or 64 MB.

    Raises:
        ValueError: if a bound is below 1, or fewer may wait than run in a pass.
    """

    def __init__(self, controller: "Controller", *, max_batch: int = 32, max_waiting: int | None = None) -> None:
        if max_batch < 1 or (max_waiting is not None and max_waiting < max_batch):
            raise ValueError(
                f"a pass has 1 example or more, and at least as many may wait, not {max_batch} and {max_waiting}"
            )
        self.controller, self.max_batch = controller, max_batch
        self.fastest = min(controller.engine.members, key=lambda member: self._ms(member, max_batch))
        self._full_ms = self._ms(self.fastest, max_batch)  # of a full pass
        self._in_time_at_best = max_waiting or int(controller.slo_ms / self._full_ms) * max_batch
        if max_waiting is None:
            parts = map(parted, several(controller.engine.input_shape).values())
            size = sum(np.dtype(kind or np.float32).itemsize * math.prod(sizes) for kind, sizes in parts)
            max_waiting = max(max_batch, min(self._in_time_at_best, _MOST_WAITING, _MOST_BYTES // size))
        self.max_waiting = max_waiting
        self._jobs: list[Job] = []
        self.examples = 0
        self.usual = 1.0  # examples of a request
        self.between = 0.0  # seconds from the end of a pass to the next one, while something waits

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, *, lag: float = 0.0) -> None:
        """Take a request in.

        Args:
            job: the request.
            lag: seconds that it waited before it was read; so will its answer, before it is sent.

        Raises:
            Overloaded: if as many examples wait as may, see `most`.
        """
        self.usual += _GAIN * (job.examples - self.usual)
        most = self.most(lag, max(self.controller.slo_ms / 1000, job.deadline - job.arrived + lag))
        if self.examples and self.examples + job.examples > most:
            clear = self.examples / self.max_batch * self._between_ends_ms()
            raise Overloaded(f"{self.examples} examples wait already, of at most {most}", math.ceil(clear / 1000))
        insort(self._jobs, job, key=lambda waiting: waiting.deadline)
        self.examples += job.examples

    def most(self, lag: float, due: float) -> int:
        """How many examples may wait, for one who asks: fewer when passes take longer than measured, or begin later.

        Args:
            lag: seconds for which he has waited already; so will his answer, before it is sent.
            due: seconds in which it is due.
        """
        share = max(1 - 2 * lag / due, 0) * self._full_ms / self._between_ends_ms()
        return max(self.max_batch, min(self.max_waiting, int(self._in_time_at_best * share)))

    def _between_ends_ms(self) -> float:
        """Milliseconds from the end of one full pass of the fastest member to that of the next, now."""
        return self._full_ms * max(self.controller.slowdown, 1.0) + 1000 * self.between

    def take(self, now: float) -> Pass | None:
        """The next pass, out of the queue; None if nothing waits.

        Args:
            now: what time it is, in seconds, by the clock of the deadlines.
        """
        while self._jobs:
            first = self._jobs[0]
            able = [job for job in self._jobs if job.member is first.member and job.longest >= first.longest]
            sizes = list(accumulate(job.examples for job in able))
            left = 1000 * min(first.deadline - now, first.longest)
            most = max(self._in_time(first.member or self.fastest, left), sizes[0])
            chosen = [job for job, size in zip(able, sizes, strict=True) if size <= most]
            self._remove(chosen)
            member = first.member or self._chosen(chosen, now)
            jobs = tuple(job for job in chosen if job.answer.set_running_or_notify_cancel())
            if jobs:
                return Pass(member, jobs)
        return None

    def _remove(self, jobs: Sequence[Job]) -> None:
        gone = set(jobs)
        self._jobs = [job for job in self._jobs if job not in gone]
        self.examples -= sum(job.examples for job in jobs)

    def _chosen(self, jobs: Sequence[Job], now: float) -> Packed:
        """The controller's member for a pass, with the most urgent of each full pass behind it."""
        behind, examples = [jobs[0].deadline], 0
        for job in self._jobs:
            if examples >= self.max_batch * (len(behind) - 1):
                behind.append(job.deadline)
            examples += job.examples
        slacks = [1000 * (deadline - now - place * self.between) for place, deadline in enumerate(behind)]
        return self.controller.choose(sum(job.examples for job in jobs), slacks_ms=slacks).member

    def _in_time(self, member: Packed, slack_ms: float) -> int:
        """How many examples a member answers within a time, by halves; a full pass if it is too late for any."""
        number = self.max_batch
        while self._ms(member, number) * self.controller.slowdown > slack_ms:
            if number == 1:
                return self.max_batch
            number = (number + 1) // 2
        return number

    def _ms(self, member: Packed, examples: int) -> float:
        return self.controller.engine.timing(member.subnet, examples).p95_ms
