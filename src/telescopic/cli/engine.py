"""`telescopic pack` and `telescopic bench`: a family for production, and what it does on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from telescopic.cli.shown import Backend, DataDir, Import, interruptible, numbers, show_table, tell, working
from telescopic.quantities import human
from telescopic.tables import plain

if TYPE_CHECKING:
    from rich.table import Table

    from telescopic.engine import Engine


def pack(
    source: Annotated[str, typer.Argument(help="A run's folder, a bundle's file, or a shipped family.")],
    to: Annotated[Path, typer.Option(help="The folder to make, such as model.telescope.")],
    members: Annotated[
        str | None, typer.Option(help="How many of the Pareto front, or all. (default: the whole front)")
    ] = None,
    subnet: Annotated[
        list[str] | None, typer.Option(help="A member by name, e.g. entry=1; may be given several times.")
    ] = None,
    fold_bn: Annotated[
        bool, typer.Option("--fold-bn", help="Copy stages whose BatchNorm differs between entries: faster, larger.")
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise: a quarter of the memory, and faster; accuracy is counted anew.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="With --int8: the data set, or a path. (default: what it was trained on)")
    ] = None,
    data_dir: DataDir = None,
    max_loss: Annotated[
        float, typer.Option(help="With --int8: how much accuracy a member may lose, as a fraction; 1 allows anything.")
    ] = 0.02,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a pack that is there already.")] = False,
    code: Import = None,
) -> None:
    """Write members of a family as ONNX graphs with one copy of the weights, each compared with the network."""
    from telescopic.engine import Engine
    from telescopic.inputs import each
    from telescopic.packing import pack as write
    from telescopic.run import Source
    from telescopic.subnet import Subnet

    if subnet and members is not None:
        raise ValueError("give --members or --subnet, not both")
    wanted: object = [Subnet.parse(text) for text in subnet] if subnet else members
    if members not in (None, "all"):
        (wanted,) = numbers("--members", members or "", int, "a number, or all")
    found = Source.open(source)
    images, _ = found.samples()
    if not int8 and (data or data_dir):
        raise ValueError("--data and --data-dir go with --int8, which needs images")
    with interruptible(), working("packing") as show:
        write(
            found.bundle,
            to,
            members=wanted,  # type: ignore[arg-type]
            catalogue=found.catalogue(),
            samples=found.preprocess()(each(lambda x: x[:8], images)),
            fold_bn=fold_bn,
            int8=found.data(data, data_dir) if int8 else None,
            max_loss=max_loss,
            replace=replace,
            progress=show,
        )
    engine = Engine(to, cache=False)
    size = sum(file.stat().st_size for file in to.iterdir())
    gives = "the network's answers, almost" if int8 else "the network's answers"
    tell(f"{to}: {len(engine.members)} members, {size:,} bytes, each gives {gives}")
    if int8:
        show_table(_losses(engine))
    if engine.left_out:
        tell(f"left out: {', '.join(engine.left_out)}; {next(iter(engine.left_out.values()))}")


def bench(
    pack: Annotated[Path, typer.Argument(help="The folder that telescopic pack made.")],
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
    threads: Annotated[str | None, typer.Option(help="Numbers of threads to try. (default: 1, 2, 4, ... )")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="Time for each member in each case.")] = 0.5,
    backend: Backend = "onnxruntime",
) -> None:
    """Measure every member of a pack on this machine, and keep the table for the engine."""
    from telescopic.engine import Engine
    from telescopic.engine.backends import named
    from telescopic.engine.host import memory, num_cpus

    batches = numbers("--batch", batch, int, "batch sizes such as 1,8,32")
    cpus = num_cpus()
    powers = [2**i for i in range(cpus.bit_length()) if 2**i <= cpus]
    tries = tuple(sorted({*powers, cpus})) if threads is None else numbers("--threads", threads, int, "such as 1,2")
    named(backend)  # the library is loaded now, or it would be counted as memory of the members
    before = memory()
    engine = Engine(pack, backend=backend)
    after = memory()
    with interruptible():
        engine.calibrate(batches=batches, threads=tries, seconds=seconds)
    for number in batches:
        show_table(_table(engine, number, tries))
    best = engine.timings.best_threads()
    tell(f"{engine.runs_on}; {best} of {cpus} processors serve best, and are used from now on")
    if before is not None and after is not None:
        tell(f"memory of all members together: {(after - before) / 1e6:.1f} MB, feature maps of batch 1 included")


def _losses(engine: "Engine") -> "Table":
    """What int8 costs each member."""
    table = plain("member", "valid %\nint8", "valid %\nfloat32", "test %\nint8", "test %\nfloat32")
    for m in engine.members:
        accuracies = (m.accuracy, m.float_accuracy, m.test_accuracy, m.float_test_accuracy)
        table.add_row(m.label, *("–" if value is None else f"{value:.2%}"[:-1] for value in accuracies))
    return table


def _table(engine: "Engine", batch: int, tries: tuple[int, ...]) -> "Table":
    best = engine.threads
    metric = engine.members[0].metric
    caption = f"batch {batch}, threads {best}; · is beaten by another member in both {metric.name} and time"
    tries = tries if len(tries) > 1 else ()
    compared = (f"ms, {n}\nthreads" for n in tries)
    valid = "valid %" if metric.word == "accuracy" else f"valid {metric.name}"
    table = plain("member", "", valid, "ms", "p95 ms", "a second", "weights", *compared, caption=caption)
    front = engine.front(batch)
    for member in engine.members:
        timing = engine.timing(member.subnet, batch)
        others = [engine.timings.at(member.subnet, batch, number) for number in tries]
        table.add_row(
            member.label,
            "" if member in front else "·",
            "–" if member.score is None else metric.text(member.score).removesuffix(" %"),
            f"{timing.median_ms:.3f}",
            f"{timing.p95_ms:.3f}",
            f"{1000 * batch / timing.median_ms:,.0f}",
            human((1 if engine.precision == "int8" else 4) * member.params, "B"),
            *("–" if other is None else f"{other.median_ms:.3f}" for other in others),
        )
    return table
