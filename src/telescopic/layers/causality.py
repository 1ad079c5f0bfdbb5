"""Whether the first channel groups of a network depend on the groups behind them: found by running it."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.layers.causal import prefix
from telescopic.layers.sized import require_channels_first
from telescopic.wrappers import called

_TOLERANCE = 1e-9


def prove_causal(network: nn.Module, x: Tensor, start: str, head: str, widths: Iterable[int], groups: int) -> None:
    """Run a network at several widths, and refuse it if its first groups depend on others.

    What each module takes and gives, behind the first layer and before the head, must be the first groups of what it
    takes and gives at full width.

    Args:
        network: a network in float64, with random weights.
        x: a batch of inputs.
        start: path of the first layer, whose output is cut to the first groups.
        head: path of the layer that gives the logits.
        widths: below the full one, at which to run it.
        groups: number of channel groups.

    Raises:
        ValueError: naming the first module that gives something else.
    """
    parts = dict(network.named_modules())
    full = _trace(network, x, start, head, groups, groups)
    if full.failure is not None:
        raise ValueError(f"the causal network fails on an input of shape {tuple(x.shape)}: {full.failure}")
    for path, does, features in full.steps:
        if not features.isfinite().all():
            what = f"{called(path, parts[path])}: what it {does}, with random weights and inputs"
            raise ValueError(f"{what}, is not finite, which would hide what depends on what: keep it from overflowing")
    for width in widths:
        trace = _trace(network, x, start, head, groups, width)
        some = f"the first {width} of {groups} groups of channels"
        for (path, does, got), (other, _, whole) in zip(trace.steps, full.steps, strict=False):
            blamed = f"{called(path, parts[path])} breaks causality:"
            wanted = prefix(whole.shape[1], groups, width)
            if path != other:
                raise ValueError(f"{blamed} given {some}, it runs other modules than given all")
            if got.shape != (whole.shape[0], wanted, *whole.shape[2:]):
                raise ValueError(
                    f"{blamed} given {some}, it {does} features of shape {tuple(got.shape[1:])}, and these groups of "
                    f"{tuple(whole.shape[1:])} are the first {wanted}. "
                    + (
                        f"Have a multiple of {groups} channels in front of it, or pool them to one pixel"
                        if isinstance(parts[path], nn.Flatten)
                        else "It mixes channels of different groups, or is not made for fewer channels"
                    )
                )
            if not (got - whole[:, :wanted]).abs().max() <= _TOLERANCE * whole.abs().max():
                raise ValueError(f"{blamed} {some} that it {does} depend on channels of later groups")
        if trace.failure is not None:
            path = trace.inside[-1] if trace.inside else ""
            raise ValueError(f"{called(path, parts[path])} breaks causality: it fails on {some}: {trace.failure}")


@dataclass
class _Trace:
    """What modules took and gave in one run, between the first layer and the head.

    Attributes:
        steps: (path of the module to blame, what it does, features).
        inside: paths of the modules that are running.
        failure: what the run raised.
    """

    steps: list[tuple[str, str, Tensor]] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    failure: Exception | None = None


@torch.no_grad()
def _trace(network: nn.Module, x: Tensor, start: str, head: str, groups: int, width: int) -> _Trace:
    """Run a network behind its first layer with the first groups of channels only."""
    trace, between = _Trace(), [False]

    def note(path: str, does: str, features: Any) -> None:
        if between[0] and isinstance(features, Tensor) and features.ndim > 1 and features.is_floating_point():
            trace.steps.append((path, does, features.clone()))

    def enter(path: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        note(trace.inside[-1] if trace.inside else "", f"passes on to {path}", given[0] if given else None)
        trace.inside.append(path)
        between[0] &= path != head

    def leave(path: str, _: nn.Module, __: Any, made: Any) -> Any:
        trace.inside.pop()
        note(path, "gives", made)
        if path == start:
            require_channels_first(network.get_submodule(start), made)
            between[0] = True
            return made[:, : prefix(made.shape[1], groups, width)]
        return made

    with ExitStack() as hooks:
        for path, part in network.named_modules():
            hooks.enter_context(part.register_forward_pre_hook(partial(enter, path)))
            hooks.enter_context(part.register_forward_hook(partial(leave, path)))
        try:
            network(x.clone())
        except Exception as error:
            trace.failure = error
    return trace
