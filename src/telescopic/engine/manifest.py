"""What a pack says about itself: members as chains of segments. Read from files of anyone: nothing is believed."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telescopic import documents
from telescopic.files import sha256
from telescopic.metric import ACCURACY, Metric
from telescopic.shapes import INPUT, TYPES, Shape
from telescopic.subnet import Coordinates

Floats = NDArray[np.float32]
Array = NDArray[Any]

FORMAT = 1
MANIFEST, WEIGHTS, CARD = "manifest.json", "weights.bin", "README.md"
_MOST = 100_000  # of anything in a manifest
_LONGEST = 2**23  # bytes of a manifest, which Python makes 30 times as many in memory
_LARGEST, _ALL = 2**25, 2**26  # numbers of one example in a tensor, and in all tensors


class PackError(ValueError):
    """A folder that is no whole pack, or a network that cannot be packed. What libraries say of it is one line, too."""

    def __init__(self, told: str) -> None:
        super().__init__(documents.printable(" ".join(told.splitlines())))


@dataclass(frozen=True)
class Step:
    """One segment of a member's chain.

    Attributes:
        segment: name of the segment.
        inputs: the tensors it reads, in the order of its graph's inputs: `input`, those of steps before, constants.
        outputs: the tensors it writes.
    """

    segment: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Chain = tuple[Step, ...]


@dataclass(frozen=True, eq=False)
class Packed:
    """One member of a pack.

    Attributes:
        subnet: which, with all three coordinates.
        label: its short name.
        score: how good it is on the validation examples, as `metric` says; None if not measured.
        test_score: the same of the test examples.
        macs: multiply-adds of one example.
        params: number of parameters.
        chain: what it runs, in order.
        logits: the tensor with its answer.
        float_accuracy: what `accuracy` was in float32, if the pack is int8.
        float_test_accuracy: the same of the test images.
        metric: what its scores mean.
    """

    subnet: Coordinates
    label: str
    score: float | None
    test_score: float | None
    macs: int
    params: int
    chain: Chain
    logits: str
    float_accuracy: float | None = None
    float_test_accuracy: float | None = None
    metric: Metric = ACCURACY

    @property
    def accuracy(self) -> float | None:
        """The score, where it is one; None where it is another."""
        return self.score if self.metric.word == "accuracy" else None

    @property
    def test_accuracy(self) -> float | None:
        """The test score, likewise."""
        return self.test_score if self.metric.word == "accuracy" else None


Way = tuple[Packed, ...]
"""Members that answer one after the other, each from what those before it have left."""


@dataclass(frozen=True)
class Constant:
    """A tensor of float32 in the weights file that is an input of segments: a statistic of one entry.

    Attributes:
        offset: of its first byte.
        shape: its shape.
    """

    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """All about a pack.

    Attributes:
        members: smallest first.
        segments: name → file of its graph, whose inputs are called in0, in1, ... and outputs out0, out1, ...
        tensors: what passes between segments, the input among it: name → shape of one example. Several inputs are
            called `input.ids` and so on.
        constants: statistics that differ between entries.
        preprocess: mean and standard deviation of each channel (or one for all), of pixels from 0 to 1; None if
            unknown.
        classes: names of the classes in the order of the logits; empty if unknown.
        left_out: members that were not packed although asked for by number or by "all", and why.
        provenance: where the network came from, and versions.
        files: name → bytes and sha256 of every other file.
        precision: of the weights: float32 or int8.
        uint8: tensors between segments that are uint8; their scales are in the segments.
        types: tensor → its type, of those that are neither float32 nor such.
        below: input → below which number its whole numbers lie, from 0, as the network has a table for them; or for
            each number of an example, where 0 stands for any.
    """

    members: tuple[Packed, ...]
    segments: Mapping[str, str]
    tensors: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, Constant] = field(default_factory=dict)
    preprocess: Mapping[str, Sequence[float]] | None = None
    classes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = "float32"
    uint8: frozenset[str] = frozenset()
    types: Mapping[str, str] = field(default_factory=dict)
    below: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, str]:
        """What users call an input → the tensor; one that is alone has the name `input`."""
        found = [name for name in self.tensors if name == INPUT or name.startswith(f"{INPUT}.")]
        return {name.removeprefix(f"{INPUT}."): name for name in found}

    @property
    def input_shape(self) -> Shape:
        """Shape of one input, without the batch, as `telescopic.cost` takes it."""
        shapes = {
            name: (*([self.types[tensor]] if tensor in self.types else []), *self.tensors[tensor])
            for name, tensor in self.inputs.items()
        }
        return shapes[INPUT] if [*shapes] == [INPUT] else shapes

    def dtype(self, tensor: str) -> str:
        """Type of a tensor or constant."""
        return "uint8" if tensor in self.uint8 else self.types.get(tensor, "float32")

    def to_json(self) -> str:
        """As text, which `from_json` reads."""
        data = asdict(self) | {"uint8": sorted(self.uint8)}
        for row, member in zip(data["members"], self.members, strict=True):
            row["subnet"] = str(member.subnet)
        return json.dumps({"format": FORMAT, **data}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read a manifest, of which nothing is taken for granted.

        Raises:
            PackError: if it is none, of another format, or contradicts itself.
        """
        try:
            data = documents.parse(text.encode())
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError(f"it is not of format {FORMAT}, which this version of telescopic reads")
            made = _manifest(data)
            _check(made)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise PackError(f"the manifest cannot be used: {error!s:.300}") from error
        return made


def read(folder: Path, *, verify: bool = True) -> tuple[Manifest, str]:
    """The manifest of a pack, and the checksum that stands for the whole of it.

    Args:
        folder: of the pack.
        verify: whether to compare every file with its checksum.

    Raises:
        PackError: if there is no whole pack.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PackError(f"{folder} is no pack: it has no {MANIFEST}. Make one with telescopic pack")
    try:
        with path.open("rb") as opened:
            text = opened.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise PackError(f"{MANIFEST} has more than {_LONGEST} bytes, which no pack needs")
        manifest = Manifest.from_json(text.decode())
        for name, facts in manifest.files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != facts["bytes"]:
                raise PackError(f"{name} is missing or of another size than when it was packed")
            if verify and sha256(file) != facts["sha256"]:
                raise PackError(f"{name} has changed since it was packed: its checksum is another one")
    except (PackError, UnicodeDecodeError, OSError) as error:
        raise PackError(f"{folder} is damaged: {error}. Pack it again") from error
    return manifest, hashlib.sha256(text).hexdigest()


def read_constants(folder: Path, manifest: Manifest) -> dict[str, Floats]:
    """Constant → its value from the file of weights."""
    if not manifest.constants:
        return {}
    weights, values = np.memmap(folder / WEIGHTS, np.uint8, "r"), {}
    for name, constant in manifest.constants.items():
        data = weights[constant.offset : constant.offset + 4 * math.prod(constant.shape)]
        values[name] = data.view(np.float32).reshape(constant.shape).copy()
    return values


def finish(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder that has all the other files, and read it again."""
    others = [file for file in sorted(folder.iterdir()) if file.name != MANIFEST]
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in others}
    (folder / MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    return read(folder)[0]


def _manifest(data: dict[str, Any]) -> Manifest:
    members = []
    for row in _some(data.pop("members"), list):
        chain = tuple(
            Step(_text(step["segment"]), _texts(step["inputs"]), _texts(step["outputs"]))
            for step in _some(row.pop("chain"), list)
        )
        if "metric" not in row:  # of version 0.1.0, where the only score was accuracy
            row |= {"score": row.pop("accuracy"), "test_score": row.pop("test_accuracy"), "metric": asdict(ACCURACY)}
        row |= {"subnet": Coordinates.parse(row["subnet"]), "metric": Metric.from_dict(row["metric"])}
        members.append(Packed(**row, chain=chain))
    tensors = {_text(name): _shape(shape) for name, shape in _some(data.pop("tensors"), dict).items()}
    constants = {
        _text(name): Constant(_count(value["offset"]), _shape(value["shape"]))
        for name, value in _some(data.pop("constants"), dict).items()
    }
    classes, uint8 = _texts(data.pop("classes")), frozenset(_texts(data.pop("uint8", [])))
    types = {_text(name): _text(kind) for name, kind in _some(data.pop("types", {}), dict).items()}
    below = {
        _text(name): tuple(map(_count, some)) if isinstance(some, list) else _count(some)
        for name, some in _some(data.pop("below", {}), dict).items()
    }
    facts: dict[str, Any] = {"constants": constants, "classes": classes, "uint8": uint8, "types": types, "below": below}
    return Manifest(tuple(members), tensors=tensors, **facts, **data)


def _check(made: Manifest) -> None:
    """Refuse what contradicts itself."""
    if sum(map(math.prod, made.tensors.values())) > _ALL:
        raise ValueError(f"its tensors have more than {_ALL} numbers")
    for name in (*made.segments.values(), *made.files):
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r:.50} is no name of a file")
    if missing := {*made.segments.values(), WEIGHTS} - made.files.keys():
        raise ValueError(f"no checksum of {sorted(missing)[0]!r:.50}")
    for facts in made.files.values():
        _count(facts["bytes"])
        _text(facts["sha256"])
    size = made.files[WEIGHTS]["bytes"]
    for name, constant in made.constants.items():
        if constant.offset % 4 or constant.offset + 4 * math.prod(constant.shape) > size:
            raise ValueError(f"constant {name!r:.50} lies outside the weights")
    if made.preprocess is not None:
        mean, std = ([_finite(value) for value in _some(made.preprocess[name], list)] for name in ("mean", "std"))
        known = (1, *made.tensors.get(INPUT, ())[:1])
        if len(mean) != len(std) or len(mean) not in known or not min(std) > 1e-6:
            raise ValueError(f"means {mean!r:.50} and stds {std!r:.50} do not fit inputs of {made.input_shape}")
    _some(made.provenance, dict)
    if made.precision not in ("float32", "int8"):
        raise ValueError(f"the precision is float32 or int8, not {made.precision!r:.50}")
    inputs, floats = {*made.inputs.values()}, {*made.constants, *(member.logits for member in made.members)}
    if strangers := [name for name in made.uint8 if name in floats | inputs or name not in made.tensors]:
        raise ValueError(f"{strangers[0]!r:.50} cannot be uint8")
    for name, kind in made.types.items():
        if kind not in TYPES or name in floats or name not in made.tensors or name in made.uint8:
            raise ValueError(f"{name!r:.50} cannot be {kind!r:.50}")
    for name, some in made.below.items():
        if name not in inputs or made.types.get(name, "bool") == "bool" or some == 0:
            raise ValueError(f"{name!r:.50} is no input of whole numbers that have a bound")
        if isinstance(some, tuple) and len(some) != math.prod(made.tensors[name]):
            raise ValueError(f"{name!r:.50} has {math.prod(made.tensors[name])} numbers, and bounds of {len(some)}")
    if INPUT in inputs and len(inputs) > 1:
        raise ValueError("it has one input and several")
    if not made.members or not inputs or len({m.subnet for m in made.members}) < len(made.members):
        raise ValueError("it has no members, one twice, or no input")
    if len({member.metric for member in made.members}) > 1:
        raise ValueError("its members' scores have several metrics")
    for member in made.members:
        _check_member(member, made)


def _check_member(member: Packed, made: Manifest) -> None:
    if not isinstance(member.label, str):
        raise ValueError(f"a member needs a label, not {member.label!r:.50}")
    _count(member.macs)
    _count(member.params)
    metrics = (*[member.metric] * 2, *[ACCURACY] * 2)
    values = (member.score, member.test_score, member.float_accuracy, member.float_test_accuracy)
    for metric, value in zip(metrics, values, strict=True):
        if value is not None:
            metric.require(value, f"{metric.name} of {member.label}")
    known = {*made.inputs.values(), *made.constants}
    for step in member.chain:
        if not step.inputs or not step.outputs:
            raise ValueError(f"{member.label} runs segment {step.segment!r:.50} without inputs or outputs")
        if step.segment not in made.segments:
            raise ValueError(f"{member.label} runs segment {step.segment!r:.50}, which is not there")
        if early := set(step.inputs) - known:
            raise ValueError(f"{member.label} reads {sorted(early)[0]!r:.50} before it is there")
        if strangers := set(step.outputs) - made.tensors.keys():
            raise ValueError(f"{member.label} writes {sorted(strangers)[0]!r:.50}, which is no tensor")
        if again := set(step.outputs) & known:
            raise ValueError(f"{member.label} writes {sorted(again)[0]!r:.50} twice")
        known |= {*step.outputs}
    if member.logits not in known - {*made.inputs.values()} or not made.tensors.get(member.logits):
        raise ValueError(f"{member.label} gives no logits")
    number = made.tensors[member.logits][-1]
    if made.classes and len(made.classes) != number:
        raise ValueError(f"there are {len(made.classes)} classes, but {number} logits")


def _some(value: Any, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    if not isinstance(value, kind) or len(value) > _MOST:
        raise ValueError(f"{value!r:.50} is no {kind.__name__}, or a very long one")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.50} is no text")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in _some(values, list))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.50} is no whole number of 0 or more")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise ValueError(f"{value!r:.50} is no number that float32 holds")
    return float(value)


def _shape(values: Any) -> tuple[int, ...]:
    shape = tuple(_count(value) for value in _some(values, list))
    for size in shape:
        if not 0 < size <= 2**31:
            raise ValueError(f"{size!r:.50} is no size")
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"a tensor of {shape!s:.50} is larger than any network's")
    return shape
