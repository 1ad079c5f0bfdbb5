"""What a network learns to do, as a value: how wrong an answer is, how good, and how one teaches another.

Outputs come from all members of a network at once, `[members, batch, ...]`, and are compared with the targets of the
batch, `[batch, ...]`. What is said of each example is `[members, batch]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from telescopic.metric import ACCURACY, Metric

PerExample = Callable[[Tensor, Tensor], Tensor]
IGNORED = -100
"""The target of a position that does not count, as torch's cross-entropy has it."""


def mean(sums: Tensor, examples: int) -> Tensor:
    """A score that is the mean of what is said of each example: `[members, 1]` → `[members]`."""
    return sums[:, 0] / examples


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network learns to do.

    Attributes:
        loss: outputs `[members, batch, ...]` and targets `[batch, ...]` → each example's loss `[members, batch]`.
        score: the same two → what each example adds to the score, `[members, batch]`, or `[members, batch, numbers]`
            for a score that is made of several sums. By default the loss.
        metric: what the score means; by default the mean loss, of which less is better.
        total: sums over all examples `[members, numbers]`, float64, and the number of examples → score `[members]`.
            By default their mean.
        teach: outputs of those that learn `[members, batch, ...]` and of the full network `[1, batch, ...]` → each
            example's loss `[members, batch]`, for recipes with distillation; both are divided by its temperature T, and
            the result multiplied by T². None: nobody can teach.
        check: called before anything is trained or measured, with the outputs of all members to two examples, and the
            targets of every split; raises ValueError with what does not fit.
        name: of the task, which a run is resumed with.
        settings: numbers that make it what it is, which must be the same when a run is resumed.
    """

    loss: PerExample
    score: PerExample | None = None
    metric: Metric = field(default_factory=lambda: Metric("loss", better="lower"))
    total: Callable[[Tensor, int], Tensor] = mean
    teach: PerExample | None = None
    check: Callable[[Tensor, Sequence[Tensor]], None] = lambda outputs, targets: None
    name: str = "one's own"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a score that nobody can read."""
        if self.score is not None and self.metric == Metric("loss", better="lower"):
            raise ValueError("a score has a name and a better direction: give metric=telescopic.Metric('F1'), say")

    def facts(self) -> dict[str, Any]:
        """Its name and settings, for JSON."""
        return {"name": self.name, **self.settings}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What a batch adds to the scores: `[members, numbers]`, in float64 where the device has it."""
        each = (self.score or self.loss)(outputs, targets)
        return exact(each if each.ndim == 3 else each[:, :, None]).sum(1)


def exact(x: Tensor) -> Tensor:
    """Numbers that are to be added up, in float64; MPS has none."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def classification(*, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> Task:
    """One class of several: outputs are scores `[batch, classes]`, targets int64 `[batch]`, counted from 0.

    The loss is cross-entropy, the score accuracy. A smaller member learns KL(full ‖ member).

    Args:
        label_smoothing: probability spread over all classes.
        class_weights: factor of the loss of each class's examples. A batch's loss is divided by its number of examples.

    Raises:
        ValueError: if a number lies outside its range.
    """
    entropy, settings = _cross_entropy(label_smoothing, class_weights)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        # [members, classes, batch]: a softmax over few classes takes 8 times as long along the last axis.
        return entropy(outputs.transpose(1, 2), targets.expand(len(outputs), -1))

    def check(outputs: Tensor, targets: Sequence[Tensor]) -> None:
        if outputs.ndim != 3:
            shape = [*outputs.shape]
            raise ValueError(f"a network gives scores [batch, classes], and this one an output of shape {shape}")
        for some in targets:
            if some.dtype != torch.int64 or some.ndim != 1:
                raise ValueError(f"labels are classes, int64 [n], not {facts(some)}; see telescopic.tasks for others")
        _require_classes(outputs, targets, "labels", settings)

    return Task(
        loss=loss,
        score=lambda outputs, targets: outputs.argmax(2) == targets,
        metric=ACCURACY,
        teach=_divergence,
        check=check,
        name="classification",
        settings=settings,
    )


def tokens(*, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> Task:
    """A class for each position: outputs are scores `[batch, positions, classes]`, targets int64 `[batch, positions]`.

    There may be several axes of positions. A target of -100 does not count. An example's loss is the mean
    cross-entropy of its positions; the score is the share of all positions that are right. A smaller member learns
    the mean KL(full ‖ member) of all positions, since who teaches does not see the targets.

    Args:
        label_smoothing: see `classification`.
        class_weights: factor of the loss of each class's positions; a mean is divided by the number of positions.

    Raises:
        ValueError: if a number lies outside its range.
    """
    entropy, settings = _cross_entropy(label_smoothing, class_weights)

    def counted(targets: Tensor) -> Tensor:
        return targets.flatten(1) != IGNORED

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        scores = outputs.flatten(2, -2).movedim(-1, 1)  # [members, classes, batch, positions]
        each = entropy(scores, targets.flatten(1).expand(len(outputs), -1, -1))
        return each.sum(-1) / counted(targets).sum(-1).clamp(min=1)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        right = (outputs.argmax(-1).flatten(2) == targets.flatten(1)).sum(-1)
        return torch.stack((right, counted(targets).sum(-1).expand_as(right)), -1)

    def check(outputs: Tensor, targets: Sequence[Tensor]) -> None:
        for some in targets:
            if some.dtype != torch.int64 or outputs.ndim < 4 or some.shape[1:] != outputs.shape[2:-1]:
                raise ValueError(
                    f"a network gives scores [batch, positions, classes], and this one {[*outputs.shape[1:]]} for two "
                    f"examples; targets are int64 [n, positions], and these {facts(some)}"
                )
        _require_classes(outputs, targets, "targets", settings)

    def teach(outputs: Tensor, teacher: Tensor) -> Tensor:
        positions = outputs[0, 0, ..., 0].numel()
        return _divergence(outputs.flatten(2, -2), teacher.flatten(2, -2)) / positions

    return Task(
        loss=loss,
        score=score,
        metric=ACCURACY,
        total=lambda sums, examples: sums[:, 0] / sums[:, 1],
        teach=teach,
        check=check,
        name="tokens",
        settings=settings,
    )


def multilabel() -> Task:
    """Several labels at once: outputs are scores `[batch, labels]`, above 0 for yes; targets 0 or 1, `[batch, labels]`.

    The loss is the mean binary cross-entropy of the labels. The score is F1 of all labels together, which unlike the
    share of right labels is 0 for who says no to everything. A smaller member learns the full one's probabilities.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.to(outputs.dtype).expand_as(outputs)
        return functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").flatten(2).mean(2)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        said, true = outputs.flatten(2) > 0, (targets.flatten(1) > 0.5).expand(len(outputs), -1, -1)
        return torch.stack([(said & true).sum(2), said.sum(2), true.sum(2)], 2)

    def check(outputs: Tensor, targets: Sequence[Tensor]) -> None:
        for some in targets:
            if some.shape[1:] != outputs.shape[2:] or outputs.ndim < 3:
                raise ValueError(
                    f"a network gives a score for each label, and this one {[*outputs.shape[1:]]} for two examples "
                    f"with targets {facts(some)}"
                )
            if not ((some == 0) | (some == 1)).all():
                raise ValueError(f"labels are 0 or 1, and these go from {some.min()} to {some.max()}")

    def teach(outputs: Tensor, teacher: Tensor) -> Tensor:
        probability = teacher.sigmoid()
        # The full network's own entropy is taken off, so that who answers as it does has a loss of 0.
        own = functional.binary_cross_entropy_with_logits(teacher, probability, reduction="none")
        each = functional.binary_cross_entropy_with_logits(outputs, probability.expand_as(outputs), reduction="none")
        return (each - own).flatten(2).mean(2)

    return Task(
        loss=loss,
        score=score,
        metric=Metric("F1", unit="%", chance=0.0),
        total=lambda sums, examples: 2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]).clamp(min=1),
        teach=teach,
        check=check,
        name="multilabel",
    )


def regression() -> Task:
    """Numbers: outputs and targets `[batch, ...]` of the same shape; targets `[batch]` go with outputs `[batch, 1]`.

    The loss is the mean squared error of an example's numbers, in the targets' own units: targets of variance 1 or so
    learn best. The score is R², 1 − Σ(y − ŷ)² / Σ(y − ȳ)², the mean over those of an example's numbers that vary: 0
    for who always says the mean. A smaller member learns the full one's answers by squared error.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(2) - _as_rows(outputs, targets.to(outputs.dtype))).square().mean(2)

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        y, answers = _as_rows(outputs, exact(targets)), exact(outputs.flatten(2))
        parts = ((answers - y).square(), y.expand_as(answers), y.square().expand_as(answers))
        return torch.cat(parts, 2)

    def total(sums: Tensor, examples: int) -> Tensor:
        wrong, y, squares = sums.chunk(3, 1)
        spread = squares - y.square() / examples
        return torch.where(spread > 0, 1 - wrong / spread, torch.nan).nanmean(1)

    def check(outputs: Tensor, targets: Sequence[Tensor]) -> None:
        for some in targets:
            alike = some.shape[1:] == outputs.shape[2:] or (some.ndim, *outputs.shape[2:]) == (1, 1)
            if not alike or not some.dtype.is_floating_point:
                raise ValueError(
                    f"a network for regression gives as many numbers as a target has, and this one "
                    f"{[*outputs.shape[2:]]} for targets {facts(some)}, which must be floating-point"
                )

    return Task(
        loss=loss,
        score=score,
        metric=Metric("R2", chance=0.0),
        total=total,
        teach=lambda outputs, teacher: (outputs - teacher).flatten(2).square().mean(2),
        check=check,
        name="regression",
    )


def facts(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _as_rows(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets `[batch, numbers]`: never `[batch]`, which would be taken for a row of numbers by broadcasting."""
    return targets.reshape(outputs.shape[1], -1)


def _cross_entropy(smoothing: float, class_weights: Sequence[float] | None) -> tuple[PerExample, dict[str, Any]]:
    """Cross-entropy of scores `[members, classes, ...]` and targets `[members, ...]`, of each; and its settings.

    Raises:
        ValueError: if a number lies outside its range.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing of a task lies in 0 to 1, not {smoothing}")
    weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
    if weights is not None and not (all(0 <= weight < float("inf") for weight in weights) and sum(weights) > 0):
        raise ValueError(f"class_weights are 0 or more, not all 0; got {weights}")

    def entropy(scores: Tensor, targets: Tensor) -> Tensor:
        weight = None if weights is None else scores.new_tensor(weights)
        how: dict[str, Any] = {"label_smoothing": smoothing, "ignore_index": IGNORED, "reduction": "none"}
        return functional.cross_entropy(scores, targets, weight, **how)

    settings: dict[str, Any] = {"label_smoothing": smoothing} if smoothing else {}
    return entropy, settings | ({} if weights is None else {"class_weights": weights})


def _divergence(outputs: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ outputs), of classes along the last axis, summed over what lies between: `[members, batch]`."""
    soft, given = (functional.log_softmax(x.movedim(-1, 1), dim=1) for x in (outputs, teacher))
    each = functional.kl_div(soft, given.expand_as(soft), reduction="none", log_target=True).sum(1)
    return each if each.ndim == 2 else each.flatten(2).sum(2)


def _require_classes(outputs: Tensor, targets: Sequence[Tensor], what: str, settings: Mapping[str, Any]) -> None:
    """Refuse classes without a score, or a weight, of their own."""
    if len(settings.get("class_weights", ())) not in (0, outputs.shape[-1]):
        many = len(settings["class_weights"])
        raise ValueError(f"{outputs.shape[-1]} classes need as many class_weights, not {many}")
    scores, found = outputs.shape[-1], [some[some != IGNORED] if what == "targets" else some for some in targets]
    found = [some for some in found if some.numel()]
    if not found:
        return
    lowest, highest = min(int(some.min()) for some in found), max(int(some.max()) for some in found)
    if lowest < 0 or highest >= scores:
        from_one = "; they seem to be counted from 1: subtract 1" if (lowest, highest) == (1, scores) else ""
        each = "; each class needs a score of its own" if scores == 1 else ""
        raise ValueError(
            f"{what} go from {lowest} to {highest}, and the network's scores ({scores}) are for {what} from 0 to "
            f"{scores - 1}{from_one}{each}"
        )


CLASSIFICATION = classification()
"""What a network learns unless told otherwise."""

NAMED = {task.name: task for task in (CLASSIFICATION, multilabel(), regression(), tokens())}
"""The tasks that a command knows by name."""
