"""Anytime prediction: better and better answers, none of which computes anything twice."""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal, get_args

import torch
from torch import Tensor

from telescopic.anytime.refining import Plan, Run
from telescopic.data import Preprocess, Split, batches
from telescopic.fits import check_fits
from telescopic.nested import Nested
from telescopic.subnet import Coordinates, Subnet

Against = Literal["labels", "last"]

_MARGIN = 1.1  # of a step's cost, which the machine's drift may take
_PERCENTILE = 0.9  # a higher one would be the time slices of other programs, where there are some
_SECONDS = 0.5
_MIN_RUNS = 20
_MOST_PLANS = 32  # of one network
# Beside the networks, which know nothing of it; a plan refers to a network's parts, and not to the network.
_PLANS: "weakref.WeakKeyDictionary[Nested, dict[tuple[Subnet, ...] | None, Plan]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known after one more step.

    Attributes:
        logits: `[batch, classes]`; those of examples that left earlier are as they were then.
        subnet: the member that the step reached.
        macs: multiply-adds executed so far for an example that has not left, answers on the way included.
        batch_macs: multiply-adds executed so far for the whole batch.
        elapsed: seconds since the call of `anytime`.
        steps: for each example the step that gave its logits, counted from 0: int64 `[batch]`.
        left: number of examples that are confident enough, and not refined any further.
    """

    logits: Tensor
    subnet: Coordinates
    macs: int
    batch_macs: int
    elapsed: float
    steps: Tensor
    left: int


def deepening(net: Nested, subnet: Subnet | None = None) -> tuple[Coordinates, ...]:
    """The path that gets deeper exit by exit, at the width and from the entry of one member, and ends with it.

    Args:
        net: the network.
        subnet: the member; by default the full network.
    """
    last = net.grid.resolve(subnet)
    return tuple(
        member
        for member in net.grid
        if (member.entry, member.width) == (last.entry, last.width) and net.grid.contains(last, member)
    )


def anytime(
    net: Nested,
    x: Tensor,
    *,
    path: Sequence[Subnet] | None = None,
    deadline: float | None = None,
    confidence: float | None = None,
    costs: Sequence[float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Answer]:
    """Answers from the members along a path, each computed from the features of the one before; stop whenever.

    An answer equals `net(x, answer.subnet)` up to rounding. The first one is always given, whatever the deadline. No
    step begins that would not end in time, by what it cost when it was measured on this machine; the time that passes
    between two answers in the caller's hands counts too. A step that some examples of a batch no longer take counts as
    if all took it.

    The first call for a path prepares it, and with a deadline the first call for a shape of input measures its steps,
    which takes about half a second. Neither counts against the deadline. Preparing a path of a network with several
    widths runs `torch.fx`, which takes over every module's call: let no other thread run a network meanwhile.
    Afterwards any number of threads may.

    Args:
        net: the network, in eval mode. Nothing in it changes.
        x: raw input `[batch, ...]`.
        path: members of one entry, each containing the one before; see `best_path`. By default `deepening(net)`.
        deadline: seconds from the call; None for no limit.
        confidence: examples whose largest softmax probability is at least this much are not refined any further; see
            `confidence_for`. None refines all.
        costs: seconds of each step; by default as `step_costs` measures them.
        clock: what time it is, in seconds.

    Returns:
        An iterator of answers. Logits cannot be used in training (they are made in inference mode).

    Raises:
        ValueError: at once, if the network is in training mode, the path is none, a part cannot be made wider step by
            step though the path asks for it, or a number is out of its range.
    """
    began = clock()
    _require(deadline, confidence)
    plan, prepared = _plan(net, path)
    if costs is not None and len(costs) != len(plan.steps):
        raise ValueError(f"this path of {len(plan.steps)} members needs as many costs, not {len(costs)}")
    if costs is None:
        costs = [0.0] * len(plan.steps) if deadline is None else plan.seconds.get(_conditions(x))
    if costs is None or not plan.is_priced(x):
        plan.macs(x)
        costs = _measure(plan, x, _SECONDS, _PERCENTILE) if costs is None else costs
        prepared = True
    return _answers(plan, x, deadline, confidence, costs, clock, clock() if prepared else began)


def step_costs(
    net: Nested,
    x: Tensor,
    *,
    path: Sequence[Subnet] | None = None,
    seconds: float = _SECONDS,
    percentile: float = _PERCENTILE,
) -> tuple[float, ...]:
    """Seconds that each step of a path takes on this machine: most runs took at most that long.

    Measured anew, and from then on what `anytime` goes by for inputs of this shape and with as many threads.

    Args:
        net: the network, in eval mode.
        x: an input of the shape in question `[batch, ...]`.
        path: see `anytime`.
        seconds: time to spend, a fifth of it on warming up. At least 20 runs are timed, whatever they take.
        percentile: share of the runs that a cost bounds. The higher, the fewer late answers, and the fewer steps.

    Raises:
        ValueError: as `anytime` does; or if there is no time to spend, or the percentile is no share.
    """
    if not 0 < seconds < inf:
        raise ValueError(f"measuring takes more than 0 seconds, not {seconds}")
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile is a share of the runs, above 0 and at most 1, not {percentile}")
    return _measure(_plan(net, path)[0], x, seconds, percentile)


def confidence_for(
    net: Nested,
    split: Split,
    *,
    preprocess: Preprocess | None = None,
    path: Sequence[Subnet] | None = None,
    max_loss: float = 0.005,
    against: Against = "labels",
    batch_size: int = 500,
) -> float:
    """The least confidence at which examples may leave, so that little is lost; to be found on validation images.

    It is the lowest probability such that for it and every higher one the loss stays within the bound, out of all
    that occur in the split.

    Args:
        net: the network, in eval mode.
        split: images and labels.
        preprocess: turns uint8 images into what the network sees.
        path: see `anytime`.
        max_loss: `labels`: how much lower accuracy may be than that of the last member of the path. `last`: the
            share of images that may be classified otherwise than by the last member; labels play no part.
        against: which of the two.
        batch_size: images in a batch.

    Returns:
        The threshold; `math.inf` if nobody may leave.

    Raises:
        ValueError: as `anytime` does; or if the split is empty, or the loss is no fraction.
    """
    if against not in get_args(Against):
        raise ValueError(f"against is one of {', '.join(get_args(Against))}, not {against!r}")
    if not 0 <= max_loss <= 1 or not len(split):
        raise ValueError(f"a threshold needs images and a loss from 0 to 1; these are {len(split)} and {max_loss}")
    preprocess, first = preprocess or Preprocess(), next(net.parameters())
    if against == "labels":
        check_fits(net, [split], preprocess)
    sure, right = [], []
    for images, labels in batches(split, batch_size):
        x = preprocess(images.to(first.device)).to(first.dtype)
        logits = torch.stack([answer.logits.float() for answer in anytime(net, x, path=path)])
        guesses = logits.argmax(2)
        right.append(guesses == (labels.to(first.device) if against == "labels" else guesses[-1]))
        sure.append(logits.softmax(2).amax(2))
    return _lowest(torch.cat(sure, 1), torch.cat(right, 1), max_loss)


def _lowest(sure: Tensor, right: Tensor, max_loss: float) -> float:
    """The threshold of `confidence_for`, from probability and rightness of each answer `[steps, images]`."""
    allowed = int(right[-1].sum()) - max_loss * right.shape[1] - 1e-9
    threshold = inf
    levels = torch.unique(sure[:-1])
    if len(levels) > 1000:  # quantiles of those that occur
        levels = levels[torch.linspace(0, len(levels) - 1, 1000).round().long()]
    for level in levels.flip(0).tolist():
        leaves = sure >= level
        leaves[-1] = True
        step = leaves.int().argmax(0)  # the first at which it does
        if int(right.gather(0, step[None]).sum()) < allowed:
            break
        threshold = level
    return threshold


def _answers(
    plan: Plan,
    x: Tensor,
    deadline: float | None,
    confidence: float | None,
    costs: Sequence[float],
    clock: Callable[[], float],
    began: float,
) -> Iterator[Answer]:
    run, prices = Run(plan, x), plan.macs(x)
    macs = batch_macs = 0
    logits = steps = torch.empty(0)
    inside: Tensor | None = None  # which examples have not left; None for all
    for number, member in enumerate(plan.path):
        if number and deadline is not None and clock() - began + costs[number] * _MARGIN > deadline:
            return
        with torch.inference_mode():
            new = run.advance()
            macs += prices[number]
            batch_macs += prices[number] * len(new)
            if inside is None:
                logits, steps = new, torch.full((len(new),), number, device=new.device)
            else:
                logits, steps = logits.index_copy(0, inside, new), steps.index_fill(0, inside, number)
            stay = None if confidence is None else (new.float().softmax(1).amax(1) < confidence).nonzero()[:, 0]
        left = 0 if stay is None else len(x) - len(stay)
        yield Answer(logits, member, macs, batch_macs, clock() - began, steps, left)
        if stay is None or len(stay) == len(new):
            continue
        if not len(stay):
            return
        with torch.inference_mode():
            run.select(stay)
            inside = stay if inside is None else inside[stay]


def _plan(net: Nested, path: Sequence[Subnet] | None) -> tuple[Plan, bool]:
    """The plan of a path, and whether it had to be made."""
    if not isinstance(net, Nested):
        raise TypeError(f"expected a telescopic.Nested, got {type(net).__name__}")
    plans = _PLANS.setdefault(net, {})
    key = None if path is None else tuple(path)
    plan = plans.get(key)
    if plan is not None and plan.is_of(net):
        return plan, False
    made = Plan(net, deepening(net) if key is None else key)
    if plan is not None:
        made.seconds.update(plan.seconds)
    if len(plans) >= _MOST_PLANS:
        plans.clear()
    plans[key] = made
    return made, True


def _conditions(x: Tensor) -> object:
    """What a step's cost depends on, beside the step."""
    return tuple(x.shape), x.dtype, str(x.device), torch.get_num_threads()


@torch.inference_mode()
def _measure(plan: Plan, x: Tensor, seconds: float, percentile: float) -> tuple[float, ...]:
    times: list[list[float]] = [[] for _ in plan.steps]
    begin = time.perf_counter()
    while len(times[0]) < _MIN_RUNS or time.perf_counter() < begin + seconds:
        run, warm = Run(plan, x.clone()), time.perf_counter() >= begin + seconds / 5
        for step in times:
            start = time.perf_counter()
            run.advance()
            if warm:
                step.append(time.perf_counter() - start)
    costs = tuple(sorted(step)[ceil(percentile * len(step)) - 1] for step in times)
    plan.seconds[_conditions(x)] = costs
    return costs


def _require(deadline: float | None, confidence: float | None) -> None:
    if deadline is not None and not deadline > 0:
        raise ValueError(f"a deadline is more than 0 seconds from now, not {deadline}; None is no deadline")
    if confidence is not None and not confidence > 0:
        raise ValueError(f"confidence is a probability above 0, or more than 1 for nobody to leave; not {confidence}")
