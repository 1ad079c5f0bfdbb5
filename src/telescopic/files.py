"""How files are written: whole or not at all, and by one process at a time where that matters. No torch."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

MODEL, CATALOGUE = "model.safetensors", "catalogue.json"
"""What a finished run leaves in its folder for whoever does not train: the network as a bundle, and its catalogue."""
_DRAFTS = re.compile(r"\.telescopic-[0-9a-f]{16}\.tmp")
_LOCK = ".lock"
# What a file system answers that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class WriteError(OSError):
    """A file or a folder that cannot be written; what was there before is as it was. Made as every OSError is."""

    def __str__(self) -> str:
        """Which one, and why."""
        return f"cannot write {self.filename}: {self.strerror}"


class HeldError(OSError):
    """What another process is writing."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there replaces `path` at the end, in one step that a kill cannot halve.

    If the block fails, the old file stays as it was and the temporary one is gone. After a kill it is gone when
    something is next written to that folder.

    Raises:
        WriteError: if the file cannot be written, naming `path`: the disk is full, say, or the folder is gone.
    """
    with _drafts(path) as folder:
        temporary = folder / path.name
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask allows; safetensors makes files for their owner alone
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        if os.name == "posix":  # the rename itself is durable only once the folder is
            _sync(path.parent)


@contextmanager
def replacing_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary folder; what is written there becomes the folder `path` at the end. One process at a time.

    If the block fails, the old folder stays as it was and the temporary one is gone. After a kill between two renames
    the old folder is beside, under a name with a dot before and `.old` behind; the next call puts it back.

    Raises:
        FileExistsError: at once, if there is something at `path`, unless it is to be replaced.
        HeldError: at once, if another process is about to make this folder.
        WriteError: if the folder cannot be written.
    """
    make_folder(path.parent)
    old = path.with_name(f".{path.name}.old")
    with held(path.with_name(f".{path.name}{_LOCK}"), path), _drafts(path) as folder:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists() and not replace:
            raise FileExistsError(f"{path} is there already")
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """The checksum of what a file holds, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> Path:
    """Make a folder, and those above it, unless it is there; return it.

    Raises:
        WriteError: if it cannot be made, such as where a file has its name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _told(path, error.errno, "a file has its name" if os.path.exists(path) else "") from error
    return path


@contextmanager
def held(path: Path, what: Path, *, wait: bool = False) -> Iterator[Callable[[], bool]]:
    """Hold a lock for the time of a block. It ends with the process, however that ends, even if its file remains.

    Where the file system has no locks, there is a warning instead.

    Args:
        path: the lock's file, which is made and removed.
        what: what is locked, for messages.
        wait: whether to wait for another process, rather than to fail.

    Yields:
        A function that tells whether another has the lock all the same: a folder may be removed, and made anew.

    Raises:
        HeldError: if another process has the lock: which, on which host, since when.
        WriteError: if the file cannot be made.
    """
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _told(what, error.errno) from error
        try:
            mine = _take(file)
            if mine and _same(file, path):
                break
            if not mine and not wait:
                who = "".join(c for c in os.read(file, 200).decode(errors="replace") if c.isprintable())
                raise HeldError(f"{what} is being written by {who or 'another process'}: wait for it, or take another")
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            warnings.warn(
                f"{what} is not locked, for its file system has no locks: let one process write it", stacklevel=3
            )
            break
        os.close(file)
        if not mine:
            time.sleep(0.05)
    try:
        with suppress(OSError):  # on a full disk it is locked all the same
            os.truncate(file, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        yield lambda: path.exists() and not _same(file, path)
    finally:
        if os.name == "posix" and _same(file, path):  # before it is free, or it could be the next one's
            path.unlink(missing_ok=True)
        os.close(file)
        if os.name != "posix":  # where what is open cannot be removed: not even the next one's
            with suppress(OSError):
                path.unlink()


def sweep(folder: Path) -> None:
    """Remove what was left half written in a folder by processes that were killed; what others are writing stays."""
    for drafts in folder.glob(".telescopic-*.tmp"):
        if not _DRAFTS.fullmatch(drafts.name):
            continue
        with suppress(OSError):
            try:
                lock = os.open(drafts / _LOCK, os.O_RDWR)
            except FileNotFoundError:
                drafts.rmdir()  # killed before it had a lock; one who is just about to take it makes another folder
                continue
            try:
                dead = _take(lock)
                if dead:
                    shutil.rmtree(drafts, ignore_errors=True)
            finally:
                os.close(lock)
            if dead and os.name != "posix":  # where what is open cannot be removed
                shutil.rmtree(drafts, ignore_errors=True)


@contextmanager
def _drafts(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, for what is to become it; locked, which tells it from those of the dead."""
    sweep(path.parent)
    folder, lock = path, -1
    try:
        while lock < 0:
            folder = path.with_name(f".telescopic-{secrets.token_hex(8)}.tmp")
            folder.mkdir()
            try:
                lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                if not (_take(lock) and _same(lock, folder / _LOCK)):  # somebody has swept it away
                    os.close(lock)
                    lock = -1
            except FileNotFoundError:
                if not os.path.exists(path.parent):
                    raise
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # without locks nobody sweeps
                    raise
        yield folder
    except (OSError, SafetensorError) as error:
        number = _number(error)
        names = getattr(error, "filename", None), getattr(error, "filename2", None)
        ours = all(name is None or Path(name).is_relative_to(folder) or Path(name) == path for name in names)
        if number is None or isinstance(error, HeldError) or not ours:
            raise
        raise _told(path, number, "" if os.path.exists(path.parent) else "its folder is gone") from error
    finally:
        if lock >= 0:
            os.close(lock)
        if folder != path:
            shutil.rmtree(folder, ignore_errors=True)


def _told(path: Path, number: int | None, why: str = "") -> WriteError:
    return WriteError(number, why or os.strerror(number or errno.EIO), str(path))


def _number(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has it in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _take(file: int) -> bool:
    """Lock an open file, unless another process (or another place of this one) has it locked."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, 1 << 30, os.SEEK_SET)  # beyond the text, which others shall be able to read
            try:
                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _same(file: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
