"""Whether a network, data and a task belong together: found out before anything is trained or measured."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from telescopic.data import Augment, Dataset, Preprocess, Split, prepared
from telescopic.data.streams import both, sampler_of
from telescopic.denormals import denormals_as_zero
from telescopic.inputs import each, first_line, named
from telescopic.nested import Nested
from telescopic.tasks import CLASSIFICATION, Task
from telescopic.wrappers import in_mode


def check_training(
    net: Nested,
    data: Dataset,
    preprocess: Preprocess,
    batch_size: int,
    world: int,
    task: Task = CLASSIFICATION,
    augment: Augment | None = None,
) -> int:
    """Refuse what cannot be trained; warn of examples kept apart that say nothing, for all have one target.

    Args:
        net: the network.
        data: what it is to learn.
        preprocess: turns inputs into what the network sees.
        batch_size: examples in a batch.
        world: number of processes that share a batch.
        task: what is to be learned.
        augment: how the inputs are to be changed.

    Returns:
        The fewest examples of a batch with which it can be trained: see `telescopic.data.batches`.

    Raises:
        ValueError: if there are no training examples, or all have one target; if a number is not finite; if the network
            does not take the inputs, or its outputs and the targets do not fit the task; or if BatchNorm gets too few
            examples to compute a variance.
    """
    if not len(data.train):
        raise ValueError(f"{data.name} has no training examples")
    (augment or Augment())(data.train[:1].to("cpu").inputs, torch.Generator())
    with denormals_as_zero():  # torch's threads may begin here, and take it over
        least = world * check_fits(net, data.splits, preprocess, task)
    score = task.metric.name
    for split in data.splits:
        _require_shared(split, batch_size if split is data.train else None, world)
    if net.statistics == "recalibrated" and world > 1 and sampler_of(data.train.loader) is not None:
        raise ValueError(
            "statistics are recalibrated from the same examples in all processes, and the loader's DistributedSampler "
            "gives each its own: use a loader without one, or the statistics per-entry"
        )
    if one := _only_target(data, data.train):
        raise ValueError(f"all training examples of {data.name} are of {one}: there is nothing to tell apart")
    for what, split in (("validation", data.validation), ("test", data.test)):
        if one := _only_target(data, split):
            warnings.warn(
                f"all {what} examples of {data.name} are of {one}: {score} on them says nothing", stacklevel=3
            )
    if min(batch_size, len(data.train)) < least:
        shared = f", shared by {world} processes" if world > 1 else ""
        raise ValueError(
            f"BatchNorm needs {least} examples in a batch{shared}, and these are batches of {batch_size} from "
            f"{len(data.train)} examples"
        )
    return max(1, least)


def check_fits(net: nn.Module, splits: Sequence[Split], preprocess: Preprocess, task: Task = CLASSIFICATION) -> int:
    """Refuse inputs that a network does not take, and outputs and targets that do not fit the task.

    Args:
        net: the network.
        splits: inputs and targets; empty ones are not looked at.
        preprocess: turns inputs into what the network sees.
        task: what the network is to answer.

    Returns:
        See `tried`; 0 if all splits are empty.

    Raises:
        ValueError: if they do not belong together, or a number in them is not finite.
    """
    splits = [split for split in splits if len(split)]
    if not splits:
        return 0
    for split in splits:
        for what, numbers in both(split.inputs, split.targets).items():
            _require_finite(numbers, what)
    outputs, least = tried(net, splits[0], preprocess)
    outputs = outputs if isinstance(net, Nested) else outputs[None]
    if outputs.ndim < 2 or outputs.shape[1] != 2:
        raise ValueError(f"a network answers each of two examples, and this one gives {[*outputs.shape[1:]]} for two")
    task.check(outputs, [split.targets for split in splits])
    target = splits[0].targets[:1].to(outputs.device)
    _require_each(outputs, target.repeat(2, *[1] * (target.ndim - 1)), task)
    return least


def _require_each(outputs: Tensor, targets: Tensor, task: Task) -> None:
    """Refuse a loss or score that does not tell members and examples apart."""
    for what, say in (("loss", task.loss), ("score", task.score)):
        each = None if say is None else say(outputs, targets)
        shape, wanted = None if each is None else [*each.shape], [*outputs.shape[:2]]
        if shape is not None and (shape[:2] != wanted or len(shape) > (2 if what == "loss" else 3)):
            raise ValueError(
                f"the task's {what} gives {shape or 'one number'} for {wanted[0]} members and two examples, and should "
                f"give one number for each, {wanted}: leave members and examples apart, as reduction='none' does"
            )


def _require_finite(numbers: Tensor, what: str) -> None:
    if not numbers.is_floating_point() or numbers.is_meta:
        return
    for start in range(0, len(numbers), 4096):  # a mask of all would take as much memory again
        bad = ~numbers[start : start + 4096].isfinite()
        if bad.any():
            place = bad.nonzero()[0].tolist()
            place[0] += start
            named = f"{what}[{', '.join(map(str, place))}] of a split of {len(numbers)} examples"
            raise ValueError(f"{named} is {float(numbers[tuple(place)])}: leave the example out, or fill the gap")


@torch.no_grad()
def tried(net: nn.Module, split: Split, preprocess: Preprocess) -> tuple[Tensor, int]:
    """What a network answers to an input, given twice.

    Returns:
        Its output, of all members if it is nested; and how many inputs must be in a batch for its BatchNorms in
        training: 0 without BatchNorm; 2 if one sees a single value of an input in each channel, which alone has no
        variance; else 1.

    Raises:
        ValueError: if it does not take such inputs.
    """
    first, least = next(net.parameters()), 0

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal least
        values = inputs[0].numel() // inputs[0].shape[1]  # in a channel, of two images
        least = max(least, 1 if values > 2 else 2)

    x = each(lambda x: x.repeat(2, *[1] * (x.ndim - 1)), prepared(split[:1].inputs, preprocess, first))
    try:
        with ExitStack() as hooks, in_mode(net, training=False):
            for norm in (part for part in net.modules() if isinstance(part, _BatchNorm)):
                hooks.enter_context(norm.register_forward_pre_hook(look))
            return (net.all(x) if isinstance(net, Nested) else net(x)), least
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError) as error:
        inputs = named(split.inputs, "inputs")
        image = isinstance(split.inputs, Tensor) and split.inputs.ndim == 4
        known = {"images [channels, height, width]" if image else key: [*x.shape[1:]] for key, x in inputs.items()}
        told = " and ".join(f"{key} {shape}" for key, shape in known.items())
        why = f"it asks for {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"the network does not take these {told}: {why}") from error


def _require_shared(split: Split, batch_size: int | None, world: int) -> None:
    """Refuse a loader that processes cannot share, or whose batches are not of the recipe's size."""
    if split.loader is None:
        return
    sampler = sampler_of(split.loader)
    if sampler is not None and sampler.num_replicas != world:
        raise ValueError(
            f"the loader's DistributedSampler divides examples among {sampler.num_replicas} processes, and here "
            f"{'is' if world == 1 else 'are'} {world}"
        )
    size = len(split) * (1 if sampler is None else world)
    if batch_size not in (None, size):
        all_ = "" if sampler is None else f", those of {world} processes together"
        raise ValueError(
            f"the recipe has batch_size {batch_size}, and the loader gives batches of {size}{all_}: give the recipe "
            f"batch_size={size}"
        )


def _only_target(data: Dataset, split: Split) -> str | None:
    """What all examples of a split have for a target, if it is the same."""
    targets = split.targets
    if split.loader is not None or not len(targets) or not bool((targets == targets[:1]).all()):
        return None
    label = targets[0].tolist()
    named = f"{label} ({data.classes[label]})" if data.classes and isinstance(label, int) else str(label)
    return f"class {named}" if targets.ndim == 1 and targets.dtype == torch.int64 else f"target {named:.50}"
