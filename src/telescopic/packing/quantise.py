"""How the segments of a pack become int8, by ONNX Runtime's static quantisation.

The weights of convolutions and matrix products become int8, with a scale for each channel of output. They take 7 bits:
without VNNI an x86 processor adds two products in 16 bits, where 8 would overflow. What goes into them becomes uint8,
and so does what comes out of convolutions, with a scale for each tensor: from the smallest to the largest value that
was seen there, with all members run, but not in examples that go far beyond the others. The output of a matrix product
stays float32, for it may be the logits. Sums and concatenations of feature maps are int8; those of anything flat, such
as the logits of several widths, are not. Between segments feature maps are passed on as uint8, with one scale for all
that write or read them; where a segment does not quantise what it passes on, or has to have another scale, as behind a
pooling, they are float32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from telescopic.engine.ends import Joint, joints
from telescopic.engine.manifest import WEIGHTS, Constant, Floats, Manifest, Step
from telescopic.engine.ort.sessions import open_session
from telescopic.packing.graphs import Weights, write_graph
from telescopic.shapes import INPUT

Range = tuple[np.float32, np.float32]
"""The smallest and the largest value of a tensor."""
Extremes = tuple[Floats, Floats]
"""The smallest and the largest value in each example of a batch."""
Scale = tuple[float, int]
"""What uint8 is multiplied by, after the second number, which stands for 0, is taken away."""

BITS = 7  # of weights: 7 or 8

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_ON_THE_WAY = "Relu Clip Add Concat MaxPool AveragePool GlobalAveragePool Reshape Flatten Transpose Squeeze Unsqueeze"
_TYPES = [*_PRODUCTS, *_ON_THE_WAY.split(), "Slice", "Split"]
_ENDS = ("ReduceMin", "ReduceMax")
_FAR = 4.0
"""How many times as far as the median example another one may go, to be within a tensor's range."""


class Calibration:
    """Runs the members of a float32 pack, and notes how far the values of each tensor within its segments go.

    A segment sees what reaches it from every member: from all entries, and at all widths.

    Args:
        folder: of the pack.
        manifest: the pack's.
        constants: inputs of segments that do not depend on the batch.
        threads: within a segment.
    """

    def __init__(self, folder: Path, manifest: Manifest, constants: Mapping[str, Floats], threads: int) -> None:
        self._members, self._constants = manifest.members, constants
        self._observed = {name: _observed(folder / file, threads) for name, file in manifest.segments.items()}
        self._seen: dict[Step, dict[str, list[Extremes]]] = {}

    def see(self, x: Floats) -> None:
        """Run all members on inputs `[batch, ...]`."""
        for entry in dict.fromkeys(member.subnet.entry for member in self._members):
            known: dict[str, Floats] = {INPUT: x, **self._constants}
            done: set[Step] = set()  # members of one entry share steps, as they do in the engine
            for member in self._members:
                if member.subnet.entry == entry:
                    for step in member.chain:
                        if step not in done:
                            known.update(zip(step.outputs, self._run(step, known), strict=True))
                            done.add(step)

    @property
    def ranges(self) -> dict[str, dict[str, Range]]:
        """Segment → tensor → its range: of all steps that run the segment, each with its own idea of what is far."""
        found: dict[str, dict[str, Range]] = {name: {} for name in self._observed}
        for step, seen in self._seen.items():
            ranges = found[step.segment]
            for tensor, extremes in seen.items():
                low, high = _usual(*(np.concatenate(ends) for ends in zip(*extremes, strict=True)))
                before = ranges.get(tensor, (low, high))
                ranges[tensor] = min(before[0], low), max(before[1], high)
        return found

    def _run(self, step: Step, known: Mapping[str, Floats]) -> list[Floats]:
        session, tensors = self._observed[step.segment]
        outputs = [f"out{number}" for number in range(len(step.outputs))]
        ends = [f"{tensor}_{end}" for tensor in tensors for end in _ENDS]
        feeds = {f"in{number}": known[name] for number, name in enumerate(step.inputs)}
        values = session.run([*outputs, *ends], feeds)
        extremes = [np.atleast_1d(value) for value in values[len(outputs) :]]
        if not all(np.isfinite(one).all() for one in extremes):
            raise ValueError(f"segment {step.segment} computes what is no finite number, so it cannot become int8")
        for tensor, low, high in zip(tensors, extremes[::2], extremes[1::2], strict=True):
            self._seen.setdefault(step, {}).setdefault(tensor, []).append((low, high))
        return list(values[: len(outputs)])


def _usual(lows: Floats, highs: Floats) -> Range:
    """The range of a tensor, without the examples that go far beyond the median one: they would have all the scale."""
    furthest = np.maximum(np.abs(lows), np.abs(highs))
    typical = np.median(furthest[furthest > 0]) if furthest.any() else 0.0
    near = furthest <= _FAR * typical
    return lows[near].min(), highs[near].max()


def quantise(
    plain: Path,
    manifest: Manifest,
    found: Mapping[str, Mapping[str, Range]],
    constants: Mapping[str, Floats],
    folder: Path,
    report: Callable[[int, int], None],
) -> Manifest:
    """Write the segments of a pack again, as int8, with their weights.

    Args:
        plain: folder of the float32 pack.
        manifest: its manifest.
        found: segment → tensor → its range.
        constants: inputs of segments that do not depend on the batch; they stay float32.
        folder: where to write.
        report: called with the number of segments written, and of all.

    Returns:
        The manifest of what was written, still with the accuracy of float32.
    """
    with (folder / WEIGHTS).open("wb") as opened:
        weights = Weights(opened)
        between = joints(manifest, lambda name: True)
        ranges = _agreed(found, between)
        graphs = {}
        for number, (name, file) in enumerate(manifest.segments.items()):
            graphs[name] = _quantised(plain / file, ranges[name])
            report(number + 1, len(manifest.segments))
        uint8 = _passed(graphs, between)
        for name, file in manifest.segments.items():
            write_graph(graphs[name], folder / file, weights)
        places = {name: Constant(weights.put(value.tobytes()), value.shape) for name, value in constants.items()}
    return replace(manifest, precision="int8", constants=places, uint8=frozenset(uint8))


def _agreed(ranges: Mapping[str, Mapping[str, Range]], between: Sequence[Joint]) -> dict[str, dict[str, Range]]:
    """Ranges in which what segments pass on has one range, for whoever writes or reads it."""
    agreed = {name: dict(found) for name, found in ranges.items()}
    for joint in between:
        known = [end for end in joint.ends if end.name in agreed[end.segment]]
        seen = [agreed[end.segment][end.name] for end in known]
        for end in known:
            agreed[end.segment][end.name] = min(low for low, _ in seen), max(high for _, high in seen)
    return agreed


def _passed(graphs: Mapping[str, Any], between: Sequence[Joint]) -> tuple[str, ...]:
    """Let segments pass on uint8 where all who write and quantise it do so alike, and say which tensors these are."""
    passed: set[str] = set()
    for joint in between:
        scales = {scale for end in joint.ends for scale in _scales(graphs[end.segment].graph, end.name)}
        if len(scales) == 1 and (scale := scales.pop()):
            for end in joint.ends:
                _cut(graphs[end.segment].graph, end.name, scale)
            passed |= joint.tensors
    return tuple(sorted(passed))


def _observed(path: Path, threads: int) -> tuple[Any, list[str]]:
    """A session of a graph that also gives the extremes of its tensors, example by example; and which tensors."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    values = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    stored = {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node if node.op_type in _TYPES for name in (*node.input, *node.output)}
    tensors = sorted(name for name in used & values.keys() - stored if values[name].elem_type == TensorProto.FLOAT)
    for name in tensors:
        sizes = values[name].shape.dim
        batched = bool(sizes) and not sizes[0].HasField("dim_value")  # others are made of constants alone
        axes = np.arange(batched, len(sizes), dtype=np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(axes, f"{name}_axes"))
        for end in _ENDS:
            reads, makes = [name, f"{name}_axes"], [f"{name}_{end}"]
            graph.node.append(helper.make_node(end, reads, makes, keepdims=0, noop_with_empty_axes=1))
            graph.output.append(helper.make_tensor_value_info(makes[0], TensorProto.FLOAT, None))
    return open_session(model.SerializeToString(), threads, weights=path.parent), tensors


def _quantised(path: Path, ranges: Mapping[str, Range]) -> Any:
    """A segment's graph with the weights in it, as int8."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    graph = onnx.shape_inference.infer_shapes(onnx.load(path))
    if not any(node.op_type in _PRODUCTS for node in graph.graph.node):
        return graph
    values = (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    flat = [n.name for n in graph.graph.node if n.op_type not in _PRODUCTS and rank.get(n.output[0], 0) < 3]
    quantizer = QDQQuantizer(
        graph,
        per_channel=True,
        reduce_range=BITS == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,  # of int8, ONNX Runtime fuses less on x86
        tensors_range=TensorsData(CalibrationMethod.MinMax, dict(ranges)),
        nodes_to_quantize=[],
        nodes_to_exclude=flat,
        op_types_to_quantize=_TYPES,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    )
    quantizer.quantize_model()
    _give_outputs_alone(quantizer.model.model.graph)
    quantizer.model.topological_sort()
    return quantizer.model.model


def _scales(graph: Any, end: str) -> list[Scale | None]:
    """By what an input is quantised, or from what an output is made float32 again; None where that is not so."""
    import onnx

    values = {tensor.name: tensor for tensor in graph.initializer}

    def scale(node: Any) -> Scale | None:
        found = [onnx.numpy_helper.to_array(values[name]) for name in node.input[1:] if name in values]
        if len(found) != 2 or found[0].size != 1 or found[1].dtype != np.uint8:
            return None
        return float(found[0]), int(found[1])

    if end.startswith("in"):
        return [scale(node) for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == end]
    undone = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    sources = [undone[value.name].input[0] for value in graph.output if value.name in undone]
    if end not in undone or sources.count(undone[end].input[0]) > 1:  # of two names for one tensor neither is cut
        return [None]
    return [scale(undone[end])]


def _cut(graph: Any, end: str, scale: Scale) -> None:
    """Make an end uint8: take off the nodes that quantise it there, and give readers of float32 one that undoes it."""
    import onnx

    begins = end.startswith("in")
    kind, place = ("QuantizeLinear", "input") if begins else ("DequantizeLinear", "output")
    beside = [node for node in graph.node if end in getattr(node, place)]
    floats = [node for node in beside if node.op_type != kind]
    if floats:
        names = [f"{end}_passed_scale", f"{end}_passed_zero"]
        for name, value in zip(names, (np.float32(scale[0]), np.uint8(scale[1])), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        undo = onnx.helper.make_node("DequantizeLinear", [end, *names], [f"{end}_float"], f"{end}_passed")
        for node in floats:
            node.input[:] = [f"{end}_float" if name == end else name for name in node.input]
        graph.node.insert(0, undo)
    inside = {(node.output if begins else node.input)[0] for node in beside if node.op_type == kind}
    for node in [node for node in beside if node.op_type == kind]:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [end if name in inside else name for name in node.input]
        node.output[:] = [end if name in inside else name for name in node.output]
    for value in graph.input if begins else graph.output:
        if value.name == end:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8


def _give_outputs_alone(graph: Any) -> None:
    """Let no node read an output of the graph: ONNX Runtime would not fuse it, and compute it in float32."""
    outputs = {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] in outputs]:
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        if readers:
            inside = graph.node.add()
            inside.CopyFrom(node)
            inside.name, inside.output[0] = f"{node.name}_inside", f"{node.output[0]}_inside"
            for reader in readers:
                reader.input[:] = [inside.output[0] if name == node.output[0] else name for name in reader.input]
