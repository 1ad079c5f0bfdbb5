"""Where a batch runs through segments: what is taken, tensors of one batch size, and bindings to them. No torch."""

import threading
from collections.abc import Callable, Container, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from telescopic.engine.backends import Sessions
from telescopic.engine.manifest import INPUT, Array, Floats, Packed, Step

_FLOAT32 = np.dtype(np.float32)


def checked(x: ArrayLike, shape: tuple[int, ...], preprocess: Mapping[str, Sequence[float]] | None) -> Floats:
    """What was given as float32 `[batch, ...]`.

    Args:
        x: inputs float32, or uint8 pixels, if it is known how to prepare them.
        shape: of one input.
        preprocess: mean and standard deviation of each channel, or one for all, of pixels from 0 to 1.

    Raises:
        ValueError: if it has another shape or type, or holds what is no finite number.
    """
    array = np.asarray(x)
    if array.shape[1:] != shape or not array.ndim or not len(array):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"inputs have shape [batch, {wanted}] with 1 example or more, not {list(array.shape)}")
    if array.dtype == _FLOAT32:
        if not np.logical_and.reduce(np.isfinite(array), axis=None):  # several µs faster than all()
            raise ValueError("inputs are finite numbers, and there is NaN or infinity among these")
        return array
    if array.dtype == np.uint8 and preprocess is not None:
        mean, std = (np.asarray(preprocess[name], np.float32) for name in ("mean", "std"))
        across = (-1,) + (1,) * (array.ndim - 2)
        pixels: Floats = (array.astype(np.float32) / np.float32(255) - mean.reshape(across)) / std.reshape(across)
        return pixels
    pixels_too = " or uint8 pixels" if preprocess is not None else ""
    raise ValueError(f"inputs are float32{pixels_too}, not {array.dtype}: convert them")


class Lane:
    """All that one batch needs on its way, made once for a batch size. One thread uses it at a time.

    Args:
        batch: number of examples.
        sessions: of segments.
        shapes: tensor → shape of one example.
        uint8: tensors that are uint8, and not float32.
        constants: inputs that do not depend on the batch.
    """

    def __init__(
        self,
        batch: int,
        sessions: Sessions,
        shapes: Mapping[str, Sequence[int]],
        uint8: Container[str],
        constants: Mapping[str, Floats],
    ) -> None:
        self.batch, self._sessions, self._shapes, self._uint8 = batch, sessions, shapes, uint8
        self._arrays: dict[str, Array] = dict(constants)
        self._bound: dict[Step, tuple[int, Callable[[], object]]] = {}
        self._chains: dict[Packed, tuple[list[tuple[int, Callable[[], object]]], Array]] = {}
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
            kind = np.uint8 if name in self._uint8 else np.float32
            self._arrays[name] = np.zeros((self.batch, *self._shapes[name]), kind)
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
