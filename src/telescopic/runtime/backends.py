"""What runs the segments of a pack: ONNX Runtime, or OpenVINO. No torch."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from telescopic.runtime.manifest import Chain, PackError
from telescopic.runtime.sessions import open_session, runtime

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Graphs:
    """What an engine opens.

    Attributes:
        folder: with their files.
        files: name of a segment, or of several joined → file.
        chains: of each member, in the order of the pack's.
        optimised: whether ONNX Runtime has optimised them for this machine.
    """

    folder: Path
    files: Mapping[str, str]
    chains: tuple[Chain, ...]
    optimised: bool


class Backend(Protocol):
    """A library that runs ONNX graphs.

    Attributes:
        title: its name, for people.
        shares_weights: whether graphs that were optimised by it refer to one copy of their weights, so that several
            may be joined.
    """

    title: str
    shares_weights: bool

    def version(self) -> str:
        """Of the library; ImportError if it is not installed."""

    def open(self, graph: Path | bytes, threads: int, optimised: bool, weights: Path) -> Any:
        """A graph, in a file or as what would stand there, ready to run on so many threads."""

    def bind(self, opened: Any, inputs: Sequence[Floats], outputs: Sequence[Floats]) -> Callable[[], object]:
        """A call that runs what was opened, from arrays into arrays. The caller keeps the arrays."""


class OnnxRuntime:
    """ONNX Runtime on the processor."""

    title, shares_weights = "ONNX Runtime", True

    def version(self) -> str:
        """See `Backend`."""
        return str(runtime().__version__)

    def open(self, graph: Path | bytes, threads: int, optimised: bool, weights: Path) -> Any:
        """See `Backend`."""
        return open_session(graph, threads, optimised=optimised, weights=weights)

    def bind(self, opened: Any, inputs: Sequence[Floats], outputs: Sequence[Floats]) -> Callable[[], object]:
        """See `Backend`."""
        binding = opened.io_binding()
        for kind, arrays, bind in (("in", inputs, binding.bind_input), ("out", outputs, binding.bind_output)):
            for number, array in enumerate(arrays):
                bind(f"{kind}{number}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        return lambda: opened.run_with_iobinding(binding)


class OpenVino:
    """OpenVINO on the processor. A graph has its weights twice, as they are in the file and as kernels want them."""

    title, shares_weights = "OpenVINO", False

    def version(self) -> str:
        """See `Backend`."""
        return str(_openvino().__version__)

    def open(self, graph: Path | bytes, threads: int, optimised: bool, weights: Path) -> Any:
        """See `Backend`."""
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # or what is float32 would be computed in bfloat16 where that is faster
        }
        return _openvino().Core().compile_model(str(graph), "CPU", hints)

    def bind(self, opened: Any, inputs: Sequence[Floats], outputs: Sequence[Floats]) -> Callable[[], object]:
        """See `Backend`."""
        request, tensor = opened.create_infer_request(), _openvino().Tensor
        for kind, arrays in (("in", inputs), ("out", outputs)):
            for number, array in enumerate(arrays):
                request.set_tensor(f"{kind}{number}", tensor(array, shared_memory=True))

        def call() -> None:
            request.start_async()
            request.wait()

        return call


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f'{error.name} is not installed: pip install "telescopic[openvino]"') from error
    return openvino


BACKENDS: Mapping[str, Backend] = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino()}


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

    def bind(self, name: str, inputs: Sequence[Floats], outputs: Sequence[Floats]) -> Callable[[], object]:
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
            return backend.open(self._more.get(name, path), self._threads, self._graphs.optimised, folder)
        except Exception as error:  # of many kinds, which these libraries do not document
            opener = f"{backend.title} {backend.version()}"
            raise PackError(f"{folder}: {opener} cannot open {path.name}: {error}") from error
