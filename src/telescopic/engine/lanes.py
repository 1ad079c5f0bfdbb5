"""Where a batch runs through segments: what is taken, tensors of one batch size, and bindings to them. No torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from telescopic.engine.backends import Sessions
from telescopic.engine.manifest import INPUT, Array, Floats, Manifest, Packed, Step

_FLOAT32 = np.dtype(np.float32)
Inputs = Floats | Mapping[str, Array]
"""A batch of the one input, or of each of several by the name of its tensor, as the network sees them."""


def taken(x: Any, manifest: Manifest) -> Inputs:
    """What was given as the network of a pack sees it.

    Args:
        x: as `Engine.run` takes it.
        manifest: the pack's.

    Raises:
        ValueError: if an input is missing or unknown, has another shape or type, or holds what is no finite number.
    """
    names = manifest.inputs
    if [*names] == [INPUT] and INPUT not in manifest.types:
        return checked(x, manifest.tensors[INPUT], manifest.preprocess)
    given = x if isinstance(x, Mapping) else dict(zip(names, x if isinstance(x, tuple) else (x,), strict=False))
    if given.keys() != names.keys() or (isinstance(x, tuple) and len(x) != len(names)):
        found = f"a dict of {', '.join(map(str, given))}" if isinstance(x, Mapping) else f"a {type(x).__name__}"
        raise ValueError(f"this network takes {', '.join(names)}, in a dict or in this order in a tuple, not {found}")
    made: dict[str, Array] = {}
    for name, tensor in names.items():
        kind, shape = np.dtype(manifest.dtype(tensor)), manifest.tensors[tensor]
        try:
            floats, one = kind == _FLOAT32, given[name]
            made[tensor] = checked(one, shape, manifest.preprocess) if floats else whole(one, shape, kind)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    if len({*(sizes := {name: len(made[tensor]) for name, tensor in names.items()}).values()}) > 1:
        raise ValueError(f"inputs have as many examples each, and these {sizes}")
    return made


def size_of(x: Inputs) -> int:
    """Number of examples."""
    return len(next(iter(x.values())) if isinstance(x, Mapping) else x)


def examples(manifest: Manifest, batch: int, *, random: bool) -> Inputs:
    """Inputs to try a network on: random numbers, and ones of other types; or zeros."""
    made: dict[str, Array] = {}
    for tensor in manifest.inputs.values():
        shape, kind = (batch, *manifest.tensors[tensor]), np.dtype(manifest.dtype(tensor))
        made[tensor] = np.full(shape, int(random), kind)
        if random and kind == _FLOAT32:
            made[tensor] = np.random.default_rng(0).standard_normal(shape, np.float32)
    return made


def whole(x: ArrayLike, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
    """Whole numbers or truth values in the type that a network takes.

    Raises:
        ValueError: if it has another shape or kind, or a number that does not fit.
    """
    array = np.asarray(x)
    _require_shape(array, shape)
    if kind == np.bool_ or array.dtype.kind not in "iu":
        if array.dtype != kind:
            raise ValueError(f"it is {kind}, not {array.dtype}: convert it")
    elif not np.can_cast(array.dtype, kind):
        ends, least, most = np.iinfo(kind), int(array.min()), int(array.max())
        if not ends.min <= least <= most <= ends.max:
            raise ValueError(f"it is {kind}, and {least} to {most} does not fit")
    return np.ascontiguousarray(array, kind)


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
    _require_shape(array, shape)
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


def _require_shape(array: Array, shape: tuple[int, ...]) -> None:
    if array.shape[1:] != shape or not array.ndim or not len(array):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"inputs have shape [batch, {wanted}] with 1 example or more, not {list(array.shape)}")


class Lane:
    """All that one batch needs on its way, made once for a batch size. One thread uses it at a time.

    Args:
        batch: number of examples.
        sessions: of segments.
        manifest: the pack's.
        constants: inputs that do not depend on the batch.
    """

    def __init__(
        self,
        batch: int,
        sessions: Sessions,
        manifest: Manifest,
        constants: Mapping[str, Floats],
    ) -> None:
        self.batch, self._sessions, self._manifest = batch, sessions, manifest
        self._arrays: dict[str, Array] = dict(constants)
        self._bound: dict[Step, tuple[int, Callable[[], object]]] = {}
        self._chains: dict[Packed, tuple[list[tuple[int, Callable[[], object]]], Array]] = {}
        self._done: set[int] = set()
        self._inputs = {name: self._array(name) for name in manifest.inputs.values()}

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
