"""What a run leaves in its folder, and how it goes on from there."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telescopic.files import WriteError, held, make_folder, sweep
from telescopic.inputs import Tensors
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.shrink.shapes import reshape_
from telescopic.train.checkpoint import (
    CheckpointError,
    Position,
    load_checkpoint,
    read_facts,
    read_history,
    save_checkpoint,
)
from telescopic.train.history import History
from telescopic.train.recipe import Recipe

_DEFAULTS = {field.name: field.default for field in fields(Recipe) if field.default is not MISSING}
LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.csv"


class Keeper:
    """Keeps a run's last state, its best weights, and its log: in its folder if it has one, the best in memory too.

    Args:
        out: the folder, or None.
        net: the network.
        average: its moving average, which is then what the best weights are of.
        optimizer: its optimizer.
        example: a batch of inputs, with which a network with filters is given the widths that it had.
        same: the facts in which a run must agree with what it goes on from, its recipe among them.
        facts: further facts to note.
        lost: whether another process has the folder now.
        writes: whether this process is the one that writes.
        seconds: how long the last state may be out of date.
    """

    def __init__(
        self,
        out: Path | None,
        net: Nested,
        average: Nested | None,
        optimizer: torch.optim.Optimizer,
        example: Tensors,
        same: dict[str, Any],
        facts: dict[str, Any],
        lost: Callable[[], bool],
        *,
        writes: bool,
        seconds: float,
    ) -> None:
        self.out, self.net, self.optimizer, self.same, self.facts = out, net, optimizer, same, facts
        self.average, self.kept = average, net if average is None else average
        self.example, self.lost = example, lost
        self.folder = out if writes else None
        self.seconds, self.saved = seconds, time.monotonic()
        self.best: dict[str, Tensor] = {}
        if self.folder is not None:
            sweep(make_folder(self.folder))

    def resume(self, history: History) -> tuple[History, Position]:
        """Put the network and the optimizer where the run stopped; the history given, if there is none to go on from.

        Raises:
            CheckpointError: if the checkpoint is corrupt or of another run.
        """
        if self.out is None or not (self.out / LAST).exists():
            return history, Position()
        history, position = self._left_off(self.out / LAST, history)
        # A kill may have come between writing the last state and the copy of it that is the best one.
        just_best = len(history) > 0 and position.batch == 0 and history.best() is history[-1]
        if len(history) > 0 and not just_best:
            load_checkpoint(self.out / BEST, self.kept, example=self.example)
            self.best = self._copy()
        load_checkpoint(self.out / LAST, self.net, self.optimizer, self.average, example=self.example)
        if just_best:
            self._save_best(history, position)
        return history, position

    def overdue(self) -> bool:
        """Whether the last state was saved too long ago."""
        return time.monotonic() - self.saved > self.seconds

    def save(self, history: History, position: Position) -> None:
        """Save the last state.

        Raises:
            WriteError: if that cannot be, or the folder is another run's by now.
        """
        if self.folder is not None and self.lost():
            why = "its folder was removed while the run went on, and another run has made it anew"
            raise WriteError(errno.ESTALE, why, str(self.folder / LAST))
        if self.folder is not None:
            facts = {**self.same, **self.facts, "history": history.to_dict()}
            save_checkpoint(self.folder / LAST, self.net, self.optimizer, position, facts, self.average)
        self.saved = time.monotonic()

    def end_epoch(self, history: History, position: Position, *, must: bool) -> None:
        """Write the log; save the last state if it must be or is overdue; and the best weights if they are."""
        if self.folder is not None:
            history.to_csv(self.folder / LOG)
        best = history.best() is history[-1]
        if best or must or self.overdue():
            self.save(history, position)
        if best:  # after the last state, which thus is never behind the best one
            self._save_best(history, position)

    def restore_best(self) -> None:
        """Put the best weights into the network, if an epoch has finished. It may have been wider then."""
        if self.best:
            reshape_(self.net, {name: tensor.shape for name, tensor in self.best.items()}, self.example)
        with torch.no_grad():
            for name, tensor in named_tensors(self.net).items() if self.best else ():
                tensor.copy_(self.best[name])

    def where(self) -> str:
        """A clause on what is kept, to be told when a run fails; empty if nothing is."""
        if self.out is not None and (self.out / LAST).exists():
            return f"; the last good checkpoint is kept in {self.out / LAST}"
        return ""

    def _save_best(self, history: History, position: Position) -> None:
        self.best = self._copy()
        if self.folder is not None:
            save_checkpoint(self.folder / BEST, self.kept, None, position, {"epoch": history[-1].epoch})

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in named_tensors(self.kept).items()}

    def _left_off(self, path: Path, expected: History) -> tuple[History, Position]:
        """Where a run stopped. It may go on for longer or shorter, but its past must be that of the recipe given."""
        found = read_facts(path)
        if "history" not in found or "recipe" not in found:
            raise CheckpointError(f"{path} is no run to go on with: is it a copy of {BEST}?")
        history = read_history(path)
        if (history.labels, history.full, history.filters) != (expected.labels, expected.full, expected.filters):
            raise CheckpointError(
                f"{path} is of another network: it has the members {', '.join(history.labels)!s:.200}"
            )
        theirs = {**_DEFAULTS, **found["recipe"], **found}  # what is newer than a run was as it is by default
        position = found["position"]
        begun = position.epoch - (position.batch == 0)
        for name, value in {**self.same["recipe"], **self.same}.items():
            if name == "recipe" or name not in theirs:
                continue
            # JSON knows no tuples, so both sides are compared as it would print them.
            both = [json.loads(json.dumps(one)) for one in (theirs[name], value)]
            remedy = "give what it began with"
            if name == "epochs":
                if self.same["recipe"]["schedule"] == "steps":
                    continue
                remedy = "the rate of one cycle depends on where it ends, so it cannot be made longer or shorter"
            if name == "milestones":
                both = [sorted(m for m in milestones if m < begun) for milestones in both]
                remedy = f"of the {begun} epochs that it has begun none may change; later milestones may"
            if both[0] != both[1]:
                raise CheckpointError(
                    f"{path} was trained with {name} = {theirs[name]}, not {value}: {remedy}. Or start a new run in "
                    "another folder"
                )
        return history, position


@contextmanager
def occupied(folder: Path | None, *, resume: bool, writes: bool) -> Iterator[Callable[[], bool]]:
    """Hold a run's folder, making it if there is none; it goes again if nothing is left in it.

    Args:
        folder: which; None holds nothing.
        resume: whether to go on with the run in it.
        writes: whether this is the process that writes; the others of a run hold nothing.

    Yields:
        What tells whether the folder was removed meanwhile, and made anew by another run.

    Raises:
        ValueError: if there is a run in it that is not to be resumed.
        HeldError: if another process holds it.
        WriteError: if a file cannot be written; it says how to go on, if that is possible.
    """
    if folder is None:
        yield lambda: False
        return
    made = writes and not os.path.exists(folder)
    try:
        with held(make_folder(folder) / ".lock", folder) if writes else nullcontext(lambda: False) as lost:
            if (folder / LAST).exists() and not resume:
                raise ValueError(
                    f"{folder} already holds a run: go on with it, by resume=True (--resume), or choose another folder"
                )
            yield lost
    except WriteError as error:
        if not os.path.isfile(folder / LAST):
            raise
        kept = f"{folder / LAST} is a whole checkpoint: once there is room, go on with resume=True (--resume)"
        raise WriteError(error.errno, f"{error.strerror}; {kept}", error.filename) from error
    finally:
        if made:
            with suppress(OSError):  # it stays if there is anything in it
                folder.rmdir()


def continued(recipe: Recipe, out: Path) -> Recipe:
    """A recipe with the milestones of the run in `out`, if there is one that has some to go on with.

    Where milestones are shares of all epochs, as in the papers' recipes, more epochs would move those that have passed.

    Raises:
        CheckpointError: if the run's last checkpoint cannot be read.
    """
    if not (out / LAST).exists() or recipe.schedule != "steps":
        return recipe
    began = read_facts(out / LAST).get("recipe")
    milestones = began.get("milestones") if isinstance(began, dict) else None
    return replace(recipe, milestones=tuple(milestones)) if isinstance(milestones, list) else recipe
