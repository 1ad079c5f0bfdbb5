"""`telescopic catalogue`, `choose`, `extract` and `report`: what one does with a trained family."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from telescopic.cli.shown import DataDir, Import, one_of, show_table, tell, working

if TYPE_CHECKING:
    from torch import nn

    from telescopic.catalogue import Catalogue
    from telescopic.inputs import Tensors
    from telescopic.run import Source

Where = Annotated[str, typer.Argument(help="A run's folder, a bundle's file, or a shipped family such as nsn-mnist.")]
MaxMacs = Annotated[str | None, typer.Option(help="Most multiply-adds of one example, e.g. 700k.")]
MaxParams = Annotated[str | None, typer.Option(help="Most parameters, e.g. 1M.")]
MaxBytes = Annotated[str | None, typer.Option(help="Most bytes of weights, e.g. 2.5MB.")]
MaxActivation = Annotated[
    str | None, typer.Option("--max-peak-activation", help="Most bytes of live feature maps, e.g. 64kB.")
]
MaxLatency = Annotated[
    float | None, typer.Option(help="Most milliseconds, in 95 % of passes on this machine, measured if need be.")
]
MinAccuracy = Annotated[float | None, typer.Option(help="Least accuracy on validation images, e.g. 0.97.")]
MinScore = Annotated[float | None, typer.Option(help="Least score, where higher is better, such as R2.")]
MaxScore = Annotated[float | None, typer.Option(help="Most of a score of which lower is better, such as an error.")]


def catalogue(
    source: Where,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure latency on this machine, if that is not done.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a timed pass.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads in a timed pass. (default: torch's)")] = None,
    to: Annotated[Path | None, typer.Option(help="Also write the table to a .csv or .json file.")] = None,
    code: Import = None,
) -> None:
    """Show every member: accuracy, MACs, parameters, bytes, peak activation, latency."""
    from telescopic.run import Source

    found = Source.open(source)
    if to is not None:
        one_of("the suffix of --to", to.suffix, (".csv", ".json"))
    table = _timed(found, batch=batch, threads=threads) if latency else found.catalogue()
    show_table(table.table())
    if to is not None:
        (table.to_csv if to.suffix == ".csv" else table.to_json)(to)
        tell(f"written to {to}")


def choose(
    source: Where,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    max_peak_activation: MaxActivation = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    code: Import = None,
) -> None:
    """Pick the most accurate member within budgets, and say why."""
    from telescopic.run import Source

    found = Source.open(source)
    scores = {"min_accuracy": min_accuracy, "min_score": min_score, "max_score": max_score}
    choice = _choice(found, max_macs, max_params, max_bytes, max_peak_activation, max_latency_ms, scores)
    tell(choice)
    told = "".join(f" --import {one}" for one in code or ())
    tell(f"\nTake it out:  telescopic extract {source} --subnet {choice.subnet}{told} --to member.onnx")


def extract(
    source: Where,
    to: Annotated[Path, typer.Option(help="The file to write: .onnx, .pt2 or .safetensors.")],
    subnet: Annotated[str | None, typer.Option(help="Which member, e.g. entry=1; instead of budgets.")] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Let the file take uint8 pixels: preprocessing is part of it.")
    ] = False,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Make BatchNorms part of the convolutions before them.")
    ] = False,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_bytes: MaxBytes = None,
    max_peak_activation: MaxActivation = None,
    max_latency_ms: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    min_score: MinScore = None,
    max_score: MaxScore = None,
    data_dir: DataDir = None,
    code: Import = None,
) -> None:
    """Take one member out as a file of its own; the file is checked against the network on real images."""
    from dataclasses import asdict

    from telescopic.export import export
    from telescopic.inputs import first
    from telescopic.run import Source
    from telescopic.subnet import Subnet

    found = Source.open(source)
    budgets = (max_macs, max_params, max_bytes, max_peak_activation, max_latency_ms)
    scores = {"min_accuracy": min_accuracy, "min_score": min_score, "max_score": max_score}
    if subnet is not None and any(budget is not None for budget in (*budgets, *scores.values())):
        raise ValueError("give --subnet or budgets, not both")
    if subnet is not None:
        table = found.catalogue()
        member: Any = table[found.bundle.grid.index(Subnet.parse(subnet))]
    else:
        member = _choice(found, *budgets, scores)
        tell(member)
    images, what = found.samples(data_dir=None if data_dir is None else str(data_dir))
    facts = {k: v for k, v in asdict(member).items() if k not in ("subnet", "why")}
    card: dict[str, Any] = {"subnet": str(member.subnet), "catalogue": facts, "source": source, "compared_on": what}
    module, same = found.bundle.member(member.subnet), "gives the same answers as the network"
    if fold_bn:
        module, apart = _folded(module, found.preprocess()(images))
        card["fold_bn"] = {"max_difference": apart}
        same = f"gives the network's logits to within {apart:.1e}"
    # A .safetensors file is for telescopic, which knows what the preprocessing noted in it means.
    inside = fold or to.suffix == ".safetensors"
    path = export(
        module,
        to,
        images if inside else found.preprocess()(images),
        preprocess=found.preprocess() if inside else None,
        classes=found.bundle.classes,
        card=card,
    )
    tell(f"{path}: {path.stat().st_size:,} bytes, {same} on {len(first(images))} {what}")


def report(
    source: Where,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html. (default: the run's own)")] = None,
    code: Import = None,
) -> None:
    """Write report.html: the network, every size of it, the training curves, in one page that needs no network."""
    from telescopic.report import write_report
    from telescopic.run import Source

    found = Source.open(source)
    page = write_report(
        out or found.folder or Path("."),
        found.network(),
        found.catalogue(),
        history=found.history(),
        title=Path(source).stem,
        source=source,
        facts=found.facts(),
    )
    tell(page)


def _choice(found: "Source", macs: str | None, params: str | None, size: str | None, activation: str | None,
            latency_ms: float | None, scores: dict[str, float | None]) -> Any:  # fmt: skip
    from telescopic.quantities import parse_quantity

    table = found.catalogue() if latency_ms is None else _timed(found)
    texts = {"max_macs": macs, "max_params": params, "max_bytes": size, "max_peak_activation": activation}
    budgets = {name: parse_quantity(text) for name, text in texts.items() if text is not None}
    return table.choose(**budgets, max_latency_ms=latency_ms, **scores)


def _folded(member: "nn.Module", inputs: "Tensors") -> "tuple[nn.Module, float]":
    """A member whose convolutions have taken over their BatchNorms, and how far its logits are from the member's."""
    import torch
    from torch import nn

    from telescopic.folding import fold_bn
    from telescopic.inputs import each

    folded = fold_bn(member)
    if isinstance(folded, nn.Sequential):  # what stood in a BatchNorm's place is not needed
        folded = nn.Sequential(*(layer for layer in folded if type(layer) is not nn.Identity)).eval()
    dtype = next(member.parameters()).dtype
    inputs = each(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    with torch.no_grad():
        return folded, (folded(inputs) - member(inputs)).abs().max().item()


def _timed(found: "Source", *, batch: int = 1, threads: int | None = None) -> "Catalogue":
    with working("measuring latency") as show:
        return found.timed(batch=batch, threads=threads, progress=show)
