"""Where a batch runs through segments: tensors of one batch size, and bindings to them. No torch."""

import threading
from collections.abc import Callable, Mapping

import numpy as np

from telescopic.engine.backends import Sessions
from telescopic.engine.given import Inputs
from telescopic.engine.manifest import Array, Floats, Manifest, Packed, Step
from telescopic.shapes import INPUT


class Lane:
    """All that one batch needs on its way, made once for a batch size. One thread uses it at a time."""

    def __init__(self, batch: int, sessions: Sessions, manifest: Manifest, constants: Mapping[str, Floats]) -> None:
        self.batch, self._sessions, self._manifest = batch, sessions, manifest
        self._arrays: dict[str, Array] = dict(constants)
        self._bound: dict[Step, tuple[int, Callable[[], object]]] = {}
        self._chains: dict[Packed, tuple[list[tuple[int, Callable[[], object]]], Array]] = {}
        self._done: set[int] = set()
        self._inputs = {name: self._array(tensor) for name, tensor in manifest.inputs.items()}

    def start(self, x: Inputs) -> None:
        """Begin with a new batch `[batch, ...]`."""
        for name, given in x.items() if isinstance(x, Mapping) else ((INPUT, x),):
            self._inputs[name][...] = given
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

    def _bind(self, member: Packed) -> tuple[list[tuple[int, Callable[[], object]]], Array]:
        """Steps as numbers, the same one for the same step of two members, and calls."""
        for step in member.chain:
            if step not in self._bound:
                inputs, outputs = ([self._array(name) for name in names] for names in (step.inputs, step.outputs))
                self._bound[step] = len(self._bound), self._sessions.bind(step.segment, inputs, outputs)
        self._chains[member] = [self._bound[step] for step in member.chain], self._array(member.logits)
        return self._chains[member]

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            shape = (self.batch, *self._manifest.tensors[name])
            self._arrays[name] = np.zeros(shape, self._manifest.dtype(name))
        return self._arrays[name]


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
        with self._lock:
            for place in reversed(range(len(self._idle))):
                if self._idle[place].batch == batch:
                    return self._idle.pop(place)
        return self._make(batch)

    def give(self, lane: Lane) -> None:
        """Give one back."""
        with self._lock:
            self._idle.append(lane)
            if len(self._idle) > self._most:
                del self._idle[0]
