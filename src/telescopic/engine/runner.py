"""The members of a pack, open with so many threads, and how they are timed. No torch."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from telescopic.engine.backends import Backend, Graphs, Preparing, Sessions
from telescopic.engine.given import Inputs, examples, size_of, wanted
from telescopic.engine.joined import join
from telescopic.engine.lanes import Lane, Lanes
from telescopic.engine.manifest import Floats, Manifest, PackError, Way
from telescopic.engine.timings import Timing

_MOST_IDLE = 8  # lanes, each with the feature maps of a batch between segments
_MOST_PATHS = 8  # with graphs of their own; others run segment by segment
_MIN_TURNS = 20
_PERCENTILE = 0.9  # of a refinement's runs, as in `telescopic.anytime`
_SECONDS = 0.1  # for each refinement


class Runner:
    """Sessions, and lanes that run through them; every member has run once, and a switch is the choice of another.

    Raises:
        PackError: if a member cannot be run.

    Attributes:
        threads: within a session.
        lanes: where batches run.
        members: a member of the manifest → the same with the chain that is run for it alone.
    """

    def __init__(
        self, manifest: Manifest, graphs: Graphs, constants: Mapping[str, Floats], backend: Backend, threads: int
    ) -> None:
        self.threads = threads
        self._manifest, self._graphs, self._backend = manifest, graphs, backend
        self._sessions = sessions = Sessions(graphs, backend, threads)
        self.lanes = Lanes(lambda batch: Lane(batch, sessions, manifest, constants), _MOST_IDLE)
        chains = zip(manifest.members, graphs.chains, strict=True)
        self.members = {member: replace(member, chain=chain) for member, chain in chains}
        self._paths: dict[Way, Way] = {}
        self._lock = threading.Lock()
        lane = self.lanes.take(1)
        for member in self.members.values():
            try:
                lane.start(examples(wanted(manifest), 1, random=False))
                lane.run(member)
            except PackError:
                raise
            except Exception as error:  # of many kinds, such as where a graph has other outputs
                raise PackError(
                    f"{graphs.folder}: {member.label} cannot be run as the manifest says: {error}"
                ) from error
        self.lanes.give(lane)

    def path(self, members: Way) -> Way:
        """Members that are to answer one after the other, with the chains that are left to each.

        What lies between two answers is joined to one graph when a path is first taken, if onnx is there to do it and
        the backend opens what has no file.
        """
        with self._lock:
            if members not in self._paths:
                graphs, backend = self._graphs, self._backend
                if not (graphs.prepared and isinstance(backend, Preparing) and backend.opens_bytes):
                    return members
                if len(self._paths) == _MOST_PATHS:
                    return members
                try:
                    made, (self._paths[members],) = join(self._manifest, graphs.folder, [members], backend.stands_alone)
                    self._sessions.add(made)
                except (ImportError, OSError):
                    self._paths[members] = members
            return self._paths[members]


def time_members(runner: Runner, x: Inputs, seconds: float) -> list[Timing]:
    """Time members in turns, so that a machine's drift hits all alike.

    Args:
        runner: which, and where they run.
        x: a batch of inputs.
        seconds: time to spend on each; each runs 20 times at least.
    """
    members, batch = [*runner.members.values()], size_of(x)

    def turn(lane: Lane) -> Iterator[float]:
        for member in members:
            lane.start(x)
            lane.run(member)  # the one before has left other things in the caches
            start = time.perf_counter()
            lane.start(x)
            lane.run(member)
            yield time.perf_counter() - start

    return [
        Timing(
            member.subnet, batch, runner.threads, 1000 * float(np.median(runs)), 1000 * float(np.quantile(runs, 0.95))
        )
        for member, runs in zip(members, _timed(runner, batch, turn, seconds * len(members)), strict=True)
    ]


def time_steps(runner: Runner, path: Way, x: Inputs) -> tuple[float, ...]:
    """Seconds that most runs of each refinement along a path took at most."""
    path = runner.path(path)

    def turn(lane: Lane) -> Iterator[float]:
        lane.start(x)
        for member in path:
            start = time.perf_counter()
            lane.run(member)
            yield time.perf_counter() - start

    times = _timed(runner, size_of(x), turn, _SECONDS * len(path))
    return tuple(float(np.quantile(runs, _PERCENTILE)) for runs in times)


def _timed(
    runner: Runner, batch: int, turn: Callable[[Lane], Iterator[float]], seconds: float
) -> list[tuple[float, ...]]:
    """What each of the things took that are done in a turn, in all turns, in seconds."""
    lane = runner.lanes.take(batch)
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(turns) < _MIN_TURNS or time.perf_counter() < end:
        turns.append([*turn(lane)])
    runner.lanes.give(lane)
    return [*zip(*turns, strict=True)]
