"""Recipes for families that are trained in a way of their own."""

from typing import Any

from telescopic.train import Recipe


def slim(epochs: int, **changes: Any) -> Recipe:
    """How a slim family is trained: at each step the widest member, the narrowest, and one of the others.

    (The sandwich rule and inplace distillation of Universally Slimmable Networks, Yu and Huang 2019, arXiv 1903.05134.)
    The widest learns from the labels; of what the others learn, most comes from its answers. Their losses are added up:
    a mean would let each learn as slowly as there are members.

    Args:
        epochs: passes over the training images.
        changes: whatever else `Recipe` takes; its values hold instead of those here.
    """
    usual: dict[str, Any] = {"learning_rate": 0.05, "schedule": "one-cycle", "nesterov": True, "weight_decay": 5e-4}
    return Recipe(**{"epochs": epochs, "weights": "sum", "drawn": 1, "distillation": 0.7, **usual, **changes})
