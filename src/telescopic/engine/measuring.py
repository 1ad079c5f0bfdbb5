"""How members and refinements are timed where they run. No torch."""

import time

import numpy as np

from telescopic.engine.manifest import Floats
from telescopic.engine.runner import Runner
from telescopic.engine.timings import Timing
from telescopic.engine.ways import Way

_MIN_RUNS = 20
_PERCENTILE = 0.9  # of a refinement's runs, as in `telescopic.anytime`
_SECONDS = 0.1  # for each refinement


def time_members(runner: Runner, x: Floats, seconds: float) -> list[Timing]:
    """Time members in turns, so that a machine's drift hits all alike.

    Args:
        runner: which, and where they run.
        x: a batch of inputs.
        seconds: time to spend on each; each runs 20 times at least.
    """
    lane = runner.lanes.take(len(x))
    members = [*runner.members.values()]
    times: list[list[float]] = [[] for _ in members]
    end = time.perf_counter() + seconds * len(members)
    while len(times[0]) < _MIN_RUNS or time.perf_counter() < end:
        for member, runs in zip(members, times, strict=True):
            lane.start(x)
            lane.run(member)  # the one before has left other things in the caches
            start = time.perf_counter()
            lane.start(x)
            lane.run(member)
            runs.append(1000 * (time.perf_counter() - start))
    runner.lanes.give(lane)
    return [
        Timing(member.subnet, len(x), runner.threads, float(np.median(runs)), float(np.quantile(runs, 0.95)))
        for member, runs in zip(members, times, strict=True)
    ]


def time_steps(runner: Runner, path: Way, x: Floats) -> tuple[float, ...]:
    """Seconds that most runs of each refinement along a path took at most."""
    path = runner.path(path)
    lane = runner.lanes.take(len(x))
    times: list[list[float]] = [[] for _ in path]
    end = time.perf_counter() + _SECONDS * len(path)
    while len(times[0]) < _MIN_RUNS or time.perf_counter() < end:
        lane.start(x)
        for member, step in zip(path, times, strict=True):
            start = time.perf_counter()
            lane.run(member)
            step.append(time.perf_counter() - start)
    runner.lanes.give(lane)
    return tuple(float(np.quantile(step, _PERCENTILE)) for step in times)
