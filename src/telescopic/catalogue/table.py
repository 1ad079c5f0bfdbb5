"""All members of a nested network in one table: what each is worth, what it costs, and which to choose. No torch."""

import csv
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from telescopic import documents, tables
from telescopic.catalogue import choosing
from telescopic.catalogue.choosing import Budget, Choice, Member
from telescopic.files import replacing
from telescopic.metric import ACCURACY, Metric
from telescopic.quantities import human
from telescopic.shapes import Shape, checked_shape
from telescopic.subnet import Coordinates, Grid, Statistics, Subnet

if TYPE_CHECKING:
    from rich.table import Table

CostName = Literal["macs", "params", "bytes", "peak_activation", "latency_ms"]
_OPTIONAL = ("score", "test_score", "latency_ms", "latency_p95_ms")
_COORDINATES = ("entry", "exit", "width")
CONDITIONS = ("machine", "device", "threads", "batch")
"""Of a latency: what makes two measurements comparable."""
_SHOWN = 60  # members of a catalogue that is printed
_COLUMNS = {
    "score": ("valid", ""),
    "test_score": ("test", ""),
    "macs": ("MACs", ""),
    "params": ("params", ""),
    "bytes": ("size", "B"),
    "peak_activation": ("peak", "B"),
    "latency_ms": ("latency\nms", "ms"),
    "latency_p95_ms": ("p95\nms", "ms"),
}


class CatalogueError(ValueError):
    """A file that holds no catalogue."""


@dataclass(frozen=True)
class Catalogue(Sequence[Member]):
    """What is known of every member of a network, in grid order.

    Attributes:
        members: all of them.
        input_shape: shape of the example they were priced on, without the batch; see `telescopic.cost`.
        machine: where latency was measured, as `telescopic.cost.timing.machine()` calls it; None if it was not.
        device: kind of device it was measured on, such as `cpu`.
        threads: threads within an operation during the measurement.
        batch: examples in a pass during the measurement.
        statistics: policy for BatchNorm's statistics (see `Nested`) under which scores were measured; None for a
            network without them, or with one entry, where all policies are the same.

    Raises:
        ValueError: if there is no member, one occurs twice, something was measured of some members only, scores mean
            different things, the conditions of a latency are missing, or there is no such policy.
    """

    members: tuple[Member, ...]
    input_shape: Shape
    machine: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    statistics: str | None = None

    def __post_init__(self) -> None:
        """Refuse a table that contradicts itself."""
        if len({member.subnet for member in self.members}) != len(self.members) or not self.members:
            raise ValueError(f"a catalogue has one member or more, each once; this has {len(self.members)}")
        for name in _OPTIONAL:
            if len({getattr(member, name) is None for member in self.members}) > 1:
                raise ValueError(f"a catalogue has the {name} of all members or of none")
        if len({member.metric for member in self.members}) > 1:
            raise ValueError("the scores of a catalogue's members mean the same, and these have several metrics")
        checked_shape(self.input_shape)
        timed = self.members[0].latency_ms is not None
        for name in CONDITIONS:
            kind, value = (str if name in ("machine", "device") else int), getattr(self, name)
            if not (type(value) is kind and value > kind() if timed else value is None):  # above "" or 0
                raise ValueError(f"{name} of a catalogue {'with' if timed else 'without'} latency cannot be {value!r}")
        if self.statistics not in (None, *get_args(Statistics)):
            known = ", ".join(get_args(Statistics))
            raise ValueError(f"statistics of a catalogue is one of {known} or None, not {self.statistics!r:.50}")

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Member, ...]: ...
    def __getitem__(self, index: int | slice) -> Member | tuple[Member, ...]:
        return self.members[index]

    def __repr__(self) -> str:
        """Its table, without the middle of a very long one."""
        left = len(self) - _SHOWN
        shown = self.members if left <= 0 else self.members[: _SHOWN // 2] + self.members[-_SHOWN // 2 :]
        more = f"\nand {left} more between them: print(catalogue.table()) with rich shows all" if left > 0 else ""
        return tables.text(self.table(shown)) + more

    def _repr_html_(self) -> str:
        """Its table, in a notebook."""
        return tables.html(self.table())

    def choose(
        self,
        *,
        max_macs: float | None = None,
        max_params: float | None = None,
        max_bytes: float | None = None,
        max_peak_activation: float | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        min_score: float | None = None,
        max_score: float | None = None,
    ) -> Choice:
        """The member with the best score on validation examples that keeps every budget; of equals, the cheapest.

        Scores on test examples play no part. If none was measured, the largest member that fits is taken.

        Args:
            max_macs: most multiply-adds.
            max_params: most parameters.
            max_bytes: most bytes of parameters and buffers.
            max_peak_activation: most bytes of feature maps alive at one time.
            max_latency_ms: most milliseconds in 95 % of passes, as `Engine.run` understands it.
            min_accuracy: least accuracy on validation examples, a fraction.
            min_score: least score, whatever it is, where the higher is the better.
            max_score: most of a score of which the lower is the better, such as an error.

        Returns:
            The member, with `why` it was chosen: how many fit, and which budget stands against a better one.

        Raises:
            BudgetError: if no member fits; it names the nearest.
            ValueError: if a budget is no number of its range, or the catalogue lacks what it bounds.
        """
        given = {
            "macs": max_macs,
            "params": max_params,
            "bytes": max_bytes,
            "peak_activation": max_peak_activation,
            "latency_ms": max_latency_ms,
        }
        budgets = [Budget(quantity, limit) for quantity, limit in given.items() if limit is not None]
        for name, limit in (("min_accuracy", min_accuracy), ("min_score", min_score), ("max_score", max_score)):
            if limit is not None:
                budgets.append(self._bound(name, limit))
        for budget in budgets:
            self._require(budget.quantity)
        choice = choosing.choose(self.members, budgets)
        if max_latency_ms is None:
            return choice
        from telescopic.cost.timing import machine  # which asks torch what it makes of this one

        if self.machine == machine():
            return choice
        return replace(choice, why=f"{choice.why}; latencies were measured elsewhere, on {self.machine}")

    def front(self, cost: CostName = "macs") -> list[Member]:
        """The Pareto front: every member with a better score (on validation examples) than all that cost no more.

        Args:
            cost: what it costs.

        Returns:
            The members by rising cost, and so each better than the one before.

        Raises:
            ValueError: if there is no such cost, or it or the score was not measured.
        """
        if cost not in get_args(CostName):
            raise ValueError(f"{cost!r} is no cost of a member; give one of {', '.join(get_args(CostName))}")
        self._require("score")
        self._require(cost)
        costs, worths = [getattr(m, cost) for m in self], [self.metric.worth(m.score or 0.0) for m in self]
        return [self[place] for place in choosing.front(costs, worths)]

    @property
    def metric(self) -> Metric:
        """What the scores of its members mean."""
        return self[0].metric

    def require_of(self, grid: Grid) -> None:
        """Refuse a catalogue of another network.

        Raises:
            ValueError: if its members are not those of the grid.
        """
        if tuple(member.subnet for member in self) != tuple(grid):
            raise ValueError(f"this catalogue is of another network: its members are not those of {grid}")

    def scored(self, metric: Metric, validation: Sequence[float], test: Sequence[float]) -> "Catalogue":
        """The same catalogue with scores, in grid order; NaN of all stands for none.

        If only some are not finite, there is a warning, and no score of that kind.
        """
        columns: list[Sequence[float | None]] = []
        for what, scores in (("validation", validation), ("test", test)):
            bad = [m.label for m, score in zip(self, scores, strict=True) if not math.isfinite(score)]
            if bad and len(bad) < len(self):
                named = ", ".join(bad[:8])
                warnings.warn(f"no {what} {metric.name} is kept: it is not finite for {named}", stacklevel=2)
            columns.append([None] * len(self) if bad else scores)
        members = (
            replace(member, score=score, test_score=tested, metric=metric)
            for member, score, tested in zip(self, *columns, strict=True)
        )
        return replace(self, members=tuple(members))

    def latency_is_from_here(self, *, batch: int = 1, threads: int | None = None, device: str = "cpu") -> bool:
        """Whether latency was measured on this machine under these conditions, so that it need not be again.

        Args:
            batch: examples in a pass.
            threads: threads within an operation; None stands for torch's present number.
            device: kind of device.
        """
        import torch

        from telescopic.cost.timing import machine

        threads = torch.get_num_threads() if threads is None else threads
        return (self.machine, self.device, self.threads, self.batch) == (machine(), device, threads, batch)

    def table(self, members: Sequence[Member] | None = None) -> "Table":
        """The catalogue as a table of at most 80 columns, to print with rich; what was not measured is left out.

        Args:
            members: those of it to show, such as its front; by default all.
        """
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
        notes = [f"BatchNorm statistics: {self.statistics}"] if self.statistics else []
        if self.machine:
            conditions = f"batch {self.batch}, threads {self.threads}, {self.device}; {self.machine}"
            notes.append(f"latency: {conditions}")
        if notes:
            table.caption = Text("\n".join(notes))  # as Text, so that nothing in it is taken for markup
        varying = [n for n in _COORDINATES if len({getattr(m.subnet, n) for m in self}) > 1]
        columns = {name: column for name, column in _COLUMNS.items() if getattr(self[0], name) is not None}
        accuracy, metric = self.metric.word == "accuracy", self.metric
        said = f" {metric.unit}" if accuracy else f"\n{metric.name} {metric.unit}".rstrip()
        columns |= {name: (columns[name][0] + said, "") for name in ("score", "test_score") if name in columns}
        for header in [*(varying or ["member"]), *(header for header, _ in columns.values())]:
            table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
        for member in self if members is None else members:
            names = [str(getattr(member.subnet, name)) for name in varying] or [member.label]
            values = ((name, getattr(member, name), unit) for name, (_, unit) in columns.items())
            cells = [metric.text(v) if name in ("score", "test_score") else human(v, unit) for name, v, unit in values]
            units = (f" {metric.unit}", " ms") if metric.unit else (" ms",)
            table.add_row(*names, *(cell.removesuffix(units[0]).removesuffix(units[-1]) for cell in cells))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        facts = {name: getattr(self, name) for name in (*CONDITIONS, "statistics")}
        facts |= {"metric": self.metric.to_dict(), "members": [_row(member) for member in self]}
        return {"input_shape": self.input_shape, **facts}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The catalogue that `to_dict` described. The data may come from anyone: everything is checked.

        Raises:
            ValueError: if the data are anything else.
        """
        if isinstance(data, Mapping):
            data = {"statistics": None, "metric": None, **data}  # version 0.1.0 did not write them
        data = _exactly(data, ("input_shape", *CONDITIONS, "statistics", "metric", "members"), "a catalogue")
        if not isinstance(data["members"], list):
            raise ValueError("members of a catalogue are a list")
        old = data["metric"] is None  # the only score was accuracy then
        metric = ACCURACY if old else Metric.from_dict(data["metric"])
        given = {"score": "accuracy", "test_score": "test_accuracy"} if old else {}
        names = [given.get(name, name) for name in _FACTS]
        members = []
        for row in data["members"]:
            row = _exactly(row, (*_COORDINATES, *names), "a member of a catalogue")
            subnet = Coordinates.of(Subnet(**{name: row[name] for name in _COORDINATES}))
            known = {name: row[written] for name, written in zip(_FACTS, names, strict=True)}
            members.append(Member(subnet=subnet, metric=metric, **known))
        conditions = {name: data[name] for name in CONDITIONS}
        return cls(tuple(members), checked_shape(data["input_shape"]), **conditions, statistics=data["statistics"])

    def to_json(self, path: str | Path) -> None:
        """Write the catalogue as JSON, whole or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read what `to_json` wrote.

        Raises:
            CatalogueError: if the file holds no catalogue.
        """
        try:
            return cls.from_dict(documents.read(Path(path)))
        except ValueError as error:
            raise CatalogueError(f"{path} holds no catalogue: {documents.printable(str(error))}") from error

    def to_csv(self, path: str | Path) -> None:
        """Write one line a member, in plain numbers: fractions, bytes, milliseconds; empty where not measured."""
        with replacing(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            called = {"score": self.metric.name, "test_score": f"test_{self.metric.name}"}
            writer = csv.writer(file)
            writer.writerow(called.get(name, name) for name in _row(self[0]))
            writer.writerows(_row(member).values() for member in self)

    def _bound(self, name: str, limit: float) -> Budget:
        """A bound on the score, by a name that fits it."""
        budget = Budget("score", limit, self.metric)
        if (name != "min_accuracy" and name[:3] == budget.name[:3]) or name == budget.name:
            return budget
        better = f"of which the {self.metric.better} is the better"
        raise ValueError(f"the score of this catalogue is {self.metric.name}, {better}: give {budget.name}, not {name}")

    def _require(self, quantity: str) -> None:
        if getattr(self[0], quantity) is None:
            name = self.metric.name if quantity == "score" else quantity
            remedy = "validation images: measure(net, data)" if quantity == "score" else "measure(net, latency=True)"
            raise ValueError(f"this catalogue has no {name}, which takes {remedy}")


_FACTS = tuple(f.name for f in fields(Member) if f.name not in ("subnet", "metric"))


def _row(member: Member) -> dict[str, Any]:
    coordinates = {name: getattr(member.subnet, name) for name in _COORDINATES}
    return coordinates | {name: getattr(member, name) for name in _FACTS}


def _exactly(data: object, names: Sequence[str], what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or set(data) != set(names):
        raise ValueError(f"{what} is a mapping with {', '.join(names)}, and nothing else")
    return data
