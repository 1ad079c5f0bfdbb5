"""The members of a pack in production, chosen as time allows. No torch."""

from telescopic.engine.controller import Controller
from telescopic.engine.engine import Engine, Prediction
from telescopic.engine.manifest import PackError

__all__ = ["Controller", "Engine", "PackError", "Prediction"]
