"""Checks, measures and trains on a machine with an NVIDIA GPU, for as many minutes as there are.

    python benchmarks/gpu.py [check] [measure] [train] --data FOLDER [--out runs/gpu] [--minutes 8]

*check* runs the tests that need a GPU. *measure* times a step of each method against the dense network, as it is
written, compiled, and as a CUDA graph. *train* repeats the papers' tables at the papers' size, in the order of worth:
what a piece of minutes does not finish the next one goes on with. All three are done if none is named. FOLDER has the
files of cifar10, which `telescopic data` can fetch elsewhere; nothing is downloaded here. What is missing on this
machine is said before anything else. `--jobs` names what to train, `--beside 3` trains three at a time, for one small
network leaves most of a GPU idle.

Where only a few small files come back from a machine, `--back FOLDER` puts results there, and checkpoints of runs that
are not finished and small enough; `--from FOLDER` goes on with them.

Everything is rehearsed without a GPU, in sizes that say nothing of speed or accuracy: `--rehearse`.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDS = ("torch", "numpy", "safetensors", "platformdirs", "typer", "rich", "lazy_loader", "accelerate", "matplotlib")
CHECKS = ("pytest", "onnx", "onnxscript", "onnxruntime", "hypothesis")
SMALL = 15 * 2**20
STEPS = ("check", "measure", "train")


def missing(steps: list[str], *, gpu: bool) -> list[str]:
    """All that this machine lacks, each as a sentence."""
    wanted = (*NEEDS, *(CHECKS if "check" in steps else ()))
    found = [f"the package {name} is not installed" for name in wanted if importlib.util.find_spec(name) is None]
    try:
        importlib.metadata.version("telescopic")
    except importlib.metadata.PackageNotFoundError:
        found.append("telescopic itself is not installed, which says its version")
    if gpu and importlib.util.find_spec("torch") is not None:
        import torch

        if not torch.cuda.is_available():
            found.append(f"torch {torch.__version__} sees no GPU: use --rehearse to try without one")
    return found


REMEDY = """Where there is a network: python -m pip wheel --no-deps --wheel-dir wheels . NAME NAME ...
Here: python -m pip install --no-index --no-deps wheels/*.whl"""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: the papers' sizes, or next to nothing."""

    data: str = "cifar10"
    scale: float = 1.0
    cnsn_epochs: int | None = None
    nested: Mapping[str, Any] | None = None
    models: int = 50
    search_epochs: int | None = None


@dataclass(frozen=True)
class Given:
    """What a job gets: sizes, folders, precision, and whether it is late."""

    sizes: Sizes
    data_dir: Path | None
    out: Path
    precision: str
    device: Any
    late: Callable[[], bool]


def jobs(sizes: Sizes) -> dict[str, Callable[[Given], None]]:
    """What is trained, in the order of worth."""
    from telescopic.papers import doubly_nested, shrinknets

    found: dict[str, Callable[[Given], None]] = {}
    for batch in (32, 128):
        for name in ("joint", "alone-0"):
            found[f"cnsn-{batch}/{name}"] = partial(_cnsn, batch, name)
    for name in dict.fromkeys(("uniform", doubly_nested.BEST_WAY, "dense", "alone")):
        found[f"doubly-nested/{name}"] = partial(_nested, name)
    for network in ("mlp", "lenet"):
        for kind in reversed(shrinknets.KINDS):
            found[f"figure2/{network}-{kind}"] = partial(_figure_2, network, kind)
    return found


def _cnsn(batch: int, name: str, given: Given) -> None:
    """Table 1 of CNSN."""
    from telescopic.papers import cnsn_runs

    options: dict[str, Any] = {} if batch == 32 else {"batch": batch}
    options |= {"scale": given.sizes.scale, "epochs": given.sizes.cnsn_epochs}
    _reproduce(cnsn_runs, f"cnsn-{batch}", name, given, options)


def _nested(name: str, given: Given) -> None:
    """All members of Doubly Nested Network, and its twins."""
    from telescopic.papers import doubly_nested_runs

    options = {"epochs": 150} if given.sizes.nested is None else dict(given.sizes.nested)
    _reproduce(doubly_nested_runs, "doubly-nested", name, given, options)


def _reproduce(module: Any, folder: str, name: str, given: Given, options: dict[str, Any]) -> None:
    from telescopic.papers import reproduce

    about = {"data": given.sizes.data, "data_dir": given.data_dir, "precision": given.precision, "progress": None}
    reproduce.reproduce(module.PAPER, given.out / folder, only=[name], **about, **options)


def _figure_2(network: str, kind: str, given: Given) -> None:
    """A cell of ShrinkNets' Figure 2, its models trained together."""
    from telescopic.data import load
    from telescopic.papers import shrinknets
    from telescopic.papers.search.results import read_csv, write_csv

    import together

    sizes, epochs = given.sizes, given.sizes.search_epochs or shrinknets.EPOCHS[network]
    folder = given.out / "figure2"
    table, state = folder / f"{network}-{kind}.csv", folder / f"{network}-{kind}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    done = read_csv(table) if table.exists() else []
    drawn = together.draw(sizes.data, network, kind, epochs, sizes.models)
    if len(done) == len(drawn):
        return
    whole = load(sizes.data, data_dir=given.data_dir, validation=0, download=False)
    images = load(sizes.data, data_dir=given.data_dir, validation=len(whole.train) // 5, download=False)
    for group in together.groups(drawn, 25 if kind == "shrinknets" else 10):
        if {model.number for model in group} <= {model.number for model in done}:
            continue
        training = together.Together(images, network, kind, group, epochs=epochs, device=given.device)
        if training.load(state):
            say(f"{state} goes on behind epoch {len(training.seen)}")
        try:
            finished = training.run(given.late, say)
        finally:
            training.save(state)
        if not finished:
            raise KeyboardInterrupt(f"stopped after epoch {len(training.seen)}; saved in {state}")
        done = sorted([*done, *training.models()], key=lambda model: model.number)
        write_csv(table, done)
        state.unlink()


def check(out: Path, *, rehearse: bool, seconds: float) -> bool:
    """Run the tests that need a GPU; without one see that they are there. What they say is kept."""
    files = sorted(map(str, (HERE.parent / "tests").glob("test_cuda*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files]
    command += ["--collect-only"] if rehearse else ["-rfE", "--tb=short"]
    try:
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired as error:
        (out / "check.txt").write_bytes(error.stdout or b"")
        say("the time was over before all was checked")
        return False
    (out / "check.txt").write_text(done.stdout + done.stderr)
    say(done.stdout[-3000:])
    return done.returncode == 0


def measured(given: Given, *, tiny: bool) -> None:
    """Write measure.json anew after each figure."""
    from telescopic.cost import machine
    from telescopic.provenance import commit, versions

    import gpu_steps

    figures = {}
    for name, row in gpu_steps.measure(given.device, tiny=tiny, late=given.late, told=say):
        figures[name] = row
        about = {"figures": figures, "machine": machine(), "versions": versions(), "commit": commit()}
        (given.out / "measure.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def train(given: Given, names: list[str], beside: int, command: list[str], left: Callable[[], float]) -> bool:
    """Do jobs in turn, or several at a time, each in a process that gets the minutes left; whether all went well."""
    todo = jobs(given.sizes)
    if unknown := set(names) - todo.keys():
        raise SystemExit(f"there is no job {', '.join(sorted(unknown))}; there are {', '.join(todo)}")
    chosen = [name for name in todo if name in names or not names]
    if beside > 1:

        def apart(name: str) -> int:
            if given.late():
                return 0
            say(f"--- {name}")
            code = subprocess.run([*command, "--minutes", f"{left():.2f}", "--jobs", name]).returncode
            if code:
                say(f"--- {name} ended with {code}")
            return code

        with ThreadPoolExecutor(beside) as pool:
            return not any(list(pool.map(apart, chosen)))
    for name in chosen:
        if given.late():
            break
        say(f"--- {name}")
        todo[name](given)
    return True


def tables(out: Path) -> None:
    """What was reached so far, beside the papers' numbers, into tables.txt."""
    from rich.console import Console

    from telescopic.papers import cnsn_runs, doubly_nested_runs, reproduce
    from telescopic.papers.search.results import read_csv, results

    with (out / "tables.txt").open("w", encoding="utf-8") as file:
        console = Console(file=file, width=120)
        for folder, module in (("cnsn-32", cnsn_runs), ("cnsn-128", cnsn_runs), ("doubly-nested", doubly_nested_runs)):
            if reproduce.runs(out / folder):
                console.print(*reproduce.tables(module.PAPER, out / folder), sep="\n")
        for network in ("mlp", "lenet"):
            files = sorted((out / "figure2").glob(f"{network}-*.csv"))
            if found := [model for file in files for model in read_csv(file)]:
                console.print(results(found, "cifar10", network))


def pack(out: Path, back: Path) -> None:
    """Put into a folder what is small: one file of all results, and one of each unfinished run's checkpoints."""
    back.mkdir(parents=True, exist_ok=True)
    texts = [f for f in sorted(out.rglob("*")) if f.suffix in (".json", ".csv", ".txt") and f.is_file()]
    with tarfile.open(back / "results.tar.gz", "w:gz") as archive:
        for file in texts:
            archive.add(file, file.relative_to(out))
    unfinished = [f.parent for f in sorted(out.rglob("last.safetensors")) if not (f.parent / "summary.json").exists()]
    groups = [[*folder.glob("*.safetensors")] for folder in unfinished]
    groups += [[file] for file in sorted((out / "figure2").glob("*.safetensors"))]
    kept = 0
    for files in groups:
        name = "-".join(files[0].relative_to(out).with_suffix("").parts)
        if sum(file.stat().st_size for file in files) > SMALL or kept == 7:
            say(f"{name} does not come back: its checkpoints have {sum(f.stat().st_size for f in files) >> 20} MiB")
            continue
        kept += 1
        with tarfile.open(back / f"state-{name}.tar", "w") as archive:
            for file in files:
                archive.add(file, file.relative_to(out))


def unpack(back: Path, out: Path) -> None:
    """The reverse."""
    for file in sorted(back.glob("*.tar*")):
        with tarfile.open(file) as archive:
            archive.extractall(out, filter="data")


@contextmanager
def stopping(seconds: float) -> Iterator[Callable[[], bool]]:
    """After so many seconds the work inside is interrupted, as by Ctrl-C, which training answers by saving."""
    until = time.monotonic() + seconds
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield lambda: time.monotonic() >= until
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def say(sentence: str) -> None:
    """Print at once."""
    print(sentence, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Do what is asked, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", help=f"of {', '.join(STEPS)}; all by default")
    parser.add_argument("--data", type=Path, help="folder with the files of cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="after which everything is saved, and ends")
    parser.add_argument("--jobs", nargs="*", default=[], help="what to train")
    parser.add_argument("--beside", type=int, default=1, help="jobs that are trained at a time")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--back", type=Path, help="folder for what comes back")
    parser.add_argument("--from", dest="begun", type=Path, help="folder of what came back before")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, in next to no time")
    args = parser.parse_args(argv)
    began = time.monotonic()
    steps = args.steps or list(STEPS)
    if unknown := set(steps) - set(STEPS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    if lacking := missing(steps, gpu=not args.rehearse):
        say("\n".join(lacking) + f"\n{REMEDY}")
        return 2

    import torch

    from telescopic.data import DataError, load

    args.out.mkdir(parents=True, exist_ok=True)
    if args.begun is not None:
        unpack(args.begun, args.out)
    sizes = rehearsed(args.out / "rehearsal.npz") if args.rehearse else Sizes()
    try:
        if "train" in steps:
            load(sizes.data, data_dir=args.data, download=False)
    except DataError as error:
        say(f"the images are not here, say where with --data: {error}")
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() and not args.rehearse else "cpu")
    command = [sys.executable, str(HERE / "gpu.py"), "train", "--out", str(args.out), "--precision", args.precision]
    command += ["--rehearse"] if args.rehearse else []
    command += [] if args.data is None else ["--data", str(args.data)]
    good = True
    left = 60 * args.minutes - (time.monotonic() - began)
    try:
        with stopping(left) as late:
            given = Given(sizes, args.data, args.out, args.precision, device, late)
            if "check" in steps:
                good = check(args.out, rehearse=args.rehearse, seconds=left)
            if "measure" in steps:
                measured(given, tiny=args.rehearse)
            if "train" in steps:
                over = began + 60 * args.minutes - 6  # seconds
                good &= train(given, args.jobs, args.beside, command, lambda: (over - time.monotonic()) / 60)
    except KeyboardInterrupt as stopped:
        say(str(stopped) or "the time is over")
    tables(args.out)
    if args.back is not None:
        pack(args.out, args.back)
    return 0 if good else 1


def rehearsed(file: Path) -> Sizes:
    """Next to nothing to learn from."""
    import numpy as np

    nested = {"epochs": 2, "groups": 4, "blocks": 1}
    sizes = Sizes(str(file), scale=0.05, cnsn_epochs=1, nested=nested, models=2, search_epochs=1)
    if file.exists():  # another process, beside this one, reads it
        return sizes

    random = np.random.default_rng(0)
    labels = np.arange(100) % 10
    images = random.integers(256, size=(100, 3, 32, 32)).astype(np.uint8)
    np.savez(file, images=images, labels=labels)
    return sizes


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.path.insert(0, str(HERE))
    sys.exit(main())
