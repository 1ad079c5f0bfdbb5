"""How the members of a network are cut into segments: what they share is in one of them, and nothing is in two.

A member runs parts: an adapter, stages, a head. Parts that the same members run one after the other become one segment.
Where members of several widths run a part, it is cut again, by its rows: a span computes the channel groups that one
width has beyond the one before (see `anytime.rows`), and wider members run the spans up to theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from telescopic.anytime.rows import Kept
from telescopic.engine.manifest import Step
from telescopic.inputs import Tensors, leaves
from telescopic.layers.cuts import call_with
from telescopic.nested import Nested
from telescopic.packing.atoms import Atom, Parts, PartsBySpan, named_blocks
from telescopic.shapes import INPUT
from telescopic.subnet import Coordinates


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of the network on its way to a file.

    Attributes:
        name: of the segment.
        module: takes its inputs in order, and returns a list of outputs.
        example: its inputs for a batch of examples; constants have no batch.
        batched: which of the inputs have one.
        outputs: what it gives for these inputs.
        copied: names of parts of which others hold copies with the same weights.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    batched: tuple[bool, ...]
    outputs: tuple[Tensor, ...]
    copied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cut:
    """A network cut into segments.

    Attributes:
        segments: each once.
        chains: member → what it runs, in order, and the tensor with its logits.
        tensors: what passes between segments → an example of it.
        constants: statistics that are inputs of segments.
        copied: number of parts that stand in more than one segment, since their BatchNorm differs between entries.
        sharing: whether narrow widths cut their weights out of the widest one's.
    """

    segments: Sequence[Segment]
    chains: Mapping[Coordinates, tuple[tuple[Step, ...], str]]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    copied: int
    sharing: bool


@torch.no_grad()
def cut(net: Nested, members: Sequence[Coordinates], x: Tensors, *, fold_bn: bool = False, sharing: bool = True) -> Cut:
    """Cut a network where the members enter, leave, and end their width.

    Args:
        net: the network, in eval mode.
        members: of its grid, with all coordinates.
        x: inputs `[batch, ...]`, on which every segment is run once.
        fold_bn: whether parts whose statistics differ between entries are copied for each, with BatchNorm folded. Else
            they are one segment, and the statistics are inputs of it. Copied they are in any case if there are several
            widths.
        sharing: whether widths that are told to parts share the widest one's weights, if it is among the members.
            Whoever opens the graphs cuts these, and folds each width's BatchNorm. Else each width has its own, folded.

    Raises:
        ValueError: if a part cannot be made as narrow as a member, or wider step by step.
    """
    widths = {member.width for member in members}
    sharing = sharing and not net.causal and len(widths) > 1 and net.groups in widths
    several = net.causal and len(widths) > 1
    atoms = PartsBySpan(net, members) if several else Parts(net, members, fold_bn, x, sharing=sharing)
    paths = {member: atoms.path(member) for member in members}
    users: dict[str, set[Coordinates]] = {}
    for member, path in paths.items():
        for atom in path:
            users.setdefault(atom.key, set()).add(member)
    groups: dict[str, list[Atom]] = {}
    runs: dict[Coordinates, list[str]] = {member: [] for member in members}
    for member, path in paths.items():
        previous: Atom | None = None
        for atom in path:
            if previous is not None and _one_segment(previous, atom, users):
                run = groups[runs[member][-1]]
                if atom.key not in {known.key for known in run}:
                    run.append(atom)
            else:
                groups.setdefault(atom.key, [atom])
                runs[member].append(atom.key)
            previous = atom
    return _traced({key: _Run(run) for key, run in groups.items()}, runs, paths, atoms.constants, x, sharing)


def _one_segment(one: Atom, other: Atom, users: Mapping[str, set[Coordinates]]) -> bool:
    return users[one.key] == users[other.key] and one.span == other.span and one.writes == other.reads


class _Recorder(dict[str, Tensor]):
    """What is kept, and notes what is read and written."""

    def __init__(self, given: Kept) -> None:
        super().__init__(given)
        self.read: list[str] = []
        self.written: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.read and key not in self.written:
            self.read.append(key)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Tensor) -> None:
        if key not in self.written:
            self.written.append(key)
        super().__setitem__(key, value)


class _Run(nn.Module):
    """Atoms one after the other as a module: inputs are blocks, what was kept, and statistics."""

    def __init__(self, atoms: Sequence[Atom]) -> None:
        super().__init__()
        self.atoms = tuple(atoms)
        self.whole = nn.ModuleList(atom.does for atom in atoms if isinstance(atom.does, nn.Module))
        self.num_blocks = len(self.atoms[0].reads)
        self.statistics = [name for atom in self.atoms for name in atom.statistics.values()]
        self.read: list[str] = []  # what was kept by spans before
        self.made: list[str] = []  # what this one keeps, and is no input of it

    def observe(
        self, blocks: Sequence[Tensor], kept: Kept, statistics: Mapping[str, Tensor]
    ) -> tuple[list[Tensor], Kept, dict[str, str | None]]:
        """Run once to see what it reads and keeps.

        Returns:
            The blocks it gives; all that it keeps; and what of it is the same as something else: None for the input.
        """
        recorder = _Recorder(kept)
        out = self._run(blocks, recorder, statistics)
        new = {key: recorder[key] for key in recorder.written}
        same: dict[str, str | None] = {}
        first: dict[int, str | None] = {id(blocks[0]): None}
        for key, value in new.items():
            if id(value) in first:
                same[key] = first[id(value)]
            first.setdefault(id(value), key)
        self.read, self.made = recorder.read, [key for key in new if key not in same]
        return out, new, same

    def forward(self, *given: Tensor) -> list[Tensor]:
        """Outputs in the order of the segment."""
        blocks, rest = given[: self.num_blocks], given[self.num_blocks :]
        kept: Kept = dict(zip(self.read, rest, strict=False))
        statistics = dict(zip(self.statistics, rest[len(self.read) :], strict=True))
        out = self._run(blocks, kept, statistics)
        return [*out, *(kept[key] for key in self.made)]

    def _run(self, blocks: Sequence[Tensor], kept: Kept, statistics: Mapping[str, Tensor]) -> list[Tensor]:
        out: Tensors
        if (form := self.atoms[0].takes) is not None:
            out = tree_unflatten(blocks, form)
        else:
            out = torch.cat(tuple(blocks), 1) if len(blocks) > 1 else blocks[0]
        for atom in self.atoms:
            if isinstance(atom.does, nn.Module):
                given = {id(atom.does.get_buffer(name)): statistics[key] for name, key in atom.statistics.items()}
                out = call_with(atom.does, given, out)
            else:
                out = atom.does(out, kept)
        # What is passed on as it came, such as a mask, is another tensor of the segment's all the same.
        return [one.clone() if any(one is block for block in blocks) else one for one in leaves(out)]


def _traced(
    runs: Mapping[str, _Run],
    order: Mapping[Coordinates, Sequence[str]],
    paths: Mapping[Coordinates, Sequence[Atom]],
    constants: Mapping[str, Tensor],
    x: Tensors,
    sharing: bool,
) -> Cut:
    """Run every member once, and write down which tensors go where."""
    segments: dict[str, Segment] = {}
    chains: dict[Coordinates, tuple[tuple[Step, ...], str]] = {}
    tensors = named_blocks(INPUT, x)
    for member, names in order.items():
        known = named_blocks(INPUT, x)
        kept: Kept = {}
        held: dict[str, str] = {}  # what is kept → the tensor that it is now
        steps = []
        own = iter(paths[member])
        for name in names:
            run = runs[name]
            # The member's own atoms: a segment's first reads "input" for one and features for another.
            mine = [next(own) for _ in run.atoms]
            reads, statistics = mine[0].reads, [key for atom in mine for key in atom.statistics.values()]
            given = [known[block] for block in reads]
            values = {mark: constants[key] for mark, key in zip(run.statistics, statistics, strict=True)}
            out, new, same = run.observe(given, kept, values)
            inputs = (*reads, *(held[key] for key in run.read), *statistics)
            outputs = [*mine[-1].writes]
            known |= dict(zip(outputs, out, strict=True))
            for key, value in new.items():
                kept[key] = value
                if key in same:
                    other = same[key]
                    held[key] = reads[0] if other is None else held[other]
                else:
                    held[key] = f"{key}[{run.atoms[0].span[1]}]"
                    known[held[key]] = value
                    outputs.append(held[key])
            steps.append(Step(name, inputs, tuple(outputs)))
            if name not in segments:
                example = tuple(constants[key] if key in constants else known[key] for key in inputs)
                batched = tuple(key not in constants for key in inputs)
                copied = tuple(atom.key.split("@")[0] for atom in run.atoms if "@" in atom.key)
                segments[name] = Segment(name, run, example, batched, tuple(known[key] for key in outputs), copied)
            tensors |= {key: known[key] for key in outputs}
        chains[member] = tuple(steps), paths[member][-1].writes[-1]
    copies = {name for segment in segments.values() for name in segment.copied}
    return Cut(list(segments.values()), chains, tensors, constants, len(copies), sharing)
