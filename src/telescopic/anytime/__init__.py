"""Answers at any time: each better than the one before, and computed from what it has left."""

from telescopic.anytime.answers import Answer, anytime, confidence_for, deepening, step_costs
from telescopic.anytime.paths import best_path
from telescopic.anytime.trial import Trial, try_deadlines

__all__ = [
    "Answer",
    "Trial",
    "anytime",
    "best_path",
    "confidence_for",
    "deepening",
    "step_costs",
    "try_deadlines",
]
