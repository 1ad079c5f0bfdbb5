"""The one training loop."""

import atexit
import copy
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from telescopic.data import Dataset, Split, batch_sizes, batches, prepared
from telescopic.data.streams import sampler_of
from telescopic.denormals import denormals_as_zero
from telescopic.evaluate import score_sums
from telescopic.fits import check_training, tried
from telescopic.inputs import Tensors, checksum
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.readout import fit_heads_
from telescopic.shrink.family import filters, living
from telescopic.statistics import recalibrate_
from telescopic.tasks import Task, exact
from telescopic.train.balance import gradient_factors
from telescopic.train.checkpoint import Position
from telescopic.train.history import Epoch, History
from telescopic.train.interrupt import Stop, stop_requests
from telescopic.train.keeper import LAST, Keeper
from telescopic.train.layout import laid_out, lay_out_, layout_for
from telescopic.train.method import Method, Nothing
from telescopic.train.objective import Objective, objective_weights, run_once
from telescopic.train.optimizer import optimizer_for, remember_
from telescopic.train.precision import Precision, precision_for
from telescopic.train.progress import Silent, reporter, tensorboard
from telescopic.train.recipe import Recipe
from telescopic.train.shrinking import Shrinking

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_EVERY = 100  # batches between looks at the loss: a look waits for the device


class TrainingError(RuntimeError):
    """A run that cannot go on: its loss is not finite."""


class Training:
    """A run from where it is to its end.

    Args:
        accelerator: of this process.
        net: the network, which is moved to the accelerator's device.
        data: what it learns.
        recipe: how.
        task: what that is.
        out: the run's folder, or None.
        lost: whether another process has the folder now.
        teacher: see `fit`.
        seed: of the order of the examples, their augmentation, and dropout.
        precision: fp32, bf16, or `auto`.
        told: whether to say which precision was chosen, and where a run from a loader goes on.
        checkpoint_seconds: how long the last state may be out of date.

    Attributes:
        history: what every epoch has seen.
        position: which batch comes next.

    Raises:
        ValueError: if network, data and recipe do not fit.
        CheckpointError: if the checkpoint in the folder is corrupt or of another run.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        net: Nested,
        data: Dataset,
        recipe: Recipe,
        task: Task,
        out: Path | None,
        lost: Callable[[], bool],
        *,
        teacher: nn.Module | None = None,
        seed: int,
        precision: Precision,
        told: bool,
        checkpoint_seconds: float,
    ) -> None:
        self.accelerator, self.net, self.data, self.recipe = accelerator, net, data, recipe
        self.task, self.out, self.seed = task, out, seed
        self.rank, self.world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
        if self.world > 1:
            atexit.register(_leave_group)
        about = (recipe.preprocess, recipe.batch_size, self.world, task, recipe.augment)
        self.least = check_training(net, data, *about)
        net.to(device)
        self.precision = precision
        if precision == "auto":
            self.precision = precision_for(net, recipe, data, task, accelerator, out, told)
        self.layout, self.like = layout_for(net, device, self.precision), next(net.parameters()).new_empty(0)
        lay_out_(net, self.layout)
        self.factors = [
            gradient_factors(net, objective_weights(net, part), recipe.group_gradient) if recipe.balanced else []
            for part in recipe.by_phase()
        ]
        self.optimizer = optimizer_for(net, recipe, device)
        self.average = copy.deepcopy(net).requires_grad_(False) if recipe.ema else None
        self.kept = net if self.average is None else self.average
        self.teacher = self.kept if recipe.teacher == "ema" else teacher if teacher is None else teacher.to(device)
        self.train = data.train.to(device)
        self.apart = [_share(split, self.rank, self.world).to(device) for split in (data.validation, data.test)]
        self.sizes = batch_sizes(len(self.train), recipe.batch_size, self.least)
        if data.train.loader is not None:
            self.answers = tried(net, self.train, recipe.preprocess)[0]
            self.sizes = [recipe.batch_size] * len(data.train.loader)  # of which the last may be smaller
            self._require_alike()
        example = prepared(self.train[:2].inputs, recipe.preprocess, self.like)
        self.method: Method = Nothing()
        if recipe.shrink is not None:
            self.method = Shrinking(net, recipe.shrink, self.optimizer, example, seed=seed)
        facts = {"threads": torch.get_num_threads(), "processes": self.world}
        options: dict[str, Any] = {"writes": self.rank == 0, "seconds": checkpoint_seconds}
        self.keeper = Keeper(out, net, self.average, self.optimizer, example, self._same(), facts, lost, **options)
        labels = [net.grid.label(member) for member in net.grid]
        full = net.grid.index(net.grid.full)
        begun = History(labels, full, filters=tuple(filters(net)), metric=task.metric)
        self.history, self.position = self.keeper.resume(begun)
        remember_(self.optimizer)
        self.history.precision = self.precision
        if told and data.train.loader is not None and self.position.batch:
            where = f"in epoch {self.position.epoch} behind batch {self.position.batch} of {len(self.sizes)}"
            print(f"{out} goes on {where}: the loader reads those once more", file=sys.stderr, flush=True)
        self.joint = Objective(net, recipe, task, teacher=self.teacher)
        self.objective = self._wrapped()

    def run(self, progress: bool | None, on_epoch: Callable[[History], None] | None) -> None:
        """Train until the recipe's last epoch is over.

        Args:
            progress: whether to show it, see `fit`.
            on_epoch: called after each epoch.

        Raises:
            TrainingError: if the loss becomes NaN or infinite.
            WriteError: if a file cannot be written.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
        """
        epochs, device = self.recipe.epochs, self.accelerator.device
        board = tensorboard(self.out / "tensorboard") if self.out is not None and self.rank == 0 else None
        with (
            stop_requests() as request,
            denormals_as_zero(),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            reporter(self.history, epochs, len(self.sizes), progress) as report,
        ):
            while self.position.epoch <= epochs:
                began = time.monotonic() - self.position.seconds
                totals = self._train_epoch(began, request, report)
                self.history.epochs.append(self._finished(began, totals))
                # Ctrl-C may reach one process before the others: they stop after the same epoch, or none does.
                stopping = self._sum(torch.tensor(float(request.requested), device=device)).item() > 0
                self.position = Position(self.position.epoch + 1)
                done = self.position.epoch > epochs
                self.keeper.end_epoch(self.history, self.position, must=stopping or done)
                # No process goes on, to its end perhaps, before what it may rely on is on disk. One that ends at once
                # after a reduction can abort: gloo's thread then drops the last tensor while the interpreter is taken
                # down.
                self.accelerator.wait_for_everyone()
                if board is not None:
                    board(self.history)
                if on_epoch is not None:
                    on_epoch(self.history)
                report.epoch()
                if stopping and not done:
                    self._stop()

    def finish(self, keep: Literal["best", "last"]) -> None:
        """Leave the network with the weights that are kept, in eval mode and torch's usual layout."""
        if keep == "best":
            self.keeper.restore_best()
        elif self.average is not None:
            average_(self.net, self.average, 0)
        lay_out_(self.net, torch.contiguous_format)
        self.net.eval()

    def fit_heads(self) -> list[tuple[float, ...]]:
        """Fit the heads of the network that is kept, and give each member's validation and test score."""
        self.kept = self.net
        fit_heads_(self.net, self.train, self.apart[0], self.recipe.preprocess, task=self.task, seed=self.seed)
        for parameter in self.net.exits.parameters() if self.world > 1 else ():
            torch.distributed.broadcast(parameter.data, 0)  # each process may have seen other examples
        return self._tried()

    def _train_epoch(self, began: float, request: Stop, report: Silent) -> tuple[float, Tensor]:
        """Run the batches of an epoch that are left.

        Returns:
            Seconds that they took, and mean losses: the one minimised, and each member's `[1 + members]`.
        """
        recipe, position, num_batches = self.recipe, self.position, len(self.sizes)
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.examples = position.examples or sum(self.sizes[: position.batch])  # older runs do not say
        sums = torch.zeros(1 + len(self.history.labels), dtype=exact, device=device)
        if position.sums and self.rank == 0:  # of the whole batches before, so they are added once
            sums += torch.tensor(position.sums, dtype=exact, device=device)
        self.net.train()
        self.joint.begin(position.epoch)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = group["decays"][self.joint.place]
        self.method.seconds = position.compacting
        share = {"rank": self.rank, "world": self.world, "least": self.least}
        order = batches(self.train, recipe.batch_size, seed=self.seed, epoch=position.epoch, **share)
        for batch, (inputs, targets) in enumerate(order):
            if batch < position.batch:
                continue
            sums += self._step(batch, inputs, targets)
            report.batch(batch + 1)
            overdue = request.requested or self.keeper.overdue()
            pause = overdue and self.world == 1 and batch + 1 < num_batches
            if pause or (batch + 1) % CHECK_EVERY == 0:
                self._require_finite(sums, batch + 1)
            if pause:
                seconds = time.monotonic() - began
                seen = (seconds, sums.tolist(), self.method.seconds, self.examples)
                self.position = Position(position.epoch, batch + 1, *seen)
                self.keeper.save(self.history, self.position)
                if request.requested:
                    self._stop()
        trained = time.monotonic() - began
        totals = self._sum(sums).cpu() / self.examples
        self._require_finite(totals, num_batches)
        return trained, totals

    def _step(self, batch: int, inputs: Tensors, targets: Tensor) -> Tensor:
        """Learn from a batch; its losses, summed over this process's examples `[1 + members]`."""
        recipe, epoch, device = self.recipe, self.position.epoch, self.accelerator.device
        step, size = (epoch - 1) * len(self.sizes) + batch, self.sizes[batch]
        if self.train.loader is not None:
            size = int(self._sum(torch.tensor(len(targets), device=device)))
            self.task.check(self.answers, [targets])  # of which only those of the first batch have been looked at
        self.examples += size
        # Seeding every step leaves no random state to carry from a killed run to its continuation.
        # Alone on the CPU if that trains: of other devices, there or not, torch notes in a millisecond who asked.
        seeded = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
        generator = seeded((self.seed * 1_000_003 + step) * self.world + self.rank)
        if self.world > 1:  # all processes draw the same members
            self.joint.generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(epoch, (batch + 0.5) / len(self.sizes))
        x = prepared(recipe.augment(inputs, generator), recipe.preprocess, self.like)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, losses = self.objective(laid_out(x, self.layout), targets.to(device))
        self.optimizer.zero_grad()
        # The mean over processes that the wrapper takes becomes the sum over the whole batch.
        minimised = self.method.minimised(loss * (self.world / size))
        with run_once(self.net, recipe):
            torch.autograd.backward(minimised)
        for parameter, factor in self.factors[self.joint.place]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self.optimizer.step()
        if self.average is not None:
            for buffer in self.net.buffers() if self.world > 1 else ():
                torch.distributed.broadcast(buffer, 0)  # each process has measured its share of the batch
            average_(self.average, self.net, recipe.ema if step else 0)
        if self.method.after_step(step + 1):
            self._wrap_again()
        return torch.cat((loss.detach().view(1), losses))

    def _finished(self, began: float, trained: tuple[float, Tensor]) -> Epoch:
        """What there is to say of an epoch that is trained: after it, the members are tried on what is kept apart."""
        recipe, epoch, (seconds, totals) = self.recipe, self.position.epoch, trained
        if self.method.after_epoch(epoch * len(self.sizes)):
            self._wrap_again()
        if self.net.statistics == "recalibrated":
            recalibrate_(self.kept, self.train, recipe.preprocess, augment=recipe.augment, seed=self.seed)
        validation, test = self._tried()
        return Epoch(
            epoch=epoch,
            seconds=time.monotonic() - began,
            images_per_s=self.examples / seconds,
            learning_rate=recipe.rate(epoch),
            loss=totals[0].item(),
            losses=tuple(math.nan if m in self.joint.idle else loss for m, loss in enumerate(totals[1:].tolist())),
            validation=validation,
            test=test,
            widths=living(self.net),
            compacting=self.method.seconds,
            phase=(*(part.name for part in recipe.phases), "")[self.joint.place],
        )

    def _tried(self) -> list[tuple[float, ...]]:
        """Each member's scores on the validation and on the test examples."""
        return [self._scores(*both) for both in zip(self.apart, self.data.splits[1:], strict=True)]

    def _scores(self, mine: Split, whole: Split) -> tuple[float, ...]:
        """Each member's score on a split, of which this process has its part; NaN if it is empty."""
        if not len(whole):
            return (math.nan,) * len(self.history.labels)
        share = {"rank": self.rank, "world": self.world} if mine.loader is not None else {}
        added, number = score_sums(self.kept, mine, self.recipe.preprocess, self.task, **share)
        device = self.accelerator.device
        together, examples = self._sum(exact(added.to(device))), self._sum(torch.tensor(number, device=device))
        return tuple(self.task.total(together.cpu().double(), int(examples)).tolist())

    def _require_alike(self) -> None:
        """Refuse loaders that give several processes different batches, of which each would take its share."""
        if self.world == 1:
            return
        for split in (self.data.train, self.data.validation, self.data.test):
            if split.loader is None:
                continue
            sampler = sampler_of(split.loader)
            mine = torch.tensor(float(split.checksum() if sampler is None else -1 - sampler.rank), dtype=torch.float64)
            every = self.accelerator.gather(mine.view(1).to(self.accelerator.device)).cpu().tolist()
            if sampler is not None and {*every} != {-1.0 - rank for rank in range(self.world)}:
                ranks = ", ".join(f"{-1 - number:.0f}" if number < 0 else "none" for number in every)
                raise ValueError(
                    f"each of {self.world} processes learns from examples of its own, and their DistributedSamplers "
                    f"have the ranks {ranks}: leave rank out where torch.distributed is initialised, or give RANK's"
                )
            if len({*every}) > 1 and sampler is None:
                raise ValueError(
                    "the loader gives each process other batches, and each takes its share of what it is given: use a "
                    "torch.utils.data.DistributedSampler, or the same order everywhere"
                )

    def _same(self) -> dict[str, Any]:
        """In what a run must agree with the one that it goes on from."""
        data, recipe = self.data, self.recipe
        about = {"recipe": recipe.to_dict(), "seed": self.seed, "data": data.name, "train_images": len(data.train)}
        about |= {"precision": self.precision, "statistics": self.net.statistics}
        about |= {"task": self.task.facts()}
        if self.teacher is not None and self.recipe.teacher == "module":
            about["teacher_weights"] = f"crc32 {checksum(named_tensors(self.teacher).values()):08x}"
        return about if self.out is None else about | {"images": data.fingerprint}

    def _wrapped(self) -> nn.Module:
        """The objective, for several processes too."""
        module: nn.Module = self.accelerator.prepare_model(self.joint)
        return module

    def _wrap_again(self) -> None:
        """Where there are several processes, begin anew with parameters of the shapes that they have now."""
        if self.world > 1:
            self.accelerator.free_memory()  # or the wrapper of the wider network would go on adding gradients up
            self.objective = self._wrapped()

    def _sum(self, mine: Tensor) -> Tensor:
        """The sum over all processes."""
        added: Tensor = self.accelerator.reduce(mine, "sum")
        return added

    def _require_finite(self, sums: Tensor, batches_done: int) -> None:
        # The weights are the first to go when the last step was too large.
        if not (sums.isfinite().all() and all(p.isfinite().all() for p in self.net.parameters())):
            epoch = self.position.epoch
            raise TrainingError(
                f"the loss is no longer finite in epoch {epoch}, by batch {batches_done}{self.keeper.where()}. "
                f"A smaller learning rate than {self.recipe.rate(epoch):g} is the usual remedy"
            )

    def _stop(self) -> NoReturn:
        how = (
            f"saved in {self.out / LAST}; resume=True (--resume) goes on"
            if self.out is not None
            else "nothing is saved, because no folder was given"
        )
        done = f"{self.position.batch} batches"
        raise KeyboardInterrupt(f"stopped in epoch {self.position.epoch} after {done}; {how}")


@torch.no_grad()
def average_(average: nn.Module, net: nn.Module, share: float) -> None:
    """Keep a share of an average, and take the rest from a network of the same shape; counts are taken as they are."""
    pairs = list(zip(named_tensors(average).values(), named_tensors(net).values(), strict=True))
    numbers = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in numbers], [theirs for _, theirs in numbers], 1 - share)
    for mine, theirs in pairs:
        if not mine.is_floating_point():
            mine.copy_(theirs)


def _leave_group() -> None:
    """At a process's end: torch warns of those that do without."""
    gc.collect()  # wrappers hold it, in circles
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _share(split: Split, rank: int, world: int) -> Split:
    """The part of a split that one process is tried on."""
    return split if world == 1 or split.loader is not None else split[rank::world]
