"""Members of a family as a folder of ONNX segments, with one copy of the weights, for the engine in `runtime`."""

from telescopic.packing.pack import pack

__all__ = ["pack"]
