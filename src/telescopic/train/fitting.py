"""Training every member of a network together: what is asked, and what is given back."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from telescopic.ambient import plain
from telescopic.data import Dataset
from telescopic.extras import needs
from telescopic.nested import Nested
from telescopic.quantities import one_of
from telescopic.readout import require_fitting
from telescopic.tasks import Task
from telescopic.train.history import History
from telescopic.train.keeper import occupied
from telescopic.train.loop import Training
from telescopic.train.objective import leaves_some_out, task_for
from telescopic.train.precision import PRECISIONS, Precision
from telescopic.train.recipe import Recipe
from telescopic.train.result import Result


@plain()
def fit(
    net: Nested,
    data: Dataset,
    recipe: Recipe,
    *,
    task: Task | None = None,
    teacher: nn.Module | None = None,
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
    of their gradients is that of the whole batch. Data in memory stay on the device, images as uint8; those of
    `telescopic.data.Loaders` come batch by batch. Networks of 2-d convolutions are trained in torch's channels-last
    layout where that is faster, and given back in the usual one. A last batch with too few examples for BatchNorm joins
    the one before. On one CPU with the same number of threads, an interrupted and resumed run ends with exactly the
    weights of an uninterrupted one.

    Args:
        net: the network, initialised.
        data: what is to be learned, in memory or from loaders.
        recipe: how to train.
        task: what the network is to do with the data, such as `telescopic.tasks.regression()`; by default classify,
            with the recipe's label smoothing.
        teacher: a module that takes what the network takes, and gives the answers that members are to learn from, where
            the recipe's teacher is a `module`. It is run in eval mode, and stays as it is.
        out: folder of the run, for `last.safetensors`, `best.safetensors` and `log.csv`, and at the end for the bundle
            `model.safetensors` and the catalogue, which the command line works on; None keeps nothing on disk. One
            process at a time may write it.
        resume: go on from `out`'s last checkpoint, if there is one. The recipe may then have more epochs, and other
            milestones in those to come, but not in the past; a one-cycle schedule keeps its length.
        seed: order of the examples, their augmentation, and dropout; and torch's random numbers in a loader.
        keep: which weights the network holds at the end: those of the epoch in which the full network had the best
            score on the validation examples, or the last epoch's, also where there are no such examples.
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
            network, the data and the task do not, or a number in the data is not finite; if `precision` is none of the
            three; or `out` already holds a run and `resume` is False.
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
        from accelerate import Accelerator, DistributedDataParallelKwargs

    one_of("precision", precision, PRECISIONS)
    if recipe.fit_heads:
        require_fitting(net)
    folder = None if out is None else Path(out)
    # Told so, accelerate joins the processes of a machine without a GPU; else it would run each of them by itself.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=leaves_some_out(net, recipe))
    accelerator = Accelerator(cpu=cpu or not torch.accelerator.is_available(), kwargs_handlers=[parallel])
    # What `accelerate launch`, or a program that has made one before, wants of it: here `precision` says it.
    accelerator.native_amp = False
    first = accelerator.process_index == 0
    shown, task = progress if first else False, task_for(task, recipe)
    with occupied(folder, resume=resume, writes=first) as lost:
        result = (
            Result(net, data, recipe, task, folder, seed, provenance or {}) if folder is not None and first else None
        )
        training = Training(
            accelerator,
            net,
            data,
            recipe,
            task,
            folder,
            lost,
            teacher=teacher,
            seed=seed,
            precision=precision,
            told=shown is not False,
            checkpoint_seconds=checkpoint_seconds,
        )
        training.run(shown, on_epoch if first else None)
        training.finish(keep)
        history = training.history
        kept = history.best() if keep == "best" else history[-1]
        if recipe.fit_heads:
            if shown is not False:
                print(f"fitting the heads of epoch {kept.epoch} to their features", file=sys.stderr, flush=True)
            validation, test = training.fit_heads()
            kept = history.fitted = replace(kept, validation=validation, test=test)
        if result is not None:
            result.write(kept, history)
    return history
