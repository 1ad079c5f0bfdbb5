"""The one training loop."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from telescopic.data import Dataset, Split, batches
from telescopic.nested import Nested
from telescopic.train.board import tensorboard
from telescopic.train.checkpoint import CheckpointError, Position, load_checkpoint, read_facts, save_checkpoint, tensors
from telescopic.train.evaluate import count_correct
from telescopic.train.history import Epoch, History
from telescopic.train.interrupt import stop_requests
from telescopic.train.objective import Objective, parameter_groups
from telescopic.train.progress import reporter
from telescopic.train.recipe import Recipe

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.csv"
CHECK_EVERY = 100  # batches between looks at the loss: a look waits for the device


class TrainingError(RuntimeError):
    """A run that cannot go on: its loss is not finite."""


def fit(
    net: Nested,
    data: Dataset,
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    keep: Literal["best", "last"] = "best",
    precision: Literal["fp32", "bf16"] = "fp32",
    cpu: bool = False,
    progress: bool | None = None,
    checkpoint_seconds: float = 30.0,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train every member of a network together. The network is changed in place, and in eval mode afterwards.

    Runs on one CPU or GPU, or on several processes under `torchrun`; a batch is then divided among them, and the sum
    of their gradients is that of the whole batch. The images stay on the device as uint8. On one CPU with the same
    number of threads, an interrupted and resumed run ends with exactly the weights of an uninterrupted one.

    Args:
        net: the network, initialised.
        data: images and labels.
        recipe: how to train.
        out: folder for `last.safetensors`, `best.safetensors` and `log.csv`; None keeps nothing on disk.
        resume: go on from `out`'s last checkpoint, if there is one.
        seed: order of the images, their augmentation, and dropout.
        keep: which weights the network holds at the end: those of the epoch in which the full network was most
            accurate on the validation images, or the last epoch's.
        precision: fp32, or bf16 by autocast (evaluation stays in fp32).
        cpu: stay on the CPU even if there is a GPU.
        progress: True shows it, False is silent, None shows it live on a terminal and in few plain lines elsewhere.
        checkpoint_seconds: a checkpoint is written when this long has passed since the last, and at the end.
        on_epoch: called after each epoch, on the first process.

    Returns:
        What every epoch has seen.

    Raises:
        ValueError: if recipe and network do not fit, or `out` already holds a run and `resume` is False.
        CheckpointError: if the checkpoint to resume from is corrupt or of another run.
        TrainingError: if the loss becomes NaN or infinite; the last good checkpoint is kept.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    from accelerate import Accelerator

    out = None if out is None else Path(out)
    if out is not None and (out / LAST).exists() and not resume:
        raise ValueError(f"{out} already holds a run: resume it, or choose another folder")
    if len(data.train) < 1:
        raise ValueError(f"{data.name} has no training images")
    accelerator = Accelerator(cpu=cpu)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    objective = accelerator.prepare_model(Objective(net, recipe))  # moves the network to the device
    optimizer = torch.optim.SGD(
        parameter_groups(net, recipe),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        fused=device.type in ("cpu", "cuda", "mps"),
    )
    labels = [net.grid.label(member) for member in net.grid]
    history = History(labels, net.grid.index(net.grid.full))
    position = Position()
    best: dict[str, Tensor] = {}
    same = {"recipe": recipe.to_dict(), "seed": seed, "data": data.name, "train_images": len(data.train)}
    same["precision"] = precision
    facts = {**same, "threads": torch.get_num_threads(), "processes": world}
    if resume and out is not None and (out / LAST).exists():
        found = read_facts(out / LAST)
        _require_same(out / LAST, found, same)
        history, position = History.from_dict(found["history"]), found["position"]
        if (out / BEST).exists():
            load_checkpoint(out / BEST, net)
            best = _copy(net)
        load_checkpoint(out / LAST, net, optimizer)
    train = data.train.to(device)
    held = [
        s if world == 1 else Split(s.images[rank::world], s.labels[rank::world]) for s in (data.validation, data.test)
    ]
    held = [split.to(device) for split in held]
    num_batches = math.ceil(len(train) / recipe.batch_size)
    saved = time.monotonic()
    exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64

    def save() -> None:
        nonlocal saved
        if out is not None and rank == 0:
            if not all(tensor.isfinite().all() for tensor in net.parameters()):
                raise _not_finite(position, out, recipe)
            out.mkdir(parents=True, exist_ok=True)
            save_checkpoint(out / LAST, net, optimizer, position, {**facts, "history": history.to_dict()})
        saved = time.monotonic()

    board = tensorboard(out / "tensorboard") if out is not None and rank == 0 else None
    with (
        stop_requests() as stop,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        reporter(history, recipe.epochs, num_batches, progress if rank == 0 else False) as report,
    ):
        while position.epoch <= recipe.epochs:
            began = time.monotonic() - position.seconds
            sums = torch.tensor(position.sums or [0.0] * (1 + len(labels)), dtype=exact, device=device)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(position.epoch)
            net.train()
            order = batches(train, recipe.batch_size, seed=seed, epoch=position.epoch, rank=rank, world=world)
            for batch, (images, target) in enumerate(order):
                if batch < position.batch:
                    continue
                step = (position.epoch - 1) * num_batches + batch
                # Seeding every step leaves no random state to carry from a killed run to its continuation.
                generator = torch.manual_seed((seed * 1_000_003 + step) * world + rank)
                size = min(recipe.batch_size, len(train) - batch * recipe.batch_size)
                x = recipe.preprocess(recipe.augment(images, generator))
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss, losses = objective(x, target)
                optimizer.zero_grad()
                # The mean over processes that the wrapper takes becomes the sum over the whole batch.
                (loss * (world / size)).backward()
                optimizer.step()
                sums += torch.cat((loss.detach().view(1), losses))
                if (batch + 1) % CHECK_EVERY == 0 and not sums.isfinite().all():
                    raise _not_finite(Position(position.epoch, batch + 1), out, recipe)
                report.batch(batch + 1)
                due = time.monotonic() - saved > checkpoint_seconds
                if world == 1 and (stop.requested or due) and batch + 1 < num_batches and sums.isfinite().all():
                    position = Position(position.epoch, batch + 1, time.monotonic() - began, sums.tolist())
                    save()
                    if stop.requested:
                        raise _interrupted(position, out)
            trained = time.monotonic() - began
            totals = accelerator.reduce(sums, "sum").cpu() / len(train)
            if not totals.isfinite().all():
                raise _not_finite(Position(position.epoch, num_batches), out, recipe)
            accuracy = []
            for mine, whole in zip(held, (data.validation, data.test), strict=True):
                correct = accelerator.reduce(count_correct(net, mine, recipe.preprocess).to(device), "sum")
                accuracy.append(tuple((correct.cpu().double() / len(whole)).tolist()))
            # Ctrl-C may reach one process before the others: they stop after the same epoch, or none does.
            stopping = accelerator.reduce(torch.tensor(float(stop.requested), device=device), "sum").item() > 0
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
                )
            )
            position = Position(position.epoch + 1)
            if history.best() is history[-1]:
                best = _copy(net)
                if out is not None and rank == 0:
                    out.mkdir(parents=True, exist_ok=True)
                    save_checkpoint(out / BEST, net, None, position, {"epoch": history[-1].epoch})
            if stopping or position.epoch > recipe.epochs or time.monotonic() - saved > checkpoint_seconds:
                save()
            if rank == 0:
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    history.to_csv(out / LOG)
                if board is not None:
                    board(history)
                if on_epoch is not None:
                    on_epoch(history)
            report.epoch()
            if stopping and position.epoch <= recipe.epochs:
                raise _interrupted(position, out)
    if keep == "best" and best:
        with torch.no_grad():
            for name, tensor in tensors(net).items():
                tensor.copy_(best[name])
    net.eval()
    return history


def _copy(net: Nested) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(net).items()}


def _require_same(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """A run may be resumed for longer or shorter, but not as another run."""
    mine = {**expected["recipe"], **expected, "epochs": None, "recipe": None}
    theirs = {**found["recipe"], **found, "epochs": None, "recipe": None}
    for name, value in mine.items():
        # JSON knows no tuples, so both sides are compared as it would print them.
        if name in theirs and repr(_plain(theirs[name])) != repr(_plain(value)):
            raise CheckpointError(
                f"{path} was trained with {name} = {theirs[name]}, not {value}: resume it with what it began with, "
                "or start a new run in another folder"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _not_finite(position: Position, out: Path | None, recipe: Recipe) -> TrainingError:
    kept = f"; the last good checkpoint is kept in {out / LAST}" if out is not None and (out / LAST).exists() else ""
    return TrainingError(
        f"the loss is no longer finite in epoch {position.epoch}, by batch {position.batch}{kept}. A smaller learning "
        f"rate than {recipe.rate(position.epoch):g} is the usual remedy"
    )


def _interrupted(position: Position, out: Path | None) -> KeyboardInterrupt:
    kept = (
        f"saved in {out / LAST}; resume to go on"
        if out is not None
        else "nothing is saved, because no folder was given"
    )
    return KeyboardInterrupt(f"stopped in epoch {position.epoch} after {position.batch} batches; {kept}")
