"""How good every member is, in one pass over the data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from telescopic.data import Preprocess, Split, batches
from telescopic.fits import check_fits, in_eval_mode
from telescopic.nested import Nested
from telescopic.statistics import warn_of_unseen


@torch.no_grad()
def count_correct(net: Nested, split: Split, preprocess: Preprocess, batch_size: int = 200) -> Tensor:
    """Number of images that each member classifies rightly, `[members]` int64, in eval mode.

    Images may lie on another device than the network.
    """
    first = next(net.parameters())
    device = first.device
    correct = torch.zeros(len(net.grid), dtype=torch.int64, device=device)
    with in_eval_mode(net):
        for images, labels in batches(split, batch_size):
            guesses = net.all(preprocess(images.to(device)).to(first.dtype)).argmax(2)
            correct += (guesses == labels.to(device)).sum(1)
    return correct.cpu()


def evaluate(net: Nested, splits: Sequence[Split], preprocess: Preprocess, batch_size: int = 200) -> Tensor:
    """Accuracy of every member on several splits, with a warning if BatchNorm has seen no data of some member.

    Args:
        net: the network.
        splits: images and labels; an empty split gives NaN.
        preprocess: turns uint8 images into what the network sees.
        batch_size: images in a batch.

    Returns:
        Fractions `[splits, members]`, float64.

    Raises:
        ValueError: if the network does not take the images, or has no score for a label.
    """
    check_fits(net, splits, preprocess)
    warn_of_unseen(net)
    return torch.stack([count_correct(net, s, preprocess, batch_size).double() / len(s) for s in splits])
