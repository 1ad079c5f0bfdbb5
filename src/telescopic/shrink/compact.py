"""Dead channels are removed while a network is trained, and it goes on training as if they were still there."""

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from telescopic.ambient import plain
from telescopic.inputs import Tensors
from telescopic.layers.cuts import Cut, call_with, named_tensors, put_
from telescopic.layers.filter import filters_of
from telescopic.shrink.channels import Channels
from telescopic.shrink.example import Inputs, Run, examples, unchanged
from telescopic.shrink.failing import Surprise, reason, shapings
from telescopic.shrink.log import Log, cut_
from telescopic.shrink.optimizers import checked, refuse_decay
from telescopic.shrink.rules import observed
from telescopic.shrink.sizes import following, written
from telescopic.shrink.watch import Unfollowed
from telescopic.wrappers import unwrapped

UNREACHED = "the example does not reach"

_STUCK: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Tensor, Log]] = WeakKeyDictionary()
"""For networks that were compacted: with which options, which channels are still dead, and why."""

_HELD: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
"""For networks that did something else without what is dead in a filter: the filters' paths, and why."""


@plain()
def compact_(
    model: nn.Module,
    *optimizers: Optimizer,
    example: Tensors | Inputs | None = None,
    multiple_of: int = 1,
) -> Log:
    """Remove dead channels everywhere: from what makes them, what follows, what reads them, and optimizers' states.

    Parameters, layers and optimizers stay the objects they were, with smaller tensors; so do parameter groups, and
    schedulers and gradient scalers go on. The network's outputs stay the same, and the next training step is the one
    it would have taken (apart from random numbers drawn for dead channels, as dropout does).

    Call it between an optimizer's step and the next forward pass, in all processes if there are several;
    `DistributedDataParallel` is then made anew if the log says that something was removed. It costs next to nothing
    while nothing more is dead.

    What is kept though it is dead: a channel that something reads while it is not 0 (in a residual sum, all branches
    must be dead), or that something reads that is not known to treat each channel alone; and all channels while the
    network has parameters that the example does not reach, for these could read any. `log.held` says why. Each layer
    keeps one channel, the first one if all are dead. A network that fails without the dead channels, or gives
    something else, keeps them too, with a warning: training is not to end for that.

    Of what `torch.compile` returned the network inside is looked at. It is compiled anew at the next pass, but torch
    gives up doing so after eight times, unless `torch.compiler.reset()` is called.

    Args:
        model: a network with `layers.Filter`s inside.
        optimizers: all that train it, of torch's kinds that treat each entry of a parameter alone (SGD, ASGD, Adam,
            AdamW, Adamax, NAdam, RAdam, Adagrad, Adadelta, RMSprop, Rprop), or registered by `register_optimizer`.
        example: a batch of inputs `[batch, ...]`, or several, or a function that is given the network and calls all of
            it that training does: see `add_filters`, and not needed if that got one.
        multiple_of: each layer gives a multiple of this many channels, or as many as before.

    Returns:
        What was removed. It can be replayed on copies of the network.

    Raises:
        ValueError: if the network has no filters, or does not run on the example; if an optimizer is of an unknown
            kind, or decays θ, or they do not hold all parameters that require gradients; nothing is changed then.
    """
    start = time.perf_counter()
    model = unwrapped(model)
    filters = filters_of(model)
    if not filters:
        raise ValueError("the network has no filters, which say what is dead: see shrink.add_filters")
    if type(multiple_of) is not int or multiple_of < 1:
        raise ValueError(f"multiple_of is a whole number of channels, 1 or more, not {multiple_of!r}")
    trained_by = checked(model, optimizers)
    refuse_decay(model, trained_by)
    left = {path: len(part.theta) for path, part in filters.items()}
    dead = torch.cat([part.dead() for part in filters.values()])
    if not dead.any():
        return Log(left=left, seconds=time.perf_counter() - start)
    options = (multiple_of, example if callable(example) else None)
    stuck = _STUCK.get(model)
    if stuck is not None and stuck[0] == options and torch.equal(stuck[1], dead):
        return Log(left=left, held=stuck[2].held, seconds=time.perf_counter() - start)
    inputs = examples(model, example)
    sizes = written(model)
    known = _HELD.setdefault(model, {})
    try:
        channels = watched(model, inputs)
    except Unfollowed as error:
        channels, removed, cuts = Channels(), torch.zeros(1, dtype=torch.bool), tuple[Cut, ...]()
        held = dict.fromkeys(filters, str(error))
        found = {path: why for path, why in held.items() if path not in known}
    else:
        for path in known.keys() & channels.filters.keys():
            channels.hold(channels.theta(path), known[path])
        removed, cuts, held, found = remove_(model, trained_by, inputs, channels, multiple_of)
    if found:
        known |= found
        others = f", and of {len(found) - 1} filters more" if len(found) > 1 else ""
        path, why = next(iter(found.items()))
        warnings.warn(f"dead channels of filter {path}{others} stay: {why}", stacklevel=3)
    gone = {path: n for path in channels.filters if (n := int(removed[channels.theta(path)].sum()))}
    if cuts:
        _price(model, inputs)
    left = {path: number - gone.get(path, 0) for path, number in left.items()}
    changed = {path: now for path, now in written(model).items() if now != sizes[path]}
    log = Log(cuts, gone, left, held, time.perf_counter() - start, changed)
    _STUCK[model] = (options, torch.cat([part.dead() for part in filters.values()]), log)
    return log


def remove_(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    inputs: Inputs,
    channels: Channels,
    multiple_of: int = 1,
) -> tuple[Tensor, tuple[Cut, ...], dict[str, str], dict[str, str]]:
    """Remove what is dead. If the network does something else then, filters on which that depends keep it.

    Returns:
        Which channels are gone; the cuts; why filters hold dead ones, by path; and those that it was found of just now.
    """
    removed, cuts, held = torch.zeros(1, dtype=torch.bool), tuple[Cut, ...](), dict[str, str]()
    found: dict[str, str] = {}

    def attempt(of: Collection[str] | None = None) -> Callable[[], None]:
        nonlocal removed, cuts, held
        removed = channels.removed(multiple_of, of)
        cuts, held = tuple(cuts_of(channels, removed)), channels.reasons(removed)
        return change_(model, optimizers, inputs, cuts)

    try:
        attempt()
    except Surprise as together:
        dead = [path for path, part in channels.filters.items() if part.dead().any()]
        for path in dead:
            try:
                attempt({path})()
            except Surprise as alone:
                found[path] = str(alone)
        while True:
            for path, why in found.items():
                channels.hold(channels.theta(path), why)
            try:
                attempt()
                break
            except Surprise:
                found = dict.fromkeys(dead, str(together)) | found
    return removed, cuts, held, found


def change_(
    model: nn.Module, optimizers: Sequence[Optimizer], inputs: Inputs, cuts: Sequence[Cut]
) -> Callable[[], None]:
    """Cut a network; if it gives something else then, it is put back.

    Returns:
        What puts it back too.

    Raises:
        Surprise: what differs, or where the network fails.
    """
    if not cuts:
        return lambda: None
    before = answers(model, inputs)
    undo = _snapshot(model, optimizers)
    cut_(model, cuts, optimizers)
    try:
        with following(model):
            prove(model, inputs, before)
    except Exception as error:  # it is anyone's code
        after = shapings(model, lambda: prove(model, inputs, before))
        undo()
        raise Surprise(reason(model, error, shapings(model, lambda: prove(model, inputs, before)), after)) from error
    return undo


@plain()
def price_(model: nn.Module, example: Tensors | Inputs | None = None) -> None:
    """Tell each filter what its channels cost: `params` and `macs`. `add_filters` and `compact_` do it too.

    A channel costs what goes with it alone: the weights that make it, those that read it, and the norms between, at
    the present widths of others.
    """
    model = unwrapped(model)
    _price(model, examples(model, example))


def watched(model: nn.Module, inputs: Inputs) -> Channels:
    """Run a network in training and in eval mode, and find out which channels belong together."""
    channels = Channels()
    missed = {id(p): name for name, p in model.named_parameters() if p.numel() > 1}
    for training in (True, False):
        reached = observed(model, inputs, channels, training=training).reached
        missed = {known: name for known, name in missed.items() if known not in reached}
    if missed and channels.axes:
        names = ", ".join([*missed.values()][:3]) + ", …" * (len(missed) > 3)
        channels.hold(torch.cat([axis.ids for axis in channels.axes.values()]), f"{names}, which {UNREACHED}")
    return channels


def cuts_of(channels: Channels, removed: Tensor) -> Iterator[Cut]:
    """The entries that stay of each axis that loses some, in the order in which they are cut."""
    # Inner dimensions first: rows of a grouped convolution tell to which group they belong as long as all are there.
    for axis in sorted(channels.axes.values(), key=lambda axis: -axis.dim):
        keep = ~removed[axis.ids]
        if keep.all():
            continue
        kept = keep.nonzero().view(-1)
        if axis.groups > 1:
            kept = kept.view(axis.groups, -1) % axis.tensor.shape[axis.dim]
        yield Cut(axis.name, axis.dim, kept, len(axis.ids))


@torch.no_grad()
def outputs(
    model: nn.Module, inputs: Inputs, dtype: torch.dtype | None, others: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """What a network gives in eval mode; in another precision if one is named, or with other tensors."""
    given = {id(own): own if others is None else others[name] for name, own in named_tensors(model).items()}
    tensors = {own: t.to(dtype if t.is_floating_point() and dtype else t.dtype) for own, t in given.items()}
    with unchanged(model, training=False):
        made = call_with(Run(model, inputs, dtype), tensors)
    return [leaf.clone() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


def answers(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], torch.dtype | None]:
    """Outputs in double precision, whatever processors make of single, or in the network's own if it needs that."""
    try:
        return outputs(model, inputs, torch.float64), torch.float64
    except Exception:  # such as a tensor of another type that its forward pass makes
        return outputs(model, inputs, None), None


def prove(model: nn.Module, inputs: Inputs, before: tuple[list[Tensor], torch.dtype | None]) -> None:
    """Run a network again.

    Raises:
        Surprise: if its outputs changed by more than rounding.
    """
    require_equal(outputs(model, inputs, before[1]), before[0])
    with unchanged(model, training=True), torch.no_grad():
        Run(model, inputs)()


def require_equal(found: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Compare outputs.

    Raises:
        Surprise: if they differ by more than rounding.
    """
    for now, then in zip(found, before, strict=True):
        if now.shape != then.shape:
            raise Surprise(f"the network's outputs, which would be {tuple(now.shape)} instead of {tuple(then.shape)}")
        if now.is_floating_point() and then.numel():
            same = (now == then) | (now.isnan() & then.isnan())  # such as what a mask sets to -∞
            difference = float((now - then).masked_fill(same, 0).abs().max())
            size = float(then.nan_to_num(0, 0, 0).abs().max())
            # Some layers compute in single precision whatever they get.
            bound = max(torch.finfo(now.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5 * max(size, 1e-6)
            if not difference <= bound:
                raise Surprise(f"the network's outputs, which would change by {difference:.3g}, of {size:.3g}")


def _snapshot(model: nn.Module, optimizers: Sequence[Optimizer]) -> Callable[[], None]:
    """What puts everything back as it is now."""
    tensors = [(t, t.detach(), t.grad) for t in named_tensors(model).values()]
    sizes = [(part, dict(part.__dict__)) for part in model.modules()]
    states = [(state, dict(state)) for optimizer in optimizers for state in optimizer.state.values()]

    def undo() -> None:
        for tensor, data, grad in tensors:
            tensor.grad = None
            put_(tensor, data)
            tensor.grad = grad
        for part, attributes in sizes:
            part.__dict__.update(attributes)
        for state, kept in states:
            state.update(kept)

    return undo


def _price(model: nn.Module, inputs: Inputs) -> None:
    channels = Channels()
    observed(model, inputs, channels)
    label, (params, macs) = channels.labels(), channels.prices()
    for path, part in channels.filters.items():
        ids = label[channels.theta(path)]
        part.params.copy_(params[ids])
        part.macs.copy_(macs[ids])
