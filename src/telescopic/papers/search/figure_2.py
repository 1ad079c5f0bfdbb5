"""Figure 2 and its like: search, and show what has been found."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescopic.papers import shrinknets
from telescopic.papers.search.parallel import search_in_processes
from telescopic.papers.search.results import models as models_of
from telescopic.papers.search.results import plots, results, write_csv
from telescopic.papers.search.study import known_study, study_name
from telescopic.report.plots import write_plots

if TYPE_CHECKING:
    from rich.table import Table


def figure_2(
    storage: str,
    *,
    data: str,
    network: str,
    kinds: Sequence[str] = shrinknets.KINDS,
    epochs: int | None = None,
    processes: int = 1,
    precision: str = "fp32",
    show: bool = False,
    out: Path | None = None,
    **options: Any,
) -> "Iterator[Table | Path | str]":
    """Search, and give a table and files with all models, or a sentence if there are none.

    Args:
        storage: see `search`.
        data: name or path of the data.
        network: `mlp` or `lenet`.
        kinds: what is searched, of `shrinknets.KINDS`; what has been found is shown of all.
        epochs: passes over the training images; default: the paper's.
        processes: models trained at once.
        precision: fp32 or bf16.
        show: search nothing.
        out: where the files go; default: beside the storage.
        options: further ones of `search`.

    Raises:
        ValueError: see `search_in_processes`.
    """
    for kind in kinds:  # before hours are spent on the first
        study_name(data, network, kind, epochs, precision)
    long, name = epochs or shrinknets.EPOCHS[network], Path(data).stem
    for kind in () if show else kinds:
        options |= {"data": data, "network": network, "kind": kind, "epochs": epochs, "precision": precision}
        search_in_processes(processes, storage, **options)
    found = []
    for kind in shrinknets.KINDS:
        study = known_study(storage, study_name(data, network, kind, long, precision))
        found += [] if study is None else models_of(study, kind)
    if not found:
        yield f"{storage} has no models of {network} on {name} trained for {long} epochs in {precision}"
        return
    yield results(found, name, network)
    folder = out or (Path("runs") if "://" in storage else Path(storage).parent)
    table = folder / f"models-{network}-{name}.csv"
    write_csv(table, found)
    yield table
    yield from write_plots(folder, plots(found, name, network))
