"""How a run survives: everything needed to go on, bit for bit, in one file without pickles."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from telescopic.architecture import named_tensors
from telescopic.files import replacing
from telescopic.layers.filter import Filter
from telescopic.shrink.shapes import reshape_

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


@dataclass
class Position:
    """Where in a run a checkpoint was taken: `batch` batches of epoch number `epoch` (from 1) are done.

    `sums` are the running sums of that epoch: minimised loss, then each member's, over the images seen. `compacting`
    are those of its seconds in which dead channels were removed.
    """

    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=list)
    compacting: float = 0.0


def save_checkpoint(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer | None, position: Position, facts: dict[str, Any]
) -> None:
    """Write weights, the optimizer's state, the position and facts to one file, atomically."""
    stored = {f"net/{name}": tensor.detach().contiguous() for name, tensor in named_tensors(net).items()}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            stored |= {f"optimizer/{index}/{k}": v.contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    meta = {"format": FORMAT, "position": vars(position), **facts}
    with replacing(path) as temporary:
        save_file(stored, temporary, metadata={"telescopic": json.dumps(meta)})


def read_facts(path: Path) -> dict[str, Any]:
    """The position and facts of a checkpoint, without its tensors.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["telescopic"])
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path} has checkpoint format {meta['format']}; this version reads {FORMAT}")
        return dict(meta, position=Position(**meta["position"]))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}: put it back, or start a new run") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a whole checkpoint ({error}); delete it to start the run anew") from error


def load_checkpoint(
    path: Path, net: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, example: Tensor | None = None
) -> None:
    """Put a checkpoint's tensors into a network and its optimizer.

    Args:
        path: the file.
        net: the network.
        optimizer: its optimizer, if it is to go on.
        example: a batch of inputs `[batch, ...]`. With it, a network with filters gets the widths of the checkpoint's.

    Raises:
        CheckpointError: if the file cannot be read or is of another network; nothing has been changed then.
    """
    read_facts(path)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    own = named_tensors(net)
    shapes = {name[4:]: tuple(t.shape) for name, t in stored.items() if name.startswith("net/")}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    learned = example is not None and any(isinstance(part, Filter) for part in net.modules())
    if shapes != expected and not (learned and shapes.keys() == expected.keys()):
        differing = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        # Version 0.1.0 had a filter beside its layer, both within what stood in the layer's place.
        old = any(name.endswith(".1.theta") and name in differing for name in shapes)
        why = "; its filters have the names of version 0.1.0, which can go on with it" if old else ""
        raise CheckpointError(f"{path} is of another network: {', '.join(differing[:3])} differ in name or shape{why}")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in stored.items():
        if not name.startswith("net/"):
            kind, index, key = [*name.split("/"), "", ""][:3]
            if kind != "optimizer" or not index.isdecimal():
                raise CheckpointError(f"{path} is not a checkpoint: it has a tensor {name!r}")
            state.setdefault(int(index), {})[key] = tensor
    if example is not None and shapes != expected:
        try:
            reshape_(net, shapes, example)
        except ValueError as error:
            raise CheckpointError(f"{path} is of another network: {error}") from error
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[f"net/{name}"])
    if optimizer is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, held in state.items():
            for key, tensor in held.items():  # in the layout of the parameter, which the fused optimizers rely on
                if index < len(parameters) and tensor.shape == parameters[index].shape:
                    held[key] = torch.empty_like(parameters[index], dtype=tensor.dtype).copy_(tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
