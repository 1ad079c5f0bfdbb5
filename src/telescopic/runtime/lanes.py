"""Where a batch runs through segments: tensors of one batch size, and bindings of segments to them. No torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telescopic.runtime.manifest import INPUT, Packed, Step
from telescopic.runtime.sessions import Sessions, runtime

Floats = NDArray[np.float32]


class Lane:
    """All that one batch needs on its way, made once for a batch size. One thread uses it at a time.

    Args:
        batch: number of examples.
        sessions: of segments.
        shapes: tensor → shape of one example.
        constants: inputs that do not depend on the batch.
    """

    def __init__(
        self,
        batch: int,
        sessions: Sessions,
        shapes: Mapping[str, Sequence[int]],
        constants: Mapping[str, Any],
    ) -> None:
        self.batch, self._sessions, self._shapes = batch, sessions, shapes
        self._values: dict[str, Any] = dict(constants)
        self._arrays: dict[str, Floats] = {}
        self._bound: dict[Step, tuple[int, Callable[[], None]]] = {}
        self._chains: dict[Packed, tuple[list[tuple[int, Callable[[], None]]], Floats]] = {}
        self._done: set[int] = set()
        self._input = self._array(INPUT)

    def start(self, x: Floats) -> None:
        """Begin with a new batch `[batch, ...]`."""
        self._input[...] = x
        self._done.clear()

    def run(self, member: Packed) -> Floats:
        """Logits `[batch, classes]` of a member for the batch that was started, from what is there already.

        Members run for one batch have one entry: what stages compute is not what they compute behind another.
        """
        chain, logits = self._chains.get(member) or self._bind(member)
        done = self._done
        for number, call in chain:
            if number not in done:
                call()
                done.add(number)
        return logits.copy()

    def _bind(self, member: Packed) -> tuple[list[tuple[int, Callable[[], None]]], Floats]:
        """Steps as numbers, the same one for the same step of two members, and calls."""
        for step in member.chain:
            if step not in self._bound:
                session = self._sessions[step.segment]
                binding = session.io_binding()
                for number, name in enumerate(step.inputs):
                    binding.bind_ortvalue_input(f"in{number}", self._value(name))
                for number, name in enumerate(step.outputs):
                    binding.bind_ortvalue_output(f"out{number}", self._value(name))
                self._bound[step] = len(self._bound), partial(session.run_with_iobinding, binding)
        self._chains[member] = [self._bound[step] for step in member.chain], self._array(member.logits)
        return self._chains[member]

    def _array(self, name: str) -> Floats:
        self._value(name)
        return self._arrays[name]

    def _value(self, name: str) -> Any:
        if name not in self._values:
            self._arrays[name] = np.zeros((self.batch, *self._shapes[name]), np.float32)
            self._values[name] = runtime().OrtValue.ortvalue_from_numpy(self._arrays[name])
        return self._values[name]


class Lanes:
    """Lanes that wait for work: few, the last used are kept.

    Args:
        make: what makes one for a batch size.
        most: how many wait at most.
    """

    def __init__(self, make: Callable[[int], Lane], most: int) -> None:
        self._make, self._most = make, most
        self._idle: list[Lane] = []
        self._lock = threading.Lock()

    def take(self, batch: int) -> Lane:
        """One that nobody else has."""
        idle = self._idle
        with self._lock:
            if idle and idle[-1].batch == batch:
                return idle.pop()
            for place in reversed(range(len(idle))):
                if idle[place].batch == batch:
                    return idle.pop(place)
        return self._make(batch)

    def give(self, lane: Lane) -> None:
        """Give one back."""
        with self._lock:
            self._idle.append(lane)
            if len(self._idle) > self._most:
                del self._idle[0]
