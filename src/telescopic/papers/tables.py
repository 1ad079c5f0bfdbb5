"""What the papers' tables have in common."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from telescopic.papers.paper import Run, Runs
from telescopic.tables import plain

if TYPE_CHECKING:
    from rich.table import Table

PROTOCOLS = {"validation": "chosen on validation", "last": "last epoch"}
"""Which epoch's accuracies stand in a table, and how its title says so."""


def by_settings(found: Runs, settings: Sequence[str]) -> list[tuple[Run, dict[str, list[Run]]]]:
    """Runs that may stand in one table, for they agree in some facts: these facts, and experiment → runs."""
    groups: dict[str, tuple[Run, dict[str, list[Run]]]] = {}
    for experiment, some in found.items():
        for run in some:
            facts = {name: run[name] for name in settings}
            _, group = groups.setdefault(str(tuple(facts.values())), (facts, {}))
            group.setdefault(experiment, []).append(run)
    return [groups[key] for key in sorted(groups)]


def spread(values: Sequence[float]) -> str:
    """The mean over seeds, and their standard deviation."""
    if not values:
        return "–"
    return f"{mean(values):.4f}" + (f" ±{stdev(values):.4f}" if len(values) > 1 else "")


def narrow(title: str, *columns: str) -> "Table":
    """A table without lines, so that it fits 80 columns."""
    return plain(*columns, no_wrap=True, title=title)
