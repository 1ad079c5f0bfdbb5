"""When to remove dead channels: when it saves more time than it takes."""

from torch import nn

from telescopic.layers.filter import Filter
from telescopic.shrink.log import Log


class WhenItPays:
    """Says whether removing what is dead now takes less time than it will save.

    A step without the dead channels is taken to be faster by their share of the filtered channels' multiply-adds,
    which is what the filters say their channels cost. That is a guess, and mostly too hopeful for narrow networks.

    Args:
        steps: number of training steps in all.
        seconds: what a compaction takes, until one was seen.
    """

    def __init__(self, steps: int, seconds: float = 0.1) -> None:
        self.steps, self.seconds = steps, seconds

    def __call__(self, model: nn.Module, step: int, step_seconds: float) -> bool:
        """Whether to compact now.

        Args:
            model: a network with filters.
            step: number of steps done.
            step_seconds: what a step takes at present.
        """
        return self.saving(model) * step_seconds * (self.steps - step) > self.seconds

    def saving(self, model: nn.Module) -> float:
        """The dead channels' share of all multiply-adds of channels that have a filter."""
        filters = [part for part in model.modules() if isinstance(part, Filter)]
        total = sum(float(part.macs.sum()) for part in filters)
        return sum(float(part.macs[part.dead()].sum()) for part in filters) / total if total else 0.0

    def learn(self, log: Log) -> None:
        """Remember what a compaction took."""
        if log:
            self.seconds = log.seconds
