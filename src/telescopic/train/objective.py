"""What is minimised: the members' losses, their weights, the gradient mix, distillation, and the full network's L2."""

import torch
from torch import Tensor, nn

from telescopic.inputs import Tensors
from telescopic.nested import Mix, Nested
from telescopic.tasks import Task, classification
from telescopic.train.recipe import Recipe


def pairwise(members: int) -> Mix:
    """NSN's sharing of gradients (Eq. 2): the owner and the next larger member each give half, all others nothing.

    What only the full network has, it learns from its own loss alone.

    Args:
        members: number of members, each of which contains the one before.

    Returns:
        A gradient mix `[members, members]`.

    Raises:
        ValueError: if `members` is below 1.
    """
    if members < 1:
        raise ValueError(f"a network has one member or more, not {members}")
    mix = [[0.5 if owner in (m, m - 1) else 0.0 for owner in range(members)] for m in range(members)]
    mix[-1][-1] = 1.0
    return tuple(tuple(row) for row in mix)


class Objective(nn.Module):
    """The joint loss of all members of a network on one batch.

    A module, so that data-parallel wrappers see one forward pass.

    Args:
        net: the network.
        recipe: weights, mix and distillation.
        task: what is learned; by default classification with the recipe's label smoothing.

    Raises:
        ValueError: if the recipe's weights or mix do not fit the network, or recipe and task do not fit.
    """

    weights: Tensor

    def __init__(self, net: Nested, recipe: Recipe, task: Task | None = None) -> None:
        super().__init__()
        weights = objective_weights(net, recipe)
        self.net = net
        self.recipe = recipe
        self.task = task_for(task, recipe)
        self.full = net.grid.index(net.grid.full)
        exact = torch.promote_types(next(net.parameters()).dtype, torch.float32)
        self.register_buffer("weights", torch.tensor(weights, dtype=exact), persistent=False)

    def forward(self, x: Tensors, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of one batch, summed over its examples.

        Args:
            x: inputs `[batch, ...]` as the network sees them, or a dict or tuple of several.
            targets: what is to be answered `[batch, ...]`.

        Returns:
            The weighted sum over members (a scalar to minimise), and each member's own loss `[members]`, detached.
        """
        weights, asked = self._weights_of_this_step(), None
        if not self.net.causal and self.recipe.drawn is not None:  # where each width is a pass
            asked = sorted({*weights.nonzero().view(-1).tolist(), self.full})  # which teaches, whatever its own weight
        # In float32 at least: bf16 is too coarse for sums over a batch.
        outputs = self.net.all(x, self.recipe.mix, asked).to(self.weights.dtype)
        full = self.full if asked is None else asked.index(self.full)
        losses = self.task.loss(outputs, targets).sum(1)
        if self.recipe.distillation:
            losses = torch.lerp(losses, self._taught(outputs, losses, full), self.recipe.distillation)
        if asked is None:
            return (weights * losses).sum(), losses.detach()
        # What a member that is drawn one time in n has lost counts n times in the mean over an epoch.
        seldom = (len(self.weights) - 2) / max(1, len(asked) - 2)
        times = losses.new_tensor([1.0 if m in (0, self.full) else seldom for m in asked])
        known = losses.new_zeros(len(self.weights))
        known[asked] = losses.detach() * times
        return (weights[asked] * losses).sum(), known

    def _weights_of_this_step(self) -> Tensor:
        """The weights, or those of the members drawn, which add up to the same."""
        drawn, members = self.recipe.drawn, len(self.weights)
        if drawn is None or drawn >= members - 2:
            return self.weights
        chosen = torch.zeros_like(self.weights)
        others = [m for m in range(1, members) if m != self.full]
        for m in (0, self.full, *(others[i] for i in torch.randperm(len(others))[:drawn].tolist())):
            chosen[m] = self.weights[m]
        return chosen * (self.weights.sum() / chosen.sum())

    def _taught(self, outputs: Tensor, losses: Tensor, full: int) -> Tensor:
        """T²·(how far from the full network's answers) `[members]`; the full network itself keeps its own loss."""
        assert self.task.teach is not None
        soft, teacher = outputs / self.recipe.temperature, slice(full, full + 1)
        distance = self.task.teach(soft, soft[teacher].detach()).sum(1) * self.recipe.temperature**2
        return torch.cat((distance[:full], losses[teacher], distance[full + 1 :]))


def task_for(task: Task | None, recipe: Recipe) -> Task:
    """What is learned: the task given, or else classification as the recipe says.

    Raises:
        ValueError: if the recipe has what the task does not know.
    """
    if task is None:
        return classification(label_smoothing=recipe.label_smoothing)
    if recipe.label_smoothing not in (0, task.settings.get("label_smoothing")):
        raise ValueError(
            "with a task given, the recipe's label_smoothing has no meaning: write "
            f"telescopic.tasks.classification(label_smoothing={recipe.label_smoothing:g})"
        )
    if recipe.distillation and task.teach is None:
        raise ValueError(
            f"the recipe has distillation {recipe.distillation:g}, but the task does not say how a smaller member is "
            "taught by the full one: give it teach="
        )
    return task


def objective_weights(net: Nested, recipe: Recipe) -> tuple[float, ...]:
    """Weight of each member's loss, in grid order.

    Raises:
        ValueError: if the recipe's weights or mix do not fit the network.
    """
    members, mix = len(net.grid), recipe.mix
    weights = recipe.weights or (1 / members,) * members
    if len(weights) != members or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{members} members need as many loss weights, none negative, not all 0; got {weights}")
    if mix is not None and (len(mix) != members or any(len(row) != members for row in mix)):
        raise ValueError(f"this network has {members} members: its gradient mix is {members} × {members} numbers")
    return weights
