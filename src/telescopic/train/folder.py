"""A run's folder, which belongs to one process while it is trained in."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from telescopic.files import WriteError, held, make_folder
from telescopic.train.keeper import LAST


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
