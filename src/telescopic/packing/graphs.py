"""How segments become ONNX graphs that share one file of weights."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from telescopic.engine.manifest import WEIGHTS, Constant
from telescopic.export import onnx_program, quiet
from telescopic.packing.segments import Segment
from telescopic.shapes import TYPES

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


class _Together(nn.Module):
    """All segments in one, each on its own inputs."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(segment.module for segment in segments)

    def forward(self, *given: Sequence[Tensor]) -> list[Tensor]:
        return [made for module, inputs in zip(self.modules_, given, strict=True) for made in module(*inputs)]


def exported(segments: Sequence[Segment], *, sharing: bool = False) -> Iterator[Any]:
    """Segments as ONNX graphs with inputs in0, in1, ... and outputs out0, out1, ...

    They are exported as one graph, which is then taken apart: an export takes seconds, however small the network. Those
    that share weights take turns, for the exporter makes no BatchNorm a part of a convolution that another one needs;
    unless they are to go on sharing them.
    """
    made: dict[int, Any] = {}
    for some in [[*range(len(segments))]] if sharing else _rounds(segments):
        made |= zip(some, _together([segments[number] for number in some]), strict=True)
    return iter([made[number] for number in range(len(segments))])


def _rounds(segments: Sequence[Segment]) -> list[list[int]]:
    """Segments by their places, none of which shares weights with another one of its round."""
    rounds: list[tuple[list[int], set[object]]] = []
    for number, segment in enumerate(segments):
        own: set[object] = {id(tensor) for tensor in (*segment.module.parameters(), *segment.module.buffers())}
        own |= set(segment.copied)
        for some, known in rounds:
            if known.isdisjoint(own):
                some.append(number)
                known |= own
                break
        else:
            rounds.append(([number], own))
    return [some for some, _ in rounds]


def _together(segments: Sequence[Segment]) -> Iterator[Any]:
    ends = {
        kind: [[f"{number}/{kind}{i}" for i in range(len(ends))] for number, ends in enumerate(every)]
        for kind, every in (("in", [s.example for s in segments]), ("out", [s.outputs for s in segments]))
    }
    # A batch for each: of one batch, the exporter would have one segment read its size from another one's input.
    batches = [{0: torch.export.Dim(f"batch{number}")} for number in range(len(segments))]
    shapes = tuple(
        tuple(batch if batched else None for batched in segment.batched)
        for batch, segment in zip(batches, segments, strict=True)
    )
    # Copies of their own memory: of two views of one tensor torch.export would make one input.
    examples = tuple(tuple(x.clone() for x in segment.example) for segment in segments)
    inputs, outputs = ([name for names in ends[kind] for name in names] for kind in ("in", "out"))
    with quiet(), torch.no_grad():
        whole = onnx_program(_Together(segments).eval(), examples, (shapes,), inputs, outputs).model_proto
    found = [value.name for value in whole.graph.input], [value.name for value in whole.graph.output]
    if found != (inputs, outputs):
        raise ValueError(f"the segments were exported with inputs {found[0]} and outputs {found[1]}")
    for number, segment in enumerate(segments):
        yield _part(whole, segment.name, f"{number}/", ends["in"][number], ends["out"][number])


def _part(whole: Any, name: str, prefix: str, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """What gives some outputs from some inputs, whose names lose a prefix."""
    import onnx

    makers = {made: node for node in whole.graph.node for made in node.output}
    needed, left = set(), [*outputs]
    while left:
        one = left.pop()
        if one not in needed:
            needed.add(one)
            left += [given for inner in _nodes(makers[one]) for given in inner.input] if one in makers else []
    if strangers := {value.name for value in whole.graph.input} & needed - {*inputs}:
        raise ValueError(f"{name} was exported with inputs of other segments: {sorted(strangers)}")
    part = onnx.ModelProto(ir_version=whole.ir_version, producer_name=whole.producer_name)
    part.opset_import.extend(whole.opset_import)
    part.functions.extend(whole.functions)
    graph = part.graph
    graph.name = name
    graph.node.extend(node for node in whole.graph.node if needed & {*node.output})
    graph.initializer.extend(tensor for tensor in whole.graph.initializer if tensor.name in needed)
    graph.value_info.extend(value for value in whole.graph.value_info if value.name in needed)
    graph.input.extend(value for value in whole.graph.input if value.name in inputs)
    graph.output.extend(value for value in whole.graph.output if value.name in outputs)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = value.name.removeprefix(prefix)
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == f"batch{prefix[:-1]}":
                dim.dim_param = "batch"
    for node in graph.node:
        for inner in _nodes(node):
            for side in (inner.input, inner.output):
                side[:] = [one.removeprefix(prefix) for one in side]
    return part


def _nodes(node: Any) -> Iterator[Any]:
    """A node, and those in its branches and loops, which may read what lies outside."""
    yield node
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _nodes(inner)


def write_graph(graph: Any, path: Path, weights: Weights) -> None:
    """Write a graph, and its large tensors to the file of weights."""
    import onnx

    for tensor in graph.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.nbytes >= _INSIDE:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))  # whatever it was written as
            onnx.external_data_helper.set_external_data(tensor, WEIGHTS, weights.put(array.tobytes()), array.nbytes)
            tensor.ClearField("raw_data")
    path.write_bytes(graph.SerializeToString(deterministic=True))


def checked_batches(segments: Sequence[Segment], batch: int) -> None:
    """Refuse segments whose features have no batch in front, before anything is written.

    Raises:
        ValueError: naming the segment.
    """
    for segment in segments:
        for tensor in segment.outputs:
            kind = str(tensor.dtype).removeprefix("torch.")
            sized = tensor.ndim > 0 and len(tensor) == batch and math.prod(tensor.shape) > 0
            if not sized or kind not in ("float32", *TYPES):
                raise ValueError(
                    f"{segment.name} gives {kind} {tuple(tensor.shape)}, and not float32 or whole numbers with {batch} "
                    "examples in front, as what passes between segments must be"
                )
