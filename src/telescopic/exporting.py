"""How a member leaves: as ONNX, torch.export or safetensors, with its answers checked before the file is there."""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.bundle import load, save
from telescopic.data import Preprocess
from telescopic.files import replacing
from telescopic.provenance import versions

SUFFIXES = (".onnx", ".pt2", ".safetensors")
TOLERANCE = 1e-4  # of the largest logit: other libraries add in another order
SPARE_BYTES = 256 * 1024  # what a file may hold besides the weights


class ExportError(RuntimeError):
    """A file that would not give the module's answers, or is larger than it should be; it is not kept."""


def export(
    module: nn.Module,
    path: str | Path,
    example: Tensor,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write a module to a file of its own, check the file's answers, and put a JSON card beside it.

    The answers are compared on `example`, whole and its first image alone, so that the batch is known to be free. A
    file that fails is not kept, and one that was there before stays as it was.

    Args:
        module: an ordinary module, such as `extract` gives; it is not changed.
        path: the suffix says what to write: `.onnx` (ONNX, free batch, checked with ONNX Runtime), `.pt2`
            (torch.export) or `.safetensors` (weights, which `telescopic.load` reads).
        example: real inputs to compare on, two or more: `[batch, ...]` as the module takes them, or, if `preprocess` is
            given for `.onnx` or `.pt2`, images uint8 `[batch, channels, height, width]`.
        preprocess: becomes part of an `.onnx` or `.pt2` file, which then takes uint8 pixels; a `.safetensors` file only
            notes it down.
        classes: names of the classes, in the order of the logits.
        card: further facts for the card, such as the member's row of a catalogue.

    Returns:
        The path. The card is at the same path with `.json` behind it.

    Raises:
        ValueError: if the suffix is unknown or the example cannot be used.
        ImportError: if the packages for ONNX are not installed.
        ExportError: if the file's answers differ from the module's, or the file is too large.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"cannot export to {path.name}: the suffix is one of {', '.join(SUFFIXES)}")
    if path.suffix == ".onnx" and not all(importlib.util.find_spec(p) for p in ("onnx", "onnxscript", "onnxruntime")):
        raise ImportError('ONNX needs onnx, onnxscript and onnxruntime: pip install "telescopic[onnx]"')
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    folded = preprocess is not None and path.suffix != ".safetensors"
    if example.ndim < 2 or len(example) < 2:
        raise ValueError(
            f"the example needs two inputs or more, to show that the batch is free; it is {list(example.shape)}"
        )
    training = {name: part.training for name, part in module.named_modules()}
    try:
        whole = (nn.Sequential(_Pixels(preprocess), module) if folded and preprocess else module).eval()
        with torch.no_grad():
            expected = whole(example)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
                draft = Path(folder) / path.name
                answers = _write(whole, draft, example, preprocess, classes, module)
                error = _require_same(path, answers, expected)
                _require_small(draft, module)
                facts = {
                    "file": path.name,
                    "sha256": hashlib.sha256(draft.read_bytes()).hexdigest(),
                    "bytes": draft.stat().st_size,
                    "input": {
                        "shape": ["batch", *example.shape[1:]],
                        "dtype": str(example.dtype).removeprefix("torch."),
                    },
                    "output": {
                        "shape": ["batch", *expected.shape[1:]],
                        "dtype": str(expected.dtype).removeprefix("torch."),
                    },
                    "preprocess": None if preprocess is None else {**asdict(preprocess), "inside_the_file": folded},
                    "classes": list(classes),
                    "parity": {"inputs": len(example), "largest_difference": error, "allowed": TOLERANCE},
                    "versions": versions(*(("onnx", "onnxscript", "onnxruntime") if path.suffix == ".onnx" else ())),
                    **(card or {}),
                }
                text = json.dumps(facts, indent=1, default=str)
                with replacing(path) as temporary:
                    draft.replace(temporary)
                with replacing(path.with_name(path.name + ".json")) as temporary:
                    temporary.write_text(text + "\n", encoding="utf-8")
    finally:
        for name, part in module.named_modules():
            part.training = training[name]
    return path


class _Pixels(nn.Module):
    """Preprocessing as part of a network: uint8 images to what it sees."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        return self.preprocess(images)


def _write(
    whole: nn.Module,
    draft: Path,
    example: Tensor,
    preprocess: Preprocess | None,
    classes: Sequence[str],
    module: nn.Module,
) -> list[Tensor]:
    """Write the file, and return its own answers to the whole example and to its first input."""
    inputs = [example, example[:1]]
    batch = {0: torch.export.Dim("batch")}
    if draft.suffix == ".safetensors":
        save(module, draft, preprocess=preprocess, classes=classes, input_shape=tuple(example.shape[1:]))
        loaded = load(draft)
        return [loaded(x) for x in inputs]
    if draft.suffix == ".pt2":
        with _quiet():
            program = torch.export.export(whole, (example,), dynamic_shapes=(batch,))
            torch.export.save(program, draft)
            again = torch.export.load(draft).module()
        return [again(x) for x in inputs]
    import onnxruntime

    with _quiet():
        torch.onnx.export(
            whole,
            (example,),
            draft,
            dynamo=True,
            dynamic_shapes=(batch,),
            input_names=["input"],
            output_names=["logits"],
            external_data=False,
        )
    session = onnxruntime.InferenceSession(draft)
    return [torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0]) for x in inputs]


def _require_same(path: Path, answers: list[Tensor], expected: Tensor) -> float:
    """The largest difference from the expected answers, relative to the largest logit."""
    scale = float(expected.abs().max()) or 1.0
    errors = []
    for got, wanted in zip(answers, (expected, expected[:1]), strict=True):
        if got.shape != wanted.shape:
            raise ExportError(f"{path.name} answers {list(got.shape)} instead of {list(wanted.shape)}; it was not kept")
        errors.append(float((got - wanted).abs().max()) / scale)
    # `not <=` also refuses NaN.
    if not max(errors) <= TOLERANCE or not all(got.isfinite().all() for got in answers):
        raise ExportError(
            f"{path.name} would answer differently from the module, by {max(errors):.1e} of the largest logit where "
            f"{TOLERANCE:.0e} is allowed; it was not kept"
        )
    return max(errors)


def _require_small(draft: Path, module: nn.Module) -> None:
    """The file holds this member's weights and no others."""
    weights = sum(t.numel() * t.element_size() for t in {*module.parameters(), *module.buffers()})
    if (size := draft.stat().st_size) > weights + SPARE_BYTES:
        raise ExportError(f"{draft.name} would be {size:,} bytes for {weights:,} bytes of weights; it was not kept")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print progress and warn of packages that are absent; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
