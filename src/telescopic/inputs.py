"""What a network is given: a tensor, or a dict or tuple of several, batch first; and what to say when it takes none.

Several tensors go through the network as one value: what reads them, an adapter or a stage, is called with the dict or
tuple. Features between stages may be several too, such as hidden states and a mask.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from telescopic.shapes import TYPES, Shape, checked_shape, parted

Tensors = Any
"""A tensor `[batch, ...]`, or a dict or tuple of such."""

_SIZES = ("length", "height, width", "depth, height, width")


def each(function: Callable[..., Any], tensors: Tensors, *others: Tensors) -> Tensors:
    """What a function makes of each tensor, and of those in its place in others, put together in the same way."""
    return function(tensors, *others) if isinstance(tensors, Tensor) else tree_map(function, tensors, *others)


def leaves(tensors: Tensors) -> list[Any]:
    """All of them, in order."""
    return [tensors] if isinstance(tensors, Tensor) else tree_leaves(tensors)


def named(tensors: Tensors, name: str = "input") -> dict[str, Any]:
    """Each by a name: the key of a dict, a number in a tuple, or the name given if there is one alone.

    Raises:
        ValueError: if two have the same name then.
    """
    found = {}
    for path, tensor in tree_flatten_with_path(tensors)[0]:
        key = ".".join(str(getattr(step, "key", getattr(step, "idx", None))) for step in path)
        own = key if key and not key[0].isdecimal() else f"{name}{key}"
        if own in found:
            raise ValueError(f"two inputs are called {own!r:.50}: rename one")
        found[own] = tensor
    return found


def checksum(tensors: Iterable[Tensor], number: int = 0) -> int:
    """CRC-32 of their bytes, behind those that have led to a number."""
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        flat = plain.as_strided((plain.numel(),), (1,))  # reshape keeps other strides of one element, and of none
        number = zlib.crc32(flat.view(torch.uint8).numpy().data, number)
    return number


def first(tensors: Tensors) -> Any:
    """The first of them, which is as long as the others."""
    return leaves(tensors)[0]


def shape_of(tensors: Tensors) -> Shape:
    """What one of these examples looks like to a network: see `telescopic.shapes.Shape`. Bytes become its numbers."""
    if isinstance(tensors, Tensor):
        kind = str(tensors.dtype).removeprefix("torch.")
        return (*((kind,) if kind in TYPES and kind != "uint8" else ()), *tensors.shape[1:])
    if isinstance(tensors, Mapping):
        return {key: shape_of(value) for key, value in tensors.items()}
    return tuple(map(shape_of, tensors))


def plain_shape(shape: Shape) -> Shape:
    """A shape of one example, also where a batch of examples was given for it.

    Raises:
        ValueError: if it is neither.
    """
    given = leaves(shape)
    return shape_of(shape) if given and all(isinstance(x, Tensor) for x in given) else checked_shape(shape)


def examples(batch: int, shape: Shape, dtype: torch.dtype, device: torch.device | str, *, seed: int = 0) -> Tensors:
    """A batch of inputs of some shape: random numbers, and for whole numbers and truth values ones.

    Args:
        batch: how many.
        shape: of one; or a batch of examples, which are repeated as often as it takes.
        dtype: of floating-point numbers.
        device: where they are to lie; on `meta` they have no values.
        seed: of the random numbers.

    Raises:
        ValueError: if it is no shape, or the batch is no whole number above 0.
    """
    if type(batch) is not int or batch < 1:
        raise ValueError(f"a batch is a whole number above 0, not {batch!r}")
    generator = torch.Generator().manual_seed(seed)

    def made(shape: Shape) -> Tensors:
        if isinstance(shape, Mapping):
            return {name: made(each) for name, each in shape.items()}
        if shape and isinstance(shape[0], tuple | dict):
            return tuple(map(made, shape))
        kind, sizes = parted(shape)
        if device == "meta" or kind is not None:
            return torch.ones((batch, *sizes), dtype=dtype if kind is None else getattr(torch, kind), device=device)
        return torch.randn((batch, *sizes), generator=generator).to(device, dtype)

    given = leaves(shape)
    if given and all(isinstance(tensor, Tensor) and tensor.ndim and len(tensor) for tensor in given):

        def again(x: Tensor) -> Tensor:
            kind = dtype if x.is_floating_point() or x.dtype == torch.uint8 else x.dtype
            return x.detach()[torch.arange(batch) % len(x)].to(device, kind)

        return each(again, shape)
    return made(checked_shape(shape))


def dtype_and_device(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Of a module's first floating-point tensor; torch's default type on the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.get_default_dtype(), torch.device("cpu")


def fault_of(x: Any, *parts: nn.Module, added: bool = False) -> str | None:
    """What is wrong with an input, where the input itself or the first layer tells; None where they do not.

    Args:
        x: what was given.
        parts: what reads it, one behind the other.
        added: whether the batch was put in front of a shape that the caller gave.
    """
    for name, one in named(x).items() if not isinstance(x, Tensor) else ():
        if not isinstance(one, Tensor):
            remedy = ": give torch.from_numpy(x)" if type(one).__module__ == "numpy" else ""
            kind = f"{type(one).__module__}.{type(one).__name__}".removeprefix("builtins.")
            what = kind if one is x else f"{kind} for {name}"
            return f"a network takes a batch as a tensor [batch, ...], or a dict or tuple of such, not a {what}{remedy}"
        if not one.ndim or len(one) != len(first(x)):
            return f"inputs have as many examples each, [batch, ...], and {name} has shape {tuple(one.shape)}"
    if not isinstance(x, Tensor):
        kind, layer = type(x).__name__, _first_layer(parts)
        told = f"the first layer, a {type(layer).__name__}, takes one tensor [batch, ...], not a {kind}"
        return None if layer is None else told
    given = f"an input {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    if not x.ndim or not len(x):
        return f"{given} has no example in it: give a batch of one or more, [batch, ...]"
    if (layer := _first_layer(parts)) is None:
        return None
    own, weight = type(layer).__name__, layer.weight
    if isinstance(layer, nn.Embedding):
        if x.dtype not in (torch.int64, torch.int32):
            return f"{given} does not fit: its first layer, an Embedding, takes whole numbers, int64 or int32"
        if not x.is_meta and not 0 <= int(x.min()) <= int(x.max()) < len(weight):
            ends = f"{int(x.min())} to {int(x.max())}"
            return f"{given} goes from {ends}, and its first layer, an Embedding, takes 0 to {len(weight) - 1}"
        return None
    if isinstance(layer, nn.Linear):
        form, fits, lacks = f"[batch, ..., {layer.in_features}]", x.shape[-1] == layer.in_features, x.ndim == 1
    else:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        form = f"[batch, {layer.in_channels}, {_SIZES[weight.ndim - 3]}]"
        lacks = x.ndim == weight.ndim - 1
        fits = x.ndim == weight.ndim and x.shape[1] == layer.in_channels
    if lacks and not added:
        return f"{given} has no batch: its first layer, a {own}, takes {form}; a batch of one is x[None]"
    if not fits:
        return f"{given} does not fit: its first layer, a {own}, takes {form}"
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"{given} does not fit: the weights of its first layer, a {own}, are {weight.dtype}"
    return None


def raise_fault(x: Any, paths: Iterable[Sequence[nn.Module]], error: Exception) -> None:
    """Say what is wrong with an input, if anything is, in place of what failed on it.

    Args:
        x: what was given.
        paths: modules that read it, one behind the other, for each way that it takes.
        error: what was raised.

    Raises:
        ValueError: if the input cannot be right.
    """
    for path in paths:
        if fault := fault_of(x, *path):
            raise ValueError(fault) from error


def _first_layer(parts: Sequence[nn.Module]) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding | None:
    """The layer with weights that surely reads the input, as nothing in front of it changes a shape."""
    for place, part in enumerate(parts):
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding):
            return part
        if type(part) is nn.Sequential:
            return _first_layer([*part, *parts[place + 1 :]])
        if type(part) not in (nn.Identity, nn.Dropout, nn.ReLU):
            return None
    return None


@contextmanager
def explained(module: nn.Module, x: Tensors) -> Iterator[None]:
    """Turn what a forward pass raises into one ValueError that names the cause."""
    try:
        yield
    except Exception as error:
        name = type(module).__name__
        if first(x).is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error)):
            if "fake impl" in str(error) or "Could not run" in str(error):  # an operation that nobody wrote for shapes
                raise ValueError(f"this {name} cannot be run by shape alone: {first_line(error)}") from error
            raise ValueError(
                f"the cost of this {name} cannot be counted by shape alone, because its forward pass reads values: "
                f"{first_line(error)}. Leave .item(), .numpy() and branches on values out of forward, and make "
                "constants buffers"
            ) from error
        fault = fault_of(x, module, added=True)
        shapes = ", ".join(f"{key} {tuple(one.shape)}" for key, one in named(x).items())
        shape = f"an input of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"inputs of shapes {shapes}"
        raise ValueError(
            f"this {name} failed on {shape}, batch first: {fault or first_line(error)}. Is input_shape right?"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that torch may add to it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
