"""The page that comes with a pack, for people."""

from collections.abc import Sequence

from telescopic.engine.manifest import Manifest
from telescopic.packing.judging import Verdict
from telescopic.quantities import human
from telescopic.shapes import INPUT


def card(manifest: Manifest, name: str, notes: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    """The page, as Markdown.

    Args:
        manifest: of the pack.
        name: of its folder.
        notes: sentences on how it was made.
        verdicts: on each member in int8; none if it is float32.
    """
    inputs = []
    for name, tensor in manifest.inputs.items():
        kind, sizes = manifest.dtype(tensor), ", ".join(map(str, ["batch", *manifest.tensors[tensor]]))
        pixels = " or uint8 (pixels)" if manifest.preprocess and kind == "float32" else ""
        ends = f" from 0 to {below - 1}" if isinstance(below := manifest.below.get(tensor), int) else ""
        inputs.append(f"{'' if name == INPUT else f'{name} '}{kind}{pixels} `[{sizes}]`{ends}")
    packed_by = manifest.provenance["packed_by"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{len(manifest.members)} members of one network, with one copy of the weights, as ONNX graphs for ONNX",
            "Runtime. Made by telescopic.",
            "",
            *_table(manifest),
            "",
            f"Input: {', '.join(inputs)}. Classes: {', '.join(manifest.classes) or 'not named'}.",
            "",
            *notes,
            "",
            *_judged(verdicts),
            "```python",
            "import telescopic as tl",
            "",
            f'engine = tl.Engine("{name}")',
            "engine.run(x, max_latency_ms=5)",
            "```",
            "",
            f"Versions: {', '.join(f'{key} {value}' for key, value in packed_by.items())}.",
            "",
        ]
    )


def _table(manifest: Manifest) -> list[str]:
    """Members, with what float32 had beside int8."""
    int8 = manifest.precision == "int8"
    judged = f"validation {metric.name}" if (metric := manifest.members[0].metric).word == "score" else "validation"
    names = ["member", judged, *(["the same in float32"] if int8 else []), "MACs", "parameters", "segments"]
    rows = []
    for m in manifest.members:
        before = [_percent(m.float_accuracy)] if int8 else []
        score = "–" if m.score is None else m.metric.text(m.score)
        rows.append([m.label, score, *before, human(m.macs), human(m.params), str(len(m.chain))])
    return _as_table(names, rows)


def _judged(verdicts: Sequence[Verdict]) -> list[str]:
    """How the members' answers in int8 compare with those in float32."""
    if not verdicts:
        return []
    labelled = verdicts[0].right is not None
    names = ["member", "same class", "median error", *(["right", "right in float32"] if labelled else [])]
    rows = []
    for v in verdicts:
        right = [] if v.right is None else [str(v.right[1]), str(v.right[0])]
        rows.append([v.label, human(v.same, "%"), human(v.error, "%"), *right])
    told = f"Of {verdicts[0].examples} examples on which it was not calibrated: how many have the same class as in"
    more = "float32, and the error of the median example, as a fraction of its logits (root mean squares)."
    return [told, more, "", *_as_table(names, rows), ""]


def _as_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (names, *rows)]
    return [lines[0], f"|---|{'---:|' * (len(names) - 1)}", *lines[1:]]


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else human(accuracy, "%")
