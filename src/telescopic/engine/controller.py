"""The controller: which member to run now, from how much waits and from how fast the machine is at present. No torch.

The policy is small enough to be said in five sentences. The largest member is taken with which everything that waits
now, served in its order by that member, would be in time. What a member takes is its measured p95 times a slow-down:
how much longer than measured the last passes took, as an exponentially weighted mean; a hundredth of the objective more
or less is no sign. It goes to a smaller member at once. It goes to a larger one only when that one has fitted for some
time with a fifth of the slack to spare, or after a pause as long, so that it does not flap. If nothing fits, the
smallest member is the floor.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from telescopic.catalogue.choosing import within
from telescopic.engine.manifest import Packed
from telescopic.subnet import Subnet

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from telescopic.engine.engine import Engine, Prediction
    from telescopic.engine.timings import Timings

_SPARE = 0.8  # of the slack, which a larger member may take for the controller to go to it
_GAIN = 0.2  # of the newest pass in the mean
_RANGE = (0.5, 100.0)  # of the slow-down
_TRIFLE = 0.01  # of the objective: by how much any pass may be off, for reasons that do not grow with its time


@dataclass(frozen=True)
class Decision:
    """Which member, and why.

    Attributes:
        member: the member.
        fits: whether all that waits should be in time; otherwise it is the smallest member, and some will be late.
        expected_ms: what the pass should take at most, at the present speed of the machine.
        slack_ms: time until the first deadline.
        waiting: batches that wait, this one among them.
        slowdown: how much longer than measured passes take at present.
    """

    member: Packed
    fits: bool
    expected_ms: float
    slack_ms: float
    waiting: int
    slowdown: float

    @property
    def why(self) -> str:
        """All this in a sentence."""
        facts = f"{self.waiting} waiting, {self.slack_ms:.3g} ms left, slow-down {self.slowdown:.2f}"
        end = "fits" if self.fits else "and nothing fits"
        return f"{self.member.label}: {self.expected_ms:.3g} ms expected {end} ({facts})"


class Controller:
    """Picks members so that answers keep a latency objective.

    Args:
        engine: what runs them, calibrated for the batch sizes in use; others are measured or estimated when they come.
        slo_ms: milliseconds within which an answer is due, if a request says nothing else.
        patience: seconds for which a larger member must have fitted; by default five times the objective.
        clock: what time it is, in seconds.

    Raises:
        ValueError: if a number is not above 0.
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        slo_ms: float,
        patience: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        patience = slo_ms / 200 if patience is None else patience
        if not slo_ms > 0 or not patience >= 0:
            raise ValueError(f"an objective is above 0 ms and patience 0 s or more, not {slo_ms} and {patience}")
        self.engine, self.slo_ms, self.patience, self.clock = engine, slo_ms, patience, clock
        self.slowdown = 1.0
        self._lock = threading.Lock()
        self._tables: dict[int, tuple[Timings, list[tuple[Packed, float, float]]]] = {}
        self._present: Packed | None = None
        self._fitting: tuple[float, Packed] | None = None  # since when a larger member fits, and the smallest such
        self._last = float("-inf")
        self._running = 0

    def choose(self, batch: int = 1, *, slacks_ms: Sequence[float] | None = None) -> Decision:
        """The member to run now.

        Args:
            batch: examples in the pass.
            slacks_ms: time until the deadline of each batch that waits, in the order in which they will run; the first
                is the one to run now. By default nothing else waits, and there is as much time as the objective says.

        Raises:
            ValueError: if nothing waits.
        """
        slacks = [self.slo_ms] if slacks_ms is None else slacks_ms
        if not len(slacks):
            raise ValueError("there is nothing to choose a member for: slacks_ms has one value for each waiting batch")
        # Each must end in its own time, behind those before it: at most so many ms a pass.
        most = min(slack / (place + 1) for place, slack in enumerate(slacks))
        table = self._table(batch)
        with self._lock:
            now, slowdown = self.clock(), self.slowdown
            place = self._settled(now, table, most / slowdown)
            member, _, p95 = table[place]
            self._last = now
        return Decision(member, p95 * slowdown <= most, p95 * slowdown, slacks[0], len(slacks), slowdown)

    def observe(self, subnet: Subnet, batch: int, seconds: float) -> None:
        """Learn how long a pass took that was just run."""
        expected = next((ms for member, ms, _ in self._table(batch) if member.subnet == subnet), None)
        expected = self.engine.timing(subnet, batch).median_ms if expected is None else expected
        trifle = _TRIFLE * self.slo_ms
        ratio = min(max((1000 * seconds + trifle) / (expected + trifle), _RANGE[0]), _RANGE[1])
        with self._lock:
            self.slowdown += _GAIN * (ratio - self.slowdown)

    def run(self, x: "ArrayLike", *, deadline_ms: float | None = None) -> "Prediction":
        """Choose, run and observe. Calls that other threads are in at this moment count as waiting before this one.

        Args:
            x: see `Engine.run`.
            deadline_ms: milliseconds from now within which the answer is due; by default the objective.

        Raises:
            ValueError: as `Engine.run` does; or if there is no time left.
        """
        slack = self.slo_ms if deadline_ms is None else deadline_ms
        if not slack > 0:
            raise ValueError(f"a deadline is more than 0 ms from now, not {deadline_ms}")
        batch = (np.shape(x) or (1,))[0] or 1  # what is no batch the engine refuses
        with self._lock:
            self._running += 1
            before = self._running
        try:
            decision = self.choose(batch, slacks_ms=[slack] * before)
            answer = self.engine.run(x, subnet=decision.member.subnet)
        finally:
            with self._lock:
                self._running -= 1
        self.observe(answer.subnet, batch, answer.seconds)
        return answer

    def _settled(self, now: float, table: "Sequence[tuple[Packed, float, float]]", most_ms: float) -> int:
        """Place of the member after this decision; the present one is no larger than what fits, nor much smaller."""
        places = {member: place for place, (member, _, _) in enumerate(table)}
        times = [p95 for _, _, p95 in table]
        fits, spare = (within(times, range(len(table)), most) or 0 for most in (most_ms, _SPARE * most_ms))
        rested = now - self._last >= self.patience
        present = spare if self._present is None else places.get(self._present, fits)
        if present > fits or self._present is None:
            place, self._fitting = min(present, fits), None
        elif spare <= present:
            place, self._fitting = present, None
        elif rested:
            place, self._fitting = spare, None
        else:
            since, least = self._fitting or (now, table[spare][0])
            least_place = min(spare, places.get(least, spare))
            place, self._fitting = present, (since, table[least_place][0])
            if now - since >= self.patience:
                place, self._fitting = max(present, least_place), None
        self._present = table[place][0]
        return place

    def _table(self, batch: int) -> list[tuple[Packed, float, float]]:
        """The engine's front for a batch size: member, median and p95 in milliseconds."""
        timings = self.engine.timings
        known = self._tables.get(batch)
        if known is None or known[0] is not timings:
            rows = [(member, self.engine.timing(member.subnet, batch)) for member in self.engine.front(batch)]
            known = self.engine.timings, [(member, row.median_ms, row.p95_ms) for member, row in rows]
            self._tables[batch] = known
        return known[1]
