"""Feature maps that pass from segment to segment in the order that the processor likes. No torch.

ONNX Runtime's convolutions want their feature maps in blocks of 8 or 16 channels. A graph brings what it is given into
that order, and what it gives back again; so a chain of segments would do between any two of them, and sums with what
was given would not be computed along with a convolution. Therefore each end of a segment is marked, before ONNX Runtime
optimises it, with a pooling of 1 × 1, which changes no number and which is computed in blocks. Afterwards the mark and
the change of order beside it are cut off: what is passed on is in blocks already. All segments that write or read one
tensor have to agree, so the ends of a tensor are treated alike.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from telescopic.engine.ends import End
from telescopic.engine.ends import joints as all_joints
from telescopic.engine.manifest import Manifest

_BLOCK = 16  # channels; tensors whose number is no multiple would have holes
_NEVER_IN_BLOCKS = ("Pad", "Reshape", "Slice")
_MARK = "__mark"


def joints(manifest: Manifest) -> list[frozenset[End]]:
    """Sets of ends that have their tensors all in blocks or none: feature maps of float32 between segments only."""

    def fits(name: str) -> bool:
        shape = manifest.tensors[name]
        return len(shape) == 3 and shape[0] % _BLOCK == 0 and manifest.dtype(name) == "float32"

    return [joint.ends for joint in all_joints(manifest, fits)]


def agree(manifest: Manifest, optimise: Callable[[str, frozenset[str]], Mapping[str, float]]) -> None:
    """Optimise all segments, with those ends in blocks that save more changes of order than they cost.

    Args:
        manifest: the pack's.
        optimise: given a segment and those of its ends that are to be in blocks, optimises it, and returns what each
            saves, as `cut` does. It is called again with fewer if some should not be.
    """
    sets, todo = joints(manifest), {*manifest.segments}
    saved: dict[End, float] = {}
    while todo:
        wanted = {name: frozenset(end.name for ends in sets for end in ends if end.segment == name) for name in todo}
        for segment, names in wanted.items():
            saved |= {End(segment, name): saves for name, saves in optimise(segment, names).items()}
        bad = [ends for ends in sets if sum(saved[end] for end in ends) <= 0]
        todo = {end.segment for ends in bad for end in ends}
        sets = [ends for ends in sets if ends not in bad]


def mark(graph: Any, ends: frozenset[str]) -> None:
    """Put marks at some ends of an ONNX graph, and where a sum reads what is never in blocks: a padded shortcut.

    Without a mark there neither this sum would be computed in blocks nor any that comes after it.

    Args:
        graph: the `GraphProto`, which is changed.
        ends: names of inputs and outputs.
    """
    from onnx import helper

    sizes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    never = {name for node in graph.node if node.op_type in _NEVER_IN_BLOCKS for name in node.output}
    inner = {name for node in graph.node if node.op_type == "Add" for name in node.input if name in never}
    inner = {name for name in inner if len(size := sizes.get(name, [])) == 4 and size[1] and size[1] % _BLOCK == 0}
    before = [_pooling(helper, name, name + _MARK) for name in sorted(ends) if name.startswith("in")]
    after = [_pooling(helper, name + _MARK, name) for name in sorted(ends) if name.startswith("out")]
    nodes = []
    for node in graph.node:
        _rename(node.input, {name: name + _MARK for name in {*ends, *inner}})
        _rename(node.output, {name: name + _MARK for name in ends})
        nodes += [node, *(_pooling(helper, name, name + _MARK) for name in node.output if name in inner)]
    _replace(graph, [*before, *nodes, *after])


def cut(graph: Any, ends: frozenset[str]) -> dict[str, float]:
    """Cut off the marks of an optimised graph, and the changes of order beside those at its ends.

    Args:
        graph: the `GraphProto`, which is changed unless one of the ends cannot be cut.
        ends: those that were marked.

    Returns:
        How many changes of order each end saves: 1; or −1 if the graph does not use blocks there, and changes the order
        by itself now; or −∞ if the mark is not where it should be, as on a processor without convolutions in blocks.
    """
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    gone, names, saved = [], {}, {}
    for end in sorted(ends):
        begins = end.startswith("in")
        way = _way_in(end, users) if begins else _way_out(end, makers)
        inside = (way[-1].output if begins else way[-1].input)[0] if way else ""
        if not way or inside in names:
            saved[end] = -math.inf
            continue
        beyond = users.get(inside, []) if begins else [makers[inside]] * (inside in makers)
        change = "ReorderOutput" if begins else "ReorderInput"
        saved[end] = -1.0 if any(node.op_type == change for node in beyond) else 1.0
        names[inside] = end
        gone += way
    for node in graph.node:
        if _changes_nothing(node) and not any(node is one for one in gone):
            gone.append(node)
            names[node.output[0]] = names.get(node.input[0], node.input[0])
    if -math.inf not in saved.values():
        kept = [node for node in graph.node if not any(node is one for one in gone)]
        for node in kept:
            _rename(node.input, names)
            _rename(node.output, names)
        _replace(graph, kept)
    return saved


def _way_in(end: str, users: Mapping[str, list[Any]]) -> list[Any]:
    """The change of order and the mark behind an input; none if they are not the only ones who read it."""
    (change,) = first if len(first := users.get(end, [])) == 1 else [None]
    if change is None or change.op_type != "ReorderInput":
        return []
    second = users.get(change.output[0], [])
    return [change, second[0]] if len(second) == 1 and _changes_nothing(second[0]) else []


def _way_out(end: str, makers: Mapping[str, Any]) -> list[Any]:
    """The change of order and the mark before an output."""
    change = makers.get(end)
    if change is None or change.op_type != "ReorderOutput":
        return []
    second = makers.get(change.input[0])
    return [change, second] if second is not None and _changes_nothing(second) else []


def _pooling(helper: Any, given: str, made: str) -> Any:
    return helper.make_node("MaxPool", [given], [made], kernel_shape=[1, 1])


def _changes_nothing(node: Any) -> bool:
    """Whether it is a pooling of 1 × 1 in blocks, with a stride of 1."""
    if node.op_type != "MaxPool" or node.domain != "com.microsoft.nchwc":
        return False
    numbers = {attribute.name: [*attribute.ints] for attribute in node.attribute}
    still = {"kernel_shape": {1}, "strides": {1}, "pads": {0}}
    return all({*numbers.get(name, [])} <= values for name, values in still.items()) and "kernel_shape" in numbers


def _rename(names: Any, new: Mapping[str, str]) -> None:
    for place, name in enumerate(names):
        names[place] = new.get(name, name)


def _replace(graph: Any, nodes: list[Any]) -> None:
    made = [type(node).FromString(node.SerializeToString()) for node in nodes]  # those of the graph go with it
    del graph.node[:]
    graph.node.extend(made)
