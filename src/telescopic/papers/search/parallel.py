"""One search in several processes of this machine, which know of each other by the storage alone."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from telescopic.data import load
from telescopic.documents import printable
from telescopic.papers.search.study import open_study, search, study_name


def say(sentence: str) -> None:
    """Print to standard error, harmlessly."""
    print(printable(sentence), file=sys.stderr, flush=True)


def search_in_processes(
    processes: int, storage: str, *, told: Callable[[str], None] | None = say, **options: Any
) -> None:
    """Search in so many processes, with one thread each; in this one if it is one.

    Args:
        processes: how many.
        storage: see `search`.
        told: called with a sentence after each model; of several processes, each prints its own to standard error.
        options: further ones of `search`.

    Raises:
        ValueError: if a process failed, and all that `search` raises.
        KeyboardInterrupt: after Ctrl-C.
    """
    if processes == 1:
        search(storage, told=told, **options)
        return
    data_dir, precision = options.get("data_dir"), options.get("precision", "fp32")
    # What several would get in each other's way with is done before: the tables of the database, the download.
    what = (options["data"], options["network"], options["kind"], options.get("epochs"))
    open_study(storage, study_name(*what, precision))
    load(options["data"], data_dir=data_dir)
    # Forked from one that has imported what all need, which takes seconds; but an accelerator's driver bears no fork.
    forked = "forkserver" in multiprocessing.get_all_start_methods() and not torch.accelerator.is_available()
    context: Any = multiprocessing.get_context("forkserver" if forked else "spawn")
    if forked:
        context.set_forkserver_preload([__name__, "torch._dynamo"])
    # The one that is forked lives on, with the environment that it has begun with.
    given = (storage, options, dict(os.environ))
    workers = [context.Process(target=_work, args=given) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:  # which the terminal has sent to all of them
        for worker in workers:
            worker.join()
        raise
    if bad := [worker.exitcode for worker in workers if worker.exitcode]:
        if -signal.SIGINT in bad or 130 in bad:
            raise KeyboardInterrupt
        raise ValueError(f"{len(bad)} of {processes} processes failed; what they said stands above")


def _work(storage: str, options: dict[str, Any], environment: dict[str, str]) -> None:
    """What one process does."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        search(storage, told=say, **options)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        say(f"error: {error}")
        sys.exit(1)
