"""Graphs of a pack, looked at before anything opens them: a library that runs them does what they say. No torch.

A graph may loop without end, call itself by functions, name files of this machine as its weights, or make of nothing a
tensor larger than memory. None of that is in a pack. So a graph has operators of a list, weights in the pack's own
file, and tensors whose sizes follow from its text and grow with the batch as it does, and are bounded.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from telescopic.documents import printable
from telescopic.engine.manifest import WEIGHTS, Manifest, PackError

_LONGEST = 2**22  # bytes of a graph, whose weights lie elsewhere
_NODES = 10_000  # of a graph
# Numbers of a tensor that is computed to know sizes; how many are computed, and how often sizes are asked for then.
_SMALL, _COMPUTATIONS, _ROUNDS = 2**12, 2000, 8
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
_WHOLE = frozenset(_KINDS.values()) - {_KINDS["float32"]}
OPERATORS = frozenset(_NAMES.split())
# Operators that compute sizes → how many of their inputs, from the first, may depend on the batch.
_OF_SIZES = dict.fromkeys(("Add", "Concat", "Mul", "Sub"), _NODES) | {"Range": 0}
_OF_SIZES |= dict.fromkeys(("Cast", "Div", "Gather", "Reshape", "Slice", "Squeeze", "Unsqueeze"), 1)
# Operators → which of their inputs may depend on the batch, where onnx finds a tensor's size by it.
_SIZED_BY = {"ConstantOfShape": 0, "Expand": 1, "Range": 1, "Reshape": 1, "Slice": 2, "Tile": 1}
# Examples for which sizes are found. Each length is the same in all three, or in proportion to them: so it is for
# others, for what computes a length from the batch's is a line by `_computed`, and what operators make of one another's
# lengths are products and quotients. The last is more than anyone asks for, so that nothing is divided until it is 1.
_BATCHES = (1, 2, 2**16 + 1)
_FAR = 2**42  # in a number that depends on the batch, so that none overflows


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
                _check_sizes(model, inputs, outputs, manifest)
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


def _types(names: tuple[str, ...], manifest: Manifest, batch: int) -> list[tuple[int, tuple[int, ...]]]:
    """Of tensors: ONNX's number of the type, and shape."""
    found = []
    for name in names:
        constant = manifest.constants.get(name)
        shape = (batch, *manifest.tensors[name]) if constant is None else constant.shape
        found.append((_KINDS[manifest.dtype(name)], shape))
    return found


def _check_sizes(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], manifest: Manifest) -> None:
    """Every tensor's size follows from the text and from the batch, and the ends are what the manifest says."""
    graphs = [_begun(model, _types(inputs, manifest, batch), len(outputs)) for batch in _BATCHES]
    told: list[dict[str, Any]] = [{} for _ in graphs]
    for _ in range(_ROUNDS):
        if not _compute(graphs, told) and told[0]:
            break
        told = [_inferred(graph) for graph in graphs]
        if all(_is_known(value) for values in told for value in values.values()):
            break
    makers = {name: node.op_type for node in graphs[0].graph.node for name in node.output if name}
    if missing := makers.keys() - told[0].keys():
        raise ValueError(f"its tensors are not bounded: the size of {min(missing)!r:.50}")
    sizes = {name: [_lengths(name, values.get(name)) for values in told] for name in told[0]}
    _check_uses(graphs, told)
    for name, lengths in sizes.items():
        _check_growth(name, lengths, may_be_empty=makers.get(name) == "Constant")
    if sum(math.prod(lengths[0]) for lengths in sizes.values()) > _ALL:
        raise ValueError(f"its tensors are not bounded: all of at most {_ALL:,} numbers")
    for batch, graph, values in zip(_BATCHES, graphs, told, strict=True):
        for value, (kind, shape) in zip(graph.graph.output, _types(outputs, manifest, batch), strict=True):
            tensor = values[value.name].type.tensor_type
            if tensor.elem_type != kind or tuple(dim.dim_value for dim in tensor.shape.dim) != shape:
                raise ValueError(f"{value.name} is not of the type and shape that the manifest says, {list(shape)}")


def _check_uses(graphs: Sequence[Any], told: Sequence[dict[str, Any]]) -> None:
    """What depends on the batch is used where it makes straight lengths, so that three batches tell of all others.

    A length may be the same for these three alone: of what lies between a start and an end that move past each other,
    or of every second place of what grows first and shrinks then.
    """
    numbers = _numbers(graphs)
    varying = {name for name, values in numbers.items() if _varies(values)}
    whole = _with_inputs(graphs, told)
    growing = {
        name: [one != two for one, two in zip(*(_lengths(name, values[name]) for values in whole[:2]), strict=True)]
        for name in whole[0]
    }
    for node in graphs[0].graph.node:
        fine = {place for place, name in enumerate(node.input) if name in varying} <= {_SIZED_BY.get(node.op_type)}
        if fine and node.op_type == "Slice" and len(node.input) > 1:
            fine = _cuts_straight(node, numbers, growing.get(node.input[0]))
        if not fine:
            raise ValueError(
                f"its tensors are not bounded: what {node.op_type} makes depends on the number of examples"
            )


def _cuts_straight(node: Any, numbers: dict[str, list[Any]], growing: list[bool] | None) -> bool:
    """Whether a slice is as long as a straight line says wherever the batch moves its end, or what it is cut from."""
    given = [numbers.get(name) for name in node.input[1:] if name]
    if any(one is None for one in given):
        return False
    known = {place: numbers[name] for place, name in enumerate(node.input[1:]) if name}
    number = known[0][0].size
    axes, steps = known.get(2, [np.arange(number)])[0], known.get(3, [np.ones(number, np.int64)])[0]
    if any(one.size != number for one in (*known[1], axes, steps)):
        return False
    ends = zip(*(one.flat for one in known[1]), strict=True)
    for start, end, axis, step in zip(known[0][0].flat, ends, axes.flat, steps.flat, strict=True):
        if len({*end}) > 1 and (step != 1 or min(start, *end) < 0):
            return False
        if growing is not None and (not -len(growing) <= axis < len(growing) or (growing[axis] and abs(step) != 1)):
            return False
    return True


def _check_growth(name: str, lengths: list[list[int]], *, may_be_empty: bool) -> None:
    """A tensor is small for one example, and no more than so many times as large for so many."""
    one, two, _ = lengths
    if math.prod(one) > _LARGEST:
        raise ValueError(f"{name!r:.50} is of shape {one!s:.100}, larger than any network's")
    straight = all(
        of_each in ((of_each[0],) * 3, tuple(of_each[0] * batch for batch in _BATCHES))
        for of_each in zip(*lengths, strict=True)
    )
    growing = sum(ours != others for ours, others in zip(one, two, strict=True))
    # What is empty for one, two and many may be anything for a number between.
    if not straight or growing > 1 or (0 in one and not may_be_empty):
        raise ValueError(f"{name!r:.50} is of shape {one!s:.100} for one example, and {two!s:.100} for two")


def _begun(model: Any, given: list[tuple[int, tuple[int, ...]]], outputs: int) -> Any:
    """The model with inputs of one batch, and nothing else that it says of sizes."""
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
    if [value.name for value in graph.output] != [f"out{number}" for number in range(outputs)]:
        raise ValueError(f"the manifest says that it has {outputs} outputs, out0 and so on")
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    return plain


def _inferred(model: Any) -> dict[str, Any]:
    """What onnx knows of every tensor that a node makes. What is computed of sizes it leaves to us."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=False).graph
    except Exception as error:  # of many kinds
        raise ValueError(f"its sizes do not follow from its text ({error!s:.200})") from error
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _compute(models: Sequence[Any], told: Sequence[dict[str, Any]]) -> bool:
    """Put numbers in the place of nodes that compute sizes from sizes; whether there are any."""
    import onnx

    graphs = [model.graph for model in models]
    whole = _with_inputs(models, told)
    known = _numbers(models)
    left, found, number, ends = [], False, 0, {value.name for value in graphs[0].output}
    for node in [*graphs[0].node]:
        made: list[Any] | None = None
        if node.op_type == "Shape" and all(_is_known(values.get(node.input[0])) for values in whole):
            at = {attribute.name: attribute.i for attribute in node.attribute}
            lengths = [_lengths("", values[node.input[0]])[at.get("start") : at.get("end")] for values in whole]
            made = [np.array(each, np.int64) for each in lengths]
        elif node.op_type == "Constant" and all(each.ints or _is_small(each.t) for each in node.attribute):
            made = _computed(node, [])
        elif node.op_type in _OF_SIZES and all(name in known for name in node.input):
            number += 1
            if number > _COMPUTATIONS:
                raise ValueError(f"its sizes do not follow within {_COMPUTATIONS} computations")
            made = _computed(node, [known[name] for name in node.input])
        if made is None or node.output[0] in ends:
            left.append(node)
            continue
        known[node.output[0]], found = made, True
        for graph, value in zip(graphs, made, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(value, node.output[0]))
    for graph in graphs:
        del graph.node[:]
        graph.node.extend(left)
    return found


def _with_inputs(models: Sequence[Any], told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is known of every tensor that a node reads, for each batch."""
    given = [{value.name: value for value in model.graph.input} for model in models]
    return [inputs | values for inputs, values in zip(given, told, strict=True)]


def _numbers(models: Sequence[Any]) -> dict[str, list[Any]]:
    """Whole numbers that are known, for each batch."""
    import onnx

    return {
        tensors[0].name: [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
        for tensors in zip(*(model.graph.initializer for model in models), strict=True)
        if _is_small(tensors[0])
    }


def _varies(values: Sequence[Any]) -> bool:
    return any(not np.array_equal(values[0], other) for other in values[1:])


def _is_small(tensor: Any) -> bool:
    """Whether it is whole numbers, of which sizes may be computed."""
    return tensor.data_type in _WHOLE and not tensor.data_location and math.prod(tensor.dims) <= _SMALL


def _computed(node: Any, given: list[list[Any]]) -> list[Any] | None:
    """What a node makes of whole numbers, for each batch; None if that is too much, or cannot be.

    What is the same for all batches may come to anything. What is not must stay a line, a + b · batch: then it is one
    for every batch, and whether it is shows in three.
    """
    vary = [_varies(one) for one in given]
    if not any(vary):
        once = _evaluated(node, [one[0] for one in given])
        return None if once is None else [once] * len(_BATCHES)
    if any(vary[_OF_SIZES[node.op_type] :]) or any(one.dtype != np.int64 for each in given for one in each):
        return None
    rows = [*zip(*given, strict=True)]
    for row in rows:
        largest = [max((abs(int(number)) for number in one.flat), default=0) for one in row]
        far = max(most for most, varies in zip(largest, vary, strict=True) if varies)
        if max(far, math.prod(largest) if node.op_type == "Mul" else 0) > _FAR:
            return None
        if node.op_type == "Div" and (not row[1].all() or (row[0] % row[1]).any()):
            return None
    made = [_evaluated(node, row) for row in rows]
    first, second, last = made
    if first is None or second is None or last is None or not first.shape == second.shape == last.shape:
        return None
    straight = (second - first) * (_BATCHES[2] - _BATCHES[0]) == (last - first) * (_BATCHES[1] - _BATCHES[0])
    return made if straight.all() and first.dtype == np.int64 else None


def _evaluated(node: Any, given: Sequence[Any]) -> Any:
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


def _lengths(name: str, value: Any) -> list[int]:
    if not _is_known(value):
        raise ValueError(f"the size of {name!r:.50} does not follow from its text")
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
