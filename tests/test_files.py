"""Files are written whole or not at all, by one process at a time, and what a killed one leaves is cleared away.

As a program (`python tests/test_files.py draft|folder|lock FOLDER`) it writes there, says so, and waits to be killed.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from telescopic import files
from telescopic.files import HeldError, WriteError, held, make_folder, replacing, replacing_folder, sweep


@contextmanager
def another(kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is writing, or has a lock, until it is killed."""
    with subprocess.Popen([sys.executable, __file__, kind, str(folder)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        try:
            yield child
        finally:
            child.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(tmp_path) == ["file"]
    with replacing(path) as temporary:
        save_file({"w": np.ones(2)}, temporary)
        assert path.read_text() == "old"
    assert load_file(path)["w"].tolist() == [1, 1] and names(tmp_path) == ["file"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "others may read it, where the umask lets them"


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path: Path) -> None:
    """Of one process, too: its number is no name."""
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one" and names(tmp_path) == ["file"]


def test_what_a_kill_left_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    for name in (".telescopic-notes.tmp", ".tmpabcdef", ".last.safetensors.4242.tmp"):
        (tmp_path / name).write_text("not ours")
    with another("draft", tmp_path) as dead, another("draft", tmp_path):
        mine = [".last.safetensors.4242.tmp", ".telescopic-notes.tmp", ".tmpabcdef"]
        assert len(set(names(tmp_path)) - set(mine)) == 2
        dead.kill()
        dead.wait()
        sweep(tmp_path)
        (alive,) = set(names(tmp_path)) - set(mine)
        assert (tmp_path / alive / "file").read_text() == "half"
    with replacing(tmp_path / "other"):  # whatever is written there next
        pass
    assert names(tmp_path) == [*mine, "other"]


def test_a_draft_that_never_came_to_its_lock_is_swept(tmp_path: Path) -> None:
    (tmp_path / f".telescopic-{0:016x}.tmp").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_sweeping_never_takes_a_draft_from_under_its_writer(tmp_path: Path) -> None:
    """Also in the moment between the making of the folder and that of its lock."""
    done = threading.Event()

    def sweeps() -> None:
        while not done.is_set():
            sweep(tmp_path)

    sweeper = threading.Thread(target=sweeps)
    sweeper.start()
    try:
        for number in range(100):
            with replacing(tmp_path / "file") as temporary:
                temporary.write_text(str(number))
    finally:
        done.set()
        sweeper.join()
    assert (tmp_path / "file").read_text() == "99" and names(tmp_path) == ["file"]


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    """As a limit on the size of files, in a process of its own; safetensors has an error of its own for it."""
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, __file__, "full", str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert (
        done.stdout.splitlines() == [f"WriteError {errno.EFBIG}: cannot write {path}: {os.strerror(errno.EFBIG)}"] * 2
    )
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(("number", "named"), [(errno.ENOSPC, None), (errno.EIO, None), (errno.EDQUOT, "of the draft")])
def test_what_the_system_says_is_told_of_the_file_itself(tmp_path: Path, number: int, named: str | None) -> None:
    with pytest.raises(WriteError) as caught, replacing(tmp_path / "file") as temporary:
        raise OSError(number, os.strerror(number), None if named is None else str(temporary))
    assert str(caught.value) == f"cannot write {tmp_path / 'file'}: {os.strerror(number)}"
    assert caught.value.errno == number and names(tmp_path) == []


def test_an_error_of_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), replacing(tmp_path / "file"):
        (tmp_path / "elsewhere").read_text()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("gone/file", "its folder is gone"),
        ("plain/file", os.strerror(errno.ENOTDIR)),
        ("folder", os.strerror(errno.EISDIR)),
        ("n" * 300, os.strerror(errno.ENAMETOOLONG)),
    ],
)
def test_what_is_no_place_for_a_file(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError) as caught, replacing(tmp_path / path) as temporary:
        temporary.write_text("new")
    assert str(caught.value) == f"cannot write {tmp_path / path}: {why}"
    assert names(tmp_path) == ["folder", "plain"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "deep" / "folder").is_dir()
    (tmp_path / "plain").touch()
    with pytest.raises(WriteError, match=r"cannot write .*plain: a file has its name"):
        make_folder(tmp_path / "plain")
    with pytest.raises(WriteError, match=os.strerror(errno.ENOTDIR)):
        make_folder(tmp_path / "plain" / "folder")


def test_who_holds_a_lock_is_told_and_its_death_frees_it(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with another("lock", tmp_path) as child:
        with pytest.raises(HeldError, match=rf"run is being written by process {child.pid} on .+ since 20\d\d-"):
            held(lock, Path("run")).__enter__()
        with pytest.raises(HeldError, match=f"process {child.pid} on"):  # asking has not wiped it out
            held(lock, Path("run")).__enter__()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert lock.exists(), "which says nothing"
        with held(lock, Path("run")) as lost:
            assert not lost() and f"process {os.getpid()} on" in lock.read_text()
            with pytest.raises(HeldError), held(lock, Path("run")):
                pass
            assert not lost()
    assert not lock.exists()


def test_what_a_lock_says_is_printed_harmlessly(tmp_path: Path) -> None:
    with held(tmp_path / ".lock", tmp_path):
        (tmp_path / ".lock").write_bytes(b"\x1b[31mred\xff\n" + b"x" * 5000)
        with pytest.raises(HeldError) as caught, held(tmp_path / ".lock", tmp_path):
            pass
    assert str(caught.value).isprintable() and "[31mred" in str(caught.value) and len(str(caught.value)) < 500


def test_a_lock_whose_folder_was_made_anew_is_lost(tmp_path: Path) -> None:
    with held(tmp_path / ".lock", tmp_path) as lost:
        (tmp_path / ".lock").unlink()
        assert not lost(), "nobody has it"
        with held(tmp_path / ".lock", tmp_path) as others:
            assert lost() and not others()


def test_the_end_of_a_lost_lock_leaves_the_next_one_alone(tmp_path: Path) -> None:
    first = held(tmp_path / ".lock", tmp_path)
    first.__enter__()
    (tmp_path / ".lock").unlink()
    with held(tmp_path / ".lock", tmp_path):
        first.__exit__(None, None, None)
        with pytest.raises(HeldError), held(tmp_path / ".lock", tmp_path):
            pass


def test_one_at_a_time_where_all_wait(tmp_path: Path) -> None:
    inside, most, turns = [], [], 40

    def work() -> None:
        for _ in range(turns):
            with held(tmp_path / ".lock", tmp_path, wait=True):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * (3 * turns) and names(tmp_path) == []


def test_without_locks_it_warns_and_sweeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another("draft", tmp_path) as dead:
        dead.kill()
    left = names(tmp_path)

    def none(file: int) -> bool:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files, "_take", none)
    with pytest.warns(UserWarning, match="its file system has no locks"), held(tmp_path / ".lock", tmp_path):
        pass
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [*left, "file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with replacing_folder(path, replace=False) as made:
        (made / "file").write_text("old")
    with pytest.raises(FileExistsError, match="folder is there already"), replacing_folder(path, replace=False):
        pytest.fail("begun")
    with pytest.raises(ZeroDivisionError), replacing_folder(path, replace=True) as made:
        (made / "file").write_text("ne")
        raise ZeroDivisionError
    with (
        replacing_folder(path, replace=True),
        pytest.raises(HeldError, match="folder is being written by process"),
        replacing_folder(path, replace=True),
    ):
        pytest.fail("begun")
    with replacing_folder(path, replace=True) as made:
        (made / "file").write_text("old")
    with (
        pytest.raises(WriteError, match=rf"cannot write {path}: {os.strerror(errno.ENOSPC)}"),
        replacing_folder(path, replace=True) as made,
    ):
        raise OSError(errno.ENOSPC, "none", str(made / "file"))
    assert (path / "file").read_text() == "old" and names(tmp_path) == ["folder"]
    with replacing_folder(path, replace=True) as made:
        (made / "file").write_text("new")
    assert (path / "file").read_text() == "new" and names(tmp_path) == ["folder"]


def test_a_folder_killed_between_two_renames_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with another("folder", path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not path.exists() and (tmp_path / ".folder.old" / "file").read_text() == "old"
    with pytest.raises(FileExistsError), replacing_folder(path, replace=False):
        pass
    assert (path / "file").read_text() == "old" and names(tmp_path) == ["folder"]


def main(kind: str, folder: Path) -> None:
    """Be the process that writes."""

    def wait() -> None:
        print("writing", flush=True)
        time.sleep(600)

    if kind == "draft":
        with replacing(folder / "file") as temporary:
            temporary.write_text("half")
            wait()
    elif kind == "lock":
        with held(folder / ".lock", folder):
            wait()
    elif kind == "folder":
        with replacing_folder(folder, replace=False) as made:
            (made / "file").write_text("old")
        rename = Path.rename

        def renamed(path: Path, to: Path) -> None:
            rename(path, to)
            if to.name.endswith(".old"):
                wait()

        Path.rename = renamed  # type: ignore[assignment,method-assign]
        with replacing_folder(folder, replace=True) as made:
            (made / "file").write_text("new")
    elif kind == "full":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for write in (lambda path: save_file({"w": np.ones(1000)}, path), lambda path: path.write_text("x" * 4000)):
            try:
                with replacing(folder / "file") as temporary:
                    write(temporary)
            except OSError as error:
                print(f"{type(error).__name__} {error.errno}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
