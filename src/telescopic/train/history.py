"""What a training run has seen, an epoch a row."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from telescopic import tables
from telescopic.files import replacing
from telescopic.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: its number, from 1.
        seconds: time for training and evaluating it.
        images_per_s: training examples a second, evaluation left out.
        learning_rate: the optimizer's rate in it.
        loss: weighted sum of the members' losses, mean over examples, without the L2 penalty.
        losses: each member's own training loss, in grid order; NaN if it was not run, for its loss weighs nothing.
        validation: each member's score on the validation examples, such as accuracy, a fraction; NaN if there are none.
        test: each member's score on the test examples.
        widths: living channels of each filter, of a network that learns its widths.
        compacting: seconds, of those above, in which dead channels were removed.
        phase: name of the recipe's phase that it lay in; empty behind the last of them, or where there are none.
    """

    epoch: int
    seconds: float
    images_per_s: float
    learning_rate: float
    loss: float
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    test: tuple[float, ...]
    widths: tuple[int, ...] = ()
    compacting: float = 0.0
    phase: str = ""


class History(Sequence[Epoch]):
    """All finished epochs of a run.

    Args:
        labels: name of each member, in grid order.
        full: position of the full network among them.
        epochs: what has been seen so far.
        filters: name of each filter, of a network that learns its widths.
        precision: in which it is trained, fp32 or bf16.
        metric: what the scores mean.

    Attributes:
        fitted: the epoch whose weights were kept, with the scores after its heads were fitted, of a run that has just
            ended by a recipe that says so.
    """

    fitted: Epoch | None = None

    def __init__(
        self,
        labels: Sequence[str],
        full: int,
        epochs: Sequence[Epoch] = (),
        filters: Sequence[str] = (),
        precision: str = "fp32",
        metric: Metric = ACCURACY,
    ) -> None:
        self.labels, self.full, self.epochs, self.filters = tuple(labels), full, list(epochs), tuple(filters)
        self.precision, self.metric = precision, metric

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    @overload
    def __getitem__(self, index: int) -> Epoch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Epoch]: ...
    def __getitem__(self, index: int | slice) -> Epoch | list[Epoch]:
        return self.epochs[index]

    def __repr__(self) -> str:
        """How far it is, and what the last epoch and the best one have seen of every member."""
        if not self.epochs:
            return f"no epoch of {len(self.labels)} members"
        last, best = self.epochs[-1], self.best()
        said = f"{len(self)} epochs, loss {last.loss:.4f}; best: epoch {best.epoch}; members after epoch {last.epoch}:"
        return f"{said}\n{tables.text(self.table())}"

    def _repr_html_(self) -> str:
        """The same, in a notebook."""
        return tables.html(self.table()) if self.epochs else repr(self)

    def table(self) -> "Table":
        """What the last epoch has seen of every member, to print with rich; the middle of very many is left out."""
        from rich.table import Table

        table, last, text = Table(box=None, padding=(0, 2)), self.epochs[-1], self.metric.text
        for name in ("member", "training loss", "validation", "test"):
            table.add_column(name, justify="left" if name == "member" else "right")
        rows = list(zip(self.labels, last.losses, last.validation, last.test, strict=True))
        for label, loss, validation, test in rows if len(rows) <= 12 else [*rows[:4], *rows[-8:]]:
            table.add_row(label, f"{loss:.4f}", text(validation), text(test))
        return table

    def scalars(self) -> dict[str, float]:
        """What the last epoch has seen, by names such as `loss` and `validation/entry=1`, for loggers."""
        last = self.epochs[-1]
        found = {name: getattr(last, name) for name in ("loss", "learning_rate", "images_per_s")}
        for kind in ("losses", "validation", "test"):
            values = zip(self.labels, getattr(last, kind), strict=True)
            found |= {f"{kind}/{label}": value for label, value in values}
        return found | {f"channels/{name}": width for name, width in zip(self.filters, last.widths, strict=True)}

    def best(self, by: Literal["validation", "test"] = "validation") -> Epoch:
        """The first epoch in which the full network had its best score.

        Only epochs behind the recipe's last phase count, once there are some: before, members learn otherwise than they
        are to be. By `validation` it is an honest choice; by `test` it is NSN's and CNSN's protocol, which looks at the
        test images to choose. Without validation examples, `validation` gives the last epoch.

        Raises:
            ValueError: if no epoch has finished.
        """
        if not self.epochs:
            raise ValueError("no epoch has finished yet, so there is no best one")
        epochs = [epoch for epoch in self.epochs if not epoch.phase] or self.epochs
        scores = [getattr(epoch, by)[self.full] for epoch in epochs]
        if any(math.isnan(score) for score in scores):
            return self.epochs[-1]
        return epochs[scores.index(self.metric.best(scores))]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        epochs = [asdict(epoch) for epoch in self.epochs]
        about = {"labels": self.labels, "full": self.full, "filters": self.filters, "precision": self.precision}
        return {**about, "metric": self.metric.to_dict(), "epochs": epochs}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """The history that `to_dict` described. The data may come from anyone: everything is checked.

        Raises:
            ValueError: if the data are anything else.
        """
        if not isinstance(data, Mapping) or not {"labels", "full", "epochs"} <= data.keys():
            raise ValueError("a history is a mapping with labels, full and epochs")
        labels, filters = (_many(data.get(name, []), (str,), f"{name} of a history") for name in ("labels", "filters"))
        full, rows = data["full"], data["epochs"]
        if type(full) is not int or not 0 <= full < len(labels) or not isinstance(rows, list):
            raise ValueError(f"the full network is one of {len(labels)} members of a history, not {full!r:.50}")
        precision = data.get("precision", "fp32")  # older ones do not say
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"the precision of a history is fp32 or bf16, not {precision!r:.50}")
        metric = Metric.from_dict(data["metric"]) if "metric" in data else ACCURACY  # likewise
        return cls(labels, full, [_epoch(row, len(labels), len(filters)) for row in rows], filters, precision, metric)

    def to_csv(self, path: Path) -> None:
        """Write one row an epoch: columns `<member>:train_loss`, `<member>:validation`, `<member>:test` for each.

        If widths were learned, further columns are `compacting` in seconds, and `<filter>:channels` for each; if the
        recipe has phases, the last one is `phase`.
        """
        kinds = (("train_loss", "losses"), ("validation", "validation"), ("test", "test"))
        plain = ("epoch", "seconds", "images_per_s", "learning_rate", "loss")
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            learned = ["compacting", *(f"{name}:channels" for name in self.filters)] if self.filters else []
            phases = ["phase"] if any(epoch.phase for epoch in self.epochs) else []
            named = (f"{label}:{kind}" for label in self.labels for kind, _ in kinds)
            out.writerow([*plain, *named, *learned, *phases])
            for epoch in self.epochs:
                members = [getattr(epoch, name)[m] for m in range(len(self.labels)) for _, name in kinds]
                values = [*(getattr(epoch, p) for p in plain[1:]), *members]
                values += [epoch.compacting, *epoch.widths] if self.filters else []
                out.writerow([epoch.epoch, *(f"{value:.6g}" for value in values), *(getattr(epoch, p) for p in phases)])


def _epoch(row: object, members: int, filters: int) -> Epoch:
    if not isinstance(row, Mapping) or not set(row) <= {f.name for f in fields(Epoch)}:
        raise ValueError("an epoch of a history has something unknown")
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name == "phase":
            if not isinstance(value, str) or len(value) > 200:
                raise ValueError(f"the phase of an epoch cannot be {value!r:.50}")
            values[name] = value
            continue
        kinds = (int,) if name in ("epoch", "widths") else (int, float)
        many = name in ("losses", "validation", "test", "widths")
        found = _many(value if many else [value], kinds, f"{name} of an epoch")
        if many and len(found) != (filters if name == "widths" else members):
            raise ValueError(f"{name} of an epoch has {len(found)} values for {members} members, {filters} filters")
        values[name] = found if many else found[0]
    try:
        return Epoch(**values)
    except TypeError as error:
        raise ValueError(f"an epoch of a history lacks something: {error}") from error


def _many(value: object, kinds: tuple[type, ...], what: str) -> tuple[Any, ...]:
    # A whole number may be longer than any other: no float could take it up.
    if not isinstance(value, list | tuple) or any(
        type(item) not in kinds or (type(item) is int and abs(item) >= 2**63) for item in value
    ):
        raise ValueError(f"{what} cannot be {value!r:.50}")
    return tuple(value)
