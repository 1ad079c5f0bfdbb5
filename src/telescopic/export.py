"""How a member leaves for another runtime: one file, tried out before it takes its place, and a card about it."""

import gc
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.architecture import named_tensors
from telescopic.bundle import load, save
from telescopic.data import Preprocess
from telescopic.extras import needs
from telescopic.files import held, make_folder, replacing
from telescopic.inputs import fault_of, first_line
from telescopic.neighbours import require_alone
from telescopic.nested import Nested
from telescopic.provenance import versions
from telescopic.wrappers import copied

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference from torch's logits that passes, as a fraction of the largest logit; 0.02 for shorter types."""

BATCH = {0: torch.export.Dim("batch")}
_OURS = ("file", "format", "bytes", "sha256", "input", "output", "preprocess", "classes", "parity", "versions")


class ExportError(RuntimeError):
    """A module that was not exported; there is no new file then."""


@dataclass(frozen=True)
class _Order:
    """What to write: a network, and `deployed`, the same behind its preprocessing if it has one."""

    network: nn.Module
    deployed: nn.Module
    example: Tensor
    preprocess: Preprocess | None
    classes: Sequence[str]
    card: dict[str, Any]


@dataclass(frozen=True)
class _Written:
    """A file just written: how to run it, the size of its graph, whose versions matter, the names of its ends."""

    run: Callable[[Tensor], Tensor]
    num_nodes: int
    packages: Sequence[str] = ()
    input: dict[str, str] = field(default_factory=dict)
    output: dict[str, str] = field(default_factory=dict)


@plain()
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

    The suffix tells the format: `.onnx`, `.pt2` (for `torch.export.load`) or `.safetensors` (for `telescopic.load`).
    The batch size stays open. Beside the file lies its card, `<path>.json`: checksum, size, input and output, classes,
    versions, and how far its logits are from torch's. Unless all goes well, older files stay as they are.

    Args:
        module: a plain module, such as an extracted member. It is exported in eval mode, and itself left as it is.
        path: the file to write.
        example: real inputs `[batch, ...]`; with `preprocess`, as they are before it, such as uint8 images
            `[batch, channels, height, width]`.
        preprocess: becomes part of an `.onnx` or `.pt2` file, which then takes uint8 images. A `.safetensors` file
            keeps it as a fact beside the network.
        classes: names of the classes, in the order of the logits.
        card: more facts for the card, as JSON data: which member it is, what was measured, ...
        samples: inputs on which to compare the logits, the first alone and all together. Default: the example.

    Returns:
        The path.

    Raises:
        ExportError: if the suffix is unknown, an argument does not fit, a package is missing, the module gives no
            logits for some size of the batch, or those of an example depend on the rest of it, the exporter fails, or
            the file's logits differ from the module's or its size from that of the module's tensors.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ExportError(f"cannot export to {path}: the suffix tells the format, one of {', '.join(_WRITERS)}")
    if isinstance(module, Nested):
        raise ExportError("export takes one member: export(extract(net, subnet), ...); to keep all, save(net, ...)")
    card = dict(card or {})
    if taken := sorted(card.keys() & set(_OURS)):
        raise ExportError(f"the card's {', '.join(taken)} is written by export itself: give it another name")
    folded = preprocess is not None and path.suffix != ".safetensors"
    network = copied(module).cpu().eval()
    deployed = _Preprocessed(network, preprocess) if preprocess else network
    example, samples = (_several(batch) for batch in (example, example if samples is None else samples))
    try:
        json.dumps(card, allow_nan=False)
        with torch.no_grad():
            logits = _tried(deployed, samples)
            if classes and len(classes) != logits.shape[-1]:
                raise ValueError(f"there are {len(classes)} classes, but {logits.shape[-1]} logits")
            make_folder(path.parent)
            # Two at once could leave the file of one with the card of the other.
            with held(path.with_name(f".{path.name}.lock"), path), replacing(path) as file:
                with quiet():
                    order = _Order(network, deployed, example[:2], preprocess, tuple(classes), card)
                    written = _WRITERS[path.suffix](order, file)
                facts = {
                    "file": path.name,
                    "format": path.suffix[1:],
                    "bytes": _size(file, network, written.num_nodes),
                    "sha256": _checksum(file),
                    "input": written.input | _form(samples if folded or not preprocess else preprocess(samples)),
                    "output": written.output | _form(logits),
                    "preprocess": {**asdict(preprocess), "folded": folded} if preprocess else None,
                    "classes": list(classes),
                    "parity": _parity(written.run, deployed, samples),
                    "versions": versions(*written.packages),
                }
                with replacing(path.with_name(f"{path.name}.json")) as beside:
                    beside.write_text(json.dumps(facts | card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except Exception as error:  # exporters and runtimes raise whatever they like
        raise ExportError(f"cannot export to {path}: {first_line(error)}") from error
    return path


class _Preprocessed(nn.Module):
    """A network that takes uint8 images `[batch, channels, height, width]`."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        self.dtype = next((t.dtype for t in network.parameters() if t.is_floating_point()), torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.preprocess(images).to(self.dtype))
        return logits


def _onnx(order: _Order, file: Path) -> _Written:
    with needs("onnx"):
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    if sum(tensor.nbytes for tensor in named_tensors(order.network).values()) >= 2**31:
        raise ValueError("one ONNX file holds less than 2 GiB: choose a smaller member, or .pt2")
    name = "images" if order.example.dtype == torch.uint8 else "input"
    program = onnx_program(order.deployed, (order.example,), (BATCH,), [name], ["logits"])
    nodes: list[Any] = list(program.model.graph)
    program.save(str(file), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: x.contiguous().numpy()})[0])

    packages = ("onnx", "onnxscript", "onnxruntime")
    return _Written(run, len(nodes), packages, input={"name": name}, output={"name": "logits"})


def onnx_program(
    module: nn.Module,
    example: tuple[Any, ...],
    dynamic_shapes: Any,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> torch.onnx.ONNXProgram:
    """A module's graph in memory, without the stack traces that torch leaves in it.

    Args:
        module: what to export, in eval mode.
        example: its inputs.
        dynamic_shapes: as `torch.export.export` takes them.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """
    collects = gc.isenabled()
    gc.disable()  # what an export loads and makes stays: to look for circles in it takes a sixth of the time
    try:
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
        )
    finally:
        if collects:
            gc.enable()
    assert program is not None
    for part in (program.model, program.model.graph, *program.model.graph):
        part.metadata_props.clear()  # with paths of this machine: half of a small file
    return program


def _pt2(order: _Order, file: Path) -> _Written:
    program = torch.export.export(order.deployed, (order.example,), dynamic_shapes=(BATCH,), strict=False)
    program._example_inputs = (
        None  # or the file would hold the user's data; the public setter of torch 2.6 refuses None
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    written = io.BytesIO()  # on a full disk torch's writer would end the process
    torch.export.save(program, written)
    file.write_bytes(written.getbuffer())
    run = torch.export.load(io.BytesIO(file.read_bytes())).module()
    return _Written(run, len(program.graph.nodes))


def _safetensors(order: _Order, file: Path) -> _Written:
    shape = order.example.shape[1:]
    save(
        order.network,
        file,
        preprocess=order.preprocess,
        classes=order.classes,
        input_shape=shape,
        provenance=order.card,
    )
    loaded = load(file)
    return _Written(_Preprocessed(loaded, order.preprocess) if order.preprocess else loaded, 0, ("safetensors",))


_WRITERS: dict[str, Callable[[_Order, Path], _Written]] = {".onnx": _onnx, ".pt2": _pt2, ".safetensors": _safetensors}


def _several(batch: Tensor) -> Tensor:
    """At least two samples: from one alone the exporter would conclude that there is never more than one."""
    if not isinstance(batch, Tensor) or batch.ndim < 2 or not len(batch):
        given = f"a tensor of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
        raise ExportError(f"the example is a tensor [batch, ...] of one or more real inputs, not {given}")
    return (torch.cat([batch, batch]) if len(batch) == 1 else batch).detach().cpu()


def _tried(deployed: nn.Module, samples: Tensor) -> Tensor:
    """The logits of all samples, if the module gives some for a batch of any size, each for its own example."""
    found: dict[int, Tensor] = {}
    failed: dict[int, Exception] = {}
    for batch in (samples, samples[:1], torch.cat([samples, samples[:1]])):
        try:
            logits = deployed(batch.clone())
        except Exception as error:  # whatever it likes
            failed[len(batch)] = error
            continue
        if not isinstance(logits, Tensor):
            raise ValueError(f"the module gives a {type(logits).__name__}, and a file has one tensor of logits")
        if not logits.ndim or len(logits) != len(batch):
            raise ValueError(
                f"the module gives {tuple(logits.shape)} for inputs {tuple(batch.shape)}, and logits are [batch, "
                "classes]"
            )
        found[len(batch)] = logits
    if not found:
        fault = fault_of(samples, *_parts(deployed))
        why = failed[len(samples)]
        raise ValueError(f"the module fails on inputs {tuple(samples.shape)}: {fault or first_line(why)}") from why
    if len(samples) in found:
        places = [(f"layer {number}", part) for number, part in enumerate(_parts(deployed))]
        require_alone(deployed, places, samples, TOLERANCES.get(found[len(samples)].dtype, 2e-2))
    for number, why in failed.items():
        raise ValueError(
            f"the module answers for {next(iter(found))} inputs, and not for {number}, while the batch of a file stays "
            f"open: {first_line(why)}"
        ) from why
    return found[len(samples)]


def _parts(module: nn.Module) -> list[nn.Module]:
    """Parts that run one behind the other."""
    if isinstance(module, _Preprocessed):
        return _parts(module.network)
    return list(module) if type(module) is nn.Sequential else [module]


def _parity(run: Callable[[Tensor], Tensor], deployed: nn.Module, samples: Tensor) -> dict[str, Any]:
    """How far the file's logits are from the module's, on one sample and on all; too far is an error."""
    batches = [1, len(samples)]
    largest, scale = 0.0, 0.0
    for number in batches:
        ours, theirs = deployed(samples[:number]), run(samples[:number])
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise ValueError(f"the file gives {_form(theirs)} for {number} samples, the module {_form(ours)}")
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise ValueError("the logits are not finite, so nothing can be compared")
        largest = max(largest, float((ours.double() - theirs.double()).abs().max()))
        scale = max(scale, float(ours.abs().max()))
    relative, tolerance = largest / (scale or 1.0), TOLERANCES.get(ours.dtype, 2e-2)
    if relative > tolerance:
        raise ValueError(
            f"the file's logits differ from the module's by up to {largest:.3g}, {relative:.3g} of the largest logit; "
            f"{tolerance:.3g} is allowed"
        )
    return {"batches": batches, "max_difference": largest, "relative": relative, "tolerance": tolerance}


def _size(file: Path, network: nn.Module, num_nodes: int) -> int:
    """The file's bytes: those of the network's tensors, and some for the graph; more is an error."""
    size, tensors = file.stat().st_size, sum(tensor.nbytes for tensor in named_tensors(network).values())
    if size > tensors + 2**16 + 2**12 * num_nodes:
        raise ValueError(
            f"the file has {size} bytes, but the module's tensors only {tensors}: it holds something else too"
        )
    return size


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _form(batch: Tensor) -> dict[str, Any]:
    return {"shape": ["batch", *batch.shape[1:]], "dtype": str(batch.dtype).removeprefix("torch.")}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print and warn of on every use; their errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
