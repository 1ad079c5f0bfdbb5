"""Claim: whatever happens to a file's bytes, reading it succeeds or raises its own error, soon and in little memory.

Bundles (each loaded whole and as one member), checkpoints of runs, catalogues and summaries: 5 000 mutated files of
each kind. A foreign exception, a reading of more than 5 s of processor time, or 500 MB more memory at the peak counts
as a failure; a crash or a minute's hang ends the program. It writes results/fuzz-bundle.json:

    python benchmarks/fuzz_bundle.py [--cases 5000] [--seed 0]
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from telescopic.bundle import Bundle, BundleError, load, save
from telescopic.catalogue import Catalogue, CatalogueError, measure
from telescopic.data import Preprocess
from telescopic.extract import extract
from telescopic.layers.cuts import named_tensors
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.papers.reproduce import SummaryError, runs
from telescopic.subnet import Subnet
from telescopic.train import CheckpointError, Epoch, History, Recipe
from telescopic.train.checkpoint import Position, load_checkpoint, read_history, save_checkpoint

import results

SLOW_S = 5.0
MUCH_MB = 500.0

HOSTILE: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in (None, True, 0, -1, 1, 2, 7, 2**31, 2**63 - 1, 2**64, 10**18, 10**400)),
    *(lambda value=value: value for value in (0.0, -0.5, 1e-320, 1e308, float("inf"), float("nan"), "", "x" * 100_000)),
    *(lambda name=name: name for name in ("Linear", "Nested", "Sequential", "BatchNorm2d", "Conv2d", "Flatten")),
    *(lambda name=name: name for name in ("os.system", "builtins.eval", "__class__", "torch.hub.load", "\ud800", "\0")),
    list,
    dict,
    lambda: [1] * 100_000,
    lambda: [10**12] * 4,
    lambda: "@deep 40",
    lambda: "@deep 5000",
    lambda: "@digits",
    lambda: {"class": "Linear", "in_features": 10**12, "out_features": 10**12},
    lambda: {"class": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": [10**6] * 2},
    lambda: {"class": "ModuleList", "modules": [{"class": "BatchNorm1d", "num_features": 1}] * 9_000},
    lambda: {"class": "Nested", "stages": [{"class": "ReLU"}] * 100_000, "entries": [], "exits": []},
)  # fmt: skip


def families(folder: Path) -> list[tuple[bytes, Subnet]]:
    """Whole bundles of several kinds, each with a member to load."""
    torch.manual_seed(0)
    net = mlp(16, (16, 16), 3, dropout=(0.2, 0.5))
    convolution = Nested(
        [
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        ],
        entries={0: nn.Identity(), 1: nn.Conv2d(1, 4, 1)},
        exits={0: nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), 1: nn.Sequential(nn.Flatten(), nn.Linear(6, 3))},
        statistics="per-entry",
    )
    facts: dict[str, Any] = {
        "classes": ["a", "b", "c"],
        "preprocess": Preprocess((0.5,), (0.5,)),
        "input_shape": (1, 4, 4),
    }
    bundles = [
        save(net, folder / "mlp", measure(net, input_shape=(1, 4, 4)), provenance={"seed": 0}, **facts),
        save(convolution, folder / "convolution"),
        save(extract(net, Subnet(entry=1)).to(torch.bfloat16), folder / "member", **facts),
    ]
    return list(zip((path.read_bytes() for path in bundles), (Subnet(entry=1), Subnet(entry=1), Subnet()), strict=True))


def checkpoint(folder: Path) -> bytes:
    """A whole checkpoint of a run, as `fit` writes it."""
    net = mlp(16, (8, 8), 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net.all(torch.randn(2, 16)).sum().backward()
    optimizer.step()
    labels = [net.grid.label(member) for member in net.grid]
    seen = Epoch(1, 1.0, 100.0, 0.1, 0.5, (0.5,) * 3, (0.9,) * 3, (0.9,) * 3)
    facts = {"history": History(labels, 2, [seen]).to_dict(), "recipe": Recipe(epochs=2).to_dict(), "seed": 0}
    save_checkpoint(folder / "last", net, optimizer, Position(2, 3, 1.5, [0.5] * 4), facts)
    return (folder / "last").read_bytes()


def summary() -> bytes:
    """What an experiment leaves."""
    facts = {"experiment": "nsn", "seed": 0, "minutes": 1.5, "protocols": {"last": {"epoch": 2, "test": [0.9] * 3}}}
    return json.dumps(facts | {"recipe": Recipe(epochs=2).to_dict()}).encode()


def mutate(bundle: bytes, chance: random.Random) -> bytes:
    """One of the accidents and attacks that may befall a file."""
    length = int.from_bytes(bundle[:8], "little")
    ways = (_flip, _truncate, _extend, _lie_about_length, _edit_header, _edit_document, _edit_document, _edit_document)
    return chance.choice(ways)(bundle, 8 + length, chance)


def mutate_json(document: bytes, chance: random.Random) -> bytes:
    """The same of a file that is JSON."""
    if chance.random() < 0.3:
        ways = (_flip, _truncate, _extend)
        return chance.choice(ways)(document, len(document) // 2, chance)
    value = [json.loads(document)]
    for _ in range(chance.randint(1, 3)):
        _edit(value, chance)
        if not value or len(_text(value)) > 100_000:
            break
    return _text(value[0] if value else None).encode("utf-8", "surrogatepass")


def _flip(bundle: bytes, start: int, chance: random.Random) -> bytes:
    mutated = bytearray(bundle)
    region = chance.choice((range(8), range(8, start), range(start, len(bundle))))
    for _ in range(chance.randint(1, 8)):
        mutated[chance.choice(region)] ^= 1 << chance.randrange(8)
    return bytes(mutated)


def _truncate(bundle: bytes, start: int, chance: random.Random) -> bytes:
    return bundle[: chance.choice((chance.randrange(8), chance.randrange(start), chance.randrange(len(bundle))))]


def _extend(bundle: bytes, start: int, chance: random.Random) -> bytes:
    place = chance.choice((8, start, len(bundle)))
    return bundle[:place] + chance.randbytes(chance.randint(1, 99)) + bundle[place:]


def _lie_about_length(bundle: bytes, start: int, chance: random.Random) -> bytes:
    lengths = (0, 1, start - 9, start - 7, len(bundle) - 8, len(bundle), 2**23, 2**32, 2**63, 2**64 - 1)
    return chance.choice(lengths).to_bytes(8, "little") + bundle[8:]


def _edit_header(bundle: bytes, start: int, chance: random.Random) -> bytes:
    """Change what safetensors says about a tensor, or the metadata's form."""
    header = json.loads(bundle[8:start])
    if chance.random() < 0.5:  # as from a version that wrote none
        del header["__metadata__"]["checksums"]
    _edit(header, chance)
    return _packed(header, bundle[start:])


def _edit_document(bundle: bytes, start: int, chance: random.Random) -> bytes:
    """Change one to three values of what telescopic says about the network."""
    header = json.loads(bundle[8:start])
    document = json.loads(header["__metadata__"]["telescopic"])
    del header["__metadata__"]["checksums"]  # or every change would be damage
    for _ in range(chance.randint(1, 3)):
        _edit(document, chance)
        if len(text := _text(document)) > 100_000:  # repeating what is repeated would take all memory here
            break
    if chance.random() < 0.1:  # the same name twice
        text = text.replace("{", '{"class":"Linear",', chance.randint(1, 3))
    header["__metadata__"]["telescopic"] = text
    return _packed(header, bundle[start:])


def _edit(document: Any, chance: random.Random) -> None:
    parent, key = chance.choice(list(_places(document)))
    value = parent[key]
    action = chance.choice(("replace", "replace", "replace", "remove", "repeat", "add", "rename"))
    if action == "remove":
        del parent[key]
    elif action == "repeat" and isinstance(value, list):
        parent[key] = value * chance.choice((2, 100, 20_000))
    elif action == "add" and isinstance(value, dict):
        value[chance.choice(("extra", "class", "bias", "device", "__class__"))] = chance.choice(HOSTILE)()
    elif action == "rename" and isinstance(parent, dict):
        parent[chance.choice(("", "class", "a.b", "x" * 1000, "stages.0.0.weight"))] = parent.pop(key)
    elif isinstance(value, int | float) and chance.random() < 0.3:
        parent[key] = value + chance.choice((-1, 1, 0.5, 2**40))
    else:
        parent[key] = chance.choice(HOSTILE)()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs)[:1000]:
        yield value, key
        yield from _places(inner)


def _packed(header: Any, tensors: bytes) -> bytes:
    text = _text(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def _text(value: Any) -> str:
    """JSON, also of what is none (`Infinity`) and of what Python could not write (thousands of levels, of digits)."""
    text = json.dumps(value).replace('"@digits"', "9" * 5000)
    for levels in (40, 5000):
        text = text.replace(f'"@deep {levels}"', "[" * levels + "]" * levels)
    return text


def outcome(path: Path, subnet: Subnet | None) -> tuple[str, float]:
    """What loading a bundle comes to ("loaded", "BundleError", or what should not have been), and after how long."""
    return _tried(lambda: load(path, subnet), BundleError)


def resumed(path: Path) -> None:
    """Read a checkpoint as `fit` does. If it is refused, nothing may have been changed; else training goes on."""
    net = mlp(16, (8, 8), 3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    before = {name: tensor.clone() for name, tensor in named_tensors(net).items()}
    read_history(path)
    try:
        load_checkpoint(path, net, optimizer)
    except CheckpointError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(net).items())
        raise
    net.all(torch.randn(2, 16)).sum().backward()
    optimizer.step()


def listed(path: Path) -> None:
    """Read a catalogue, and show it."""
    table = Catalogue.from_json(path)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        Console(file=nowhere).print(table.table())
    table.choose()


def _tried(read: Callable[[], object], error: type[Exception], slow_s: float = SLOW_S) -> tuple[str, float]:
    start = time.process_time()  # not the clock on the wall, which others on this machine slow down
    try:
        read()
        result = "loaded"
    except error as refused:
        result = error.__name__ if str(refused).isprintable() else f"unprintable: {refused!r:.100}"
    except Exception as foreign:
        result = f"{type(foreign).__name__}: {foreign}"[:200]
    seconds = time.process_time() - start
    return (result if seconds < slow_s else f"{result} after {seconds:.1f} s"), seconds


def fuzzed(
    kinds: Mapping[str, tuple[Callable[[random.Random], Callable[[], object]], type[Exception]]],
    cases: Mapping[str, int],
    chance: random.Random,
    slow_s: float = SLOW_S,
) -> dict[str, Any]:
    """Read so many mutated files of each kind, and say what came of it.

    Args:
        kinds: name of a kind → what makes a mutated file and returns what reads it, and the error that it may raise.
        cases: how many files, by kind.
        chance: what decides about mutations.
        slow_s: processor time of a reading that counts as a failure.
    """
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    failures, slowest, growth = list[str](), 0.0, 0.0
    for kind, (made, error) in kinds.items():
        for case in range(cases[kind]):
            read = made(chance)
            before = _peak_mb()  # to make a file may take more than to read it
            faulthandler.dump_traceback_later(60, exit=True)
            result, seconds = _tried(read, error, slow_s)
            faulthandler.cancel_dump_traceback_later()
            slowest, growth = max(slowest, seconds), growth + _peak_mb() - before
            well = result in ("loaded", error.__name__)
            outcomes[kind][result if well else "failure"] += 1
            if not well:
                failures.append(f"{kind}, case {case}: {result}")
    if growth > MUCH_MB:
        failures.append(f"the peak of memory grew by {growth:.0f} MB")
    return {
        "outcomes": {kind: dict(counts) for kind, counts in outcomes.items()},
        "slowest, processor s": round(slowest, 3),
        "peak memory grew by MB": round(growth, 1),
        "failures": failures,
    }


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = families(folder)
        table = Bundle.open(folder / "mlp").catalogue
        assert table is not None
        table.to_json(folder / "table")
        runs_in = folder / "runs" / "one"
        runs_in.mkdir(parents=True)
        path = runs_in / "summary.json"
        kinds: dict[str, tuple[list[bytes], Callable[[bytes, random.Random], bytes], Callable[[int], Any], Any]] = {
            "bundle": ([b for b, _ in bundles], mutate, lambda _: load(path), BundleError),
            "member": ([b for b, _ in bundles], mutate, lambda which: load(path, bundles[which][1]), BundleError),
            "checkpoint": ([checkpoint(folder)], mutate, lambda _: resumed(path), CheckpointError),
            "catalogue": ([(folder / "table").read_bytes()], mutate_json, lambda _: listed(path), CatalogueError),
            "summary": ([summary()], mutate_json, lambda _: runs(folder / "runs"), SummaryError),
        }
        for originals, _, read, _ in kinds.values():  # what is whole must load, and takes the memory that it takes
            for which, whole in enumerate(originals):
                path.write_bytes(whole)
                read(which)

        def of(kind: str) -> Callable[[random.Random], Callable[[], object]]:
            originals, change, read, _ = kinds[kind]

            def made(chance: random.Random) -> Callable[[], object]:
                which = chance.randrange(len(originals))
                path.write_bytes(change(originals[which], chance))
                return partial(read, which)

            return made

        makers = {kind: (of(kind), error) for kind, (*_, error) in kinds.items()}
        figures = fuzzed(makers, dict.fromkeys(kinds, given.cases), random.Random(given.seed))
    results.write("fuzz-bundle", vars(given), figures)
    return 1 if figures["failures"] else 0


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    sys.exit(main())
