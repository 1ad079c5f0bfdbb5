"""What is minimised: the members' losses, their weights, the gradient mix, distillation, and the full network's L2."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from telescopic.layers.filter import Filter
from telescopic.nested import Mix, Nested
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
        recipe: weights, mix, distillation and label smoothing.

    Raises:
        ValueError: if the recipe's weights or mix do not fit the network.
    """

    weights: Tensor

    def __init__(self, net: Nested, recipe: Recipe) -> None:
        super().__init__()
        weights = objective_weights(net, recipe)
        self.net = net
        self.recipe = recipe
        self.full = net.grid.index(net.grid.full)
        exact = torch.promote_types(next(net.parameters()).dtype, torch.float32)
        self.register_buffer("weights", torch.tensor(weights, dtype=exact), persistent=False)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of one batch, summed over its images.

        Args:
            x: preprocessed images `[batch, ...]`.
            labels: classes `[batch]`.

        Returns:
            The weighted sum over members (a scalar to minimise), and each member's own loss `[members]`, detached.
        """
        # In float32 at least: bf16 is too coarse for sums over a batch.
        logits = self.net.all(x, self.recipe.mix).to(self.weights.dtype)
        # [members, classes, batch]: a softmax over few classes takes 8 times as long along the last axis.
        logits = logits.transpose(1, 2)
        losses = functional.cross_entropy(
            logits,
            labels.expand(len(logits), -1),
            label_smoothing=self.recipe.label_smoothing,
            reduction="none",
        ).sum(1)
        if self.recipe.distillation:
            losses = torch.lerp(losses, self._distillation(logits, losses), self.recipe.distillation)
        return (self._weights_of_this_step() * losses).sum(), losses.detach()

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

    def _distillation(self, logits: Tensor, losses: Tensor) -> Tensor:
        """T²·KL(full ‖ member) `[members]`; the full network itself keeps its own loss."""
        temperature = self.recipe.temperature
        soft = functional.log_softmax(logits / temperature, dim=1)
        teacher = soft[self.full].detach().expand_as(soft)
        divergence = functional.kl_div(soft, teacher, reduction="none", log_target=True).sum((1, 2)) * temperature**2
        return divergence.index_copy(
            0, torch.tensor([self.full], device=soft.device), losses[self.full : self.full + 1]
        )


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


def parameter_groups(net: Nested, recipe: Recipe) -> list[dict[str, object]]:
    """Parameters for the optimizer, with the L2 penalty of the full network's loss as their weight decay.

    The gradient of λ·w² is 2λw, so a weight owned by o decays by 2λ · weight(full) · mix[full][o]: exactly what the
    penalty's own gradient would be after the mix, for free. The recipe's plain weight decay is added for all but the
    filters' θ, which it would kill.
    """
    full = net.grid.index(net.grid.full)
    weight = objective_weights(net, recipe)[full]
    owners, inside = net.owners(), {name for name, _ in net.path(net.grid.full)}
    thetas = {id(part.theta) for part in net.modules() if isinstance(part, Filter)}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        part = ".".join(name.split(".")[:2])
        decay = 0.0 if id(parameter) in thetas else recipe.weight_decay
        if parameter.ndim > 1 and part in inside:
            decay += 2 * recipe.l2 * weight * (recipe.mix[full][owners[part]] if recipe.mix is not None else 1.0)
        groups.setdefault(decay, []).append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
