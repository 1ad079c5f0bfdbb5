"""Ends of segments that share tensors, so that what is passed there is in one form for all of them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from telescopic.engine.manifest import Manifest


@dataclass(frozen=True)
class End:
    """An input or output of a segment's graph: in0, in1, ... or out0, out1, ..."""

    segment: str
    name: str


@dataclass(frozen=True)
class Joint:
    """Ends that write or read the same tensors."""

    ends: frozenset[End]
    tensors: frozenset[str]


def joints(manifest: Manifest, fits: Callable[[str], bool]) -> list[Joint]:
    """Joints between segments: neither the network's input or answer nor a constant is passed there.

    Args:
        manifest: the pack's.
        fits: whether a tensor is one of those wanted; joints have them all wanted.
    """
    groups: dict[End | str, set[End | str]] = {}  # ends and tensors → those that are passed on together
    for step in {step: None for member in manifest.members for step in member.chain}:
        for kind, names in (("in", step.inputs), ("out", step.outputs)):
            for number, name in enumerate(names):
                both = [groups.setdefault(key, {key}) for key in (End(step.segment, f"{kind}{number}"), name)]
                if both[0] is not both[1]:
                    small, large = sorted(both, key=len)
                    large |= small
                    groups |= dict.fromkeys(small, large)
    never = {*manifest.inputs.values(), *manifest.constants, *(member.logits for member in manifest.members)}
    found = []
    for group in {id(group): group for group in groups.values()}.values():
        tensors = frozenset(one for one in group if isinstance(one, str))
        if tensors.isdisjoint(never) and all(map(fits, tensors)):
            found.append(Joint(frozenset(one for one in group if isinstance(one, End)), tensors))
    return found
