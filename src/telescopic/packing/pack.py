"""How a family leaves for production: a folder with the graphs of some members, and one file of weights for all."""

import dataclasses
import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from telescopic.ambient import plain
from telescopic.bundle import Bundle
from telescopic.catalogue import Catalogue, Member, measure
from telescopic.data import Dataset, Preprocess
from telescopic.engine.manifest import CARD, MANIFEST, WEIGHTS, Manifest, Packed, PackError, finish
from telescopic.export import parity
from telescopic.extras import needs
from telescopic.files import replacing_folder
from telescopic.inputs import Tensors, each, examples, first_line, leaves, named, plain_shape, shape_of
from telescopic.layers.causal import CausalConv2d, prefix
from telescopic.neighbours import require_alone
from telescopic.nested import Nested
from telescopic.packing.bounds import bounds
from telescopic.packing.card import card
from telescopic.packing.graphs import Weights, checked_batches, exported, write_graph
from telescopic.packing.images import Images
from telescopic.packing.int8 import Report, to_int8
from telescopic.packing.judging import Verdict
from telescopic.packing.segments import Cut, cut
from telescopic.provenance import task_of, versions
from telescopic.shapes import Shape
from telescopic.subnet import Subnet

Wanted = int | Literal["all"] | Sequence[Subnet] | None

_ALONE = 1e-4
"""How far neighbours in a batch may move an answer, as a fraction of the largest number: no more than rounding does."""

_LANES = 16
"""Channels that ONNX Runtime's convolutions treat at once: other numbers cost more time than they save."""


@plain()
def pack(
    net: Nested | Bundle | str | Path,
    to: str | Path,
    *,
    members: Wanted = None,
    catalogue: Catalogue | None = None,
    input_shape: Shape | None = None,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    samples: Tensors = None,
    fold_bn: bool = False,
    int8: Dataset | Tensor | None = None,
    max_loss: float = 0.02,
    replace: bool = False,
    progress: Report | None = None,
) -> Path:
    """Write members of a network to a folder from which `telescopic.Engine` runs them, with one copy of the weights.

    The folder holds plain ONNX graphs of segments, into which the members are cut where they enter and leave; a file of
    weights that the graphs share; a manifest, and a card. Every packed member is run by the engine and compared with
    torch before the folder takes its place.

    With `int8` the pack that was compared with torch is written again: weights as int8, a quarter of the memory. The
    scales of what reaches a segment are found by running all packed members on the images, so that a shared segment
    fits all of them. Then every member is judged by inputs that were held out, beside itself in float32; a pack with a
    member that loses more than `max_loss` is not made. The accuracy of every member is counted anew.

    Of members of several widths, each layer's rows are cut into blocks: wider members run the blocks of narrower ones
    and add their own. Widths whose channels are no multiples of 16 cost more time than wider ones that are, so they are
    left out unless they are named; the card says so. Of a slim family each width has graphs of its own, which cut their
    weights out of the widest one's, if that is packed.

    Args:
        net: a nested network, which is left as it is; or its bundle, or where that is.
        to: the folder to make.
        members: which. By default the Pareto front: those more accurate on validation images than all that cost no
            more in measured latency, or in multiply-adds where the catalogue has no latency; all of them where it has
            no accuracy. A number takes as many of these, evenly spread, the smallest and the largest among them;
            "all" takes all; or a list of members.
        catalogue: the members measured; by default the bundle's, or costs alone.
        input_shape: shape of one input without the batch; by default the catalogue's or the bundle's. See `cost`.
        preprocess: from pixels to the network's input; by default the bundle's. The engine then takes uint8 images too.
        classes: names of the classes; by default the bundle's.
        samples: inputs as the network sees them, float32 `[batch, ...]`, or a dict or tuple of several, on which to
            compare the answers; by default random ones, and of whole numbers ones: give real ones where there are some.
        fold_bn: whether stages whose BatchNorm statistics differ between packed entries are copied for each entry, with
            BatchNorm folded into the convolutions: faster, and larger. By default there is one such stage, which is
            told the statistics. In networks with several widths they are copied always.
        int8: what to quantise by; by default the pack is float32. A data set: calibration takes 256 training images,
            1000 validation images at most judge, and accuracy is counted on the validation images, and on the test
            images if the catalogue has done so; it should be the one of the catalogue, with the same split. Or inputs
            float32 `[batch, ...]` as the network sees them, of which every fourth judges: the accuracy in int8 is then
            unknown. There is a warning if inputs are not like those that the network has learned from.
        max_loss: what int8 may cost a member, as a fraction of the examples that judge: so many fewer may be classified
            rightly; or where there are no labels, five times as many may have another class, and the median example
            an error of half of its logits. What chance explains in few examples is not held against it. 1 allows
            anything.
        replace: whether a pack that is there already may be replaced.
        progress: called with what is done (`writing` segments, `calibrating`, `quantising`, `counting` images), and how
            much of how much.

    Returns:
        The folder.

    Raises:
        PackError: if the network or its members cannot be packed, an answer depends on the rest of its batch or differs
            from torch's, int8 costs a member too much, or there is something else in the folder's place; what was there
            before is as it was.
    """
    to = Path(to)
    if not 0 <= max_loss <= 1:
        raise PackError(f"max_loss is a fraction of the examples, from 0 to 1, not {max_loss!r}")
    if to.exists() and not (replace and (to / MANIFEST).is_file()):
        kind = "a pack" if (to / MANIFEST).is_file() else "something that is no pack"
        remedy = "replace=True (--replace) replaces it" if kind == "a pack" else "choose another place"
        raise PackError(f"there is {kind} at {to} already: {remedy}")
    try:
        with needs("onnx"):  # found out before anything is made
            for library in ("onnx", "onnxruntime", "onnxscript"):
                importlib.import_module(library)
        if isinstance(net, str | Path):
            net = Bundle.open(net)
        if isinstance(net, Bundle):
            catalogue, preprocess = catalogue or net.catalogue, preprocess or net.preprocess
            input_shape = net.input_shape if input_shape is None else input_shape
            classes = classes or net.classes
            provenance = dict(net.provenance)
            opened = net.network()
        else:
            provenance, opened = {}, net
        judged = None if catalogue is None else catalogue.metric
        if int8 is not None and (task := task_of(provenance, judged)) != "classification":
            raise PackError(f"int8 is judged by classes, and this network has learned {task}: pack it in float32")
        network = _packable(opened)
        if catalogue is None:
            catalogue = measure(network, input_shape=input_shape)
        catalogue.require_of(network.grid)
        chosen, left_out = _chosen(network, catalogue, members)
        shape = catalogue.input_shape if input_shape is None else plain_shape(input_shape)
        x = _samples(samples, shape)
        if not isinstance(x, Tensor) and preprocess not in (None, Preprocess()):
            raise ValueError(f"means and stds are for one input, and these are {', '.join(named(x))}: normalise before")
        if int8 is not None and not isinstance(x, Tensor):
            raise PackError("int8 is for networks of one input of floating-point numbers: pack this one in float32")
        images = None if int8 is None else Images.of(int8, shape, preprocess)
        subnets = [member.subnet for member in chosen]
        for subnet in subnets:
            require_alone(partial(network, subnet=subnet), network.path(subnet), x, _ALONE)
        # Of int8 each width has scales of its own, by weights in which BatchNorm is folded.
        made = cut(network, subnets, each(lambda x: x[:2], x), fold_bn=fold_bn, sharing=images is None)
        checked_batches(made.segments, 2)
        report = progress or (lambda what, done, of: None)
        with replacing_folder(to, replace=replace) as folder, tempfile.TemporaryDirectory() as aside:
            plain = folder if images is None else Path(aside)
            manifest = _written(plain, made, chosen, report)
            manifest = dataclasses.replace(
                manifest,
                preprocess=asdict(preprocess) if preprocess else None,
                classes=tuple(classes),
                left_out=left_out,
                provenance={**provenance, "packed_by": versions("onnx", "onnxruntime")},
                below={manifest.inputs[name]: bound for name, bound in bounds(network, subnets, x).items()},
            )
            manifest = finish(plain, manifest)
            notes = _notes(manifest, made, _compared(plain, network, x))
            verdicts: list[Verdict] = []
            if images is not None:
                manifest, verdicts = to_int8(plain, folder, manifest, images, max_loss=max_loss, report=report)
                notes.append(f"Then the weights became int8, calibrated on {images.what}.")
            (folder / CARD).write_text(card(manifest, to.name, notes, verdicts), encoding="utf-8")
    except PackError:
        raise
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        raise PackError(f"cannot pack {to}: {first_line(error)}") from error
    return to


def aligned(net: Nested, width: int) -> bool:
    """Whether all layers of a width have a multiple of 16 channels, or it is the full width."""
    layers = [layer for stage in net.stages for layer in stage.modules() if isinstance(layer, CausalConv2d)]
    return width == net.groups or all(prefix(len(one.weight), net.groups, width) % _LANES == 0 for one in layers)


def _packable(net: object) -> Nested:
    if not isinstance(net, Nested):
        raise TypeError(f"a pack is made of a nested network, not of a {type(net).__name__}")
    tensors = [*net.parameters(), *net.buffers()]
    if other := {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}:
        raise ValueError(f"a pack holds float32, and this network {next(iter(other))}: pack net.float()")
    if any(tensor.device.type != "cpu" for tensor in tensors):
        raise ValueError("a network is packed on the CPU: pack net.cpu()")
    if any(module.training for module in net.modules()):
        raise ValueError("a network is packed in eval mode: call net.eval() first")
    return net


def _chosen(net: Nested, catalogue: Catalogue, wanted: Wanted) -> tuple[list[Member], dict[str, str]]:
    """The members to pack, smallest first; and those left out since their width is not aligned."""
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        named = {net.grid.resolve(subnet) for subnet in wanted}
        if not named:
            raise ValueError("a pack needs at least one member")
        return [member for member in catalogue if member.subnet in named], {}
    if wanted not in (None, "all") and (not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1):
        raise ValueError(f"members are a number of 1 or more, 'all', or a list of members, not {wanted!r}")
    good = {width for width in net.grid.widths if aligned(net, width)}
    why = f"its channels are no multiple of {_LANES} in every layer, so wider members are as fast"
    left_out = {member.label: why for member in catalogue if member.subnet.width not in good}
    kept = [member for member in catalogue if member.subnet.width in good]
    if wanted == "all":
        return kept, left_out
    if catalogue[0].score is not None:
        cost: Literal["latency_ms", "macs"] = "macs" if catalogue[0].latency_ms is None else "latency_ms"
        front = dataclasses.replace(catalogue, members=tuple(kept)).front(cost)
        best = {member.subnet for member in front}
        kept = [member for member in kept if member.subnet in best]
    if isinstance(wanted, int) and wanted < len(kept):
        last = len(kept) - 1
        places = {round(i * last / (wanted - 1)) for i in range(wanted)} if wanted > 1 else {last}
        kept = [kept[place] for place in sorted(places)]
    return kept, left_out


def _samples(given: Tensors, shape: Shape) -> Tensors:
    if given is None:
        return examples(3, shape, torch.float32, "cpu")
    floats = [some.dtype for some in leaves(given) if some.is_floating_point() or some.dtype == torch.uint8]
    if {*floats} - {torch.float32} or shape_of(given) != shape or not len(leaves(given)[0]):
        found = ", ".join(f"{some.dtype} {[*some.shape]}" for some in leaves(given))
        raise ValueError(f"samples are float32 of shape {shape} with the batch in front, not {found}")
    return each(lambda x: x if len(x) > 1 else torch.cat([x, x]), given)


def _written(folder: Path, made: Cut, members: Sequence[Member], report: Report) -> Manifest:
    """Write graphs and weights."""
    files: dict[str, str] = {}
    with (folder / WEIGHTS).open("wb") as opened:
        weights = Weights(opened)
        constants = {name: weights.constant(tensor) for name, tensor in made.constants.items()}
        graphs = exported(made.segments, sharing=made.sharing)
        for number, (segment, graph) in enumerate(zip(made.segments, graphs, strict=True)):
            files[segment.name] = f"segment{number:03}.onnx"
            write_graph(graph, folder / files[segment.name], weights)
            report("writing", number + 1, len(made.segments))
    packed = [
        Packed(m.subnet, m.label, m.score, m.test_score, m.macs, m.params, *made.chains[m.subnet], metric=m.metric)
        for m in members
    ]
    tensors = {name: tuple(tensor.shape[1:]) for name, tensor in made.tensors.items()}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in made.tensors.items()}
    types = {name: kind for name, kind in types.items() if kind != "float32"}
    return Manifest(tuple(packed), files, tensors, constants, types=types)


@torch.no_grad()
def _compared(folder: Path, net: Nested, x: Tensors) -> float:
    """Largest difference of the engine's logits from torch's, as a fraction of the largest logit."""
    from telescopic.engine.engine import Engine

    engine, worst = Engine(folder, cache=False), 0.0

    def run(some: Tensors, subnet: Subnet) -> Tensor:
        given = some.numpy() if isinstance(some, Tensor) else {k: one.numpy() for k, one in named(some).items()}
        return torch.from_numpy(engine.run(given, subnet=subnet).logits)

    for member in engine.members:
        try:
            found = parity(partial(run, subnet=member.subnet), partial(net, subnet=member.subnet), x)
        except ValueError as error:
            raise ValueError(f"the packed {member.label}: {error}") from error
        worst = max(worst, found["relative"])
    return worst


def _notes(manifest: Manifest, made: Cut, parity: float) -> list[str]:
    """What the card says of how the members were packed."""
    notes = [f"Answers agree with torch's to {parity:.1e} of the largest logit, compared member by member."]
    if made.copied:
        notes.append(f"{made.copied} parts are there more than once: their BatchNorm differs between entries.")
    if made.constants:
        notes.append("BatchNorm differs between entries: its statistics are given to the segments that they share.")
    if made.sharing:
        notes.append("Narrow widths have the weights of the widest, which are cut when the pack is opened.")
    if manifest.left_out:
        reasons = {why for why in manifest.left_out.values()}
        notes.append(f"Left out: {', '.join(manifest.left_out)} ({'; '.join(sorted(reasons))}).")
    return notes
