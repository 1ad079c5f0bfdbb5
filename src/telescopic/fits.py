"""Whether a network, images and labels belong together: found out before anything is trained or measured."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from telescopic.data import Dataset, Preprocess, Split
from telescopic.denormals import denormals_as_zero
from telescopic.inputs import first_line
from telescopic.nested import Nested


def check_training(net: Nested, data: Dataset, preprocess: Preprocess, batch_size: int, world: int) -> int:
    """Refuse what cannot be trained; warn of images kept apart that are all of one class, and so say nothing.

    Args:
        net: the network.
        data: what it is to learn.
        preprocess: turns uint8 images into what the network sees.
        batch_size: images in a batch.
        world: number of processes that share a batch.

    Returns:
        The fewest images of a batch with which it can be trained: see `telescopic.data.batches`.

    Raises:
        ValueError: if there are no training images, or all are of one class; if the network does not take the images,
            or has no score for a label; or if BatchNorm gets too few images to compute a variance.
    """
    if not len(data.train):
        raise ValueError(f"{data.name} has no training images")
    with denormals_as_zero():  # torch's threads may begin here, and take it over
        least = world * check_fits(net, data.splits, preprocess)
    if one := _only_class(data, data.train):
        raise ValueError(f"all training images of {data.name} are of class {one}: there is nothing to tell apart")
    for what, split in (("validation", data.validation), ("test", data.test)):
        if one := _only_class(data, split):
            message = f"all {what} images of {data.name} are of class {one}: accuracy on them says nothing"
            warnings.warn(message, stacklevel=3)
    if min(batch_size, len(data.train)) < least:
        shared = f", shared by {world} processes" if world > 1 else ""
        raise ValueError(
            f"BatchNorm needs {least} images in a batch{shared}, and these are batches of {batch_size} from "
            f"{len(data.train)} images"
        )
    return max(1, least)


def check_fits(net: nn.Module, splits: Sequence[Split], preprocess: Preprocess) -> int:
    """Refuse images that a network does not take, and labels for which it has no score.

    Args:
        net: the network.
        splits: images and labels; empty ones are not looked at.
        preprocess: turns uint8 images into what the network sees.

    Returns:
        See `tried`; 0 if all splits are empty.

    Raises:
        ValueError: if they do not belong together.
    """
    splits = [split for split in splits if len(split)]
    if not splits:
        return 0
    logits, least = tried(net, splits[0], preprocess)
    if logits.ndim != (3 if isinstance(net, Nested) else 2):
        raise ValueError(f"a network gives scores [batch, classes], and this one an output of shape {[*logits.shape]}")
    scores = logits.shape[-1]
    lowest = min(int(split.labels.min()) for split in splits)
    highest = max(int(split.labels.max()) for split in splits)
    if highest >= scores:
        from_one = "; they seem to be counted from 1: subtract 1" if (lowest, highest) == (1, scores) else ""
        each = "; each class needs a score of its own" if scores == 1 else ""
        raise ValueError(
            f"labels go from {lowest} to {highest}, and the network's scores ({scores}) are for labels from 0 to "
            f"{scores - 1}{from_one}{each}"
        )
    return least


@torch.no_grad()
def tried(net: nn.Module, split: Split, preprocess: Preprocess) -> tuple[Tensor, int]:
    """What a network answers to an image, given twice.

    Returns:
        Its output, of all members if it is nested; and how many images must be in a batch for its BatchNorms in
        training: 0 without BatchNorm; 2 if one sees a single value of an image in each channel, which alone has no
        variance; else 1.

    Raises:
        ValueError: if it does not take such images.
    """
    first, least = next(net.parameters()), 0

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal least
        values = inputs[0].numel() // inputs[0].shape[1]  # in a channel, of two images
        least = max(least, 1 if values > 2 else 2)

    x = preprocess(split.images[:1].to(first.device)).to(first.dtype).repeat(2, 1, 1, 1)
    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, _BatchNorm)]
    try:
        with in_eval_mode(net):
            return (net.all(x) if isinstance(net, Nested) else net(x)), least
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shape = [*split.images.shape[1:]]
        raise ValueError(
            f"the network does not take these images [channels, height, width] {shape}: {first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """In which nothing is trained; afterwards every module is in the mode that it had, also one that was frozen."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _only_class(data: Dataset, split: Split) -> str | None:
    """The class of all images of a split, if there is one and no other."""
    found = set(split.labels.tolist())
    label = found.pop() if len(found) == 1 else None
    return None if label is None else f"{label} ({data.classes[label]})" if data.classes else str(label)
