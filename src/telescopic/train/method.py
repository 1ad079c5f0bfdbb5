"""What a method that takes part in training is asked by the loop; and the one that leaves everything as it is."""

from typing import Protocol

from torch import Tensor


class Method(Protocol):
    """Changes what is minimised, or the network itself, while it is trained.

    Attributes:
        seconds: spent on changing the network in the present epoch; the loop sets it, and keeps it where a run pauses.
    """

    seconds: float

    def minimised(self, mean: Tensor) -> Tensor:
        """What is minimised at a step, made of the batch's mean loss (a scalar)."""

    def after_step(self, step: int) -> bool:
        """Called after the optimizer's step, with the number of steps done: whether parameters changed their shape."""

    def after_epoch(self, step: int) -> bool:
        """Called after the last step of an epoch: likewise."""


class Nothing:
    """The method that changes nothing."""

    seconds = 0.0

    def minimised(self, mean: Tensor) -> Tensor:
        """The mean loss."""
        return mean

    def after_step(self, step: int) -> bool:
        """No."""
        return False

    def after_epoch(self, step: int) -> bool:
        """No."""
        return False
