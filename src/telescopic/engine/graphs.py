"""Graphs of a pack, looked at before anything opens them: a library that runs them does what they say. No torch.

A graph may loop without end, call itself by functions, name files of this machine as its weights, or make of nothing a
tensor larger than memory. None of that is in a pack. So a graph has operators of a list, weights in the pack's own
file, and tensors whose sizes follow from its text, and are bounded.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from telescopic.documents import printable
from telescopic.engine.manifest import WEIGHTS, Manifest, PackError

_LONGEST = 2**22  # bytes of a graph, whose weights lie elsewhere
_NODES = 10_000  # of a graph
# Numbers of a tensor that is computed to know sizes; how many are computed, and how often sizes are asked for then.
_SMALL, _COMPUTATIONS, _ROUNDS = 2**12, 500, 8
_LARGEST, _ALL = 2**26, 2**28  # numbers in a tensor, and in all tensors of a graph, for one example
# Without Loop, If and other graphs within graphs; without chance, lists, or sizes that depend on data.
_NAMES = """
    Abs Acos Add And ArgMax ArgMin Asin Atan Attention AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
    Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div
    Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements GatherND
    Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
    LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where
    Xor
"""
_KINDS = {"float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9}  # as ONNX numbers them
OPERATORS = frozenset(_NAMES.split())
_COMPUTED = "Add Cast Concat Div Gather Mul Range Reshape Slice Squeeze Sub Unsqueeze"
_OF_SIZES = frozenset(_COMPUTED.split())


def check_graphs(folder: Path, manifest: Manifest) -> None:
    """Look at all graphs of a pack.

    Args:
        folder: of the pack.
        manifest: the pack's.

    Raises:
        PackError: if one is not as a pack's graphs are, or has other ends than the manifest says.
        ImportError: if onnx is not installed.
    """
    ends: dict[str, set[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for member in manifest.members:
        for step in member.chain:
            ends.setdefault(step.segment, set()).add((step.inputs, step.outputs))
    for segment, file in manifest.segments.items():
        try:
            model = _read(folder / file)
            _check(model, manifest.files[WEIGHTS]["bytes"])
            for inputs, outputs in ends.get(segment, ()):
                given, made = (_types(names, manifest) for names in (inputs, outputs))
                _check_sizes(model, given, made)
        except (ValueError, OSError) as error:
            told = printable(" ".join(str(error).split()))
            raise PackError(f"{folder}: {file} is no graph of a pack: {told:.300}") from error


def _read(path: Path) -> Any:
    import onnx

    with path.open("rb") as opened:
        text = opened.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST:,} bytes")
    try:
        return onnx.load_model_from_string(text)
    except Exception as error:  # of many kinds
        raise ValueError(f"it cannot be read ({error})") from error


def _check(model: Any, weights: int) -> None:
    """What it is made of."""
    graph = model.graph
    if model.functions or graph.sparse_initializer or model.training_info:
        raise ValueError("it has functions, sparse weights or a training of its own")
    if domains := [one.domain for one in model.opset_import if one.domain not in ("", "ai.onnx")]:
        raise ValueError(f"it has operators of the domain {domains[0]!r:.50}")
    if len(graph.node) > _NODES or len(graph.initializer) > _NODES:
        raise ValueError(f"it has more than {_NODES:,} nodes or weights")
    for node in graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise ValueError(f"it has the operator {node.op_type!r:.50}, which no pack has")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.sparse_tensors or attribute.ref_attr_name:
                raise ValueError(f"operator {node.op_type} has a graph within")
            _check_tensor(attribute.t, 0)
            for tensor in attribute.tensors:
                _check_tensor(tensor, 0)
    for tensor in graph.initializer:
        _check_tensor(tensor, weights)


def _check_tensor(tensor: Any, weights: int) -> None:
    """Weights lie in the pack's own file, whole."""
    size = math.prod(tensor.dims)
    if size > _LARGEST or any(length < 0 for length in tensor.dims):
        raise ValueError(f"weights {tensor.name!r:.50} are of shape {list(tensor.dims)!s:.50}")
    place = {entry.key: entry.value for entry in tensor.external_data}
    if place:
        offset, length = (place.get(key, "") for key in ("offset", "length"))
        if place.get("location") != WEIGHTS or not (offset.isdecimal() and length.isdecimal()):
            raise ValueError(f"weights {tensor.name!r:.50} lie in {place.get('location')!r:.50}, not in {WEIGHTS}")
        if len(offset) + len(length) > 30 or int(offset) + int(length) > weights:
            raise ValueError(f"weights {tensor.name!r:.50} end behind the end of {WEIGHTS}")


def _types(names: tuple[str, ...], manifest: Manifest) -> list[tuple[int, tuple[int, ...]]]:
    """Of tensors: ONNX's number of the type, and shape for one example."""
    found = []
    for name in names:
        constant = manifest.constants.get(name)
        shape = (1, *manifest.tensors[name]) if constant is None else constant.shape
        found.append((_KINDS[manifest.dtype(name)], shape))
    return found


def _check_sizes(model: Any, given: list[tuple[int, tuple[int, ...]]], made: list[tuple[int, tuple[int, ...]]]) -> None:
    """Every tensor's size follows from the text, and the ends are what the manifest says."""
    import onnx

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    del graph.value_info[:]
    weights = {tensor.name for tensor in graph.initializer}
    whole = {value.name: value for value in graph.input if value.name not in weights}
    if whole.keys() != {f"in{number}" for number in range(len(given))}:
        raise ValueError(f"its inputs are {sorted(whole)!s:.100}, and the manifest says {len(given)}")
    for number, (kind, shape) in enumerate(given):
        tensor = whole[f"in{number}"].type.tensor_type
        told = [dim.dim_value or None for dim in tensor.shape.dim]
        if (
            tensor.elem_type != kind
            or len(told) != len(shape)
            or any(known not in (None, length) for known, length in zip(told, shape, strict=True))
        ):
            raise ValueError(f"in{number} is not of the type and shape that the manifest says, {list(shape)}")
        for dim, length in zip(tensor.shape.dim, shape, strict=True):
            dim.dim_value = length
    if [value.name for value in graph.output] != [f"out{number}" for number in range(len(made))]:
        raise ValueError(f"the manifest says that it has {len(made)} outputs, out0 and so on")
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for _ in range(_ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(plain, check_type=True, strict_mode=True, data_prop=True).graph
        except Exception as error:  # of many kinds
            raise ValueError(f"its sizes do not follow from its text ({error!s:.200})") from error
        values = {value.name: value for value in (*inferred.value_info, *inferred.output)}
        if all(map(_is_known, values.values())) or not _compute(graph, {**whole, **values}):
            break
    sizes = {name: _size(value) for name, value in values.items()}
    missing = [name for node in graph.node for name in node.output if name and name not in sizes]
    if missing or sum(sizes.values()) > _ALL:
        what = f"the size of {missing[0]!r:.50}" if missing else f"all of at most {_ALL:,} numbers"
        raise ValueError(f"its tensors are not bounded: {what}")
    for value, (kind, shape) in zip(inferred.output, made, strict=True):
        tensor = value.type.tensor_type
        if tensor.elem_type != kind or tuple(dim.dim_value for dim in tensor.shape.dim) != shape:
            raise ValueError(f"{value.name} is not of the type and shape that the manifest says, {list(shape)}")


def _compute(graph: Any, values: dict[str, Any]) -> bool:
    """Put numbers in the place of nodes that compute sizes from sizes; whether there are any."""
    import onnx

    kinds = {number for name, number in _KINDS.items() if name != "float32"}
    ours = (tensor for tensor in graph.initializer if tensor.data_type in kinds and not tensor.data_location)
    small = (tensor for tensor in ours if math.prod(tensor.dims) <= _SMALL)
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small}
    left, found, number, ends = [], False, 0, {value.name for value in graph.output}
    for node in graph.node:
        made: Any = None
        if node.op_type == "Shape" and _is_known(values.get(node.input[0])):
            ends_at = {attribute.name: attribute.i for attribute in node.attribute}
            dims = [dim.dim_value for dim in values[node.input[0]].type.tensor_type.shape.dim]
            made = np.array(dims[ends_at.get("start") : ends_at.get("end")], np.int64)
        elif node.op_type in _OF_SIZES and all(name in known for name in node.input):
            made = _computed(node, [known[name] for name in node.input])
            number += 1
            if number > _COMPUTATIONS:
                return False
        if made is None or node.output[0] in ends:
            left.append(node)
            continue
        known[node.output[0]], found = made, True
        graph.initializer.append(onnx.numpy_helper.from_array(made, node.output[0]))
    del graph.node[:]
    graph.node.extend(left)
    return found


def _computed(node: Any, given: list[Any]) -> Any:
    """What a node makes of whole numbers; None if that is too much, or cannot be."""
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Range":
        start, limit, step = (int(one.flat[0]) if one.size else 0 for one in given)
        most: float = abs((limit - start) / step) if step else math.inf
    else:
        most = math.prod(max(one.size, 1) for one in given)  # as when each is put beside each
    if most > 256 * _SMALL or (node.op_type == "Range" and most > _SMALL):
        return None
    try:
        (made,) = ReferenceEvaluator(node).run(None, dict(zip(node.input, given, strict=True)))
    except Exception:  # of many kinds; then its size is not known
        return None
    return made if isinstance(made, np.ndarray) and made.size <= _SMALL and made.dtype.kind in "bi" else None


def _is_known(value: Any) -> bool:
    """Whether a tensor's size is told."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in value.type.tensor_type.shape.dim)


def _size(value: Any) -> int:
    tensor = value.type.tensor_type
    lengths = [dim.dim_value for dim in tensor.shape.dim]
    if not _is_known(value):
        raise ValueError(f"the size of {value.name!r:.50} does not follow from its text")
    size: int = math.prod(lengths)
    if size > _LARGEST:
        raise ValueError(f"{value.name!r:.50} is of shape {lengths!s:.100}, larger than any network's")
    return size
