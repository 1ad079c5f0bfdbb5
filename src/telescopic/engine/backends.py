"""What runs the segments of a pack: ONNX Runtime, or OpenVINO. No torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
    """A library that runs ONNX graphs.

    Attributes:
        title: its name, for people.
        opens_bytes: whether it opens graphs that have no file.
    """

    title: str
    opens_bytes: bool

    def version(self) -> str:
        """Of the library; ImportError if it is not installed."""

    def prepare(self, folder: Path, manifest: Manifest, made: Path) -> None:
        """Write the graphs of a pack into a folder as they are best opened on this machine; OSError if it cannot."""

    def stands_alone(self, model: Any) -> bool:
        """Whether a prepared graph is better not joined with others."""

    def open(self, graph: Path | bytes, threads: int, prepared: bool, weights: Path) -> Any:
        """A graph, in a file or as what would stand there, ready to run on so many threads.

        Its weights lie in a folder, and it may have been prepared.
        """

    def bind(self, opened: Any, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A call that runs what was opened, from arrays into arrays. The caller keeps the arrays."""


_BACKENDS: Mapping[str, Backend] = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino()}


def named(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ValueError: if there is none.
    """
    if name not in _BACKENDS:
        raise ValueError(f"there is no backend {name!r}, but {' and '.join(_BACKENDS)}")
    return _BACKENDS[name]


class Sessions:
    """Segments, each opened when it is first needed.

    Args:
        graphs: their files.
        backend: what opens them.
        threads: within a segment.
    """

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
            return backend.open(self._more.get(name, path), self._threads, self._graphs.prepared, folder)
        except Exception as error:  # of many kinds, which these libraries do not document
            opener = f"{backend.title} {backend.version()}"
            raise PackError(f"{folder}: {opener} cannot open {path.name}: {error}") from error
