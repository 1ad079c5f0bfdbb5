"""What a training run is told: frozen values."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from telescopic.data import Augment, Preprocess
from telescopic.nested import Mix
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
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        steps = isinstance(self.collect, int) and not isinstance(self.collect, bool) and self.collect > 0
        if not steps and self.collect not in ("epoch", None):
            raise ValueError(f"collect is epoch, a number of steps or None, not {self.collect!r}")
        if self.method == "random" and self.collect is None:
            raise ValueError("channels die at random just before they are removed: say when, with collect=")


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
        weights: weight of each member's loss in grid order, used as given; None weighs all by 1 / members.
        drawn: None takes all members' losses at each step; a number takes the full network's, the smallest member's
            and as many others, drawn anew (the sandwich rule of Yu and Huang 2019), with weights of the same sum.
        balanced: divide each weight's gradient by the sum of the loss weights of the members that use it: so it learns
            from their mean, as fast as in a network by itself. Else weights that few members use learn slowly.
        mix: gradient mix `[members, members]`, see `Nested.all`; None leaves gradients as they are.
        distillation: share α of each smaller member's loss that is learned from the full network's softened logits:
            (1 − α)·cross-entropy + α·T²·KL(full ‖ member). 0 is none.
        temperature: T of the distillation.
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
    weights: tuple[float, ...] | None = None
    drawn: int | None = None
    balanced: bool = False
    mix: Mix | None = None
    distillation: float = 0.0
    temperature: float = 2.0
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
        for name in ("distillation", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of a recipe lies in 0 to 1, not {getattr(self, name)}")
        for name, allowed in (("schedule", get_args(Schedule)), ("optimizer", get_args(Optimizer))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} of a recipe is {' or '.join(allowed)}, not {getattr(self, name)!r}")
        if self.schedule == "one-cycle" and self.milestones:
            raise ValueError("a one-cycle schedule has no milestones: leave them out, or use schedule='steps'")
        if self.drawn is not None and self.drawn < 0:
            raise ValueError(f"drawn is a number of members, 0 or more, not {self.drawn}")
        if self.balanced and any(other is not None for other in (self.drawn, self.mix, self.shrink)):
            raise ValueError("balanced gradients know all members and their weights: not with drawn, mix or shrink")
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(f"warmup lies in 0 to the number of epochs, {self.epochs}, not {self.warmup}")

    def rate(self, epoch: int, done: float = 0.5) -> float:
        """Learning rate in an epoch, counted from 1, of which a share `done` has passed; by default in its middle."""
        passed = epoch - 1 + done
        rate = self.learning_rate * (min(1.0, passed / self.warmup) if self.warmup else 1.0)
        if self.schedule == "one-cycle":
            return rate * min(1.0, max(0.0, (self.epochs - passed) / (self.epochs - self.warmup)))
        return rate * self.gamma ** sum(epoch > milestone for milestone in self.milestones)

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
        for name, kind in kinds.items():
            if isinstance(values.get(name), Mapping):
                values[name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()})
        return cls(**values)
