"""How segments become ONNX graphs that share one file of weights."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from telescopic.engine.manifest import WEIGHTS, Constant
from telescopic.export import BATCH, onnx_program, quiet
from telescopic.packing.segments import Segment

_INSIDE = 1024
"""Smaller tensors, in bytes, stand in the graph itself: a shape that an operator reads must."""
_ALIGNMENT = 64
"""Of each tensor in the file of weights, in bytes: a line of the processor's cache."""


class Weights:
    """The file that all graphs share: each tensor at its offset, and equal ones once.

    Args:
        file: opened for writing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self._known: dict[bytes, int] = {}

    def put(self, data: bytes) -> int:
        """Offset of these bytes, written if they are not there already."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._known:
            padding = -self.size % _ALIGNMENT
            self.file.write(bytes(padding) + data)
            self._known[digest] = self.size + padding
            self.size += padding + len(data)
        return self._known[digest]

    def constant(self, tensor: Tensor) -> Constant:
        """A tensor of its own, for the manifest."""
        return Constant(self.put(tensor.detach().cpu().contiguous().numpy().tobytes()), tuple(tensor.shape))


def write_graph(segment: Segment, path: Path, weights: Weights) -> None:
    """Write one segment as an ONNX graph with inputs in0, in1, ... and outputs out0, out1, ..., its weights apart."""
    inputs, outputs = [f"in{i}" for i in range(len(segment.example))], [f"out{i}" for i in range(len(segment.outputs))]
    shapes = tuple(BATCH if batched else None for batched in segment.batched)
    with quiet(), torch.no_grad():
        # Copies of their own memory: of two views of one tensor torch.export would make one input.
        program = onnx_program(segment.module, tuple(x.clone() for x in segment.example), (shapes,), inputs, outputs)
        graph = program.model_proto
    found = [value.name for value in graph.graph.input], [value.name for value in graph.graph.output]
    if found != (inputs, outputs):
        raise ValueError(f"{segment.name} was exported with inputs {found[0]} and outputs {found[1]}")
    move_out(graph, weights)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def move_out(graph: Any, weights: Weights) -> None:
    """Move the large tensors of a graph to the file of weights."""
    import onnx

    for tensor in graph.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(data) >= _INSIDE:
            _refer(tensor, weights.put(data), len(data))


def _refer(tensor: Any, offset: int, length: int) -> None:
    import onnx

    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def checked_batches(segments: Sequence[Segment], batch: int) -> None:
    """Refuse segments whose features have no batch in front, before anything is written.

    Raises:
        ValueError: naming the segment.
    """
    for segment in segments:
        for tensor in segment.outputs:
            if tensor.ndim < 2 or len(tensor) != batch or tensor.dtype != torch.float32 or not math.prod(tensor.shape):
                raise ValueError(
                    f"{segment.name} gives {tensor.dtype} {tuple(tensor.shape)}, and not float32 with {batch} examples "
                    "in front, as what passes between segments must be"
                )
