"""ONNX Runtime as a backend: graphs optimised for this machine, with weights that are mapped. No torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from telescopic.engine.manifest import Array, Manifest
from telescopic.engine.ort.layouts import agree, cut, mark
from telescopic.engine.ort.sessions import open_session, runtime

_FEW = 2**14  # bytes of copied weights, which may be there more than once
_COPY = ("Gemm", "MatMul", "Conv", "Attention", "LSTM", "GRU", "RNN")  # kernels for these copy their weights,
_SHARE = ("Conv", "FusedConv")  # but those in float32, in blocks or not


class OnnxRuntime:
    """ONNX Runtime as a backend of `Engine`; see `telescopic.engine.backends.Preparing`.

    Raises:
        ImportError: if it is not installed.
    """

    opens_bytes = True

    def __init__(self) -> None:
        self.title = f"ONNX Runtime {runtime().__version__}"

    def prepare(self, folder: Path, manifest: Manifest, made: Path) -> None:
        """Write an optimised graph for each segment, and its weights beside."""
        import onnx

        def optimise(segment: str, ends: frozenset[str]) -> Mapping[str, float]:
            path = made / manifest.segments[segment]
            try:
                plain = onnx.load(folder / path.name, load_external_data=False)
                mark(plain.graph, ends)
                open_session(plain.SerializeToString(), 1, weights=folder, keep_as=path)
            except Exception as error:  # of many kinds; what is wrong with a graph is said when it is opened as it is
                raise OSError(f"{path.name} cannot be prepared for this machine: {error}") from error
            kept = onnx.load(path, load_external_data=False)
            _check_whole(kept.graph, made)
            saved = cut(kept.graph, ends)
            path.write_bytes(kept.SerializeToString())
            return saved

        agree(manifest, optimise)

    def stands_alone(self, model: Any) -> bool:
        """Whether kernels copy much of a graph's weights: then one session should serve all members."""
        sizes = {tensor.name: _bytes(tensor) for tensor in model.graph.initializer}
        copied = 0
        for node in model.graph.node:
            if node.op_type not in _SHARE and any(part in node.op_type for part in _COPY):
                copied += sum(sizes.get(name, 0) for name in node.input)
        return copied > _FEW

    def open(self, graph: Path, threads: int) -> Any:
        """A session."""
        return open_session(graph, threads)

    def open_prepared(self, graph: Path | bytes, weights: Path, threads: int) -> Any:
        """A session that optimises nothing."""
        return open_session(graph, threads, optimised=True, weights=weights)

    def bind(self, opened: Any, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A call of a session."""
        binding = opened.io_binding()
        for kind, arrays, bind in (("in", inputs, binding.bind_input), ("out", outputs, binding.bind_output)):
            for number, array in enumerate(arrays):
                bind(f"{kind}{number}", "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        return lambda: opened.run_with_iobinding(binding)


def _bytes(tensor: Any) -> int:
    size: int = tensor.ByteSize()
    return int(_place(tensor)["length"]) if tensor.external_data else size


def _place(tensor: Any) -> dict[str, str]:
    """Where a tensor's data lie outside of the graph: file, first byte and number of bytes."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _check_whole(graph: Any, folder: Path) -> None:
    """OSError if a file of weights is too short for what should be in it, as where the disk was full."""
    for tensor in graph.initializer:
        if tensor.external_data:
            place = _place(tensor)
            needed, size = int(place["offset"]) + int(place["length"]), (folder / place["location"]).stat().st_size
            if size < needed:
                raise OSError(f"{place['location']} has {size} bytes of {needed}")
