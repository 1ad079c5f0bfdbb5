import dataclasses
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import telescopic as tl
from telescopic import provenance
from telescopic.engine import timings as tables
from telescopic.engine.given import Given
from telescopic.engine.lanes import Lane
from telescopic.engine.timings import Timing, Timings
from telescopic.subnet import Subnet

from packs import wrong_among_threads

SHAPE = (2, 8, 8)
CELLS = [(-1, 1), (0, 1), (1, 1), (1, 2)]  # exit and width, smallest first
MEMBERS = [Subnet(entry=0, exit=exit_, width=width) for exit_, width in CELLS]
ACCURACIES = [0.5, 0.75, 0.7, 0.9]
PREPROCESS = tl.Preprocess((0.5, 0.25), (0.5, 2.0))


@pytest.fixture(scope="module")
def net() -> tl.Nested:
    torch.manual_seed(0)
    net = tl.networks.causal_resnet(2, (2, 4), blocks=1, classes=4, in_channels=2)
    net.train()
    net.all(torch.randn(16, *SHAPE))
    return net.eval()


@pytest.fixture(scope="module")
def folder(net: tl.Nested, tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = dict(zip(MEMBERS, ACCURACIES, strict=True))
    found = tl.measure(net, input_shape=SHAPE)
    catalogue = replace(found, members=tuple(replace(m, score=known.get(m.subnet, 0.1)) for m in found))
    to = tmp_path_factory.mktemp("packs") / "small.telescope"
    return tl.pack(net, to, members=MEMBERS, catalogue=catalogue, preprocess=PREPROCESS)


@pytest.fixture
def engine(folder: Path) -> tl.Engine:
    return tl.Engine(folder, cache=False)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, *SHAPE), np.float32)


def told(engine: tl.Engine, ms: dict[int, list[float]], threads: int = 1) -> None:
    """Give an engine a table instead of measuring: batch → milliseconds of each member."""
    rows = [
        Timing(subnet, batch, threads, value, 1.5 * value)
        for batch, values in ms.items()
        for subnet, value in zip(MEMBERS, values, strict=True)
    ]
    engine._timings = engine._timings.merged(rows)


def expected(net: tl.Nested, x: np.ndarray, subnet: Subnet) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(x), subnet).numpy()


def test_runs_the_member_that_is_named(engine: tl.Engine, net: tl.Nested, x: np.ndarray) -> None:
    assert [member.subnet for member in engine.members] == MEMBERS
    for subnet, accuracy in zip(MEMBERS, ACCURACIES, strict=True):
        answer = engine.run(x, subnet=subnet)
        np.testing.assert_allclose(answer.logits, expected(net, x, subnet), rtol=1e-4, atol=1e-5)
        assert (answer.subnet, answer.accuracy) == (subnet, accuracy) and answer.seconds > 0
        assert answer.logits.shape == (3, 4) and answer.logits.dtype == np.float32
    assert engine.run(x).subnet == MEMBERS[-1]
    assert engine.run(x, subnet=Subnet(width=1)).subnet == MEMBERS[2]
    assert engine.run(x, subnet=Subnet(exit=0)).label == "exit=0,width=1"
    with pytest.raises(ValueError, match=r"member exit=0,width=2 is not in this pack, which has exit=-1,width=1, "):
        engine.run(x, subnet=Subnet(exit=0, width=2))
    with pytest.raises(TypeError, match=r"expected a telescopic\.Subnet"):
        engine.run(x, subnet="exit=0")


def test_answers_stay_as_they_were(engine: tl.Engine, x: np.ndarray) -> None:
    first = engine.run(x)
    before = first.logits.copy()
    engine.run(-x)
    assert np.array_equal(first.logits, before)
    assert np.array_equal(engine.run(x).logits, before)  # members run in between leave nothing behind
    assert np.array_equal(engine.run(x[::-1]).logits, before[::-1])  # not contiguous


def test_pixels_are_prepared(engine: tl.Engine, net: tl.Nested) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (5, *SHAPE), np.uint8)
    inputs = PREPROCESS(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(engine.run(pixels).logits, expected(net, inputs, MEMBERS[-1]), rtol=1e-4, atol=1e-5)


def test_what_is_no_input_is_refused(engine: tl.Engine, x: np.ndarray) -> None:
    bad = x.copy()
    bad[1, 1, 2, 3] = np.nan
    infinite = np.where(np.isnan(bad), np.inf, bad).astype(np.float32)
    for value, message in (
        (x[0], r"inputs have shape \[batch, 2, 8, 8\] with 1 example or more, not \[2, 8, 8\]"),
        (x[:0], r"not \[0, 2, 8, 8\]"),
        (x[..., :7], r"not \[3, 2, 8, 7\]"),
        (1.0, r"not \[\]"),
        (x.astype(np.float64), "inputs are float32 or uint8 pixels, not float64: convert them"),
        (x.astype(np.int8), "not int8"),
        (bad, "there is NaN or infinity"),
        (infinite, "there is NaN or infinity"),
        (np.stack([infinite[1], -infinite[1]]), "there is NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.run(value)
        with pytest.raises(ValueError, match=message):
            engine.anytime(value)
    huge = np.full_like(x, 3e38)  # whose sum is not finite, though each of them is
    assert Given(SHAPE, huge.dtype).checked(huge) is huge
    with pytest.raises(ValueError, match="one wish at a time, not max_latency_ms and quality"):
        engine.run(x, max_latency_ms=1, quality=1)


def test_the_best_member_within_a_latency(engine: tl.Engine, x: np.ndarray) -> None:
    told(engine, {1: [1, 2, 3, 4], 3: [2, 4, 6, 8]})
    for budget, place in ((100, 3), (12, 3), (11.9, 1), (6, 1), (5.9, 0), (3, 0), (0.1, 0)):  # p95 counts
        answer = engine.run(x, max_latency_ms=budget)
        assert answer.subnet == MEMBERS[place] and answer.fits == (budget >= 3)  # or the fastest answers, and says so
    assert engine.run(x).fits and engine.run(x, quality=0).fits
    assert engine.within(5.9, batch=1).subnet == MEMBERS[1]  # exit=1 is deeper than exit=0, and less accurate
    # Two examples lie in the middle; six take twice as long as three.
    assert engine.timing(MEMBERS[3], 2).median_ms == pytest.approx(6)
    assert engine.timing(MEMBERS[3], 6) == Timing(MEMBERS[3], 6, 1, 16, 24)
    for budget in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="max_latency_ms is more than 0"):
            engine.run(x, max_latency_ms=budget)


def test_the_cheapest_member_of_a_quality(engine: tl.Engine, x: np.ndarray) -> None:
    for quality, place in ((0, 0), (0.01, 1), (0.625, 1), (0.63, 3), (1, 3)):  # of 0.5 to 0.9
        assert engine.run(x, quality=quality).subnet == MEMBERS[place]
    told(engine, {3: [5, 9, 8, 1]})  # the largest is fastest here: nothing speaks for the others
    assert engine.run(x, quality=0.0).subnet == MEMBERS[3]
    for quality in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="quality is from 0"):
            engine.run(x, quality=quality)


def test_without_accuracies_size_counts(engine: tl.Engine) -> None:
    engine.members = tuple(dataclasses.replace(member, score=None) for member in engine.members)
    macs = [member.macs for member in engine.members]
    share = (macs[2] - macs[0]) / (macs[3] - macs[0])
    assert engine.of_quality(share).subnet == MEMBERS[2] and engine.of_quality(share + 0.01).subnet == MEMBERS[3]
    told(engine, {1: [1, 2, 3, 4]})
    assert engine.within(4.5).subnet == MEMBERS[2]


def test_dominated_members_are_dropped_from_choices(engine: tl.Engine) -> None:
    told(engine, {1: [1, 2, 3, 4], 8: [8, 3, 2, 9]})
    assert [member.subnet for member in engine.front()] == [MEMBERS[0], MEMBERS[1], MEMBERS[3]]
    assert [member.subnet for member in engine.front(8)] == [MEMBERS[2], MEMBERS[1], MEMBERS[3]]


def test_calibration_measures_and_is_kept(folder: Path, tmp_path: Path, x: np.ndarray) -> None:
    engine = tl.Engine(folder, cache=tmp_path)
    assert len(engine.timings) == 0 and engine.threads == 1

    def stop(done: int, of: int) -> None:
        if done == 3:  # one number of threads is measured in both cases, the other in one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.calibrate(batches=(1, 2), threads=(1, 2), seconds=0.001, progress=stop)
    engine = tl.Engine(folder, cache=tmp_path)
    assert len(engine.timings) == 0
    seen = []
    table = engine.calibrate(batches=(1, 2), threads=(1, 2), seconds=0.001, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)] and len(table) == 16
    assert all(0 < row.median_ms <= row.p95_ms for row in table)
    best = table.best_threads()
    again = tl.Engine(folder, cache=tmp_path)
    assert list(again.timings) == list(table) and again.threads == engine.threads == best
    np.testing.assert_allclose(again.run(x).logits, engine.run(x).logits, rtol=1e-4, atol=1e-5)
    fixed = tl.Engine(folder, cache=tmp_path, threads=2)
    assert fixed.threads == 2 and fixed.timings.threads == (1, 2)
    (file,) = tmp_path.rglob("timings.json")
    for damage in (
        "[",
        "{}",
        '[{"subnet": "entry=9,exit=9,width=9", "batch": 1, "threads": 1, "median_ms": 1, "p95_ms": 1}]',
    ):
        file.write_text(damage)
        assert len(tl.Engine(folder, cache=tmp_path).timings) == 0
    # What was never measured is measured by the first call.
    fresh = tl.Engine(folder, cache=tmp_path)
    fresh.run(x, max_latency_ms=1000)
    assert {row.batch for row in fresh.timings} == {3} and len(tl.Engine(folder, cache=tmp_path).timings) == 4
    for wrong in ({"batches": ()}, {"batches": (0,)}, {"threads": (0,)}, {"threads": ()}, {"seconds": 0}):
        with pytest.raises(ValueError, match="calibration takes"):
            fresh.calibrate(**wrong)
    with pytest.raises(ValueError, match="1 thread or more"):
        tl.Engine(folder, threads=0)


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    engine = tl.Engine(folder, cache=tmp_path / "file")
    engine.calibrate(batches=(1,), seconds=0.001)
    assert len(engine.timings) == 4


def test_a_processor_is_told_also_where_no_program_says_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setenv("PATH", "")
    assert provenance.processor() == ("arm", "")


def test_tables_of_timings() -> None:
    row = Timing(MEMBERS[0], 4, 2, 1.5, 2.5)
    table = Timings([row])
    assert list(Timings.from_json(table.to_json())) == [row]
    assert table.at(MEMBERS[0], 2, 2) == Timing(MEMBERS[0], 2, 2, 1.5, 2.5)  # at most
    assert table.at(MEMBERS[0], 4, 1) is None and table.at(MEMBERS[1], 4, 2) is None
    assert table.best_threads() == 2 and Timings().best_threads() is None
    slower = Timing(MEMBERS[0], 4, 1, 2.0, 2.5)
    assert table.merged([slower]).best_threads() == 2
    # A batch of one with one thread is sooner ready than four with two, which says nothing of threads.
    small = [Timing(MEMBERS[0], 1, 1, 0.5, 0.5)]
    assert table.merged([*small, slower]).best_threads() == 2
    small.append(Timing(MEMBERS[1], 1, 1, 0.5, 0.5))
    assert table.merged(small).best_threads() == 1  # with which more was measured
    assert list(table.merged([dataclasses.replace(row, median_ms=1.0)])) == [Timing(MEMBERS[0], 4, 2, 1.0, 2.5)]
    for wrong in ({"batch": 0}, {"threads": True}, {"median_ms": 0}, {"p95_ms": float("inf")}, {"median_ms": "1"}):
        with pytest.raises(ValueError, match="a timing has sizes above 0"):
            Timing(**{"subnet": MEMBERS[0], "batch": 1, "threads": 1, "median_ms": 1, "p95_ms": 1} | wrong)
    for text in ("{", "[1]", '[{"subnet": 3}]', "[" * 10**5):
        with pytest.raises(ValueError):
            tables.Timings.from_json(text)


def test_anytime_gives_each_members_answer(engine: tl.Engine, net: tl.Nested, x: np.ndarray) -> None:
    answers = list(engine.anytime(x))
    assert [answer.subnet for answer in answers] == MEMBERS
    for answer in answers:
        np.testing.assert_allclose(answer.logits, expected(net, x, answer.subnet), rtol=1e-4, atol=1e-5)
    assert [a.seconds for a in answers] == sorted(a.seconds for a in answers)
    path = [MEMBERS[1], MEMBERS[3]]
    assert [answer.subnet for answer in engine.anytime(x, path=path)] == path
    with pytest.raises(ValueError, match="a path needs at least one member"):
        engine.anytime(x, path=[])
    for wrong in ([MEMBERS[3], MEMBERS[1]], [MEMBERS[1], MEMBERS[1]]):
        with pytest.raises(ValueError, match="does not follow"):
            engine.anytime(x, path=wrong)


def test_anytime_computes_nothing_twice(engine: tl.Engine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    bind = Lane._bind

    def watched(self, member):
        chain, logits = bind(self, member)
        names = [step.segment for step in member.chain]
        noted = [
            (i, lambda call=call, name=name: (ran.append(name), call()))
            for (i, call), name in zip(chain, names, strict=True)
        ]
        self._chains[member.subnet] = noted, logits
        return self._chains[member.subnet]

    monkeypatch.setattr(Lane, "_bind", watched)
    list(engine.anytime(np.concatenate([x, x])))  # six examples: a lane of its own
    assert len(ran) == len(set(ran)) == len(engine._manifest.segments)
    ran.clear()
    engine.run(np.concatenate([x, x]), subnet=MEMBERS[2])
    assert ran == [step.segment for step in engine.members[2].chain]


def test_anytime_keeps_deadlines(engine: tl.Engine, x: np.ndarray) -> None:
    now = [0.0]
    engine._steps[tuple(MEMBERS), 3, 1] = (1.0, 2.0, 3.0, 4.0)
    for deadline, number in ((0.1, 1), (2.3, 2), (2.1, 1), (4.5, 3), (100, 4)):
        now[0] = 0.0
        answers = []
        for answer in engine.anytime(x, deadline=deadline, clock=lambda: now[0]):
            answers.append(answer)
            now[0] += 0.05
        assert len(answers) == number, deadline
    unfinished = engine.anytime(x)
    next(unfinished)
    idle = len(engine._runner.lanes._idle)
    unfinished.close()
    assert len(engine._runner.lanes._idle) == idle + 1
    for deadline in (0, -1):
        with pytest.raises(ValueError, match="a deadline is more than 0 seconds"):
            engine.anytime(x, deadline=deadline)
    assert len(list(engine.anytime(x[:1], deadline=60))) == 4  # measured at the first call
    costs, measured = engine._step_costs(engine._path(None), 1)
    assert not measured and len(costs) == 4 and min(costs) > 0


def test_threads_share_an_engine(engine: tl.Engine, net: tl.Nested) -> None:
    inputs = [np.random.default_rng(i).standard_normal((1 + i % 3, *SHAPE), np.float32) for i in range(6)]
    assert not wrong_among_threads(engine, inputs, turns=100)
    for batch in range(1, 20):  # lanes of sizes that are no more in use are let go
        engine.run(np.zeros((batch, *SHAPE), np.float32))
    assert len(engine._runner.lanes._idle) == 8
    assert [lane.batch for lane in engine._runner.lanes._idle] == list(range(12, 20))


def test_torch_is_not_needed(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # cannot be imported
import numpy as np
import telescopic as tl
from telescopic import provenance
engine = tl.Engine({str(folder)!r}, cache={str(tmp_path)!r})
x = np.zeros((2, 2, 8, 8), np.float32)
print(engine.run(x, subnet=tl.Subnet(width=1)).label, engine.run(x, quality=0.5).logits.shape)
print(len(list(engine.anytime(x, deadline=60))))
controller = tl.Controller(engine, slo_ms=1000)
print(controller.run(x).label, len(engine.timings))
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:3] == ["exit=1,width=1 (2, 4)", "4", "exit=1,width=2 4"]
