import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import telescopic as tl
from telescopic.runtime import sessions
from telescopic.runtime.manifest import PackError

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

    monkeypatch.setattr("telescopic.runtime.onnx_runtime.open_session", noted)
    return calls


def answers(engine: tl.Engine) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    return np.stack([engine.run(x, subnet=subnet).logits for subnet in MEMBERS])


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
    tl.Engine(pack, cache=tmp_path / "there")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'onnx is not installed.*pip install "telescopic\[onnx\]"; or .*cache=False'):
        tl.Engine(pack, cache=tmp_path / "new")
    assert not any((tmp_path / "new").glob("*/graphs*"))
    before = answers(tl.Engine(pack, cache=False))
    assert np.array_equal(answers(tl.Engine(pack, cache=tmp_path / "there")), before)


def test_a_graph_that_cannot_be_opened_is_named(pack: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(pack, tmp_path / "broken.telescope")
    file = next(iter(sorted(broken.glob("*.onnx"))))
    file.write_bytes(b"no graph")
    found = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))
    found["files"][file.name] = {"bytes": 8, "sha256": hashlib.sha256(b"no graph").hexdigest()}
    (broken / "manifest.json").write_text(json.dumps(found), encoding="utf-8")
    for cache in (False, tmp_path / "cache"):
        with pytest.raises(PackError, match=rf"ONNX Runtime .* cannot open {file.name}: "):
            tl.Engine(broken, cache=cache)
    assert not any((tmp_path / "cache").glob("*/graphs*")), "nothing half-made"


def test_another_process_may_be_faster(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It has put its own folder there while this one was at work: either will do.
    tl.Engine(pack, cache=tmp_path / "theirs")

    def late(path: Path, *, replace: bool):
        kept(tmp_path / "theirs").parent.rename(path.parent)
        raise FileExistsError(path)

    monkeypatch.setattr("telescopic.runtime.prepared.replacing_folder", late)
    (tmp_path / "ours").mkdir()
    engine = tl.Engine(pack, cache=tmp_path / "ours")
    assert engine._graphs.folder == kept(tmp_path / "ours")
