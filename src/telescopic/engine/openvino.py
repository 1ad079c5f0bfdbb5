"""OpenVINO as a backend: faster in places, for more memory. No torch.

It compiles a graph for the processor when it is opened, and keeps its weights as kernels want them beside those of the
file; nothing is shared between graphs. In segments it is slow, since feature maps change their order at both ends of
each. So each member is one graph, with weights of its own.
"""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from telescopic.engine.manifest import WEIGHTS, Array, Manifest
from telescopic.extras import needs


class OpenVino:
    """OpenVINO as a backend of `Engine`; see `telescopic.engine.backends.Preparing`.

    Raises:
        ImportError: if it is not installed.
    """

    opens_bytes = False

    def __init__(self) -> None:
        self.title = f"OpenVINO {_openvino().__version__}"

    def prepare(self, folder: Path, manifest: Manifest, made: Path) -> None:
        """Copy graphs and weights: joined graphs refer to weights beside them."""
        for name in (*manifest.segments.values(), WEIGHTS):
            shutil.copyfile(folder / name, made / name)

    def stands_alone(self, model: Any) -> bool:
        """Never: to be fast is what it is for."""
        return False

    def open(self, graph: Path, threads: int) -> Any:
        """A compiled model."""
        hints = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # or what is float32 would be computed in bfloat16 where that is faster
        }
        return _core().compile_model(str(graph), "CPU", hints)

    def open_prepared(self, graph: Path | bytes, weights: Path, threads: int) -> Any:
        """The same: what was prepared is a copy."""
        assert isinstance(graph, Path)
        return self.open(graph, threads)

    def bind(self, opened: Any, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A request's call; each has feature maps of its own."""
        request, tensor = opened.create_infer_request(), _openvino().Tensor
        for kind, arrays in (("in", inputs), ("out", outputs)):
            for number, array in enumerate(arrays):
                request.set_tensor(f"{kind}{number}", tensor(array, shared_memory=True))

        def call() -> None:
            request.start_async()
            request.wait()

        return call


@functools.cache
def _core() -> Any:
    return _openvino().Core()


def _openvino() -> Any:
    with needs("openvino"):
        import openvino
    return openvino
