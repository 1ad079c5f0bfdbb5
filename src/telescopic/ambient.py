"""What a program has set for all of torch is set aside while a network is looked at, changed or trained."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch


@contextmanager
def plain() -> Iterator[None]:
    """Gradients, no inference mode, no autocast, and new tensors on the CPU, whatever holds where this is called.

    It decorates what runs or changes a network: parameters made in inference mode can never be trained, a network under
    autocast gives other outputs than itself, and tensors on the meta device hold nothing. The default type stays, for
    a network's own forward pass may rely on it.

    Raises:
        ValueError: inside `torch.vmap`, `torch.func.grad` and the like, whose tensors stand for others.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise ValueError(
            "this cannot be done inside a function that torch.vmap, torch.func.grad or the like transforms, where "
            "tensors stand for others: call it outside"
        )
    accelerator = torch.accelerator.current_accelerator()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu"} if accelerator is None else {"cpu", accelerator.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(on_cpu())
        yield


def on_cpu() -> AbstractContextManager[object]:
    """New tensors on the CPU. Where they are anyway, nothing is done: it would slow every function that is called."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
