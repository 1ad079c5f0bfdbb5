"""What a training run is told: frozen values."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args

from telescopic.data import Augment, Preprocess
from telescopic.nested import Mix
from telescopic.quantities import one_of
from telescopic.shrink.penalty import By

Schedule = Literal["steps", "one-cycle"]
Optimizer = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True, kw_only=True)
class Shrink:
    """How the widths of a network with filters are learned while it is trained.

    Attributes:
        penalty: λ of λ·Σ max(0, θ), which is added to the mean loss.
        by: what a channel weighs in the sum: 1, the number of parameters that go with it, or its multiply-adds.
        method: `gradient` lets the optimizer follow the penalty's gradient, as in the paper; `proximal` takes λ times
            the step size off each θ after each step instead, so that it becomes exactly 0; `random` is like gradient,
            and before each collection channels of small θ die at random (see `shrink.drop_`).
        level: which θ are small, for `random`.
        collect: when dead channels are removed: after each `epoch`, as in the paper; every so many steps; or None,
            never.
        multiple_of: each layer keeps a multiple of this many channels.

    Raises:
        ValueError: if a number lies outside its range, or channels are to be dropped at random but never removed.
    """

    penalty: float
    by: By = "channels"
    method: Literal["gradient", "proximal", "random"] = "gradient"
    level: float = 0.05
    collect: Literal["epoch"] | int | None = "epoch"
    multiple_of: int = 1

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not self.penalty >= 0:
            raise ValueError(f"the penalty is 0 or more, not {self.penalty}")
        if not self.level > 0 or self.multiple_of < 1:
            raise ValueError(f"level is above 0 and multiple_of 1 or more, not {self.level} and {self.multiple_of}")
        for name, allowed in (("by", get_args(By)), ("method", ("gradient", "proximal", "random"))):
            one_of(name, getattr(self, name), allowed)
        steps = isinstance(self.collect, int) and not isinstance(self.collect, bool) and self.collect > 0
        if not steps and self.collect not in ("epoch", None):
            raise ValueError(f"collect is epoch, a number of steps or None, not {self.collect!r}")
        if self.method == "random" and self.collect is None:
            raise ValueError("channels die at random just before they are removed: say when, with collect=")


Weights = tuple[float, ...] | Literal["full", "sum"] | None
Teacher = Literal["full", "exits", "ema", "module"]
OF_PHASES = ("weights", "drawn", "distillation")
"""What of a recipe a phase may change."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The first epochs of a training, or those after another phase, in which the members are treated differently.

    Attributes:
        name: of it, as the log has it.
        until: number of epochs, counted from the beginning of the training, after which it is over.
        weights: see `Recipe`; None leaves them as the recipe says, which is true of the others too.
        drawn: see `Recipe`.
        distillation: see `Recipe`.

    Raises:
        ValueError: if a number lies outside its range.
    """

    name: str
    until: int
    weights: Weights = None
    drawn: int | None = None
    distillation: float | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not (isinstance(self.name, str) and 0 < len(self.name) <= 200):
            raise ValueError(f"a phase has a name of 1 to 200 characters, not {self.name!r:.50}")
        if type(self.until) is not int or self.until < 1:
            raise ValueError(f"a phase ends after a whole number of epochs, 1 or more, not {self.until!r:.50}")
        if self.distillation is not None and not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation of a phase lies in 0 to 1, not {self.distillation}")
        if self.drawn is not None and self.drawn < 0:
            raise ValueError(f"drawn is a number of members, 0 or more, not {self.drawn}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a nested network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a batch, over all processes together.
        learning_rate: step size, the largest of the schedule, for torch's form of momentum (V ← mV + G, W ← W − lr·V).
        optimizer: `sgd`, stochastic gradient descent with momentum; or torch's `adam` or `adamw`, which have no use
            for `momentum` and `nesterov`.
        schedule: `steps`, which multiplies the rate at each milestone; or `one-cycle`, which lets it fall in a
            straight line to 0 at the end of the last epoch (Smith 2018, with constant momentum).
        warmup: epochs, perhaps part of one, in which the rate first rises from 0 in a straight line.
        milestones: number of finished epochs after which the rate is multiplied by `gamma`.
        gamma: factor at each milestone.
        momentum: momentum m.
        nesterov: Nesterov's form of momentum.
        l2: λ of the penalty λ·Σw² that belongs to the *full network's* loss, over weight matrices and kernels, not
            biases. The gradient mix scales it as it scales the rest of that loss.
        weight_decay: torch's weight decay, of every parameter alike; one half of it is the λ of a penalty on the sum of
            all losses, which no gradient mix scales.
        weights: weight of each member's loss in grid order, used as given; None weighs all by 1 / members; `full` is
            1 for the full network and 0 for all others; `sum` is 1 for each, drawn or not, so that it learns as fast
            as if alone. Where each width is a pass, members that weigh nothing are not run.
        drawn: None takes all members' losses at each step; a number takes the full network's, the smallest member's
            and as many others, drawn anew (the sandwich rule of Yu and Huang 2019), with weights of the same sum.
        balanced: divide each weight's gradient by the sum of the loss weights of the members that use it: so it learns
            from their mean, as fast as in a network by itself. Else weights that few members use learn slowly.
        mix: gradient mix `[members, members]`, see `Nested.all`; None leaves gradients as they are.
        distillation: share α of each smaller member's loss that is learned from the full network's softened logits:
            (1 − α)·cross-entropy + α·T²·KL(full ‖ member). 0 is none.
        temperature: T of the distillation.
        teacher: who teaches: the `full` network; the mean of what the deeper half of its `exits` say at full width; its
            moving average `ema`; or a `module` that `fit` is given. The first is not taught itself, and by the others
            every member is.
        ema: share of itself that the moving average of the network keeps at each step, such as 0.99, counting its
            BatchNorms' statistics. That average, not the network of the last step, is what is tried after each epoch
            and kept. 0 is none.
        group_gradient: in channel-causal networks, share of its gradient that a group of channels gives on to the
            groups before it, which it reads, and which narrower members have too. 1 is all; with 0 each width learns as
            if there were no wider one.
        phases: in which what is said here of the members is otherwise, in the order of their ends. After the last of
            them all is as said here.
        fit_heads: let the last layers of heads be fitted to the final features once the last epoch is over, see
            `telescopic.fit_heads`; shared heads are then `separate`.
        label_smoothing: probability spread over all classes in the cross-entropy.
        shrink: how the widths of a network with filters are learned; None leaves them as they are.
        preprocess: turns uint8 images into what the network sees.
        augment: random changes of the training images.

    Raises:
        ValueError: if a number lies outside its range.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    optimizer: Optimizer = "sgd"
    schedule: Schedule = "steps"
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    l2: float = 0.0
    weight_decay: float = 0.0
    weights: Weights = None
    drawn: int | None = None
    balanced: bool = False
    mix: Mix | None = None
    distillation: float = 0.0
    temperature: float = 2.0
    teacher: Teacher = "full"
    ema: float = 0.0
    group_gradient: float = 1.0
    phases: tuple[Phase, ...] = ()
    fit_heads: bool = False
    label_smoothing: float = 0.0
    shrink: Shrink | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        """Refuse numbers outside their range."""
        for name, low in (("epochs", 1), ("batch_size", 1), ("l2", 0), ("weight_decay", 0), ("momentum", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} of a recipe is {low} or more, not {getattr(self, name)}")
        for name in ("learning_rate", "gamma", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of a recipe is above 0, not {getattr(self, name)}")
        for name in ("distillation", "label_smoothing", "ema", "group_gradient"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of a recipe lies in 0 to 1, not {getattr(self, name)}")
        named = ("schedule", Schedule), ("optimizer", Optimizer), ("teacher", Teacher)
        for name, allowed in ((name, get_args(kind)) for name, kind in named):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} of a recipe is {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.schedule == "one-cycle" and self.milestones:
            raise ValueError("a one-cycle schedule has no milestones: leave them out, or use schedule='steps'")
        if self.drawn is not None and self.drawn < 0:
            raise ValueError(f"drawn is a number of members, 0 or more, not {self.drawn}")
        if self.balanced and any(other is not None for other in (self.drawn, self.mix, self.shrink)):
            raise ValueError("balanced gradients know all members and their weights: not with drawn, mix or shrink")
        if isinstance(self.weights, str) and self.weights not in ("full", "sum"):
            raise ValueError(f"weights of a recipe are numbers, None, full or sum, not {self.weights!r}")
        if not (isinstance(self.phases, tuple) and all(isinstance(phase, Phase) for phase in self.phases)):
            raise ValueError(f"phases of a recipe are a tuple of Phase, not {self.phases!r:.50}")
        if self.teacher != "full" and not (self.distillation or any(part.distillation for part in self.phases)):
            raise ValueError(f"a teacher, {self.teacher}, is asked only where distillation is above 0")
        if self.teacher == "ema" and not self.ema:
            raise ValueError(
                "the teacher is the network's moving average, and ema is 0: say how slow it is, such as 0.99"
            )
        if self.ema and (self.ema == 1 or self.shrink is not None):
            raise ValueError("ema lies below 1, or nothing is learned, and goes with no shrink: widths have no average")
        ends = [phase.until for phase in self.phases]
        if ends != sorted({*ends}) or (ends and ends[-1] >= self.epochs):
            raise ValueError(
                f"phases end one after another and before epoch {self.epochs}, the last, not after epochs {ends}"
            )
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup lies in 0 to the number of epochs, {self.epochs}, not {self.warmup}")
        if self.phases:
            self.by_phase()

    def rate(self, epoch: int, done: float = 0.5) -> float:
        """Learning rate in an epoch, counted from 1, of which a share `done` has passed; by default in its middle."""
        passed = epoch - 1 + done
        rate = self.learning_rate * (min(1.0, passed / self.warmup) if self.warmup else 1.0)
        if self.schedule == "one-cycle":
            return rate * min(1.0, max(0.0, (self.epochs - passed) / (self.epochs - self.warmup)))
        return rate * self.gamma ** sum(epoch > milestone for milestone in self.milestones)

    def phase(self, epoch: int) -> int:
        """In which phase an epoch, counted from 1, lies: its place; behind the last of them, their number."""
        return sum(phase.until < epoch for phase in self.phases)

    def by_phase(self) -> "list[Recipe]":
        """What each phase comes to, and what comes after them: recipes without phases."""
        found = []
        for phase in (*self.phases, None):
            told: dict[str, Any] = {n: v for n in OF_PHASES if (v := getattr(phase, n, None)) is not None}
            if not told.get("distillation", self.distillation):
                told["teacher"] = "full"  # in which nobody is taught, so it does not matter who would teach
            found.append(replace(self, phases=(), **told))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` described.

        Raises:
            ValueError: if a name is unknown or a value impossible.
        """
        if unknown := set(data) - {f.name for f in fields(cls)}:
            raise ValueError(f"a recipe has no {sorted(unknown)}; it has {[f.name for f in fields(cls)]}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        if values.get("mix") is not None:
            values["mix"] = tuple(tuple(row) for row in values["mix"])
        kinds: dict[str, Callable[..., Any]] = {"preprocess": Preprocess, "augment": Augment, "shrink": Shrink}

        def made(kind: Callable[..., Any], told: Any) -> Any:
            if not isinstance(told, Mapping):
                return told
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items()})

        values |= {name: made(kind, values[name]) for name, kind in kinds.items() if name in values}
        try:
            values["phases"] = tuple(made(Phase, phase) for phase in values.get("phases", ()))
        except TypeError as error:
            raise ValueError(f"phases of a recipe cannot be read: {error}") from error
        return cls(**values)
