"""The statistics that BatchNorm uses in eval mode: computed anew from images, and looked at before they are used."""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from telescopic.ambient import plain
from telescopic.data import Augment, Preprocess, Split, batches, prepared
from telescopic.fits import tried
from telescopic.nested import Nested, rebuilt
from telescopic.wrappers import copied, in_mode


@plain()
def recalibrate(
    net: nn.Module,
    split: Split,
    preprocess: Preprocess | None = None,
    *,
    augment: Augment | None = None,
    num_images: int = 5120,
    batch_size: int = 512,
    seed: int = 0,
) -> nn.Module:
    """A copy of a network whose BatchNorm statistics are those of the images given, and nothing else has changed.

    Running means lag behind the weights, and shared ones mix what the streams of several entries make of an image:
    here each entry's are the mean over batches computed with the final weights.

    Args:
        net: a nested network, all members of which are recalibrated; or a plain module such as an extracted member. It
            is left as it is. A copy of a nested network with `shared` statistics and several entries has the policy
            `recalibrated`.
        split: training images.
        preprocess: turns uint8 images into what the network sees; by default into fractions of 255.
        augment: how the images are changed at random. Give what the network was trained with: it expects the
            statistics of such images, and those of unchanged ones cost 1 % of accuracy in CNSN on CIFAR-10.
        num_images: how many images to use, drawn at random.
        batch_size: images in a batch; the more, the better.
        seed: which images are drawn.

    Raises:
        ValueError: if the split is empty, a number is below 1, the network does not take the images, or a BatchNorm
            needs more of them in a batch.
    """
    made = copied(net)
    if isinstance(made, Nested) and made.statistics == "shared" and len(made.grid.entries) > 1:
        made = rebuilt(made, statistics="recalibrated").train(net.training)
    options: dict[str, Any] = {"num_images": num_images, "batch_size": batch_size, "seed": seed}
    recalibrate_(made, split, preprocess, augment=augment, **options)
    return made


@plain()
@torch.no_grad()
def recalibrate_(
    net: nn.Module,
    split: Split,
    preprocess: Preprocess | None = None,
    *,
    augment: Augment | None = None,
    num_images: int = 5120,
    batch_size: int = 512,
    seed: int = 0,
) -> None:
    """The same in place, without a change of policy."""
    if not len(split) or min(num_images, batch_size) < 1:
        raise ValueError(f"recalibration takes images: {len(split)} are there, {num_images} asked for by {batch_size}")
    found = list(norms(net))
    if not found:
        return
    momenta = {norm: norm.momentum for norm in found}
    first, preprocess = next(net.parameters()), preprocess or Preprocess()
    size = min(batch_size, num_images, len(split))
    if size < (least := tried(net, split, preprocess)[1]):
        raise ValueError(f"BatchNorm computes a variance of {least} examples or more in a batch, not of {size}")
    try:
        with in_mode(net, training=False):
            for norm in found:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
            # Whole batches only: the few images of a last one would count as much.
            generator = torch.Generator().manual_seed(seed)
            most = num_images if split.loader is not None else min(num_images, len(split))
            whole = (x for x, y in batches(split, size, seed=seed) if len(y) >= size)
            for images in islice(whole, max(1, most // size)):
                images = images if augment is None else augment(images, generator)
                x = prepared(images, preprocess, first)
                net.all(x) if isinstance(net, Nested) else net(x)
    finally:
        for norm in found:
            norm.momentum = momenta[norm]


def warn_of_unseen(net: Nested) -> None:
    """Warn of members with a BatchNorm that has seen no data of theirs: what they answer says little."""
    blank = {norm for norm in norms(net) if norm.num_batches_tracked is not None and not norm.num_batches_tracked.any()}
    if not blank:
        return
    unseen = [
        net.grid.label(member)
        for member in net.grid
        if any(not blank.isdisjoint(norms(part)) for _, part in net.path(member))
    ]
    if unseen:
        names = "; ".join(unseen[:8]) + (f"; and {len(unseen) - 8} more" if len(unseen) > 8 else "")
        warnings.warn(
            f"BatchNorm has not yet seen what these members make of an image: {names}. Train the network, or "
            "telescopic.recalibrate it, before you believe their answers",
            stacklevel=3,
        )


def has_statistics(net: nn.Module) -> bool:
    """Whether a network has BatchNorm statistics at all."""
    return any(True for _ in norms(net))


def norms(net: nn.Module) -> Iterator[_BatchNorm]:
    """Its BatchNorms that keep running statistics."""
    return (m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)
