"""What torch wraps around a network to run it, and hangs on modules; and how a module is copied with that on it.

What `torch.compile` returns is looked into, other wrappers are refused.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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


def called(path: str, module: nn.Module) -> str:
    """A module inside a network as messages call it."""
    return f"{path or 'the network'} ({type(module).__name__})"


def hooked(module: nn.Module) -> bool:
    """Whether hooks are called with what a module reads or gives, and may change it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """In training or eval mode; afterwards every part is in the mode that it had, also one that was frozen."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = training
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def copied(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """A copy of a module, also if it holds what it has computed.

    torch refuses to copy tensors with a history, such as features kept from the last pass, or the weight that pruning
    and the older weight norm compute anew at each call. The copy gets their values.

    Args:
        module: what to copy.
        memo: id of an object → what stands for it in the copy, as for `copy.deepcopy`.
    """
    memo = {} if memo is None else memo
    try:
        return copy.deepcopy(module, dict(memo))
    except RuntimeError:  # looked for only now, for it takes longer than many a copy
        held = tree_leaves([list(vars(part).values()) for part in module.modules()])
        computed = {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and t.grad_fn is not None}
        if not computed:
            raise
        return copy.deepcopy(module, {**computed, **memo})


def twin(part: nn.Module) -> nn.Module:
    """The same part with buffers of its own, which have seen nothing yet: the parameters are the very same objects."""
    made = copied(part, {id(parameter): parameter for parameter in part.parameters()})
    for name, buffer in made.named_buffers():
        if name.rpartition(".")[2] == "num_batches_tracked":
            buffer.zero_()
    return made
