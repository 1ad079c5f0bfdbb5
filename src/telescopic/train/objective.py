"""What is minimised: the members' losses, their weights, the gradient mix, distillation, and the full network's L2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from telescopic.inputs import Tensors
from telescopic.layers.groups import between_groups, require_groups_apart
from telescopic.nested import Mix, Nested
from telescopic.tasks import Task, classification
from telescopic.train.recipe import Recipe
from telescopic.wrappers import called, in_mode


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
        recipe: how members are weighed, drawn and taught. With phases it is in the first until told: see `begin`.
        task: what is learned; by default classification with the recipe's label smoothing.
        teacher: inputs as the network sees them → answers `[batch, ...]`; for recipes whose teacher is a `module`, or
            the moving average `ema`, which `fit` keeps. It is run in eval mode, and does not learn.

    Raises:
        ValueError: if the recipe's weights or mix do not fit the network, recipe and task do not fit, or the recipe
            needs a teacher and none is given, or the other way round.
    """

    weights: Tensor

    def __init__(
        self, net: Nested, recipe: Recipe, task: Task | None = None, *, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.net, self.whole, self.phases = net, recipe, recipe.by_phase()
        weights = [objective_weights(net, phase) for phase in self.phases]
        self.task = task_for(task, recipe)
        self.full = net.grid.index(net.grid.full)
        if (teacher is not None) != (recipe.teacher in ("ema", "module")):
            given = "none is given" if teacher is None else "one is given"
            raise ValueError(f"the recipe's teacher is {recipe.teacher}, and {given}: see teacher= of Recipe")
        learning = {*net.parameters()}
        if teacher is not None and any(parameter in learning for parameter in teacher.parameters()):
            raise ValueError("the teacher has parameters of the network that is to learn from it: give it a copy")
        self.teacher = () if teacher is None else (teacher,)  # no part of this module, for it does not learn
        self.generator: torch.Generator | None = None  # of the members drawn; None is torch's own
        deep, full = net.grid.exits[(len(net.grid.exits) - 1) // 2 :], net.grid.full
        self.deep = [
            m
            for m, one in enumerate(net.grid)
            if (one.entry, one.width) == (full.entry, full.width) and one.exit in deep
        ]
        require_groups_apart(net.stages, [*net.exits.values()], recipe.group_gradient)
        exact = torch.promote_types(next(net.parameters()).dtype, torch.float32)
        self.register_buffer("weights", torch.tensor(weights, dtype=exact), persistent=False)
        self.unweighted = [{m for m, weight in enumerate(some) if not weight} for some in weights]
        self.begin(1)

    def begin(self, epoch: int) -> None:
        """Go by the phase of the recipe in which an epoch, counted from 1, lies; a new objective is in the first.

        Where each width is a pass, `idle` are the places in the grid of those that no step of the phase runs.
        """
        self.place = self.whole.phase(epoch)
        self.recipe = self.phases[self.place]
        self.teaching = self.deep if self.recipe.teacher == "exits" else [self.full]
        self.idle = set[int]() if self.net.causal else self.unweighted[self.place] - {*self.teaching}

    def forward(self, x: Tensors, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of one batch, summed over its examples.

        Args:
            x: inputs `[batch, ...]` as the network sees them, or a dict or tuple of several.
            targets: what is to be answered `[batch, ...]`.

        Returns:
            The weighted sum over members (a scalar to minimise), and each member's own loss `[members]`, detached.
        """
        weights, drawn = self._weights_of_this_step()
        members, asked = range(len(weights)), None
        if not self.net.causal and self.recipe.drawn is not None:  # where each width is a pass
            asked = sorted({*drawn} - self.unweighted[self.place] | {*self.teaching})  # whatever their own weights
        elif self.idle:
            asked = [m for m in members if m not in self.idle]
        # In float32 at least: bf16 is too coarse for sums over a batch.
        with between_groups(self.net, self.recipe.group_gradient):
            outputs = self.net.all(x, self.recipe.mix, asked).to(self.weights.dtype)
        losses = self.task.loss(outputs, targets).sum(1)
        if self.recipe.distillation:
            losses = torch.lerp(losses, self._taught(x, outputs, losses, asked), self.recipe.distillation)
        if asked is None:
            return (weights * losses).sum(), losses.detach()
        # What a member that is drawn one time in n has lost counts n times in the mean over an epoch.
        always = {0, *self.teaching} if self.recipe.drawn is not None else {*members}
        seldom = (len(members) - 2) / max(1, len(drawn) - 2)
        known = list(losses.new_zeros(len(members)))
        for m, loss in zip(asked, losses.detach(), strict=True):
            known[m] = loss if m in always else loss * seldom
        return (torch.stack([weights[m] for m in asked]) * losses).sum(), torch.stack(known)

    def _weights_of_this_step(self) -> tuple[Tensor, list[int]]:
        """The weights, or those of the members drawn, which add up to the same (but for a sum); and who is drawn."""
        weights, drawn = self.weights[self.place], self.recipe.drawn
        members = len(weights)
        if drawn is None or drawn >= members - 2:
            return weights, [*range(members)]
        chosen = torch.zeros_like(weights)
        others = [m for m in range(1, members) if m != self.full]
        order = torch.randperm(len(others), generator=self.generator).tolist()
        places = [0, self.full, *(others[i] for i in order[:drawn])]
        for m in places:
            chosen[m] = weights[m]
        return chosen if self.recipe.weights == "sum" else chosen * (weights.sum() / chosen.sum()), places

    def _taught(self, x: Tensors, outputs: Tensor, losses: Tensor, asked: list[int] | None) -> Tensor:
        """T²·(how far from the teacher's answers) `[members]`; a network that teaches itself keeps its own loss."""
        assert self.task.teach is not None
        places = {m: place for place, m in enumerate(range(len(self.net.grid)) if asked is None else asked)}
        full = places[self.full]
        if self.teacher:
            with torch.no_grad(), in_mode(self.teacher[0], training=False):
                answers = self.teacher[0](x).to(outputs.dtype)[None]
            if answers.shape[1:] != outputs.shape[1:]:
                raise ValueError(
                    f"the teacher answers {[*answers.shape[1:]]} to a batch, and the network {[*outputs.shape[1:]]}"
                )
        elif self.recipe.teacher == "exits":
            answers = torch.stack([outputs[places[m]].detach() for m in self.deep]).mean(0, keepdim=True)
        else:
            answers = outputs[full : full + 1].detach()
        soft, temperature = outputs / self.recipe.temperature, self.recipe.temperature
        distance = self.task.teach(soft, answers / temperature).sum(1) * temperature**2
        if self.recipe.teacher != "full":
            return distance
        return torch.cat((distance[:full], losses[full : full + 1], distance[full + 1 :]))


@contextmanager
def run_once(net: Nested, recipe: Recipe) -> Iterator[None]:
    """While a step's gradients are computed: refuse parts that run anew, by when nobody scales what passes back.

    Raises:
        ValueError: if a part is run meanwhile, and the recipe has a mix or a share of the gradient between groups.
    """
    if recipe.mix is None and recipe.group_gradient == 1:
        yield
        return
    what = "mix" if recipe.mix is not None else "group_gradient"

    def look(part: nn.Module, _: Any) -> None:
        name = next((name for name, module in net.named_modules() if module is part), None)
        if name is not None:  # other threads may run other networks
            raise ValueError(
                f"{called(name, part)} is computed anew for its gradient (torch.utils.checkpoint), and the recipe's "
                f"{what} is not known there: run the network without, or train without {what}"
            )

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def leaves_some_out(net: Nested, recipe: Recipe) -> bool:
    """Whether a step may leave out parameters of a network, with the members that it does not run."""
    phases = recipe.by_phase()
    weights = [weight for phase in phases for weight in objective_weights(net, phase)]
    return not net.causal and (not all(weights) or any(phase.drawn is not None for phase in phases))


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
    share = max(phase.distillation for phase in recipe.by_phase())
    if share and task.teach is None:
        raise ValueError(
            f"the recipe has distillation {share:g}, but the task does not say how a smaller member is "
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
    if isinstance(weights, str):
        weights = tuple(float(weights == "sum" or member == net.grid.full) for member in net.grid)
    if len(weights) != members or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"{members} members need as many loss weights, none negative, not all 0; got {weights}")
    if mix is not None and (len(mix) != members or any(len(row) != members for row in mix)):
        raise ValueError(f"this network has {members} members: its gradient mix is {members} × {members} numbers")
    return weights
