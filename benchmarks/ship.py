"""Puts a finished run's bundle into the package, as a family that `telescopic.load` knows by name, with a card.

    python benchmarks/ship.py runs/nsn-mnist nsn-mnist

Without a run, it writes the family again as this version writes bundles: the same tensors and facts.
"""

import hashlib
import sys
from pathlib import Path

from telescopic.bundle import Bundle, save
from telescopic.quantities import human
from telescopic.run import Source

MODELS = Path(__file__).parents[1] / "src" / "telescopic" / "models"


def card(name: str, bundle: Bundle) -> str:
    """What one should know before using the family, as Markdown."""
    assert bundle.catalogue is not None
    facts = bundle.provenance
    rows = "".join(
        f"| {m.label} | {human(m.accuracy or 0, '%')} | {human(m.test_accuracy or 0, '%')} | {human(m.macs)} "
        f"| {human(m.params)} | {human(m.bytes, 'B')} |\n"
        for m in bundle.catalogue
    )
    how = bundle.preprocess
    normalised = ""
    if how is not None and (set(how.mean), set(how.std)) != ({0.0}, {1.0}):
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (how.mean, how.std))
        normalised = f", less ({mean}) for each channel, and divided by ({std})"
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return f"""# {name}

{len(bundle.grid)} sizes in one set of weights, trained by {facts["method"].upper()} on {facts["data"]}.

| member | validation accuracy | test accuracy | MACs | parameters | size |
|---|---:|---:|---:|---:|---:|
{rows}
- Input: images uint8 {list(bundle.input_shape or ())} (channels, height, width), divided by 255{normalised}.
- Output: a logit for each of {", ".join(bundle.classes)}.
- Trained with seed {facts["seed"]} for {facts["epochs"]} epochs. The weights are those of epoch {facts["epoch"]},
  in which the full network was best on validation images; the test images decided nothing.
- Meant for trying the library, and as a baseline: it gives an answer for any image, also for one of no such class.
- Made with {versions}, commit {facts["commit"] or "not recorded"}.
- sha256 of the file: `{hashlib.sha256(bundle.path.read_bytes()).hexdigest()}`
"""


def main() -> None:
    """Copy the bundle and write the card."""
    *folder, name = sys.argv[1:]
    target = MODELS / f"{name}.safetensors"
    if folder:
        MODELS.mkdir(exist_ok=True)
        target.write_bytes(Source.open(folder[0]).bundle.path.read_bytes())
    else:
        bundle = Bundle.open(target)
        kept = {key: getattr(bundle, key) for key in ("preprocess", "classes", "input_shape", "provenance")}
        save(bundle.network(), target, bundle.catalogue, **kept)
    (MODELS / f"{name}.md").write_text(card(name, Bundle.open(target)), encoding="utf-8")
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
