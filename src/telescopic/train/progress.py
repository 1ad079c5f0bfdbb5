"""What one sees while a network trains, and afterwards in TensorBoard."""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from telescopic.train.history import Epoch, History

PLAIN_SECONDS = 20.0  # at most one plain line in this time, so that a log file stays short


class Silent:
    """Shows nothing."""

    def batch(self, done: int) -> None:
        """A batch is done."""

    def epoch(self) -> None:
        """An epoch is done, and has been added to the history."""


class Plain(Silent):
    """A line now and then, for logs."""

    def __init__(self, history: History, epochs: int) -> None:
        self.history, self.epochs, self.shown = history, epochs, -math.inf

    def epoch(self) -> None:
        """Print the newest epoch if the last line is long enough ago, or if it is the last one."""
        last = self.history[-1]
        if last.epoch < self.epochs and time.monotonic() - self.shown < PLAIN_SECONDS:
            return
        self.shown = time.monotonic()
        text, full = self.history.metric.text, self.history.full
        shown = sorted(range(len(last.test)), key=lambda place: place != full)[:8]  # the full one in any case
        scores = "  ".join(f"{self.history.labels[place]} {text(last.test[place])}" for place in sorted(shown))
        more = f"  and {len(last.test) - 8} more" if len(last.test) > 8 else ""
        left = _left(self.history, self.epochs)
        print(
            f"epoch {last.epoch}/{self.epochs}{_phase(last)}  loss {last.loss:.4f}  test: {scores}{more}  "
            f"{last.images_per_s:,.0f} examples/s  {left} left{_widths(self.history, ' ')}",
            file=sys.stderr,
            flush=True,
        )


class Live(Silent):
    """A table that stays in place: loss, score of every member, speed, time left."""

    def __init__(self, history: History, epochs: int, num_batches: int) -> None:
        self.history, self.epochs, self.num_batches, self.done = history, epochs, num_batches, 0

    def batch(self, done: int) -> None:
        """Remember how far the epoch is; the screen is redrawn by its own clock."""
        self.done = done

    def epoch(self) -> None:
        """Start the next epoch's bar."""
        self.done = 0

    def __rich__(self) -> Any:
        """The picture of this moment."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        finished = len(self.history)
        share = (finished + self.done / self.num_batches) / self.epochs
        head = Text(f"epoch {min(finished + 1, self.epochs)} of {self.epochs}")
        table = Table(box=None)
        if finished:
            last, best = self.history[-1], self.history.best()
            head.append(
                f"{_phase(last)}   loss {last.loss:.4f}   {last.images_per_s:,.0f} examples/s   "
                f"{_left(self.history, self.epochs)} left   best: epoch {best.epoch}{_widths(self.history, chr(10))}"
            )
            table = self.history.table()
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=1.0, completed=share, width=60))
        return Group(head, bar, table)


def _phase(epoch: Epoch) -> str:
    """In which phase an epoch was, if it was in one."""
    return f" ({epoch.phase})" if epoch.phase else ""


def _widths(history: History, before: str) -> str:
    """Channels left in each layer, and how much faster it has become."""
    last = history[-1]
    if not last.widths:
        return ""
    faster = last.images_per_s / history[0].images_per_s
    shown = [f"{width:,}" for width in last.widths]
    more = [*shown[:6], "…", *shown[-5:]] if len(shown) > 12 else shown
    return f"{before} channels {' '.join(more)}   {faster:.1f}× as fast as the first epoch"


def _left(history: History, epochs: int) -> str:
    recent = history[-5:]
    seconds = sum(epoch.seconds for epoch in recent) / len(recent) * (epochs - history[-1].epoch)
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def reporter(history: History, epochs: int, num_batches: int, show: bool | None) -> Iterator[Silent]:
    """Show progress on standard error: live if it is a terminal, else in plain lines; nothing if `show` is False."""
    if show is False:
        yield Silent()
        return
    if not sys.stderr.isatty():
        yield Plain(history, epochs)
        return
    from rich.console import Console
    from rich.live import Live as Screen

    shown = Live(history, epochs, num_batches)
    with Screen(shown, console=Console(stderr=True), refresh_per_second=4):
        yield shown


def tensorboard(folder: Path) -> Callable[[History], None]:
    """A function that writes the newest epoch of a history; it does nothing if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return lambda history: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(history: History) -> None:
        for name, value in history.scalars().items():
            writer.add_scalar(name, value, history[-1].epoch)
        writer.flush()

    return write
