"""How a trained network is kept: one safetensors file with every tensor once, and all that is known about it."""

from telescopic.bundle.header import BundleError
from telescopic.bundle.store import Bundle, load, save

__all__ = ["Bundle", "BundleError", "load", "save"]
