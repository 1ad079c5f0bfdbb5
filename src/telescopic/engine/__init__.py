"""The members of a pack in production, chosen as time allows. No torch."""

from telescopic.engine.backends import Backend
from telescopic.engine.controller import Controller
from telescopic.engine.engine import Engine, Prediction
from telescopic.engine.manifest import PackError
from telescopic.engine.openvino import OpenVino
from telescopic.engine.ort.onnx_runtime import OnnxRuntime

__all__ = ["Backend", "Controller", "Engine", "OnnxRuntime", "OpenVino", "PackError", "Prediction"]
