"""What random searches have found: a row for each model, box plots, and accuracy against size."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from telescopic.files import make_folder, replacing
from telescopic.papers import shrinknets
from telescopic.papers.search.study import trained_for
from telescopic.papers.tables import narrow
from telescopic.quantities import human
from telescopic.report.plots import INK, MUTED, PAGE, Plot, canvas, log_ticks, ramp, rendered, tick

if TYPE_CHECKING:
    import optuna
    from rich.table import Table

NAMES = {"fixed": "fixed widths", "fixed-l2": "fixed widths, L2", "shrinknets": "ShrinkNets"}


@dataclass(frozen=True)
class Model:
    """One model that was drawn.

    Attributes:
        kind: `fixed`, `fixed-l2` or `shrinknets`.
        number: of its trial.
        penalty: λ; 0 if it has none.
        widths: of its layers, in the epoch that was chosen.
        validation: accuracy on validation images in that epoch.
        test: on test images.
        epoch: which it was.
        macs: multiply-adds of one example.
        params: parameters.
        seconds: what training took.
        epochs: for which it was trained.
        precision: fp32 or bf16.
        commit: of the source that trained it; empty if unknown.
        error: why it failed; empty if it did not, and what training gives means nothing if it did.
    """

    kind: str
    number: int
    penalty: float
    widths: tuple[int, ...] = ()
    validation: float = float("nan")
    test: float = float("nan")
    epoch: int = 0
    macs: int = 0
    params: int = 0
    seconds: float = float("nan")
    epochs: int = 0
    precision: str = "fp32"
    commit: str = ""
    error: str = ""


Cells = Mapping[str, Sequence[Model]]
"""Kind → its models that did not fail."""


def models(study: "optuna.Study", kind: str) -> list[Model]:
    """The models of a study that were trained or have failed."""
    import optuna

    found = []
    how = dict(zip(("epochs", "precision"), trained_for(study.study_name), strict=True))
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    for trial in study.get_trials(deepcopy=False, states=states):
        penalty, facts = float(trial.params.get("penalty", 0.0)), trial.user_attrs
        known: dict[str, Any] = how | {"commit": facts.get("commit") or ""}
        if trial.value is None:
            error = facts.get("error", "its process ended")
            found.append(Model(kind, trial.number, penalty, error=error, **known))
            continue
        known |= {name: facts[name] for name in ("test", "epoch", "macs", "params", "seconds")}
        found.append(Model(kind, trial.number, penalty, tuple(facts["widths"]), trial.value, **known))
    return found


def write_csv(path: Path, found: Sequence[Model]) -> None:
    """Write a row for each model, also for those that failed."""
    names = list(Model.__dataclass_fields__)
    make_folder(path.parent)
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(names)
        for model in found:
            values = [getattr(model, name) for name in names]
            out.writerow([" ".join(map(str, v)) if isinstance(v, tuple) else v for v in values])


def read_csv(path: Path) -> list[Model]:
    """What `write_csv` has written."""
    kinds: dict[str, Callable[[str], Any]] = {"kind": str, "precision": str, "commit": str, "error": str}
    kinds |= dict.fromkeys(("number", "epoch", "macs", "params", "epochs"), int)
    kinds["widths"] = lambda text: tuple(map(int, text.split()))
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: kinds.get(name, float)(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [Model(**row) for row in rows]


def results(found: Sequence[Model], data: str, network: str) -> "Table":
    """Medians of each kind, with the paper's; below, what failed."""
    ways = dict.fromkeys(f"{model.epochs} epochs, {model.precision}" for model in found)
    table = narrow(
        f"{network} on {data}, {' and '.join(ways)}",
        "model",
        "models",
        "test, %\nmedian",
        "best",
        "paper,\nmedian",
        "params,\nmedian",
        "MACs",
    )
    paper = medians(data, network)
    for kind, some in cells(found).items():
        tests = [model.test for model in some]
        theirs = "–" if paper is None else f"{100 * paper.of(kind):.2f}"
        sizes = [human(median(getattr(model, name) for model in some)) for name in ("params", "macs")]
        numbers = [f"{100 * value:.2f}" for value in (median(tests), max(tests))]
        table.add_row(NAMES[kind], str(len(some)), *numbers, theirs, *sizes)
    errors = [f"{NAMES[model.kind]} {model.number}: {model.error}" for model in found if model.error]
    if errors:
        shown = "\n".join(errors[-5:])
        table.caption = f"Failed or stopped: {len(errors)}. The last:\n{shown}"
    return table


def plots(found: Sequence[Model], data: str, network: str) -> list[Plot]:
    """Figure 2 for one network and data, and accuracy against size."""
    by_kind = cells(found)
    return [_boxes(by_kind, data, network), _sizes(by_kind, data, network)] if by_kind else []


def cells(found: Sequence[Model]) -> dict[str, list[Model]]:
    """The models that did not fail, of each kind that has some."""
    by_kind = {kind: [m for m in found if m.kind == kind and not m.error] for kind in shrinknets.KINDS}
    return {kind: some for kind, some in by_kind.items() if some}


def medians(data: str, network: str) -> shrinknets.Medians | None:
    """The paper's, if it has any."""
    rows = (row for row in shrinknets.FIGURE_2 if (row.network, row.data) == (network, data))
    return next(rows, None)


def _boxes(by_kind: Cells, data: str, network: str) -> Plot:
    paper, colours = medians(data, network), ramp(len(by_kind))
    with canvas(place=(0.16, 0.12, 0.81, 0.78)) as (figure, axes):
        tests = [[model.test for model in some] for some in by_kind.values()]
        boxes = axes.boxplot(tests, widths=0.5, patch_artist=True, medianprops={"color": INK})
        names = [f"{NAMES[kind]}\n{len(some)} model{'s' * (len(some) > 1)}" for kind, some in by_kind.items()]
        axes.set_xticklabels(names, fontsize=9)
        for box, colour in zip(boxes["boxes"], colours, strict=True):
            box.set(facecolor="none", edgecolor=colour.light)
        if paper is not None:
            axes.plot(
                range(1, 1 + len(by_kind)),
                [paper.of(kind) for kind in by_kind],
                "D",
                ms=6,
                mfc=PAGE,
                mec=MUTED,
                mew=1.2,
            )
        axes.set(title=f"test accuracy, {network} on {data}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
        svg, png = rendered(figure)
    caption = f"Random models of {network} on {data}." + (" Diamonds: the paper's medians." if paper else "")
    return Plot(f"figure2-{network}-{data}", "Test accuracy of random models", caption, svg, png, colours)


def _sizes(by_kind: Cells, data: str, network: str) -> Plot:
    colours = ramp(len(by_kind))
    with canvas(place=(0.16, 0.16, 0.81, 0.67)) as (figure, axes):
        params = [model.params for some in by_kind.values() for model in some]
        axes.set_xscale("log")
        axes.set_xlim(min(params) / 1.3, max(params) * 1.3)
        log_ticks(axes.xaxis, min(params), max(params))
        for (kind, some), colour in zip(by_kind.items(), colours, strict=True):
            places = [(model.params, model.test) for model in some]
            axes.plot(*zip(*places, strict=True), "o", ms=5, color=colour.light, mew=0, alpha=0.8, label=NAMES[kind])
        axes.legend(
            frameon=False, fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(-0.05, 0.98), handletextpad=0.1
        )
        axes.set(xlabel="parameters (logarithmic)")
        axes.set_title(f"test accuracy, {network} on {data}", pad=24)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")
        svg, png = rendered(figure)
    caption = f"From {tick(min(params))} to {tick(max(params))} parameters."
    return Plot(f"sizes-{network}-{data}", "Test accuracy against size", caption, svg, png, colours)
