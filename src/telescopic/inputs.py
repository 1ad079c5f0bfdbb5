"""What a network is given: examples as one tensor, batch first; and what to say when it does not take them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SIZES = ("length", "height, width", "depth, height, width")


def with_batch(batch: int, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a batch of inputs.

    Raises:
        ValueError: if a size is no whole number above 0.
    """
    shape = (batch, *input_shape) if isinstance(input_shape, Sequence) else ()
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            f"batch {batch} and input_shape {input_shape} must be whole numbers above 0, "
            "input_shape that of one example without the batch, for example (1, 28, 28)"
        )
    return shape


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
    if not isinstance(x, Tensor):
        remedy = ": give torch.from_numpy(x)" if type(x).__module__ == "numpy" else ""
        kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
        return f"a network takes a batch of inputs as one tensor [batch, ...], not a {kind}{remedy}"
    given = f"an input {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    if not x.ndim or not len(x):
        return f"{given} has no example in it: give a batch of one or more, [batch, ...]"
    if (layer := _first_layer(parts)) is None:
        return None
    own, weight = type(layer).__name__, layer.weight
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


def _first_layer(parts: Sequence[nn.Module]) -> nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | None:
    """The convolution or linear layer that surely reads the input, as nothing in front of it changes a shape."""
    for place, part in enumerate(parts):
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            return part
        if type(part) is nn.Sequential:
            return _first_layer([*part, *parts[place + 1 :]])
        if type(part) not in (nn.Identity, nn.Dropout, nn.ReLU):
            return None
    return None


@contextmanager
def explained(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Turn what a forward pass raises into one ValueError that names the cause."""
    try:
        yield
    except Exception as error:
        name = type(module).__name__
        if isinstance(x, Tensor) and x.is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error)):
            if "fake impl" in str(error) or "Could not run" in str(error):  # an operation that nobody wrote for shapes
                raise ValueError(f"this {name} cannot be run by shape alone: {first_line(error)}") from error
            raise ValueError(
                f"the cost of this {name} cannot be counted by shape alone, because its forward pass reads values: "
                f"{first_line(error)}. Leave .item(), .numpy() and branches on values out of forward, and make "
                "constants buffers"
            ) from error
        fault = fault_of(x, module, added=True)
        shape = f" of shape {tuple(x.shape)}, batch first" if isinstance(x, Tensor) else ""
        raise ValueError(
            f"this {name} failed on an input{shape}: {fault or first_line(error)}. Is input_shape right?"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that torch may add to it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
