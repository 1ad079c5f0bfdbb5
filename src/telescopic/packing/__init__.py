"""Members of a family as a folder of ONNX segments, with one copy of the weights, for `engine`."""

from telescopic.packing.pack import pack

__all__ = ["pack"]
