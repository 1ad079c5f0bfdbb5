"""The engine: every member of a pack ready to run, with one copy of the weights. No torch."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from telescopic.catalogue.choosing import front, within
from telescopic.engine.backends import Backend, named
from telescopic.engine.given import Inputs, examples, size_of, taken, wanted
from telescopic.engine.manifest import Floats, Packed, Way, read, read_constants
from telescopic.engine.prepared import prepared
from telescopic.engine.runner import Runner, time_members, time_steps
from telescopic.engine.timings import Store, Timing, Timings
from telescopic.provenance import task_of
from telescopic.subnet import Subnet, require_path

_MARGIN = 1.1  # of a refinement's cost, which the machine's drift may take


@dataclass(eq=False, slots=True)
class Prediction:
    """What a member says.

    Attributes:
        logits: float32 `[batch, classes]`.
        subnet: the member.
        label: its short name.
        accuracy: its fraction of the validation images classified rightly; None if not measured, or if its score is
            another.
        seconds: time from the call to the answer.
        fits: whether the member keeps the latency that was asked for, as measured; False if none does, and the fastest
            has answered.
    """

    logits: Floats
    subnet: Subnet
    label: str
    accuracy: float | None
    seconds: float
    fits: bool = True


class Engine:
    """Runs the members of a pack, each as a chain of segments. Any number of threads may use one engine.

    Args:
        path: the folder that `telescopic.pack` wrote.
        threads: threads within a segment. By default what calibration found best on this machine, or 1 before it.
        cache: folder for latencies measured and graphs prepared on this machine, these as large as the pack. By
            default in the user's cache; False for none.
        verify: whether to compare every file with its checksum, which takes some seconds for a gigabyte.
        backend: "onnxruntime"; or "openvino", which is often faster, above all in int8, and has weights of its own for
            each member; or an object of yours, see `telescopic.engine.Backend`.

    Attributes:
        members: smallest first.
        classes: names of the classes in the order of the logits; empty if unknown.
        input_shape: shape of one input, without the batch, as `telescopic.cost` takes it.
        inputs: what is to be given of each, by its name; one that is alone is called `input`.
        takes_pixels: whether the pack knows how to prepare uint8 pixels.
        task: what its network has learned to do, such as `classification`.
        left_out: members that were not packed although a number of them or all were asked for → why.
        precision: of the weights: float32 or int8.
        runs_on: the backend and its version.

    Raises:
        PackError: if there is no whole pack, or this version of telescopic or of the backend cannot open it.
        ValueError: if there is no such backend.
        ImportError: if the backend is not installed; or onnx, by which graphs are prepared for this machine once.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        cache: str | Path | bool = True,
        verify: bool = True,
        backend: str | Backend = "onnxruntime",
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise ValueError(f"an engine has 1 thread or more within a segment, not {threads!r}")
        self.path = Path(path)
        self._backend = named(backend) if isinstance(backend, str) else backend
        self._manifest, digest = read(self.path, verify=verify)
        self.members, self.classes = self._manifest.members, self._manifest.classes
        self.input_shape, self.left_out = self._manifest.input_shape, self._manifest.left_out
        self.inputs, self.takes_pixels = wanted(self._manifest), self._manifest.preprocess is not None
        self.precision, self.task = self._manifest.precision, task_of(self._manifest.provenance, self.members[0].metric)
        if any(len(self._manifest.tensors[member.logits]) > 1 for member in self.members):
            self.task = {"classification": "tokens", "multilabel": "one's own"}.get(self.task, self.task)
        self._by_subnet: dict[Subnet, Packed] = {member.subnet: member for member in self.members}
        self.runs_on = self._backend.title
        self._store = Store(digest, self.runs_on, cache)
        self._timings = self._store.timings(self._by_subnet)
        self._chosen = threads
        self._measuring = threading.Lock()
        self._paths: dict[tuple[Subnet, ...] | None, Way] = {}
        self._steps: dict[tuple[tuple[Subnet, ...], int, int], tuple[float, ...]] = {}
        self._constants = read_constants(self.path, self._manifest)
        self._graphs = prepared(self.path, self._manifest, self._store.folder, self._backend, verify=verify)
        self._runner = self._made(threads or self._timings.best_threads() or 1)

    def __repr__(self) -> str:
        return f"Engine({str(self.path)!r}, {len(self.members)} members, threads={self.threads})"

    def run(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        *,
        subnet: Subnet | None = None,
        max_latency_ms: float | None = None,
        quality: float | None = None,
    ) -> Prediction:
        """The answer of one member: the one named, or the best within a budget, or the cheapest of a quality.

        Args:
            x: inputs float32 `[batch, ...]`; or pixels uint8 `[batch, channels, height, width]`, if the pack knows how
                to prepare them. Of a network of another type, that; of one that takes several, a dict of them by name,
                or a tuple in the order of the names. What `prepared` gave is taken as it is.
            subnet: which member; parts left open take the largest packed value.
            max_latency_ms: the most accurate member is taken whose latency for as many examples, in 95 % of runs, is at
                most this. If none is fast enough the fastest answers, and `fits` is False. What was not measured on
                this machine is measured by the first call, for a tenth of a second a member.
            quality: from 0, the least accurate member, to 1, the most accurate: the fastest one is taken whose accuracy
                lies at least so far between theirs. Without accuracies, multiply-adds stand for them.

        Raises:
            ValueError: if there is no such member, more than one wish, or the input has another shape or type, or holds
                what is no number.
        """
        began = time.perf_counter()
        if (subnet is not None) + (max_latency_ms is not None) + (quality is not None) > 1:
            given = {"subnet": subnet, "max_latency_ms": max_latency_ms, "quality": quality}
            wishes = [name for name, wish in given.items() if wish is not None]
            raise ValueError(f"one wish at a time, not {' and '.join(wishes)}")
        inputs, fits = self.prepared(x), True
        if max_latency_ms is not None:
            member, fits, measured = self._within(max_latency_ms, size_of(inputs))
            began = time.perf_counter() if measured else began
        elif quality is not None:
            member = self.of_quality(quality, size_of(inputs))
        else:
            member = self.member(subnet)
        runner = self._runner
        lane = runner.lanes.take(size_of(inputs))
        lane.start(inputs)
        logits = lane.run(runner.members[member])
        runner.lanes.give(lane)  # one that failed is left to be collected
        return Prediction(logits, member.subnet, member.label, member.accuracy, time.perf_counter() - began, fits)

    def anytime(
        self,
        x: ArrayLike | Mapping[str, ArrayLike],
        *,
        deadline: float | None = None,
        path: Sequence[Subnet] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Iterator[Prediction]:
        """Better and better answers, each computed from what the ones before have left; stop whenever.

        The first one is always given. No step begins that would not end in time, by what it cost when it was measured
        on this machine, which the first call for a batch size does if there is a deadline.

        Args:
            x: see `run`.
            deadline: seconds from the call; None for no limit.
            path: packed members of one entry, each containing the one before; by default as many as lead to the
                largest.
            clock: what time it is, in seconds.

        Raises:
            ValueError: at once, as `run` does; or if the path is none, or the deadline has passed.
        """
        began = clock()
        if deadline is not None and not deadline > 0:
            raise ValueError(f"a deadline is more than 0 seconds from now, not {deadline}; None is no deadline")
        inputs, members = self.prepared(x), self._path(path)
        costs: Sequence[float] = [0.0] * len(members)
        if deadline is not None:
            costs, measured = self._step_costs(members, size_of(inputs))
            began = clock() if measured else began

        def refined() -> Iterator[Prediction]:
            runner = self._runner
            lane = runner.lanes.take(size_of(inputs))
            try:
                lane.start(inputs)
                for number, member in enumerate(runner.path(members)):
                    if number and deadline is not None and clock() - began + costs[number] * _MARGIN > deadline:
                        return
                    logits = lane.run(member)
                    yield Prediction(logits, member.subnet, member.label, member.accuracy, clock() - began)
            finally:  # the caller may stop whenever
                runner.lanes.give(lane)

        return refined()

    def prepared(self, x: ArrayLike | Mapping[str, ArrayLike]) -> Any:
        """Inputs as the network sees them, checked as `run` does: `[batch, ...]`, or a dict of several by name.

        Raises:
            ValueError: as `run` does.
        """
        return taken(x, self.inputs)

    def member(self, subnet: Subnet | None = None) -> Packed:
        """A packed member; parts left open take the largest value that is packed with the others.

        Raises:
            ValueError: if it is not packed.
        """
        if subnet is None:
            return self.members[-1]
        if not isinstance(subnet, Subnet):
            raise TypeError(f"expected a telescopic.Subnet, got {type(subnet).__name__} {subnet!r}")
        found = self._by_subnet.get(subnet)
        if found is not None:
            return found
        asked = {name: value for name in ("entry", "exit", "width") if (value := getattr(subnet, name)) is not None}
        for member in reversed(self.members):
            if all(getattr(member.subnet, name) == value for name, value in asked.items()):
                return member
        names = ", ".join(member.label for member in self.members)
        raise ValueError(f"member {subnet} is not in this pack, which has {names}: pack it too")

    def of_quality(self, quality: float, batch: int = 1) -> Packed:
        """The member that `run` takes for a quality.

        Raises:
            ValueError: if the quality is not from 0 to 1.
        """
        if not 0 <= quality <= 1:
            raise ValueError(f"quality is from 0, the least accurate member, to 1, the most accurate; not {quality}")
        values = [worth(member) for member in self.members]
        least = min(values) + quality * (max(values) - min(values)) - 1e-12 * max(map(abs, values))
        good = [member for member, value in zip(self.members, values, strict=True) if value >= least]
        return min(good, key=lambda member: (self._cost(member, batch), -worth(member)))

    def within(self, max_latency_ms: float, batch: int = 1) -> Packed:
        """The member that `run` takes for a latency: the fastest if none keeps it."""
        return self._within(max_latency_ms, batch)[0]

    def timing(self, subnet: Subnet, batch: int = 1) -> Timing:
        """What a member takes on this machine, measured now if it was not yet."""
        self._measured(batch)
        found = self._timings.at(self.member(subnet).subnet, batch, self.threads)
        assert found is not None
        return found

    @property
    def threads(self) -> int:
        """Threads within a segment."""
        return self._runner.threads

    @property
    def timings(self) -> Timings:
        """All that was measured on this machine."""
        return self._timings

    def front(self, batch: int = 1) -> tuple[Packed, ...]:
        """The members that no other beats in both latency and accuracy, by rising accuracy.

        The others are dropped from every choice by latency or quality; they still run when they are named.
        """
        self._measured(batch)
        costs = [self._cost(member, batch) for member in self.members]
        return tuple(self.members[place] for place in front(costs, [worth(member) for member in self.members]))

    def calibrate(
        self,
        *,
        batches: Sequence[int] = (1, 8, 32),
        threads: Sequence[int] | None = None,
        seconds: float = 0.2,
        progress: Callable[[int, int], None] | None = None,
    ) -> Timings:
        """Measure every member on this machine, and keep the table for the next time this pack is opened here.

        The number of threads that was best is taken from then on, unless one was given when the engine was made.

        Args:
            batches: numbers of examples in a pass.
            threads: numbers of threads to try; by default the engine's own.
            seconds: time to spend on each member in each of these cases.
            progress: called with the number of cases done, and of all.

        Returns:
            The table.

        Raises:
            ValueError: if a number is below 1.
        """
        tries = (self.threads,) if threads is None else tuple(dict.fromkeys(threads))
        counts = (*batches, *tries)
        if not batches or not tries or not all(type(n) is int and n > 0 for n in counts) or not seconds > 0:
            raise ValueError(f"calibration takes whole numbers above 0, not batches {batches} and threads {threads}")
        with self._measuring:
            done = 0
            for number in tries:
                runner = self._runner if number == self.threads else self._made(number)
                for batch in batches:
                    self._time(runner, batch, seconds)
                    done += 1
                    if progress is not None:
                        progress(done, len(tries) * len(batches))
            self._store.keep(self._timings)  # now: of half of the cases no number of threads is the best
            best = self._timings.best_threads()
            if self._chosen is None and best is not None and best != self.threads:
                self._runner = self._made(best)
        return self._timings

    def _made(self, threads: int) -> Runner:
        return Runner(self._manifest, self._graphs, self._constants, self._backend, threads)

    def _within(self, max_latency_ms: float, batch: int) -> tuple[Packed, bool, bool]:
        """The member, whether it is fast enough, and whether something was measured now."""
        if not max_latency_ms > 0:
            raise ValueError(f"max_latency_ms is more than 0, not {max_latency_ms}")
        measured = self._measured(batch)
        timings = [self._timings.at(member.subnet, batch, self.threads) for member in self.members]
        times = [timing.p95_ms for timing in timings if timing is not None]
        place = within(times, [worth(member) for member in self.members], max_latency_ms)
        fits = place is not None
        return self.members[times.index(min(times)) if place is None else place], fits, measured

    def _cost(self, member: Packed, batch: int) -> float:
        """Milliseconds if they were measured, else multiply-adds."""
        timing = self._timings.at(member.subnet, batch, self.threads)
        return member.macs if timing is None else timing.median_ms

    def _measured(self, batch: int) -> bool:
        """Measure what was not; whether that was necessary."""
        if self._timings.at(self.members[0].subnet, batch, self.threads) is not None:
            return False
        with self._measuring:
            if self._timings.at(self.members[0].subnet, batch, self.threads) is None:
                self._time(self._runner, batch, 0.1)
                self._store.keep(self._timings)
        return True

    def _time(self, runner: Runner, batch: int, seconds: float) -> None:
        self._timings = self._timings.merged(time_members(runner, self._example(batch), seconds))

    def _example(self, batch: int) -> Inputs:
        return examples(self.inputs, batch, random=True)

    def _path(self, path: Sequence[Subnet] | None) -> Way:
        key = None if path is None else tuple(path)
        if key not in self._paths:
            members = _longest(self.members) if key is None else tuple(self.member(subnet) for subnet in key)
            require_path([member.subnet for member in members])
            self._paths[key] = members
        return self._paths[key]

    def _step_costs(self, members: Way, batch: int) -> tuple[tuple[float, ...], bool]:
        """Seconds that each step took at most in most runs, and whether they had to be measured."""
        key = tuple(member.subnet for member in members), batch, self.threads
        if key in self._steps:
            return self._steps[key], False
        with self._measuring:
            self._steps[key] = time_steps(self._runner, members, self._example(batch))
        return self._steps[key], True


def _longest(members: Sequence[Packed]) -> Way:
    """The way to the last of them that has the most answers, of members smallest first."""
    ways: dict[Packed, Way] = {}
    for member in members:
        before = [ways[small] for small in ways if member.subnet.follows(small.subnet)]
        ways[member] = (*max(before, key=len, default=()), member)
    return ways[members[-1]]


def worth(member: Packed) -> float:
    """What a member is worth: its score, or where that is not known its multiply-adds."""
    return float(member.macs) if member.score is None else member.metric.worth(member.score)
