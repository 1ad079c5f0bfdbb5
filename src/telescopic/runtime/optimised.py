"""Graphs as ONNX Runtime has optimised them for this machine, kept for the next start. No torch.

A pack holds plain graphs, for an optimised one is for one kind of processor. To optimise takes most of the time in
which a pack is opened, and while it lasts a multiple of the weights' memory. The weights of a graph that was kept lie
in a file as the processor likes them; they are mapped, so that all processes of a machine have them in memory once.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from telescopic.files import replacing_folder
from telescopic.runtime.layouts import agree, cut, mark
from telescopic.runtime.manifest import Manifest, checksum
from telescopic.runtime.sessions import open_session

_FILES = "files.json"


def optimised(folder: Path, manifest: Manifest, store: Path | None, *, verify: bool) -> Path | None:
    """A folder with an optimised graph for each segment, made now if it is not there.

    Args:
        folder: of the pack.
        manifest: the pack's.
        store: folder for what is kept of this pack, for this kind of processor and this version of ONNX Runtime.
        verify: whether to compare every file with its checksum.

    Returns:
        The folder; None if nothing may be kept, or it cannot be written.

    Raises:
        ImportError: if onnx is not installed, which is needed the first time.
    """
    if store is None:
        return None
    kept = store / "graphs"
    if _whole(kept, manifest, verify):
        return kept
    try:
        with replacing_folder(kept, replace=True) as made:
            _optimise(folder, manifest, made)
            facts = {file.name: {"bytes": file.stat().st_size, "sha256": checksum(file)} for file in made.iterdir()}
            (made / _FILES).write_text(json.dumps(facts), encoding="utf-8")
    except OSError:  # no reason not to run; another process may have been faster
        return kept if _whole(kept, manifest, verify) else None
    return kept


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


def _whole(kept: Path, manifest: Manifest, verify: bool) -> bool:
    try:
        facts = json.loads((kept / _FILES).read_text(encoding="utf-8"))
        return facts.keys() >= {*manifest.segments.values()} and all(
            (kept / name).stat().st_size == fact["bytes"] and (not verify or checksum(kept / name) == fact["sha256"])
            for name, fact in facts.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
