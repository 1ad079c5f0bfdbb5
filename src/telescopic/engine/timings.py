"""What members cost on this machine, as measured by batch size and number of threads; where it is kept. No torch."""

import hashlib
import json
import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np

from telescopic.engine.host import num_cpus, processor
from telescopic.files import replacing
from telescopic.subnet import Subnet

_TIMINGS = "timings.json"


@dataclass(frozen=True)
class Timing:
    """One member, one batch size, one number of threads.

    Attributes:
        subnet: which member.
        batch: examples in a pass.
        threads: threads within a segment.
        median_ms: median over all runs, in milliseconds.
        p95_ms: 95 % of the runs took at most this many milliseconds.
    """

    subnet: Subnet
    batch: int
    threads: int
    median_ms: float
    p95_ms: float

    def __post_init__(self) -> None:
        """Refuse impossible values: they may have come from a file."""
        counts = type(self.batch) is int and type(self.threads) is int and min(self.batch, self.threads) > 0
        times = (self.median_ms, self.p95_ms)
        if not counts or not all(type(ms) in (int, float) and 0 < ms < math.inf for ms in times):
            raise ValueError(f"a timing has sizes above 0 and milliseconds, not {self}")


class Timings(tuple[Timing, ...]):
    """A table of timings: each member at the same batch sizes for a number of threads."""

    @cached_property
    def _found(self) -> dict[tuple[Subnet, int], dict[int, Timing]]:
        """Member and number of threads → batch size → what it takes."""
        found: dict[tuple[Subnet, int], dict[int, Timing]] = {}
        for row in self:
            found.setdefault((row.subnet, row.threads), {})[row.batch] = row
        return found

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads that were measured."""
        return tuple(sorted({row.threads for row in self}))

    def at(self, subnet: Subnet, batch: int, threads: int) -> Timing | None:
        """What a member takes; between two measured batch sizes on a straight line, beyond the last in proportion.

        Of fewer examples than were measured it takes what those do, at most.

        Returns:
            The timing; None if the member was not measured with as many threads.
        """
        known = self._found.get((subnet, threads))
        if known is None:
            return None
        if batch in known:
            return known[batch]
        sizes = sorted(known)
        beyond = max(batch / sizes[-1], 1.0)
        median = beyond * float(np.interp(batch, sizes, [known[size].median_ms for size in sizes]))
        p95 = beyond * float(np.interp(batch, sizes, [known[size].p95_ms for size in sizes]))
        return Timing(subnet, batch, threads, median, p95)

    def best_threads(self) -> int | None:
        """The number of threads with which passes take least, over what was measured with each; of equals the smallest.

        If there is nothing of which that can be said, it is the number with which most was measured.
        """
        logs: dict[int, dict[tuple[Subnet, int], float]] = {}
        for row in self:
            logs.setdefault(row.threads, {})[row.subnet, row.batch] = math.log(row.median_ms)
        common = set.intersection(*map(set, logs.values())) if logs else set()

        def rank(threads: int) -> tuple[float, int]:
            times = logs[threads]
            return (fmean(times[case] for case in common) if common else -len(times)), threads

        return min(logs, key=rank, default=None)

    def merged(self, rows: Sequence[Timing]) -> "Timings":
        """This table with newer rows in the place of older ones."""
        new = {(row.subnet, row.batch, row.threads) for row in rows}
        return Timings([*(row for row in self if (row.subnet, row.batch, row.threads) not in new), *rows])

    def to_json(self) -> str:
        """As text."""
        return json.dumps([asdict(row) | {"subnet": str(row.subnet)} for row in self], indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Timings":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if it is anything else.
        """
        try:
            rows = [Timing(**row | {"subnet": Subnet.parse(row["subnet"])}) for row in json.loads(text)]
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"no table of timings: {error}") from error
        return cls(rows)


class Store:
    """A folder of one pack, for this processor and what runs the pack.

    Args:
        digest: the pack's.
        runs: what runs it, with its version.
        cache: folder of all such folders; True for the user's cache, False for none.
    """

    def __init__(self, digest: str, runs: str, cache: str | Path | bool) -> None:
        facts = "\n".join([digest, runs, processor(), str(num_cpus())])
        key = hashlib.sha256(facts.encode()).hexdigest()[:24]
        self.folder = None if cache is False else (_of_the_user() if cache is True else Path(cache)) / key

    def timings(self, members: Container[Subnet]) -> Timings:
        """What was measured; nothing if it was not, or the file is damaged."""
        if self.folder is None:
            return Timings()
        try:
            found = Timings.from_json((self.folder / _TIMINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Timings()
        return found if all(row.subnet in members for row in found) else Timings()

    def keep(self, timings: Timings) -> None:
        """Write what was measured; a folder that cannot be written is no reason not to run."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / _TIMINGS) as file:
                file.write_text(timings.to_json(), encoding="utf-8")
        except OSError:
            self.folder = None


def _of_the_user() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("telescopic") / "engines"
