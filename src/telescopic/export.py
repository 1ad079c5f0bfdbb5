"""How a member leaves for another runtime: one file, tried out before it takes its place, and a card about it."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.bundle import load, save
from telescopic.data import Preprocess
from telescopic.extras import needs
from telescopic.files import held, make_folder, replacing, sha256
from telescopic.inputs import Tensors, each, fault_of, first, first_line, leaves, named, shape_of
from telescopic.layers.cuts import named_tensors
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
    example: Tensors
    preprocess: Preprocess | None
    classes: Sequence[str]
    card: dict[str, Any]


@dataclass(frozen=True)
class _Written:
    """A file just written: how to run it, the size of its graph, whose versions matter, whether its ends have names."""

    run: Callable[[Tensors], Tensor]
    num_nodes: int
    packages: Sequence[str] = ()
    names: bool = False


@plain()
def export(
    module: nn.Module,
    path: str | Path,
    example: Tensors,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    card: Mapping[str, Any] | None = None,
    samples: Tensors = None,
) -> Path:
    """Write a module to a file for another runtime, and check that the file gives the same logits.

    A module that takes several inputs, in a dict or tuple, has several in an `.onnx` file, by the names of the dict; a
    `.pt2` file takes them as the module does.

    The suffix tells the format: `.onnx`, `.pt2` (for `torch.export.load`) or `.safetensors` (for `telescopic.load`).
    The batch size stays open. Beside the file lies its card, `<path>.json`: checksum, size, input and output, classes,
    versions, and how far its logits are from torch's. Unless all goes well, older files stay as they are.

    Args:
        module: a plain module, such as an extracted member. It is exported in eval mode, and itself left as it is.
        path: the file to write.
        example: real inputs `[batch, ...]`; with `preprocess`, as they are before it, such as uint8 images
            `[batch, channels, height, width]`; or a dict or tuple of such.
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
                    order = _Order(network, deployed, each(lambda x: x[:2], example), preprocess, tuple(classes), card)
                    written = _WRITERS[path.suffix](order, file)
                facts = {
                    "file": path.name,
                    "format": path.suffix[1:],
                    "bytes": _size(file, network, written.num_nodes),
                    "sha256": sha256(file),
                    "input": _forms(samples if folded or not preprocess else preprocess(samples), written.names),
                    "output": ({"name": "logits"} if written.names else {}) | _form(logits),
                    "preprocess": {**asdict(preprocess), "folded": folded} if preprocess else None,
                    "classes": list(classes),
                    "parity": parity(written.run, deployed, samples),
                    "versions": versions(*written.packages),
                }
                with replacing(path.with_name(f"{path.name}.json")) as beside:
                    beside.write_text(json.dumps(facts | card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except Exception as error:  # exporters and runtimes raise whatever they like
        raise ExportError(f"cannot export to {path}: {first_line(error)}") from error
    return path


class _Preprocessed(nn.Module):
    """A network that takes inputs as they are before its preprocessing, such as uint8 images."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        self.dtype = next((t.dtype for t in network.parameters() if t.is_floating_point()), torch.float32)

    def forward(self, images: Tensors) -> Tensor:
        x = each(lambda x: x.to(self.dtype) if x.is_floating_point() else x, self.preprocess(images))
        logits: Tensor = self.network(x)
        return logits


def _onnx(order: _Order, file: Path) -> _Written:
    with needs("onnx"):
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    if sum(tensor.nbytes for tensor in named_tensors(order.network).values()) >= 2**31:
        raise ValueError("one ONNX file holds less than 2 GiB: choose a smaller member, or .pt2")
    names = [*named(order.example, _name(order.example))]
    shapes = (each(lambda _: BATCH, order.example),)
    program = onnx_program(order.deployed, (order.example,), shapes, names, ["logits"])
    nodes: list[Any] = list(program.model.graph)
    program.save(str(file), external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(x: Tensors) -> Tensor:
        given = {name: one.contiguous().numpy() for name, one in zip(names, leaves(x), strict=True)}
        return torch.from_numpy(session.run(["logits"], given)[0])

    return _Written(run, len(nodes), ("onnx", "onnxscript", "onnxruntime"), names=True)


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
    program = torch.onnx.export(
        module,
        (*example, {}),  # a dict at the end would be taken for keywords
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    assert program is not None
    for part in (program.model, program.model.graph, *program.model.graph):
        part.metadata_props.clear()  # with paths of this machine: half of a small file
    return program


def _pt2(order: _Order, file: Path) -> _Written:
    shapes = (each(lambda _: BATCH, order.example),)
    program = torch.export.export(order.deployed, (order.example,), dynamic_shapes=shapes, strict=False)
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
    save(
        order.network,
        file,
        preprocess=order.preprocess,
        classes=order.classes,
        input_shape=shape_of(order.example),
        provenance=order.card,
    )
    loaded = load(file)
    return _Written(_Preprocessed(loaded, order.preprocess) if order.preprocess else loaded, 0, ("safetensors",))


_WRITERS: dict[str, Callable[[_Order, Path], _Written]] = {".onnx": _onnx, ".pt2": _pt2, ".safetensors": _safetensors}


def _several(batch: Tensors) -> Tensors:
    """At least two samples: from one alone the exporter would conclude that there is never more than one."""
    for some in leaves(batch) or [batch]:
        if not isinstance(some, Tensor) or (some is batch and some.ndim < 2) or not some.ndim or not len(some):
            given = f"a tensor of shape {tuple(some.shape)}" if isinstance(some, Tensor) else f"a {type(some).__name__}"
            raise ExportError(f"the example is a tensor [batch, ...] of one or more real inputs, not {given}")
    return each(lambda x: (torch.cat([x, x]) if len(x) == 1 else x).detach().cpu(), batch)


def _tried(deployed: nn.Module, samples: Tensors) -> Tensor:
    """The logits of all samples, if the module gives some for a batch of any size, each for its own example."""
    found: dict[int, Tensor] = {}
    failed: dict[int, Exception] = {}
    shapes, number = _shapes(samples), len(first(samples))
    for size in (number, 1, number + 1):
        batch = each(lambda x, size=size: torch.cat([x, x[:1]])[:size], samples)
        try:
            logits = deployed(batch)
        except Exception as error:  # whatever it likes
            failed[size] = error
            continue
        if not isinstance(logits, Tensor):
            raise ValueError(f"the module gives a {type(logits).__name__}, and a file has one tensor of logits")
        if not logits.ndim or len(logits) != size:
            raise ValueError(
                f"the module gives {tuple(logits.shape)} for inputs {_shapes(batch)}, and logits are [batch, classes]"
            )
        found[size] = logits
    if not found:
        fault = fault_of(samples, *_parts(deployed))
        why = failed[number]
        raise ValueError(f"the module fails on inputs {shapes}: {fault or first_line(why)}") from why
    if number in found:
        places = [(f"layer {number}", part) for number, part in enumerate(_parts(deployed))]
        require_alone(deployed, places, samples, TOLERANCES.get(found[number].dtype, 2e-2))
    for size, why in failed.items():
        raise ValueError(
            f"the module answers for {next(iter(found))} inputs, and not for {size}, while the batch of a file stays "
            f"open: {first_line(why)}"
        ) from why
    return found[number]


def _parts(module: nn.Module) -> list[nn.Module]:
    """Parts that run one behind the other."""
    if isinstance(module, _Preprocessed):
        return _parts(module.network)
    return list(module) if type(module) is nn.Sequential else [module]


def parity(run: Callable[[Tensors], Tensor], deployed: Callable[[Tensors], Tensor], samples: Tensors) -> dict[str, Any]:
    """How far a file's logits are from the module's, on one sample and on all; as a fraction of the largest of all.

    Raises:
        ValueError: if that is too far, or they cannot be compared.
    """
    batches = [1, len(first(samples))]
    largest, scale = 0.0, 0.0
    for number in batches:
        some = each(lambda x, number=number: x[:number], samples)
        ours, theirs = deployed(some), run(some)
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


def _name(example: Tensors) -> str:
    """What a file calls an input that is alone."""
    return "images" if isinstance(example, Tensor) and example.dtype == torch.uint8 else "input"


def _forms(samples: Tensors, names: bool) -> Any:
    """What goes in: one tensor, or a list of several, which always have names."""
    forms = [{"name": name} | _form(one) for name, one in named(samples, _name(samples)).items()]
    if not isinstance(samples, Tensor):
        return forms
    return forms[0] if names else _form(samples)


def _shapes(batch: Tensors) -> str:
    return " and ".join(str(tuple(one.shape)) for one in leaves(batch))


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
