"""How a run survives: everything needed to go on, bit for bit, in one file without pickles."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic import documents
from telescopic.files import replacing
from telescopic.inputs import Tensors
from telescopic.layers.cuts import named_tensors
from telescopic.layers.filter import filters_of
from telescopic.shrink.shapes import reshape_
from telescopic.tensorfile import DTYPES, TensorFile, opened, write
from telescopic.train.history import History

FORMAT = 1
MAX_BYTES, MAX_VALUES = 100_000_000, 10_000_000
"""Of a header, which has the history of many members over many epochs. Safetensors itself reads no longer ones."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


@dataclass
class Position:
    """Where in a run a checkpoint was taken: `batch` batches of epoch number `epoch` (from 1) are done.

    `sums` are the running sums of that epoch: minimised loss, then each member's, over the examples seen, of which
    there were `examples`. `compacting` are those of its seconds in which dead channels were removed.
    """

    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    compacting: float = 0.0
    examples: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can have reached."""
        for name, least in (("epoch", 1), ("batch", 0), ("examples", 0)):
            if type(value := getattr(self, name)) is not int or not least <= value < 2**63:
                raise ValueError(f"its {name} is {value!r:.50}")
        numbers = self.sums if isinstance(self.sums, list) else [None]
        for number in (self.seconds, self.compacting, *numbers):
            if type(number) not in (int, float) or not abs(number) < 2**63:  # nor NaN
                raise ValueError(f"it has {number!r:.50} for seconds or a sum")


def save_checkpoint(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    position: Position,
    facts: dict[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Write weights, their moving average, the optimizer's state, the position and facts to one file, atomically."""
    stored = {f"net/{name}": tensor for name, tensor in named_tensors(net).items()}
    stored |= {
        f"average/{name}": tensor for name, tensor in ({} if average is None else named_tensors(average)).items()
    }
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            stored |= {f"optimizer/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    meta = {"format": FORMAT, "position": vars(position), **facts}
    with replacing(path) as temporary:
        write(temporary, stored, json.dumps(meta))


def read_facts(path: Path) -> dict[str, Any]:
    """The position and facts of a checkpoint, without its tensors.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt or of another format.
    """
    with _opened(path) as file:
        return _facts(file)


def read_history(path: Path) -> History:
    """What a run had seen when its last state was saved.

    Raises:
        CheckpointError: if the file cannot be read, or holds no history, as that of the best weights.
    """
    with _opened(path) as file:
        return History.from_dict(_facts(file).get("history"))


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}: put it back, or start a new run")
    with opened(path, CheckpointError, most_bytes=MAX_BYTES, most_values=MAX_VALUES) as file:
        yield file


def _facts(file: TensorFile) -> dict[str, Any]:
    if file.document is None:
        raise ValueError("it is a safetensors file but no checkpoint, for it says nothing about a run")
    # A member without images to be tried on has the accuracy NaN.
    meta = documents.parse(file.document.encode(), most_values=MAX_VALUES, finite=False)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise ValueError(f"it has checkpoint format {found!r:.50}; this version reads {FORMAT}")
    position = meta.get("position")
    if not isinstance(position, dict) or not position.keys() <= vars(Position()).keys():
        raise ValueError("it is no checkpoint of a run, for it does not say where that was")
    recipe = meta.get("recipe", {})
    if not isinstance(recipe, dict) or not isinstance(milestones := recipe.get("milestones", []), list):
        raise ValueError("its recipe cannot be read")
    if any(type(number) is not int for number in (recipe.get("epochs", 1), *milestones)):
        raise ValueError("its recipe has epochs or milestones that are no whole numbers")
    return dict(meta, position=Position(**position))


def load_checkpoint(
    path: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
    *,
    example: Tensors = None,
) -> None:
    """Put a checkpoint's tensors into a network and its optimizer.

    Args:
        path: the file.
        net: the network.
        optimizer: its optimizer, if it is to go on.
        average: its moving average, if it has one.
        example: a batch of inputs `[batch, ...]`. With it, a network with filters gets the widths of the checkpoint's.

    Raises:
        CheckpointError: if the file cannot be read or is of another network; nothing has been changed then.
    """
    with _opened(path) as file:
        _facts(file)
        own = named_tensors(net)
        shapes = {name[4:]: place.shape for name, place in file.places.items() if name.startswith("net/")}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        learned = example is not None and bool(filters_of(net))
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        if wrong and not (learned and shapes.keys() == expected.keys()):
            # Version 0.1.0 had a filter beside its layer, both within what stood in the layer's place.
            old = any(name.endswith(".1.theta") and name in wrong for name in shapes)
            why = "; its filters have the names of version 0.1.0, which can go on with it" if old else ""
            raise ValueError(f"it is of another network: {', '.join(wrong[:3])} differ in name or shape{why}")
        means = {} if average is None else named_tensors(average)
        kept = {name[8:]: place for name, place in file.places.items() if name.startswith("average/")}
        if average is not None and {n: (p.shape, DTYPES.get(p.dtype)) for n, p in kept.items()} != {
            name: (tuple(tensor.shape), tensor.dtype) for name, tensor in means.items()
        }:
            raise ValueError("it has no moving average of this network")
        if wrong := sorted(n for n, t in own.items() if DTYPES.get(file.places[f"net/{n}"].dtype) != t.dtype):
            raise ValueError(f"it is of another network: {', '.join(wrong[:3])} differ in type")
        parameters = [p for group in optimizer.param_groups for p in group["params"]] if optimizer is not None else []
        names = {id(tensor): name for name, tensor in own.items()}
        places: list[tuple[int, str, str]] = []
        for name, place in file.places.items():
            if name.startswith(("net/", "average/")):
                continue
            kind, index, key = [*name.split("/"), "", ""][:3]
            if kind != "optimizer" or not index.isdecimal() or not index.isascii():
                raise ValueError(f"it has a tensor {name!r:.200}, which is no checkpoint's")
            if optimizer is None:
                continue
            # What an optimizer remembers is one number for a parameter, such as the step, or one for each weight.
            known = [shapes[names[id(p)]] for p in parameters[int(index) : int(index) + 1] if id(p) in names]
            if not known or place.shape not in ((), *known):
                raise ValueError(f"its {name!r:.200} of shape {list(place.shape)!s:.200} belongs to no parameter")
            places.append((int(index), key, name))
        stored = {name: file.read(f"net/{name}") for name in own}
        averages = {name: file.read(f"average/{name}") for name in means}
        state: dict[int, dict[str, Tensor]] = {}
        for number, key, name in places:
            state.setdefault(number, {})[key] = file.read(name)
    if example is not None and shapes != expected:
        try:
            reshape_(net, shapes, example)
        except ValueError as error:
            raise CheckpointError(f"{path} is of another network: {error}") from error
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])
        for name, tensor in means.items():
            tensor.copy_(averages[name])
    if optimizer is not None:
        for number, held in state.items():
            for key, tensor in held.items():  # in the layout of the parameter, which the fused optimizers rely on
                if tensor.shape == parameters[number].shape:
                    held[key] = torch.empty_like(parameters[number], dtype=tensor.dtype).copy_(tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
