"""Members' chains of segments joined to single graphs. No torch.

A pack has segments so that each weight is there once, and so that a refinement goes on where the last answer ended. To
run one member it is faster to have its chain as one graph: the backend is called once, and feature maps have the same
few places in memory again and again. Where weights are mapped from a file this costs a session for each member and no
second copy of the weights. Where they are copied, such as in ONNX Runtime's kernels for large matrix products, segments
stand alone, and one session serves all members.
"""

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from telescopic.engine.manifest import Chain, Manifest, Step, Way


def join(
    manifest: Manifest, folder: Path, ways: Sequence[Way], stands_alone: Callable[[Any], bool]
) -> tuple[dict[str, bytes], list[Way]]:
    """Graphs for each run of segments that may be joined.

    Args:
        manifest: the pack's.
        folder: with the graphs of all segments.
        ways: members that answer one after the other, each from what those before it have left; or one alone.
        stands_alone: which graphs are not to be joined.

    Returns:
        Names of joined graphs → what would stand in their files in that folder; and the members of each way, with
        chains in which these names stand for segments, and without what those before them have done.

    Raises:
        ImportError: if onnx is not installed.
        OSError: if a graph cannot be read.
    """
    import onnx

    def load(file: str) -> Any:
        try:
            return onnx.load(folder / file, load_external_data=False)
        except Exception as error:  # of many kinds
            raise OSError(f"{file} cannot be read: {error}") from error

    used = dict.fromkeys(step.segment for way in ways for member in way for step in member.chain)
    models = {name: load(manifest.segments[name]) for name in used}
    alone = {name for name, model in models.items() if stands_alone(model) or _has_graphs(model)}
    graphs: dict[str, bytes] = {}
    found: list[Way] = []
    for way in ways:
        wanted = {member.logits for member in way}
        chains: list[list[Step]] = [[] for _ in way]
        for place, steps in reversed(_pieces(way, alone)):
            if len(steps) > 1:
                step = _joined(steps, wanted)
                if step.segment not in graphs:
                    graphs[step.segment] = _graph(models, steps, step).SerializeToString()
                chains[place].insert(0, step)
            else:
                chains[place].insert(0, *steps)
            wanted |= {name for step in steps for name in step.inputs}
        left = zip(way, chains, strict=True)
        found.append(tuple(replace(member, chain=tuple(chain)) for member, chain in left))
    return graphs, found


def _pieces(way: Way, alone: Container[str]) -> list[tuple[int, Chain]]:
    """What is run along a way: place of the member, and steps that may be joined or one that may not."""
    pieces: list[tuple[int, Chain]] = []
    done: set[Step] = set()
    for place, member in enumerate(way):
        left = [step for step in member.chain if step not in done]
        done |= {*left}
        for by_itself, found in groupby(left, lambda step: step.segment in alone):
            steps = tuple(found)
            pieces += [(place, (step,)) for step in steps] if by_itself else [(place, steps)]
    return pieces


def _joined(steps: Chain, wanted: Container[str]) -> Step:
    """Steps as one, of which some tensors are wanted; equal ones have the same name."""
    written = tuple(name for step in steps for name in step.outputs)
    inputs = tuple(dict.fromkeys(name for step in steps for name in step.inputs if name not in written))
    outputs = tuple(name for name in written if name in wanted)
    return Step(hashlib.sha256(repr((steps, outputs)).encode()).hexdigest()[:16], inputs, outputs)


def _has_graphs(model: Any) -> bool:
    """Whether there are graphs within, which could use names that change."""
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    return any(attribute.HasField("g") or attribute.graphs for attribute in attributes)


def _graph(models: Mapping[str, Any], steps: Chain, joined: Step) -> Any:
    """The model that does what segments do one after the other."""
    from onnx import helper

    ends = {name: f"in{number}" for number, name in enumerate(joined.inputs)}
    ends |= {name: f"out{number}" for number, name in enumerate(joined.outputs)}
    nodes: list[Any] = []
    weights: dict[str, Any] = {}
    infos: dict[str, Any] = {}
    opsets: dict[str, Any] = {}
    for number, step in enumerate(steps):
        model = models[step.segment]
        names = {"": ""}
        for kind, passed, given in (("in", step.inputs, model.graph.input), ("out", step.outputs, model.graph.output)):
            whole = {value.name: value for value in given}
            for place, name in enumerate(passed):
                names[f"{kind}{place}"] = ends.get(name, f"between/{name}")
                infos[name] = whole[f"{kind}{place}"]
        for tensor in model.graph.initializer:
            names[tensor.name] = f"{step.segment}/{tensor.name}"
            weights[names[tensor.name]] = _renamed(tensor, names[tensor.name])
        for node in model.graph.node:
            made = _renamed(node, f"{number}/{node.name}")
            made.input[:] = [names.get(name, f"{number}/{name}") for name in node.input]
            made.output[:] = [names.get(name, f"{number}/{name}") for name in node.output]
            nodes.append(made)
        opsets |= {one.domain: one for one in model.opset_import}
    given, made = ([_renamed(infos[name], ends[name]) for name in side] for side in (joined.inputs, joined.outputs))
    graph = helper.make_graph(nodes, joined.segment, given, made, list(weights.values()))
    return helper.make_model(graph, opset_imports=list(opsets.values()), ir_version=model.ir_version)


def _renamed(thing: Any, name: str) -> Any:
    """A copy of a node, a tensor or what a graph says of an end, under another name."""
    made = type(thing).FromString(thing.SerializeToString())
    made.name = name
    return made
