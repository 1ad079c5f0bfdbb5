"""Whether an answer depends on its example alone: found by asking again, and again in other company."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.inputs import Tensors, each, leaves

_ROWS = 4  # examples of a batch that are asked alone: beside the one on which others depend, three show it


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
    number = len(leaves(x)[0])
    strangers = each(lambda x: torch.cat([x[:1], _others(x)]), x)
    beside = _features(run, parts, strangers)
    company = [[(one[:1], other[:1]) for (_, one), (_, other) in zip(first, beside, strict=False)]]
    _judge(first, again, company, number, tolerance)
    for batch, made, rows in ((x, first, _ROWS), (strangers, beside, 2)):
        for row in range(min(rows, number)):
            alone = _features(run, parts, each(lambda x, row=row: x[row : row + 1], batch))
            company.append([(one[row : row + 1], own) for (_, one), (_, own) in zip(made, alone, strict=False)])
    _judge(first, again, company, number, tolerance)
    answer = first[-1][1]
    if not answer.ndim or len(answer) != number:
        raise ValueError(f"the answer for {number} examples has shape {tuple(answer.shape)}: it has no batch in front")


def _judge(
    first: Sequence[tuple[str, Tensor]],
    again: Sequence[tuple[str, Tensor]],
    company: Sequence[Sequence[tuple[Tensor, Tensor]]],
    number: int,
    tolerance: float,
) -> None:
    """Refuse what differs when asked again, or between an example in company and the same elsewhere."""
    for (name, one), (_, same), *pairs in zip(first, again, *company, strict=False):
        if _apart(one, same) > tolerance:
            raise ValueError(
                f"{name} gives something else when it is asked again: it keeps something between calls, or draws "
                "random numbers in eval mode (F.dropout does unless it is told training=self.training)"
            )
        apart = [_apart(ours, other) for ours, other in pairs if len(ours) == len(other) == 1]
        if len(one) == number and (far := max(apart, default=0.0)) > tolerance:
            raise ValueError(
                f"{name} mixes the examples of a batch: alone or beside others it gives for the same example what "
                f"differs by {far:.2g} of the largest number. In eval mode nothing may be computed over dimension 0, "
                "and BatchNorm needs running statistics"
            )


def _features(
    run: Callable[[Tensors], Any], parts: Sequence[tuple[str, nn.Module]], x: Tensors
) -> list[tuple[str, Tensor]]:
    """What the parts give, in the order in which they end, and the answer."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, part: nn.Module, _: Any, made: Any) -> None:
        for tensor in leaves(made):
            if isinstance(tensor, Tensor) and tensor.ndim:
                found.append((f"{name} ({type(part).__name__})", tensor.clone()))

    with ExitStack() as hooks:
        for name, part in parts:
            hooks.enter_context(part.register_forward_hook(partial(note, name)))
        answer = run(each(torch.clone, x))
    return [*found, ("the network", answer)]


def _others(x: Tensor) -> Tensor:
    """Neighbours of the first of some inputs that are something else: random numbers; of whole numbers its own and 0.

    A column may have numbers that no other one may have, such as those of classes of its own. So a neighbour has those
    of the first in front and 0 behind, or one of them alone.
    """
    if x.is_floating_point():
        generator = torch.Generator().manual_seed(1)
        return 3 * torch.randn(x[1:].shape, generator=generator).to(x) + x[1:].flip(0)
    others = x[:1].expand_as(x)[1:].clone()
    long = [axis for axis in range(1, x.ndim) if x.shape[axis] > 1]
    if long:
        others.narrow(long[-1], -(-x.shape[long[-1]] // 2), x.shape[long[-1]] // 2).zero_()
    else:
        others[::2] = 0
    return others


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference as a fraction of the largest number; infinity between other shapes."""
    if one.shape != other.shape:
        return float("inf")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    one, other = one.double().nan_to_num(), other.double().nan_to_num()  # what is no number may stay none
    return float((one - other).abs().max() / one.abs().max().clamp_min(1e-30))
