"""Ends of segments that share tensors, so that what is passed there is in one form for all of them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from telescopic.engine.manifest import Manifest


@dataclass(frozen=True)
class End:
    """An input or output of a segment's graph.

    Attributes:
        segment: its name.
        name: in0, in1, ... or out0, out1, ...
    """

    segment: str
    name: str


@dataclass(frozen=True)
class Joint:
    """Ends that write or read the same tensors.

    Attributes:
        ends: all of them.
        tensors: what they pass on.
    """

    ends: frozenset[End]
    tensors: frozenset[str]


def joints(manifest: Manifest, fits: Callable[[str], bool]) -> list[Joint]:
    """Joints between segments: neither the network's input or answer nor a constant is passed there.

    Args:
        manifest: the pack's.
        fits: whether a tensor is one of those wanted; joints have them all wanted.
    """
    parents: dict[End | str, End | str] = {}

    def root(one: End | str) -> End | str:
        while (above := parents.setdefault(one, one)) != one:
            one = above
        return one

    for step in {step: None for member in manifest.members for step in member.chain}:
        for kind, names in (("in", step.inputs), ("out", step.outputs)):
            for number, name in enumerate(names):
                parents[root(End(step.segment, f"{kind}{number}"))] = root(name)
    never = {*manifest.inputs.values(), *manifest.constants, *(member.logits for member in manifest.members)}
    bad = {root(name) for name in [*never, *(name for name in manifest.tensors if not fits(name))]}
    found: dict[End | str, list[End | str]] = {}
    for one in list(parents):
        if root(one) not in bad:
            found.setdefault(root(one), []).append(one)
    return [
        Joint(
            frozenset(one for one in group if isinstance(one, End)),
            frozenset(one for one in group if isinstance(one, str)),
        )
        for group in found.values()
    ]
