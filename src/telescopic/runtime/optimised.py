"""Graphs as ONNX Runtime has optimised them for this machine, kept for the next start. No torch.

A pack holds plain graphs, for an optimised one is for one kind of processor. To optimise takes most of the time in
which a pack is opened, and while it lasts a multiple of the weights' memory. The weights of a graph that was kept lie
in a file as the processor likes them; they are mapped, so that all processes of a machine have them in memory once.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from telescopic.files import replacing_folder
from telescopic.runtime.backends import Graphs
from telescopic.runtime.joined import join
from telescopic.runtime.layouts import agree, cut, mark
from telescopic.runtime.manifest import Manifest, Step, checksum
from telescopic.runtime.sessions import open_session
from telescopic.runtime.ways import Way

_LIST = "graphs.json"
_MOST = 32  # members with graphs of their own: a session takes about 0.2 MB; those of larger packs stay chains


def optimised(folder: Path, manifest: Manifest, store: Path | None, *, verify: bool) -> Graphs:
    """Graphs optimised for this machine, made now if they are not there; or the pack's if none may or can be kept.

    Args:
        folder: of the pack.
        manifest: the pack's.
        store: folder for what is kept of this pack, for this kind of processor and this version of ONNX Runtime.
        verify: whether to compare every file with its checksum.

    Raises:
        ImportError: if onnx is not installed, which is needed the first time.
    """
    if store is None:
        return plain(folder, manifest)
    kept = store / "graphs"
    if found := _whole(kept, manifest, verify):
        return found
    try:
        with replacing_folder(kept, replace=True) as made:
            _optimise(folder, manifest, made)
            ways: list[Way] = [(member,) for member in manifest.members]
            joined, ways = join(manifest, made, ways) if len(ways) <= _MOST else ({}, ways)
            for name, graph in joined.items():
                (made / f"{name}.onnx").write_bytes(graph)
            sizes = {file.name: {"bytes": file.stat().st_size, "sha256": checksum(file)} for file in made.iterdir()}
            chains = [[asdict(step) for step in member.chain] for (member,) in ways]
            text = json.dumps({"files": sizes, "joined": [*joined], "chains": chains})
            (made / _LIST).write_text(text, encoding="utf-8")
    except OSError:  # no reason not to run; another process may have been faster
        pass
    return _whole(kept, manifest, verify) or plain(folder, manifest)


def plain(folder: Path, manifest: Manifest) -> Graphs:
    """The graphs of a pack as they are."""
    return Graphs(folder, manifest.segments, tuple(member.chain for member in manifest.members), optimised=False)


def _optimise(folder: Path, manifest: Manifest, made: Path) -> None:
    """Write an optimised graph for each segment."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            'onnx is not installed, with which graphs are prepared for this machine: pip install "telescopic[onnx]"; '
            "or open the engine with cache=False, where long chains are slower"
        ) from error

    def optimise(segment: str, ends: frozenset[str]) -> Mapping[str, float]:
        path = made / manifest.segments[segment]
        try:
            plain = onnx.load(folder / path.name, load_external_data=False)
            mark(plain.graph, ends)
            open_session(plain.SerializeToString(), 1, weights=folder, keep_as=path)
        except Exception as error:  # of many kinds; what is wrong with a graph is said when it is opened as it is
            raise OSError(f"{path.name} cannot be prepared for this machine: {error}") from error
        kept = onnx.load(path, load_external_data=False)
        saved = cut(kept.graph, ends)
        path.write_bytes(kept.SerializeToString())
        return saved

    agree(manifest, optimise)


def _whole(kept: Path, manifest: Manifest, verify: bool) -> Graphs | None:
    """What is kept; None if something is missing or has changed."""
    try:
        data = json.loads((kept / _LIST).read_text(encoding="utf-8"))
        files = {**manifest.segments, **{name: f"{name}.onnx" for name in data["joined"]}}
        chains = tuple(
            tuple(Step(step["segment"], tuple(step["inputs"]), tuple(step["outputs"])) for step in chain)
            for chain in data["chains"]
        )
        whole = len(chains) == len(manifest.members) and data["files"].keys() >= {*files.values()}
        for name, facts in data["files"].items():
            file = kept / name
            whole = whole and file.stat().st_size == facts["bytes"]
            whole = whole and (not verify or checksum(file) == facts["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Graphs(kept, files, chains, optimised=True) if whole else None
