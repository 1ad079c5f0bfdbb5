"""What runs the segments of a pack: ONNX Runtime, OpenVINO, or a backend of yours. No torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from telescopic.engine.manifest import Array, Chain, Manifest, PackError
from telescopic.engine.openvino import OpenVino
from telescopic.engine.ort.onnx_runtime import OnnxRuntime


@dataclass(frozen=True)
class Graphs:
    """What an engine opens.

    Attributes:
        folder: with their files.
        files: name of a segment, or of several joined → file.
        chains: of each member, in the order of the pack's.
        prepared: whether the backend has prepared them.
    """

    folder: Path
    files: Mapping[str, str]
    chains: tuple[Chain, ...]
    prepared: bool


class Backend(Protocol):
    """A library that runs ONNX graphs: bring yours as an object with these three.

    Attributes:
        title: its name and version, for people and for what is kept of it on this machine.
    """

    title: str

    def open(self, graph: Path, threads: int) -> Any:
        """A segment's graph, with inputs in0, in1, ... and outputs out0, out1, ..., ready to run on so many threads.

        Its weights lie in files beside, to which it refers. Whatever this raises is told as a `PackError`.
        """

    def bind(self, opened: Any, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs what was opened, from arrays into arrays. The caller keeps the arrays.

        Several threads may call at once, each what was bound to arrays of its own.
        """


@runtime_checkable
class Preparing(Backend, Protocol):
    """A backend that makes graphs of its own for this machine, which are kept for the next start.

    Attributes:
        opens_bytes: whether it opens prepared graphs that have no file.
    """

    opens_bytes: bool

    def prepare(self, folder: Path, manifest: Manifest, made: Path) -> None:
        """Write the graphs of a pack into a folder as they are best opened on this machine; OSError if it cannot."""

    def stands_alone(self, model: Any) -> bool:
        """Whether a prepared graph is better not joined with others."""

    def open_prepared(self, graph: Path | bytes, weights: Path, threads: int) -> Any:
        """A prepared graph, in a file or as what would stand there; its weights lie in a folder."""


_BACKENDS: Mapping[str, Callable[[], Backend]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def named(name: str) -> Backend:
    """The backend of a short name.

    Raises:
        ValueError: if there is none.
        ImportError: if it is not installed.
    """
    if name not in _BACKENDS:
        raise ValueError(f"there is no backend {name!r}, but {' and '.join(_BACKENDS)}: or give an object, see Backend")
    return _BACKENDS[name]()


class Sessions:
    """Segments, each opened when it is first needed, with so many threads within it."""

    def __init__(self, graphs: Graphs, backend: Backend, threads: int) -> None:
        self._graphs, self._backend, self._threads = graphs, backend, threads
        self._opened: dict[str, Any] = {}
        self._more: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def add(self, graphs: Mapping[str, bytes]) -> None:
        """Graphs that have no file, with weights beside those that have."""
        self._more |= graphs

    def bind(self, name: str, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs a segment, or several joined, from arrays into arrays, which the caller keeps.

        Raises:
            PackError: if it cannot be opened.
        """
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._open(name)
        return self._backend.bind(self._opened[name], inputs, outputs)

    def _open(self, name: str) -> Any:
        folder, backend = self._graphs.folder, self._backend
        path = folder / self._graphs.files.get(name, name)
        try:
            if self._graphs.prepared and isinstance(backend, Preparing):
                return backend.open_prepared(self._more.get(name, path), folder, self._threads)
            return backend.open(path, self._threads)
        except Exception as error:  # of many kinds, which these libraries do not document
            raise PackError(f"{folder}: {backend.title} cannot open {path.name}: {error}") from error
