"""What torch wraps around a network to run it: what `torch.compile` returns is looked into, others are refused."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what `torch.compile` returns."""
    # Its class is not asked for, for that lies in a part of torch which takes a second to load.
    return not isinstance(module, torch.jit.ScriptModule) and "_orig_mod" in module._modules


def unwrapped(module: Module) -> Module:
    """The module itself, or what `torch.compile` was given if it is what that returned.

    Raises:
        ValueError: if it is a module of `torch.jit`, or one that runs copies of another in parallel.
    """
    if isinstance(module, nn.Module) and is_compiled(module):
        return unwrapped(module._modules["_orig_mod"])  # type: ignore[type-var, return-value]
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError(f"a {name} of torch.jit has no layers that could be read or changed: give what it was made of")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ValueError(f"a {name} has the network inside: give its .module, and wrap that anew if it is changed")
    return module
