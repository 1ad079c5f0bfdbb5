"""A run that was stopped, by a signal or by a kill, ends with exactly the weights of one that never was.

As a program (`python tests/test_resume.py FOLDER`) it is the victim: it forks runs and kills them at random moments.
"""

import copy
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telescopic.bundle import save
from telescopic.data import Augment, Dataset, Preprocess, Split
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.shrink.family import add_filters_to_family, filters
from telescopic.train import CheckpointError, History, Objective, Recipe, Shrink, evaluate, fit, pairwise
from telescopic.train.checkpoint import load_checkpoint, read_facts
from telescopic.train.keeper import continued
from telescopic.train.optimizer import optimizer_for

LAST, BEST, LOG, MODEL = "last.safetensors", "best.safetensors", "log.csv", "model.safetensors"
TABLES = ("catalogue.csv", "catalogue.json")
RECIPE = Recipe(
    epochs=4,
    batch_size=16,
    learning_rate=0.05,
    milestones=(3,),
    l2=1e-3,
    mix=pairwise(3),
    augment=Augment(pad=1, flip=True),
)


@cache
def data(num: int = 120, seed: int = 0, name: str = "quadrants") -> Dataset:
    """4 × 4 pixels, one quadrant of which is brighter: which one is the class. The last batch is a small one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(128, (num, 1, 4, 4), generator=generator)
    labels = torch.randint(4, (num,), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[0, row : row + 2, column : column + 2] += 70
    split = Split(images.to(torch.uint8), labels)
    part = [Split(split.images[s], split.labels[s]) for s in (slice(40), slice(40, 60), slice(60, None))]
    return Dataset(name, part[2], part[0], part[1], tuple("abcd"), "made")


def layers() -> Nested:
    """A copy of the one that is made once."""
    torch.manual_seed(0)
    return copy.deepcopy(_layers())


@cache
def _layers() -> Nested:
    return mlp(16, (16, 16), 4, dropout=(0.2, 0.5))


def convolutions() -> Nested:
    """With running statistics, of which each entry has its own."""
    torch.manual_seed(0)

    def block(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())

    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    entries = {0: nn.Identity(), 1: nn.Conv2d(1, 3, 1), 2: nn.Conv2d(1, 3, 1)}
    return Nested([block(1), block(3)], entries, {1: head}, dropout=(0.1,), statistics="per-entry")


@cache
def learning() -> tuple[Nested, Nested]:
    """Two that learn their widths."""
    torch.manual_seed(0)
    nets = convolutions(), mlp(16, (40,), 4, entries=(0,))
    first, second = (add_filters_to_family(net, torch.rand(2, 1, 4, 4)) for net in nets)
    return first, second


def filtered() -> Nested:
    return copy.deepcopy(learning()[0])


def one_filtered() -> Nested:
    return copy.deepcopy(learning()[1])


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_times(history: History) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(e).items() if k not in ("seconds", "images_per_s", "compacting")} for e in history]


def run(net: Nested, out: Path, recipe: Recipe = RECIPE, **options: Any) -> History:
    options = {"resume": True, "keep": "last", "progress": False, "precision": "fp32"} | options
    return fit(net, options.pop("data", data()), recipe, out=out, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], None]:
    """Puts a run of `layers` into a folder; one of so many epochs is trained once."""

    @cache
    def made(epochs: int) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        run(layers(), folder, replace(RECIPE, epochs=epochs))
        return folder

    def put(folder: Path, epochs: int) -> None:
        shutil.copytree(made(epochs), folder, dirs_exist_ok=True)

    return put


@pytest.fixture
def interrupting() -> Iterator[Callable[[int], None]]:
    """Sends itself Ctrl-C in the forward pass of a given number."""
    left = [0]

    def maybe(module: nn.Module, args: object, out: object) -> None:
        if isinstance(module, Objective):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

    def plan(passes: int) -> None:
        left[0] = passes

    handle = nn.modules.module.register_module_forward_hook(maybe)
    yield plan
    handle.remove()


CYCLE = replace(RECIPE, schedule="one-cycle", milestones=(), warmup=0.7, weight_decay=1e-3, nesterov=True)


ADAM = replace(RECIPE, epochs=3, mix=None, l2=0.0, optimizer="adam", learning_rate=0.02, shrink=Shrink(penalty=0.3))
PROXIMAL = replace(ADAM, shrink=Shrink(penalty=0.1, method="proximal", by="macs", collect=3))
RANDOM = replace(ADAM, optimizer="sgd", shrink=Shrink(penalty=0.5, method="random", level=0.3))


PLAIN = replace(RECIPE, mix=None)
MASKED = replace(ADAM, shrink=Shrink(penalty=0.3, collect=None))


@pytest.mark.parametrize(
    ("build", "recipe", "keep"),
    [
        (layers, RECIPE, "best"),
        (layers, RECIPE, "last"),
        (layers, CYCLE, "last"),
        (convolutions, PLAIN, "last"),
        (one_filtered, ADAM, "best"),
        (one_filtered, PROXIMAL, "last"),
        (filtered, RANDOM, "best"),
        (filtered, MASKED, "last"),
    ],
)
def test_interrupted_anywhere_it_ends_bit_for_bit_alike(
    tmp_path: Path, interrupting: Callable[[int], None], build: Callable[[], Nested], recipe: Recipe, keep: str
) -> None:
    """In the first batch, within an epoch, in its last batch, twice in one epoch, in the last epoch."""
    whole = build()
    history = run(whole, tmp_path / "whole", recipe, keep=keep)
    if recipe.shrink is not None:
        assert history[-1].widths < tuple(len(part.theta) for part in filters(build()).values()), "or nothing is tested"
    for passes in (1, 3, 4, 1, 2):  # 4 batches an epoch
        interrupting(passes)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(build(), tmp_path / "halved", recipe, keep=keep)
    net = build()
    torch.manual_seed(123)  # what the process drew before does not matter
    again = run(net, tmp_path / "halved", recipe, keep=keep)
    assert same(state(net), state(whole))
    assert without_times(again) == without_times(history)
    for name in (LAST, BEST):
        assert same(load_file(tmp_path / "halved" / name), load_file(tmp_path / "whole" / name))


def test_more_epochs_go_on_where_the_run_ended(tmp_path: Path) -> None:
    whole, net = layers(), layers()
    history = run(whole, tmp_path / "whole")
    run(net, tmp_path / "longer", replace(RECIPE, epochs=2), keep="best")
    again = run(net, tmp_path / "longer")
    assert same(state(net), state(whole)) and without_times(again) == without_times(history)


def test_milestones_to_come_may_change_and_those_that_passed_may_not(tmp_path: Path) -> None:
    """What goes on is always the run that would have had the new recipe from its first step."""
    changed = replace(RECIPE, epochs=6, milestones=(3, 5))
    whole, net = layers(), layers()
    history = run(whole, tmp_path / "whole", changed)
    run(layers(), tmp_path / "run", RECIPE)
    for passed in ((2, 5), (5,), (3, 2, 5)):
        message = rf"milestones = \[3\], not \({passed[0]},.*: of the 4 epochs that it has begun none may change"
        with pytest.raises(CheckpointError, match=message):
            run(layers(), tmp_path / "run", replace(changed, milestones=passed))
    again = run(net, tmp_path / "run", replace(changed, milestones=(5, 3)))
    assert same(state(net), state(whole)) and without_times(again) == without_times(history)
    assert [epoch.learning_rate for epoch in again] == pytest.approx([0.05] * 3 + [0.005] * 2 + [0.0005])


def test_a_milestone_may_still_fall_on_the_epoch_that_ended_last(
    tmp_path: Path, interrupting: Callable[[int], None]
) -> None:
    """Behind it no batch was trained; one batch later it is too late."""
    run(layers(), tmp_path, replace(RECIPE, epochs=2))
    interrupting(1)
    with pytest.raises(KeyboardInterrupt, match="in epoch 3 after 1 batches"):
        run(layers(), tmp_path, replace(RECIPE, milestones=(2,)))
    with pytest.raises(CheckpointError, match=r"milestones = \[2\], not \(3,\): of the 3 epochs"):
        run(layers(), tmp_path, RECIPE)


def test_a_longer_recipe_of_a_paper_goes_on_with_the_milestones_of_the_run(tmp_path: Path) -> None:
    assert continued(RECIPE, tmp_path) is RECIPE
    run(layers(), tmp_path, RECIPE)
    longer = replace(RECIPE, epochs=8, milestones=(6,))
    assert continued(longer, tmp_path) == replace(longer, milestones=(3,))
    assert continued(CYCLE, tmp_path) is CYCLE
    assert len(run(layers(), tmp_path, continued(replace(longer, epochs=5), tmp_path))) == 5


def test_a_cycle_cannot_be_made_longer_when_it_has_begun(tmp_path: Path) -> None:
    run(layers(), tmp_path, replace(CYCLE, epochs=2))
    with pytest.raises(CheckpointError, match="was trained with epochs = 2, not 4: the rate of one cycle depends on"):
        run(layers(), tmp_path, CYCLE)


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    best, net = layers(), layers()
    history = run(best, tmp_path, keep="best")
    written = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != BEST}
    again = run(net, tmp_path, keep="best", on_epoch=lambda history: pytest.fail("trained"))
    assert list(again) == list(history) and same(state(net), state(best)) and not net.training
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != BEST} == written
    fewer = run(net, tmp_path, replace(RECIPE, epochs=2), on_epoch=lambda history: pytest.fail("trained"))
    assert list(fewer) == list(history)


def test_resume_without_a_run_starts_one(tmp_path: Path) -> None:
    one, two = layers(), layers()
    run(one, tmp_path / "one", resume=False)
    run(two, tmp_path / "two", resume=True)
    assert same(state(one), state(two))


def test_killed_between_its_two_files_it_has_lost_nothing(tmp_path: Path) -> None:
    """The last checkpoint is written first: where it is itself the best epoch, the copy can be made again."""

    class Killed(Exception):
        pass

    def kill(history: History) -> None:
        if len(history) > 1 and history.best() is history[-1]:
            raise Killed

    with pytest.raises(Killed):
        run(layers(), tmp_path, replace(RECIPE, epochs=20), on_epoch=kill)
    done, stored = read_facts(tmp_path / LAST)["position"].epoch - 1, load_file(tmp_path / BEST)
    (tmp_path / BEST).unlink()
    net = layers()
    history = run(net, tmp_path, replace(RECIPE, epochs=done), keep="best")
    assert history.best().epoch == done > 1
    assert evaluate(net, [data().validation], Preprocess())[0].tolist() == list(history.best().validation)
    assert same(load_file(tmp_path / BEST), stored)


def test_the_best_weights_are_missed_where_they_are_needed(tmp_path: Path, interrupting: Callable[[int], None]) -> None:
    """Stopped within epoch 2, so the weights of the best epoch are only in their own file."""
    interrupting(6)
    with pytest.raises(KeyboardInterrupt):
        run(layers(), tmp_path)
    before = (tmp_path / LAST).read_bytes()
    (tmp_path / BEST).unlink()
    with pytest.raises(CheckpointError, match=f"there is no checkpoint .*{BEST}: put it back"):
        run(layers(), tmp_path)
    assert (tmp_path / LAST).read_bytes() == before


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    """Also when nothing is left to be trained, and so nothing to be written."""
    for _ in range(2):
        (tmp_path / f".telescopic-{7:016x}.tmp").mkdir()
        (tmp_path / f".telescopic-{7:016x}.tmp" / ".lock").touch()
        (tmp_path / f".telescopic-{7:016x}.tmp" / LAST).write_bytes(b"half")
        (tmp_path / ".mine.tmp").write_bytes(b"not ours")
        (tmp_path / ".lock").write_bytes(b"of one that was killed")
        run(layers(), tmp_path, replace(RECIPE, epochs=1))
        assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.tmp", BEST, *TABLES, LAST, LOG, MODEL]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipe": replace(RECIPE, learning_rate=0.06)}, r"trained with learning_rate = 0\.05, not 0\.06"),
        ({"recipe": replace(RECIPE, milestones=(2,))}, r"trained with milestones = \[3\], not \(2,\)"),
        ({"recipe": replace(RECIPE, mix=None)}, "trained with mix = .*, not None"),
        ({"recipe": replace(RECIPE, augment=Augment(pad=1))}, "trained with augment = .*True}, not .*False}"),
        ({"seed": 1}, "trained with seed = 0, not 1"),
        ({"data": data(name="other")}, "trained with data = quadrants, not other"),
        ({"data": data(num=121)}, "trained with train_images = 60, not 61"),
        ({"precision": "bf16"}, "trained with precision = fp32, not bf16"),
    ],
)
def test_another_run_is_refused_and_its_field_named(
    trained: Callable[[Path, int], None], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    trained(tmp_path, RECIPE.epochs)
    before, net = {p.name: p.read_bytes() for p in tmp_path.iterdir()}, layers()
    with pytest.raises(CheckpointError, match=message + ": .*. Or start a new run in another folder"):
        run(net, tmp_path, **changed)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert same(state(net), state(layers()))


def test_equal_numbers_of_another_kind_are_the_same_run(tmp_path: Path) -> None:
    run(layers(), tmp_path, replace(RECIPE, epochs=1, l2=0))
    run(layers(), tmp_path, replace(RECIPE, epochs=2, l2=0.0))


def test_another_network_is_refused_and_left_alone(trained: Callable[[Path, int], None], tmp_path: Path) -> None:
    trained(tmp_path, 1)
    other = mlp(16, (16, 8), 4)
    before = state(other)
    with pytest.raises(CheckpointError, match=r"of another network: entries\.2\.1\.bias, .* differ in name or shape"):
        run(other, tmp_path)
    assert same(state(other), before)


def newer(path: Path) -> None:
    save_file({}, path, metadata={"telescopic": json.dumps({"format": 99})})


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (halved, "file not fully covered|incomplete metadata|MetadataIncompleteBuffer"),
        (lambda path: path.write_bytes(b""), "the file has 0, and a header at most"),
        (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "the file has 5000, and a header"),
        (lambda path: (path.unlink(), path.mkdir()), "there is no checkpoint .*last.safetensors"),
        (lambda path: save_file({"w": torch.zeros(3)}, path), "says nothing about a run"),
        (lambda path: save_file({}, path, metadata={"telescopic": "[1]"}), "has checkpoint format None"),
        (newer, "has checkpoint format 99; this version reads 1"),
        (lambda path: save(layers(), path), "checkpoint"),
        (lambda path: shutil.copy(path.with_name(BEST), path), f"no run to go on with: is it a copy of {BEST}"),
    ],
)
def test_damaged_and_foreign_files_are_refused_and_kept(
    trained: Callable[[Path, int], None], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    trained(tmp_path, 1)
    damage(tmp_path / LAST)
    before = (tmp_path / LAST).read_bytes() if (tmp_path / LAST).is_file() else None
    net = layers()
    with pytest.raises(CheckpointError, match=message):
        run(net, tmp_path)
    assert before is None or (tmp_path / LAST).read_bytes() == before
    assert same(state(net), state(layers()))


def test_no_damage_to_a_header_raises_anything_else(trained: Callable[[Path, int], None], tmp_path: Path) -> None:
    trained(tmp_path, 1)
    whole, chance = (tmp_path / LAST).read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    outcomes, net, blank = [], layers(), state(layers())
    for _ in range(300):
        mutated = bytearray(whole)
        if chance.random() < 0.3:
            del mutated[chance.randrange(len(whole)) :]
        else:
            mutated[chance.randrange(header)] ^= 1 << chance.randrange(8)
        (tmp_path / LAST).write_bytes(mutated)
        try:
            load_checkpoint(tmp_path / LAST, net, optimizer_for(net, RECIPE, torch.device("cpu")))
            outcomes.append(True)
            net = layers()
        except CheckpointError:
            outcomes.append(False)
            assert same(net.state_dict(), blank), "nothing may have been changed"
    assert outcomes.count(False) > 200


def changed(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change what a checkpoint says, and what its header says of its tensors, as no damage could."""
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    del header["__metadata__"]["checksums"]
    meta = json.loads(header["__metadata__"]["telescopic"])
    change(meta, header)
    header["__metadata__"]["telescopic"] = json.dumps(meta)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, h: m["position"].update(epoch="2"), "its epoch is '2'"),
        (lambda m, h: m["position"].update(epoch=0), "its epoch is 0"),
        (lambda m, h: m["position"].update(batch=2**64), "its batch is 18446744073709551616"),
        (lambda m, h: m["position"].update(sums=[None]), "it has None for seconds or a sum"),
        (lambda m, h: m["position"].update(sums={}), "it has None for seconds or a sum"),
        (lambda m, h: m["position"].update(seconds=float("nan")), "it has nan for seconds"),
        (lambda m, h: m["position"].update(sums=[10**400]), "it has 10{49} for seconds or a sum"),
        (lambda m, h: m["history"]["epochs"][0].update(loss=10**400), "loss of an epoch cannot be "),
        (lambda m, h: m["position"].update(more=1), "does not say where that was"),
        (lambda m, h: m.update(position=[]), "does not say where that was"),
        (lambda m, h: m.update(history=[]), "a history is a mapping"),
        (lambda m, h: m["history"].update(full=7), "one of 3 members of a history, not 7"),
        (lambda m, h: m["history"].update(labels=["a"]), "full network is one of 1 members"),
        (lambda m, h: m["history"].update(labels=["a", "b", "c"]), "is of another network: it has the members a, b, c"),
        (lambda m, h: m["history"]["epochs"][0].update(losses=[1.0]), "losses of an epoch has 1 values for 3 members"),
        (lambda m, h: m["history"]["epochs"][0].update(test=None), "test of an epoch cannot be None"),
        (lambda m, h: m["history"]["epochs"][0].pop("loss"), "lacks something: .*'loss'"),
        (lambda m, h: m["history"]["epochs"][0].update(extra=1), "has something unknown"),
        (lambda m, h: m["history"]["epochs"].append(3), "has something unknown"),
        (lambda m, h: m.update(recipe=3), "its recipe cannot be read"),
        (lambda m, h: m["recipe"].update(milestones=["a"]), "milestones that are no whole numbers"),
        (lambda m, h: m["recipe"].update(milestones=None), "its recipe cannot be read"),
        (lambda m, h: m.pop("recipe"), "no run to go on with"),
        (lambda m, h: h["net/stages.0.0.bias"].update(dtype="I32"), r"stages\.0\.0\.bias differ in type"),
        (lambda m, h: h.update({"optimizer/99/a": h.pop("optimizer/0/momentum_buffer")}), "belongs to no parameter"),
        (
            lambda m, h: h["optimizer/0/momentum_buffer"].update(shape=[*h["optimizer/0/momentum_buffer"]["shape"], 1]),
            "'optimizer/0/momentum_buffer' of shape .* belongs to no parameter",
        ),
    ],
)
def test_what_no_run_has_written_is_refused(
    trained: Callable[[Path, int], None], tmp_path: Path, change: Any, message: str
) -> None:
    trained(tmp_path, 1)
    changed(tmp_path / LAST, change)
    net = layers()
    with pytest.raises(CheckpointError, match=message):
        run(net, tmp_path)
    assert same(state(net), state(layers()))


def test_a_flipped_bit_of_a_weight_is_noticed(trained: Callable[[Path, int], None], tmp_path: Path) -> None:
    trained(tmp_path, 1)
    for name in (LAST, BEST):
        whole = (tmp_path / name).read_bytes()
        damaged = bytearray(whole)
        damaged[-3] ^= 4
        (tmp_path / name).write_bytes(damaged)
        net = layers()
        with pytest.raises(CheckpointError, match=r"it is damaged: '(net|optimizer)/.*' has another checksum"):
            load_checkpoint(tmp_path / name, net, optimizer_for(net, RECIPE, torch.device("cpu")))
        assert same(state(net), state(layers()))
        (tmp_path / name).write_bytes(whole)


def test_a_checkpoint_holds_every_tensor_once_and_no_pickle(tmp_path: Path) -> None:
    net = convolutions()
    run(net, tmp_path)
    stored = load_file(tmp_path / LAST)
    parameters = sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() for b in net.buffers())
    assert sum(t.numel() for name, t in stored.items() if name.startswith("net/")) == parameters + buffers
    assert sum(t.numel() for name, t in stored.items() if name.startswith("optimizer/")) == parameters
    assert not (set(load_file(tmp_path / BEST)) - {name for name in stored if name.startswith("net/")})


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Runs that save after every batch, killed with -9 again and again until they have finished all the same."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] >= 5
    whole = json.loads((tmp_path / "whole" / "history.json").read_text())
    assert len(whole) == 4 and len(report["runs"]) > 2
    for name in report["runs"]:
        assert json.loads((tmp_path / name / "history.json").read_text()) == whole
        for file in ("end.safetensors", LAST, BEST):
            assert same(load_file(tmp_path / name / file), load_file(tmp_path / "whole" / file)), (name, file)
        assert (tmp_path / name / LOG).read_text().count("\n") == 5
        assert not list((tmp_path / name).glob(".*")), "no half-written file stays"
    for number in ("SIGINT", "SIGTERM"):
        message = (tmp_path / number / "message").read_text()
        assert message.startswith("stopped in epoch ") and "last.safetensors; resume=True (--resume) goes on" in message


def _in_a_process(out: Path) -> int:
    """Train, or go on, in a forked process: its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        net = layers()
        history = run(net, out, checkpoint_seconds=0.0)
        save_file(state(net), out / "end.safetensors")
        (out / "history.json").write_text(json.dumps(without_times(history)))
        code = 0
    except KeyboardInterrupt as stopped:
        (out / "message").write_text(str(stopped))
        code = 130
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _ended(child: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    """Forks, because a fresh Python with torch takes seconds; this process itself only imports what they need."""
    for module in ("accelerate", "torch._dynamo", "torch.distributed.tensor"):
        importlib.import_module(module)
    began = time.monotonic()
    assert _ended(_in_a_process(folder / "whole")) == 0
    seconds, chance, kills, runs = time.monotonic() - began, random.Random(), 0, []
    while kills < 5 and len(runs) < 20:
        runs.append(f"killed-{len(runs)}")
        for moment in (*(chance.uniform(0, 0.7 * seconds) for _ in range(3)), None):
            child = _in_a_process(folder / runs[-1])
            if moment is not None:
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
            code = _ended(child)
            assert code in (0, -signal.SIGKILL), code
            kills += code != 0
    for number in (signal.SIGINT, signal.SIGTERM):
        runs.append(number.name)
        child = _in_a_process(folder / number.name)
        while not (folder / number.name / LAST).exists():
            time.sleep(0.001)
        os.kill(child, number)
        codes = _ended(child), _ended(_in_a_process(folder / number.name))
        assert codes == (130, 0), codes
    print(json.dumps({"kills": kills, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
