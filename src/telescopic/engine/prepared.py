"""Graphs as a backend wants them on this machine, kept for the next start. No torch.

A pack holds plain graphs of its segments, for what is made for one library is made for one kind of processor, too. Here
they become what is opened: as the backend has prepared them, and each member's chain joined. The weights of ONNX
Runtime's graphs lie in files as the processor likes them; they are mapped, so that all processes of a machine have them
in memory once.
"""

import json
from dataclasses import asdict
from pathlib import Path

from telescopic.engine.backends import Backend, Graphs, Preparing
from telescopic.engine.graphs import check_graphs
from telescopic.engine.joined import join
from telescopic.engine.manifest import Manifest, Step, Way
from telescopic.extras import needs
from telescopic.files import held, make_folder, replacing_folder, sha256

_LIST = "graphs.json"
_MOST = 32  # members with graphs of their own: a session takes about 0.2 MB; those of larger packs stay chains


def prepared(folder: Path, manifest: Manifest, store: Path | None, backend: Backend, *, verify: bool) -> Graphs:
    """Graphs prepared for this machine, made now if they are not there; or the pack's if none can be made or kept.

    Of several processes that start at once one prepares them, and the others wait for it: those it has put there are
    never replaced while they are whole, so whoever has opened them has all of them.

    Args:
        folder: of the pack.
        manifest: the pack's.
        store: folder for what is kept of this pack, for this kind of processor and this version of the backend.
        backend: what will run them.
        verify: whether to compare every file with its checksum.

    Raises:
        PackError: if the pack's graphs are not such as a pack has; what is kept was made of some that are.
        ImportError: if onnx is not installed, which is needed the first time.
    """
    plain = Graphs(folder, manifest.segments, tuple(member.chain for member in manifest.members), prepared=False)
    kept = None if store is None else store / "graphs"
    if kept is not None and isinstance(backend, Preparing) and (found := _whole(kept, manifest, verify)):
        return found
    try:
        with needs("onnx"):
            check_graphs(folder, manifest)
        if store is None or kept is None or not isinstance(backend, Preparing):
            return plain
        with held(make_folder(store) / ".preparing", kept, wait=True):
            if found := _whole(kept, manifest, verify):  # another process was faster
                return found
            with replacing_folder(kept, replace=True) as made:
                _prepare(folder, manifest, backend, made)
            return _whole(kept, manifest, verify=False) or plain  # they have just been written
    except OSError:  # no reason not to run
        return plain


def _prepare(folder: Path, manifest: Manifest, backend: Preparing, made: Path) -> None:
    backend.prepare(folder, manifest, made)
    ways: list[Way] = [(member,) for member in manifest.members]
    joined, ways = join(manifest, made, ways, backend.stands_alone) if len(ways) <= _MOST else ({}, ways)
    for name, graph in joined.items():
        (made / f"{name}.onnx").write_bytes(graph)
    sizes = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in made.iterdir()}
    chains = [[asdict(step) for step in member.chain] for (member,) in ways]
    text = json.dumps({"files": sizes, "joined": [*joined], "chains": chains})
    (made / _LIST).write_text(text, encoding="utf-8")


def _whole(kept: Path, manifest: Manifest, verify: bool) -> Graphs | None:
    """What is kept; None if something is missing or has changed."""
    try:
        data = json.loads((kept / _LIST).read_text(encoding="utf-8"))
        files = {**manifest.segments, **{name: f"{name}.onnx" for name in data["joined"]}}
        chains = tuple(
            tuple(Step(step["segment"], tuple(step["inputs"]), tuple(step["outputs"])) for step in chain)
            for chain in data["chains"]
        )
        there = {file.name for file in kept.iterdir()} - {_LIST}
        whole = len(chains) == len(manifest.members) and {*files.values()} <= data["files"].keys() == there
        for name, facts in data["files"].items():
            file = kept / name
            whole = whole and file.stat().st_size == facts["bytes"]
            whole = whole and (not verify or sha256(file) == facts["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Graphs(kept, files, chains, prepared=True) if whole else None
