"""How good every member is, in one pass over the data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from telescopic.data import Preprocess, Split, batches, prepared
from telescopic.fits import check_fits
from telescopic.inputs import each
from telescopic.nested import Nested
from telescopic.statistics import warn_of_unseen
from telescopic.tasks import CLASSIFICATION, Task
from telescopic.wrappers import in_mode


@torch.no_grad()
def score_sums(
    net: Nested,
    split: Split,
    preprocess: Preprocess,
    task: Task = CLASSIFICATION,
    batch_size: int = 200,
    *,
    rank: int = 0,
    world: int = 1,
) -> tuple[Tensor, int]:
    """What all examples of a split add to each member's score, `[members, numbers]` float64, and how many they are.

    In eval mode. Examples may lie on another device than the network. An empty split adds nothing.
    """
    first, number = next(net.parameters()), 0
    added = torch.zeros((), device=first.device)
    with in_mode(net, training=False):
        for inputs, targets in batches(split, batch_size, rank=rank, world=world):
            if not len(targets):
                continue
            number += len(targets)
            outputs = net.all(prepared(inputs, preprocess, first))
            if split.loader is not None:  # of which only the first batch has been looked at
                task.check(outputs, [targets])
            added = added + task.sums(outputs, targets.to(first.device))
        if not number:  # which has a shape all the same
            one = each(lambda part: part.new_zeros(1, *part.shape[1:]), (split.inputs, split.targets))
            added = torch.zeros_like(task.sums(net.all(prepared(one[0], preprocess, first)), one[1].to(first.device)))
    return added.cpu().double(), number


def evaluate(
    net: Nested,
    splits: Sequence[Split],
    preprocess: Preprocess,
    batch_size: int = 200,
    *,
    task: Task = CLASSIFICATION,
) -> Tensor:
    """Score of every member on several splits, with a warning if BatchNorm has seen no data of some member.

    Args:
        net: the network.
        splits: inputs and targets; an empty split gives NaN.
        preprocess: turns inputs into what the network sees.
        batch_size: examples in a batch.
        task: what the network has learned; its score is taken. By default classification, whose score is accuracy, a
            fraction.

    Returns:
        Scores `[splits, members]`, float64.

    Raises:
        ValueError: if the network does not take the inputs, or its outputs and the targets do not fit the task.
    """
    check_fits(net, splits, preprocess, task)
    warn_of_unseen(net)
    scores = [
        task.total(*score_sums(net, split, preprocess, task, batch_size))
        if len(split)
        else torch.full((len(net.grid),), torch.nan, dtype=torch.float64)
        for split in splits
    ]
    return torch.stack(scores)
