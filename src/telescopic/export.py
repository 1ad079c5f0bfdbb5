"""How a member leaves for another runtime: one file, tried out before it is there, and a card that says what it is."""

import contextlib
import copy
import hashlib
import io
import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.architecture import named_tensors
from telescopic.bundle import load, save
from telescopic.data import Preprocess
from telescopic.files import replacing
from telescopic.nested import Nested

Run = Callable[[Tensor], Tensor]

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference from torch that passes, relative to the largest logit; 2e-2 for shorter types."""
_PROTOBUF_LIMIT = 2**31


class ExportError(RuntimeError):
    """A module that could not be exported; nothing was written then."""


def export(
    module: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
    samples: Tensor | None = None,
) -> Path:
    """Write a module to a file for another runtime, and check that the file gives the same logits.

    The format goes by the suffix: `.onnx` for ONNX Runtime and others, `.pt2` for `torch.export.load`, `.safetensors`
    for `telescopic.load`. The batch size is left open in all of them. Beside the file lies its card, `<path>.json`:
    checksum, size, input and output, classes, versions, and how far its logits were from torch's. An older file stays
    as it was unless all went well.

    Args:
        module: a plain module, such as an extracted member; it is exported in eval mode, and left as it is.
        path: the file to write.
        example: real inputs `[batch, ...]` of the module; with `preprocess`, images uint8 `[batch, channels, height,
            width]`.
        preprocess: made part of an `.onnx` or `.pt2` file, which then takes uint8 images; a `.safetensors` file
            keeps it beside the network.
        classes: names of the classes, in the order of the logits.
        card: facts to add to the card, as JSON data: which member this is, what was measured, ...
        samples: inputs to compare the logits on, alone and all together. Default: the example.

    Returns:
        The path.

    Raises:
        ExportError: if the suffix is unknown, an argument does not fit, the exporter fails, or the file differs from
            the module: in its logits, or by being larger than the module's tensors account for.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ExportError(f"cannot export to {path}: the suffix tells the format, {', '.join(_WRITERS)}")
    if isinstance(module, Nested):
        raise ExportError(
            "one member is exported at a time: export(extract(net, subnet), ...); save(net, ...) keeps all"
        )
    facts = _card_of_the_caller(card)
    network = copy.deepcopy(module).cpu().eval()
    folded = preprocess is not None and path.suffix != ".safetensors"
    network_bytes = sum(tensor.nbytes for tensor in named_tensors(network).values())
    if path.suffix == ".onnx" and network_bytes >= _PROTOBUF_LIMIT:
        raise ExportError(
            f"{path}: ONNX holds less than 2 GiB in one file, and this has {network_bytes} bytes: use .pt2"
        )
    deployed = _Deployed(network, preprocess)
    example = _several(example)
    samples = example if samples is None else _several(samples)
    with _failing(path), torch.no_grad():
        logits = deployed(samples)
    ...
