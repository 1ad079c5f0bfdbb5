"""The one training loop."""

import atexit
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.data import Dataset, Split, batch_sizes, batches
from telescopic.denormals import denormals_as_zero
from telescopic.evaluate import count_correct
from telescopic.extras import needs
from telescopic.files import WriteError, held, make_folder
from telescopic.fits import check_training
from telescopic.nested import Nested
from telescopic.shrink.family import filters, living
from telescopic.statistics import recalibrate_
from telescopic.train.balance import gradient_factors
from telescopic.train.board import tensorboard
from telescopic.train.checkpoint import Position, read_facts
from telescopic.train.history import Epoch, History
from telescopic.train.interrupt import stop_requests
from telescopic.train.keeper import LAST, Keeper, fingerprint
from telescopic.train.layout import lay_out_, layout_for
from telescopic.train.objective import Objective, objective_weights
from telescopic.train.optimizer import optimizer_for
from telescopic.train.precision import PRECISIONS, Precision, faster, step_seconds
from telescopic.train.progress import reporter
from telescopic.train.recipe import Recipe
from telescopic.train.result import Result
from telescopic.train.shrinking import Shrinking

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_EVERY = 100  # batches between looks at the loss: a look waits for the device


class TrainingError(RuntimeError):
    """A run that cannot go on: its loss is not finite."""


@plain()
def fit(
    net: Nested,
    data: Dataset,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    keep: Literal["best", "last"] = "best",
    precision: Precision = "auto",
    cpu: bool = False,
    progress: bool | None = None,
    checkpoint_seconds: float = 30.0,
    on_epoch: Callable[[History], None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> History:
    """Train every member of a network together. The network is changed in place, and in eval mode afterwards.

    Runs on one CPU or GPU, or on several processes under `torchrun`; a batch is then divided among them, and the sum
    of their gradients is that of the whole batch. The images stay on the device as uint8. Networks of 2-d convolutions
    are trained in torch's channels-last layout where that is faster, and given back in the usual one. A last batch with
    too few images for BatchNorm joins the one before. On one CPU with the same number of threads, an interrupted and
    resumed run ends with exactly the weights of an uninterrupted one.

    Args:
        net: the network, initialised.
        data: images and labels.
        recipe: how to train.
        out: folder of the run, for `last.safetensors`, `best.safetensors` and `log.csv`, and at the end for the bundle
            `model.safetensors` and the catalogue, which the command line works on; None keeps nothing on disk. One
            process at a time may write it.
        resume: go on from `out`'s last checkpoint, if there is one. The recipe may then have more epochs, and other
            milestones in those to come, but not in the past; a one-cycle schedule keeps its length.
        seed: order of the images, their augmentation, and dropout.
        keep: which weights the network holds at the end: those of the epoch in which the full network was most
            accurate on the validation images, or the last epoch's, also where there are no such images.
        precision: fp32, or bf16 by autocast (evaluation stays in fp32). `auto` goes on as the run began; a new one
            times a step in each and takes the faster, and says so. The history knows which it was.
        cpu: stay on the CPU even if there is a GPU.
        progress: True shows it, False is silent, None shows it live on a terminal and in few plain lines elsewhere.
        checkpoint_seconds: a checkpoint is written when this long has passed since the last, after each epoch that
            is the best so far, and at the end.
        on_epoch: called after each epoch, on the first process.
        provenance: facts for the bundle beside those that are known, such as the method's name.

    Returns:
        What every epoch has seen.

    Raises:
        ValueError: if recipe and network do not fit, such as one that shrinks a network without filters; if the
            network and the images or labels do not; if `precision` is none of the three; or `out` already holds a run
            and `resume` is False.
        HeldError: if another process is training in `out`.
        WriteError: if a file cannot be written, say on a full disk; what was written before it is whole.
        CheckpointError: if the checkpoint to resume from is corrupt or of another run.
        TrainingError: if the loss becomes NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    # Imported by torch after the group of processes is made, its functions hold that in their defaults for ever: gloo's
    # threads are then still there when the interpreter is taken down, which ends the process with an abort at times.
    import torch.distributed.nn

    with needs("train"):
        from accelerate import Accelerator

    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    folder = None if out is None else Path(out)
    # Told so, accelerate joins the processes of a machine without a GPU; else it would run each of them by itself.
    accelerator = Accelerator(cpu=cpu or not torch.accelerator.is_available())
    writes = folder is not None and accelerator.process_index == 0
    made = folder is not None and writes and not os.path.exists(folder)
    alone = held(make_folder(folder) / ".lock", folder) if folder is not None and writes else nullcontext(lambda: False)
    try:
        with alone as lost:
            if folder is not None and (folder / LAST).exists() and not resume:
                raise ValueError(
                    f"{folder} already holds a run: go on with it, by resume=True (--resume), or choose another folder"
                )
            result = (
                Result(net, data, recipe, folder, seed, provenance or {}) if folder is not None and writes else None
            )
            history = _train(
                accelerator,
                net,
                data,
                recipe,
                folder,
                lost,
                seed=seed,
                keep=keep,
                precision=precision,
                progress=progress,
                checkpoint_seconds=checkpoint_seconds,
                on_epoch=on_epoch,
            )
            if result is not None:
                result.write(history.best() if keep == "best" else history[-1], history)
    except WriteError as error:
        if folder is None or not os.path.isfile(folder / LAST):
            raise
        kept = f"{folder / LAST} is a whole checkpoint: once there is room, go on with resume=True (--resume)"
        raise WriteError(error.errno, f"{error.strerror}; {kept}", error.filename) from error
    finally:
        if folder is not None and made:
            with suppress(OSError):  # it stays if there is anything in it
                folder.rmdir()
    return history


def _train(
    accelerator: "Accelerator",
    net: Nested,
    data: Dataset,
    recipe: Recipe,
    out: Path | None,
    lost: Callable[[], bool],
    *,
    seed: int,
    keep: Literal["best", "last"],
    precision: Precision,
    progress: bool | None,
    checkpoint_seconds: float,
    on_epoch: Callable[[History], None] | None,
) -> History:
    """What `fit` does in its folder, which another process has `lost` it if it was made anew."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if world > 1:
        atexit.register(_leave_group)
    least = check_training(net, data, recipe.preprocess, recipe.batch_size, world)
    if precision == "auto":
        precision = _precision(net.to(device), recipe, data, accelerator, out, told=rank == 0 and progress is not False)
    layout, dtype = layout_for(net, device, precision), next(net.parameters()).dtype
    lay_out_(net, layout)
    objective = accelerator.prepare_model(Objective(net, recipe))  # moves the network to the device
    factors = gradient_factors(net, objective_weights(net, recipe)) if recipe.balanced else []
    optimizer = optimizer_for(net, recipe, device)
    train, apart = data.train.to(device), [_share(s, rank, world).to(device) for s in (data.validation, data.test)]
    sizes = batch_sizes(len(train), recipe.batch_size, least)
    num_batches = len(sizes)
    example = recipe.preprocess(train.images[:2]).to(dtype)
    shrinking = None
    if recipe.shrink is not None:
        steps = recipe.epochs * num_batches
        shrinking = Shrinking(net, recipe.shrink, optimizer, example, steps=steps, seed=seed)
    same = {"recipe": recipe.to_dict(), "seed": seed, "data": data.name, "train_images": len(data.train)}
    same |= {"precision": precision, "statistics": net.statistics}
    same |= {} if out is None else {"images": fingerprint(data)}
    facts = {"threads": torch.get_num_threads(), "processes": world}
    keeper = Keeper(out, net, optimizer, example, same, facts, lost, writes=rank == 0, seconds=checkpoint_seconds)
    labels = [net.grid.label(member) for member in net.grid]
    history, position = keeper.resume(History(labels, net.grid.index(net.grid.full), filters=tuple(filters(net))))
    history.precision = precision

    def wrapped() -> nn.Module:
        """The network in its present widths, for several processes."""
        accelerator.free_memory()  # or the wrapper of the wider network would go on adding gradients up
        module: nn.Module = accelerator.prepare_model(Objective(net, recipe))
        return module

    if shrinking is not None and world > 1:
        objective = wrapped()
    exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
    board = tensorboard(out / "tensorboard") if out is not None and rank == 0 else None

    def require_finite(sums: Tensor, batches_done: int) -> None:
        # The weights are the first to go when the last step was too large.
        if not (sums.isfinite().all() and all(p.isfinite().all() for p in net.parameters())):
            raise TrainingError(
                f"the loss is no longer finite in epoch {position.epoch}, by batch {batches_done}{keeper.where()}. "
                f"A smaller learning rate than {recipe.rate(position.epoch):g} is the usual remedy"
            )

    def stop() -> None:
        how = (
            f"saved in {out / LAST}; resume=True (--resume) goes on"
            if out is not None
            else "nothing is saved, because no folder was given"
        )
        raise KeyboardInterrupt(f"stopped in epoch {position.epoch} after {position.batch} batches; {how}")

    with (
        stop_requests() as request,
        denormals_as_zero(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        reporter(history, recipe.epochs, num_batches, progress if rank == 0 else False) as report,
    ):
        while position.epoch <= recipe.epochs:
            began = time.monotonic() - position.seconds
            sums = torch.zeros(1 + len(labels), dtype=exact, device=device)
            if position.sums and rank == 0:  # of the whole batches before, so they are added once
                sums += torch.tensor(position.sums, dtype=exact, device=device)
            net.train()
            if shrinking is not None:
                shrinking.seconds = position.compacting
            share = {"rank": rank, "world": world, "least": least}
            order = batches(train, recipe.batch_size, seed=seed, epoch=position.epoch, **share)
            for batch, (images, target) in enumerate(order):
                if batch < position.batch:
                    continue
                step = (position.epoch - 1) * num_batches + batch
                # Seeding every step leaves no random state to carry from a killed run to its continuation.
                generator = torch.manual_seed((seed * 1_000_003 + step) * world + rank)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.rate(position.epoch, (batch + 0.5) / num_batches)
                x = recipe.preprocess(recipe.augment(images, generator)).to(dtype, memory_format=layout)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss, losses = objective(x, target)
                optimizer.zero_grad()
                # The mean over processes that the wrapper takes becomes the sum over the whole batch.
                mean = loss * (world / sizes[batch])
                (mean if shrinking is None else mean + shrinking.penalty()).backward()
                for parameter, factor in factors:
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)
                optimizer.step()
                if shrinking is not None and shrinking.after_step(step + 1) and world > 1:
                    objective = wrapped()
                sums += torch.cat((loss.detach().view(1), losses))
                report.batch(batch + 1)
                pause = (request.requested or keeper.overdue()) and world == 1 and batch + 1 < num_batches
                if pause or (batch + 1) % CHECK_EVERY == 0:
                    require_finite(sums, batch + 1)
                if pause:
                    compacting = 0.0 if shrinking is None else shrinking.seconds
                    seconds = time.monotonic() - began
                    position = Position(position.epoch, batch + 1, seconds, sums.tolist(), compacting)
                    keeper.save(history, position)
                    if request.requested:
                        stop()
            trained = time.monotonic() - began
            totals = accelerator.reduce(sums, "sum").cpu() / len(train)
            require_finite(totals, num_batches)
            if shrinking is not None and shrinking.after_epoch(position.epoch * num_batches) and world > 1:
                objective = wrapped()
            if net.statistics == "recalibrated":
                recalibrate_(net, train, recipe.preprocess, augment=recipe.augment, seed=seed)
            accuracy = []
            for mine, whole in zip(apart, (data.validation, data.test), strict=True):
                correct = accelerator.reduce(count_correct(net, mine, recipe.preprocess).to(device), "sum")
                accuracy.append(tuple((correct.cpu().double() / len(whole)).tolist()))
            history.epochs.append(
                Epoch(
                    epoch=position.epoch,
                    seconds=time.monotonic() - began,
                    images_per_s=len(train) / trained,
                    learning_rate=recipe.rate(position.epoch),
                    loss=totals[0].item(),
                    losses=tuple(totals[1:].tolist()),
                    validation=accuracy[0],
                    test=accuracy[1],
                    widths=living(net),
                    compacting=0.0 if shrinking is None else shrinking.seconds,
                )
            )
            # Ctrl-C may reach one process before the others: they stop after the same epoch, or none does.
            stopping = accelerator.reduce(torch.tensor(float(request.requested), device=device), "sum").item() > 0
            position = Position(position.epoch + 1)
            done = position.epoch > recipe.epochs
            keeper.end_epoch(history, position, must=stopping or done)
            # No process goes on, to its end perhaps, before what it may rely on is on disk. One that ends at once after
            # a reduction can abort: gloo's thread then drops the last tensor while the interpreter is taken down.
            accelerator.wait_for_everyone()
            if board is not None:
                board(history)
            if on_epoch is not None and rank == 0:
                on_epoch(history)
            report.epoch()
            if stopping and not done:
                stop()
    if keep == "best":
        keeper.restore_best()
    lay_out_(net, torch.contiguous_format)
    net.eval()
    return history


def _leave_group() -> None:
    """At a process's end: torch warns of those that do without."""
    gc.collect()  # wrappers hold it, in circles
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _precision(
    net: Nested, recipe: Recipe, data: Dataset, accelerator: "Accelerator", out: Path | None, *, told: bool
) -> Literal["fp32", "bf16"]:
    """That in which the run in `out` began; of a new one, that in which a step takes less time, the same for all."""
    if out is not None and (out / LAST).exists():
        return "bf16" if read_facts(out / LAST).get("precision") == "bf16" else "fp32"
    batch = slice(math.ceil(min(recipe.batch_size, len(data.train)) / accelerator.num_processes))
    images, labels = (part[batch].to(accelerator.device) for part in (data.train.images, data.train.labels))
    times = torch.tensor(step_seconds(net, recipe, images, labels), device=accelerator.device)
    fp32, bf16 = accelerator.reduce(times, "sum").tolist()  # the sums, which no process has different ones of
    chosen = faster(fp32, bf16)
    if told:
        why = f"a step: {1e3 * fp32:.1f} ms in fp32, {1e3 * bf16:.1f} in bf16"
        why = why if math.isfinite(bf16) else "bf16 is not faster here"
        print(f"precision: {chosen} ({why})", file=sys.stderr, flush=True)
    return chosen


def _share(split: Split, rank: int, world: int) -> Split:
    """The part of a split that one process classifies."""
    return split if world == 1 else Split(split.images[rank::world], split.labels[rank::world])
