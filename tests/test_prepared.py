import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import telescopic as tl
from telescopic import files
from telescopic.engine.manifest import PackError
from telescopic.engine.ort import onnx_runtime, sessions

from packs import MEMBERS, small_pack

SHAPE = (1, 6, 5)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pack(tmp_path_factory.mktemp("packs") / "small.telescope", SHAPE)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, bool]]:
    """Each graph opened: the folder it lies in, whether it is optimised already, and whether it is to be kept."""
    calls: list[tuple[str, bool, bool]] = []
    plain = sessions.open_session

    def noted(graph, threads, *, optimised=False, weights=None, keep_as=None):
        calls.append(((weights or graph.parent).name, optimised, keep_as is not None))
        return plain(graph, threads, optimised=optimised, weights=weights, keep_as=keep_as)

    monkeypatch.setattr("telescopic.engine.ort.onnx_runtime.open_session", noted)
    return calls


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)


def answers(engine: tl.Engine) -> np.ndarray:
    return np.stack([engine.run(inputs(), subnet=subnet).logits for subnet in MEMBERS])


def kept(cache: Path) -> Path:
    (only,) = cache.iterdir()
    return only / "graphs"


def test_the_second_start_optimises_nothing(pack: Path, tmp_path: Path, opened: list) -> None:
    plain = answers(tl.Engine(pack, cache=False))
    number = len(opened)
    assert opened == [("small.telescope", False, False)] * number and number > 1
    first = answers(tl.Engine(pack, cache=tmp_path / "cache"))
    assert opened[number : 2 * number] == [("small.telescope", False, True)] * number
    assert opened[2 * number :] == [("graphs", True, False)] * len(MEMBERS), "one graph for each member"
    del opened[:]
    second = answers(tl.Engine(pack, cache=tmp_path / "cache", threads=2))
    assert opened == [("graphs", True, False)] * len(MEMBERS)
    assert np.array_equal(first, plain) and np.abs(second - plain).max() < 1e-6
    assert sorted(path.name for path in kept(tmp_path / "cache").parent.iterdir()) == ["graphs"]  # nothing half-made


def damage_list(folder: Path) -> None:
    (folder / "graphs.json").write_text("{", encoding="utf-8")


def lose_one(folder: Path) -> None:
    facts = json.loads((folder / "graphs.json").read_text(encoding="utf-8"))
    (folder / next(iter(facts["files"]))).unlink()


def flip_a_bit(folder: Path) -> None:
    file = max(folder.glob("*.bin"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def forget_one(folder: Path) -> None:
    facts = json.loads((folder / "graphs.json").read_text(encoding="utf-8"))
    facts["files"].pop(next(name for name in facts["files"] if name.endswith(".onnx")))
    (folder / "graphs.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize("harm", [damage_list, lose_one, flip_a_bit, forget_one])
def test_what_is_damaged_is_made_again(pack: Path, tmp_path: Path, opened: list, harm) -> None:
    before = answers(tl.Engine(pack, cache=tmp_path))
    harm(kept(tmp_path))
    del opened[:]
    assert np.array_equal(answers(tl.Engine(pack, cache=tmp_path)), before)
    assert opened[0] == ("small.telescope", False, True)
    del opened[:]
    tl.Engine(pack, cache=tmp_path)
    assert {how for _, how, _ in opened} == {True}


def test_an_engine_without_room_to_keep_anything_runs(pack: Path, tmp_path: Path, opened: list) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    engine = tl.Engine(pack, cache=tmp_path / "file")
    assert np.array_equal(answers(engine), answers(tl.Engine(pack, cache=False)))
    assert {call[1] for call in opened} == {False}


def test_preparing_graphs_needs_onnx_and_running_prepared_ones_does_not(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answers(tl.Engine(pack, cache=tmp_path / "there"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    for cache in (False, tmp_path / "new"):
        with pytest.raises(ImportError, match=r"^onnx is not installed: pip install onnx "):
            tl.Engine(pack, cache=cache)
    assert not any((tmp_path / "new").glob("*/graphs*"))
    assert np.array_equal(answers(tl.Engine(pack, cache=tmp_path / "there")), before)


def test_a_graph_that_cannot_be_opened_is_named(pack: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(pack, tmp_path / "broken.telescope")
    file = next(iter(sorted(broken.glob("*.onnx"))))
    file.write_bytes(b"no graph")
    found = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))
    found["files"][file.name] = {"bytes": 8, "sha256": hashlib.sha256(b"no graph").hexdigest()}
    (broken / "manifest.json").write_text(json.dumps(found), encoding="utf-8")
    for cache in (False, tmp_path / "cache"):
        with pytest.raises(PackError, match=rf"{file.name} is no graph of a pack"):
            tl.Engine(broken, cache=cache)
    assert not any((tmp_path / "cache").glob("*/graphs*")), "nothing half-made"


def test_another_process_may_be_faster(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list
) -> None:
    # It has put its graphs there while this one waited: they are used, and not made again.
    tl.Engine(pack, cache=tmp_path / "theirs")
    held = files.held

    @contextmanager
    def late(path: Path, what: Path, *, wait: bool):
        with held(path, what, wait=wait) as here:
            kept(tmp_path / "theirs").rename(what)
            yield here

    monkeypatch.setattr("telescopic.engine.prepared.held", late)
    del opened[:]
    engine = tl.Engine(pack, cache=tmp_path / "ours")
    assert engine._graphs.folder == kept(tmp_path / "ours") and engine._graphs.prepared
    assert {how for _, how, _ in opened} == {True}


START = """
import os, sys
os.getpid = lambda: 1  # as in containers that share a cache: each is the first process of its own
import numpy as np
import telescopic as tl
from telescopic.engine.ort.sessions import runtime
runtime()
print("there", flush=True)
sys.stdin.readline()
engine = tl.Engine(sys.argv[1], cache=sys.argv[2])
x = np.random.default_rng(0).standard_normal((2, *engine.input_shape), np.float32)
print(engine._graphs.prepared, [engine.run(x, subnet=m.subnet).logits.tobytes().hex() for m in engine.members])
"""


def test_processes_that_start_at_once_all_run_what_one_has_prepared(pack: Path, tmp_path: Path) -> None:
    # benchmarks/first_starts.py has more of them, also in namespaces of their own.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", START, str(pack), str(tmp_path)]
    children = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for child in children:
        assert child.stdout.readline() == "there\n", child.stderr.read()
    told = [child.communicate("\n") for child in children]
    expected = [tl.Engine(pack, cache=tmp_path).run(inputs(), subnet=subnet).logits for subnet in MEMBERS]
    assert [out for out, _ in told] == [f"True {[one.tobytes().hex() for one in expected]}\n"] * 3, told
    assert [path.name for path in kept(tmp_path).parent.iterdir()] == ["graphs"]


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_was_cut_short_is_never_mapped(pack: Path, tmp_path: Path, opened: list, verify: bool) -> None:
    # Reading a mapped file beyond its end kills the process.
    before = answers(tl.Engine(pack, cache=tmp_path / "cache"))
    for file in sorted(kept(tmp_path / "cache").glob("*.bin")):
        size = file.stat().st_size
        os.truncate(file, size // 2)
        del opened[:]
        assert np.array_equal(answers(tl.Engine(pack, cache=tmp_path / "cache", verify=verify)), before)
        assert opened[0] == ("small.telescope", False, True) and file.stat().st_size == size
    short = shutil.copytree(pack, tmp_path / "short.telescope")
    os.truncate(short / "weights.bin", 100)
    with pytest.raises(PackError, match=r"weights.bin is missing or of another size than when it was packed"):
        tl.Engine(short, cache=False, verify=verify)


def test_what_the_disk_had_no_room_for_is_not_kept(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list
) -> None:
    noted = onnx_runtime.open_session

    def full(graph, threads, *, keep_as=None, **more):
        session = noted(graph, threads, keep_as=keep_as, **more)
        if keep_as is not None and (weights := keep_as.with_name(f"{keep_as.name}.bin")).exists():
            os.truncate(weights, weights.stat().st_size - 1)
        return session

    monkeypatch.setattr("telescopic.engine.ort.onnx_runtime.open_session", full)
    engine = tl.Engine(pack, cache=tmp_path)
    assert not engine._graphs.prepared and np.array_equal(answers(engine), answers(tl.Engine(pack, cache=False)))
    assert not any(tmp_path.glob("*/graphs*"))
