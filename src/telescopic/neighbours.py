"""Whether an answer depends on its example alone: found by asking again, and again in other company."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.inputs import Tensors, each, leaves


@torch.no_grad()
def require_alone(
    run: Callable[[Tensors], Any], parts: Sequence[tuple[str, nn.Module]], x: Tensors, tolerance: float
) -> None:
    """Refuse a network in eval mode whose answer for an example depends on more than the example.

    A server batches strangers together: what takes a mean over the batch would mix their answers.

    Args:
        run: asks the network.
        parts: names and modules that it runs one behind the other, to say which is to blame.
        x: inputs `[batch, ...]`, two or more; or a dict or tuple of such.
        tolerance: largest difference that is allowed, as a fraction of the largest number.

    Raises:
        ValueError: naming the first part that gives something else when asked again, or beside other neighbours.
    """
    first = _features(run, parts, x)
    again = _features(run, parts, x)
    beside = _features(run, parts, each(lambda x: torch.cat([x[:1], _others(x)]), x))
    number = len(leaves(x)[0])
    for (name, one), (_, same), (_, other) in zip(first, again, beside, strict=False):
        if _apart(one, same) > tolerance:
            raise ValueError(
                f"{name} gives something else when it is asked again: it keeps something between calls, or draws "
                "random numbers in eval mode (F.dropout does unless it is told training=self.training)"
            )
        if len(one) == number and (far := _apart(one[:1], other[:1])) > tolerance:
            raise ValueError(
                f"{name} mixes the examples of a batch: beside other neighbours it gives for the same example what "
                f"differs by {far:.2g} of the largest number. In eval mode nothing may be computed over dimension 0, "
                "and BatchNorm needs running statistics"
            )
    answer = first[-1][1]
    if not answer.ndim or len(answer) != number:
        raise ValueError(f"the answer for {number} examples has shape {tuple(answer.shape)}: it has no batch in front")


def _features(
    run: Callable[[Tensors], Any], parts: Sequence[tuple[str, nn.Module]], x: Tensors
) -> list[tuple[str, Tensor]]:
    """What the parts give, in the order in which they end, and the answer."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, part: nn.Module, _: Any, made: Any) -> None:
        for tensor in leaves(made):
            if isinstance(tensor, Tensor) and tensor.ndim:
                found.append((f"{name} ({type(part).__name__})", tensor.clone()))

    hooks = [part.register_forward_hook(partial(note, name)) for name, part in parts]
    try:
        answer = run(each(torch.clone, x))
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, ("the network", answer)]


def _others(x: Tensor) -> Tensor:
    """Neighbours of the first of some inputs that are something else: random numbers; or of whole numbers its own.

    A column may have numbers that no other one may have, such as those of classes of its own.
    """
    if x.is_floating_point():
        generator = torch.Generator().manual_seed(1)
        return 3 * torch.randn(x[1:].shape, generator=generator).to(x) + x[1:].flip(0)
    return x[:1].expand_as(x)[1:]


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference as a fraction of the largest number; infinity between other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    one, other = one.double().nan_to_num(), other.double().nan_to_num()  # what is no number may stay none
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
