"""The training loop on the digits: it learns, keeps what it should, leaves everything else alone, and stops on NaN."""

import csv
import io
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from telescopic.data import Augment, Dataset, Preprocess, Split, load
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.train import Epoch, History, Objective, Recipe, TrainingError, evaluate, fit
from telescopic.train.checkpoint import read_facts
from telescopic.train.interrupt import stop_requests

LAST, BEST, LOG = "last.safetensors", "best.safetensors", "log.csv"
RECIPE = Recipe(epochs=4, batch_size=32, learning_rate=0.05)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """Enough for what is not about learning."""
    return replace(digits, train=Split(digits.train.images[:100], digits.train.labels[:100]))


def network(seed: int = 0, dropout: tuple[float, ...] = (0.1, 0.1)) -> Nested:
    torch.manual_seed(seed)
    return mlp(64, (64, 64), 10, dropout=dropout)


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_member_learns(digits: Dataset) -> None:
    net = network()
    history = fit(net, digits, replace(RECIPE, epochs=6, learning_rate=0.1), progress=False)
    assert min(history.best().test) > 0.9
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].loss < history[0].loss / 3
    assert history.labels == ("entry=2", "entry=1", "entry=0") and history.full == 2
    assert not net.training


def test_what_an_epoch_records(few: Dataset) -> None:
    """One batch an epoch and no step to speak of: the losses are those of the network as it was given."""
    net, seen = network(dropout=()), []
    recipe = replace(RECIPE, epochs=1, batch_size=100, learning_rate=1e-12, weights=(1.0, 2.0, 3.0))
    x, y = recipe.preprocess(few.train.images), few.train.labels
    losses = [nn.functional.cross_entropy(net(x, member).double(), y).item() for member in net.grid]
    epoch = fit(net, few, recipe, progress=False, on_epoch=lambda h: seen.append(len(h)))[0]
    assert epoch.losses == pytest.approx(losses, rel=1e-5)
    assert epoch.loss == pytest.approx(losses[0] + 2 * losses[1] + 3 * losses[2], rel=1e-5)
    correct = [sum(net(recipe.preprocess(few.test.images), m).argmax(1) == few.test.labels) for m in net.grid]
    assert epoch.test == tuple(c.item() / len(few.test) for c in correct)
    assert epoch.images_per_s > 100 / epoch.seconds, "evaluation is not counted"
    assert seen == [1] and epoch.learning_rate == 1e-12


def test_smaller_last_batches_count_by_their_images(few: Dataset) -> None:
    """100 images in batches of 32: a mean of batch means would count the last 4 images eightfold."""
    means = [fit(network(dropout=()), few, replace(RECIPE, epochs=1, batch_size=size, learning_rate=1e-12),
                 progress=False)[0].losses for size in (32, 100)]  # fmt: skip
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_one_step_is_sgd_on_the_mean_over_the_batch(few: Dataset) -> None:
    """Also of the last, smaller batch: here there is no other."""
    net = network(dropout=())
    expected, recipe = network(dropout=()), replace(RECIPE, epochs=1, batch_size=128, momentum=0.9, nesterov=True)
    optimizer = torch.optim.SGD(expected.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    x = recipe.preprocess(few.train.images)
    loss = sum(nn.functional.cross_entropy(expected(x, m), few.train.labels) for m in expected.grid) / 3
    loss.backward()  # type: ignore[union-attr]
    optimizer.step()
    fit(net, few, recipe, progress=False)
    for one, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_rate_follows_the_recipe(few: Dataset) -> None:
    """The second epoch's rate is 0 to float32, so its weights are those of one epoch."""
    one, two = network(), network()
    fit(one, few, replace(RECIPE, epochs=1), keep="last", progress=False)
    history = fit(two, few, replace(RECIPE, epochs=2, milestones=(1,), gamma=1e-30), keep="last", progress=False)
    assert same(weights(one), weights(two))
    assert [epoch.learning_rate for epoch in history] == [0.05, 0.05e-30]


def test_the_seed_decides_everything(few: Dataset) -> None:
    recipe = replace(RECIPE, epochs=2, augment=Augment(pad=1))
    runs = []
    for outer, seed in ((1, 0), (2, 0), (1, 1)):
        net = network()
        torch.manual_seed(outer)
        fit(net, few, recipe, seed=seed, progress=False)
        runs.append(weights(net))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_images_are_augmented_and_preprocessed(few: Dataset) -> None:
    """With every pixel cropped away or not at random, the losses differ from those without; evaluation is untouched."""
    still = replace(RECIPE, epochs=1, learning_rate=1e-12, preprocess=Preprocess((0.3,), (0.5,)))
    plain, moved = (
        fit(network(dropout=()), few, r, progress=False)[0] for r in (still, replace(still, augment=Augment(pad=3)))
    )
    net = network(dropout=())
    x = (few.train.images / 255 - 0.3) / 0.5
    assert plain.losses[0] == pytest.approx(nn.functional.cross_entropy(net.all(x)[0], few.train.labels).item(), 1e-5)
    assert moved.losses != pytest.approx(plain.losses, rel=1e-3) and moved.test == plain.test


def test_the_best_epoch_is_kept(digits: Dataset, tmp_path: Path) -> None:
    """From epoch 3 on the rate is so high that accuracy falls."""
    recipe = replace(RECIPE, milestones=(2,), gamma=60.0)
    best, last = network(), network()
    history = fit(best, digits, recipe, out=tmp_path, progress=False)
    found = evaluate(best, [digits.validation, digits.test], recipe.preprocess)
    assert history.best().epoch == 2 and history[-1].validation[2] < history[1].validation[2] - 0.1
    assert tuple(found[0].tolist()) == history[1].validation and tuple(found[1].tolist()) == history[1].test
    assert same({f"net/{name}": p for name, p in weights(best).items()}, load_file(tmp_path / BEST))
    fit(last, digits, recipe, keep="last", progress=False)
    found = evaluate(last, [digits.validation, digits.test], recipe.preprocess)
    assert tuple(found[0].tolist()) == history[-1].validation and tuple(found[1].tolist()) == history[-1].test
    stored = load_file(tmp_path / LAST)
    assert same({name: stored[f"net/{name}"] for name in weights(last)}, weights(last))


def test_without_validation_images_the_last_epoch_is_kept(few: Dataset, tmp_path: Path) -> None:
    data = replace(few, validation=Split(few.train.images[:0], few.train.labels[:0]))
    net, last = network(), network()
    history = fit(net, data, RECIPE, out=tmp_path, progress=False)
    assert all(math.isnan(value) for epoch in history for value in epoch.validation)
    assert history.best().epoch == 4
    fit(last, data, RECIPE, keep="last", progress=False)
    assert same(weights(net), weights(last))
    again = fit(network(1), data, RECIPE, out=tmp_path, resume=True, progress=False)
    assert [epoch.test for epoch in again] == [epoch.test for epoch in history]


def test_evaluate_counts_every_split_and_keeps_the_mode(few: Dataset) -> None:
    net = network().train()
    empty = Split(few.test.images[:0], few.test.labels[:0])
    found = evaluate(net, [few.test, empty, few.train], Preprocess(), batch_size=7)
    assert net.training and found.dtype == torch.float64 and found.shape == (3, 3)
    assert found[1].isnan().all()
    net.eval()
    for m, member in enumerate(net.grid):
        right = net(few.train.images / 255, member).argmax(1) == few.train.labels
        assert found[2, m] == right.double().mean()


def test_log_and_folder(few: Dataset, tmp_path: Path) -> None:
    history = fit(network(), few, RECIPE, out=tmp_path / "deep" / "run", progress=False)
    assert sorted(p.name for p in (tmp_path / "deep" / "run").iterdir()) == [
        BEST, "catalogue.csv", "catalogue.json", LAST, LOG, "model.safetensors"
    ]  # fmt: skip
    with (tmp_path / "deep" / "run" / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row, epoch in zip(rows, history, strict=True):
        plain = {name: float(row[name]) for name in ("epoch", "seconds", "images_per_s", "learning_rate", "loss")}
        assert plain == pytest.approx({name: getattr(epoch, name) for name in plain}, rel=1e-5)
        for m, label in enumerate(history.labels):
            members = [float(row[f"{label}:{kind}"]) for kind in ("train_loss", "validation", "test")]
            assert members == pytest.approx([epoch.losses[m], epoch.validation[m], epoch.test[m]], rel=1e-5)


def test_a_folder_with_a_run_is_refused_before_any_work(few: Dataset, tmp_path: Path) -> None:
    fit(network(), few, replace(RECIPE, epochs=1), out=tmp_path, progress=False)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    net = network(1)
    started = weights(net)
    with pytest.raises(ValueError, match=r"already holds a run: .*resume=True \(--resume\), or choose another folder"):
        fit(net, few, RECIPE, out=str(tmp_path), progress=False, on_epoch=lambda history: pytest.fail("trained"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert same(started, weights(net)) and net.training


def test_no_images_are_refused(few: Dataset) -> None:
    with pytest.raises(ValueError, match="digits has no training examples"):
        fit(network(), replace(few, train=Split(few.train.images[:0], few.train.labels[:0])), RECIPE, progress=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(few: Dataset, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fit(network(), few, RECIPE, progress=False)
    assert capfd.readouterr() == ("", "")
    for progress in (None, True):
        history = fit(network(), few, RECIPE, progress=progress)
        out, err = capfd.readouterr()
        assert out == "" and [line.split()[1] for line in err.splitlines()] == ["fp32", "1/4", "4/4"]
        assert f"entry=0 {100 * history[-1].test[2]:.2f} %" in err
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    history = fit(network(), few, RECIPE)
    assert "epoch 4 of 4" in screen.getvalue() and f"{100 * history[-1].test[0]:.2f} %" in screen.getvalue()


def test_the_callers_random_state_stays(few: Dataset) -> None:
    net = network()
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    fit(net, few, replace(RECIPE, augment=Augment(pad=1, flip=True)), progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_on_epoch_sees_every_epoch_after_it_is_on_disk(few: Dataset, tmp_path: Path) -> None:
    seen = []

    def look(history: History) -> None:
        seen.append((len(history), len((tmp_path / LOG).read_text().splitlines()) - 1))

    fit(network(), few, RECIPE, out=tmp_path, progress=False, on_epoch=look)
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_the_last_checkpoint_is_never_behind_the_best(few: Dataset, tmp_path: Path) -> None:
    """Else a run resumed elsewhere, or for fewer epochs, would end with weights that its history does not know."""

    def look(history: History) -> None:
        best = read_facts(tmp_path / BEST)["epoch"]
        stored = History.from_dict(read_facts(tmp_path / LAST)["history"])
        assert best == history.best().epoch == stored.best().epoch

    fit(network(), few, replace(RECIPE, epochs=8), out=tmp_path, progress=False, on_epoch=look)


def test_bf16(digits: Dataset) -> None:
    kinds = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kinds.append((module.training, inputs[0].dtype, output.dtype))

    net, exact = network(), network()
    handle = net.exits["1"].register_forward_hook(note)
    recipe = replace(RECIPE, epochs=6)
    history = fit(net, digits, recipe, precision="bf16", progress=False)
    handle.remove()
    assert {(training, output) for training, _, output in kinds} == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(p.dtype == torch.float32 for p in net.parameters()) and all(p.isfinite().all() for p in net.parameters())
    assert min(history.best().test) > 0.9
    assert history[-1].loss == pytest.approx(fit(exact, digits, recipe, progress=False)[-1].loss, rel=0.05)
    assert not same(weights(net), weights(exact))


@pytest.mark.parametrize("look_often", [False, True])
def test_an_exploding_loss_stops_with_the_last_good_checkpoint(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_often: bool
) -> None:
    if look_often:
        monkeypatch.setattr("telescopic.train.loop.CHECK_EVERY", 2)
    recipe = replace(RECIPE, epochs=5, milestones=(2,), gamma=1e38)
    batch = 2 if look_often else 4
    message = f"no longer finite in epoch 3, by batch {batch}; the last good .* kept in .*{LAST}. A smaller .* 5e.36"
    with pytest.raises(TrainingError, match=message):
        fit(network(), few, recipe, out=tmp_path, progress=False, checkpoint_seconds=1e9)
    done = read_facts(tmp_path / LAST)["position"].epoch - 1
    assert done in (1, 2) and (tmp_path / LOG).read_text().count("\n") == 3
    good = network()
    fit(good, few, replace(RECIPE, epochs=done), keep="last", progress=False)
    stored = load_file(tmp_path / LAST)
    assert same({name: stored[f"net/{name}"] for name in weights(good)}, weights(good))
    assert same({f"net/{name}": p for name, p in weights(good).items()}, load_file(tmp_path / BEST))


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("batch_size", [25, 100])
def test_a_step_too_far_never_reaches_a_file(few: Dataset, tmp_path: Path, seconds: float, batch_size: int) -> None:
    """Every loss of the epoch may be finite and yet its last step have made the weights infinite."""
    recipe = replace(RECIPE, batch_size=batch_size, learning_rate=1e39)
    with pytest.raises(TrainingError, match=r"in epoch 1, by batch \d\. A smaller learning rate than 1e\+39"):
        fit(network(), few, recipe, out=tmp_path, progress=False, checkpoint_seconds=seconds)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match="in epoch 1"):
        fit(network(), few, replace(recipe, epochs=1), progress=False)


@pytest.fixture
def interrupting() -> Iterator[dict[str, int]]:
    """Sends itself a signal in forward pass number `at`, as a person would at any moment."""
    plan = {"at": 0, "signal": int(signal.SIGINT), "seen": 0}

    def maybe(module: nn.Module, args: object, out: object) -> None:
        if isinstance(module, Objective):
            plan["seen"] += 1
            if plan["seen"] == plan["at"]:
                os.kill(os.getpid(), plan["signal"])

    handle = nn.modules.module.register_module_forward_hook(maybe)
    yield plan
    handle.remove()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("at", "epoch", "batch"), [(1, 1, 1), (6, 2, 2), (8, 3, 0)])
def test_a_signal_stops_after_saving(
    few: Dataset, tmp_path: Path, interrupting: dict[str, int], number: int, at: int, epoch: int, batch: int
) -> None:
    """8 is the last batch of epoch 2: the epoch is finished first. No epoch but the first is the best, and so saved."""
    interrupting |= {"at": at, "signal": number}
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt, match=f"stopped in epoch {epoch} after {batch} batches; saved in .*{LAST}"):
        fit(network(), few, replace(RECIPE, learning_rate=1e-12), out=tmp_path, progress=False)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    facts = read_facts(tmp_path / LAST)
    assert (facts["position"].epoch, facts["position"].batch) == (epoch, batch)
    assert len(facts["history"]["epochs"]) == epoch - 1


def test_a_signal_without_a_folder_says_that_nothing_is_saved(few: Dataset, interrupting: dict[str, int]) -> None:
    interrupting["at"] = 3
    with pytest.raises(KeyboardInterrupt, match="after 3 batches; nothing is saved, because no folder was given"):
        fit(network(), few, RECIPE, progress=False)


def test_a_signal_in_the_last_batch_of_all_lets_the_run_finish(few: Dataset, interrupting: dict[str, int]) -> None:
    interrupting["at"] = 16
    assert len(fit(network(), few, RECIPE, progress=False)) == 4


def test_a_second_signal_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_in_another_thread(few: Dataset) -> None:
    """Signals belong to the main thread; elsewhere training works without them."""
    seen: list[Epoch] = []
    thread = threading.Thread(target=lambda: seen.extend(fit(network(), few, RECIPE, progress=False)))
    thread.start()
    thread.join()
    here = fit(network(), few, RECIPE, progress=False)
    assert [asdict(e)["losses"] for e in seen] == [asdict(e)["losses"] for e in here]


@pytest.mark.parametrize("before", [False, True])
def test_numbers_too_small_to_be_normal_are_0_while_it_trains(before: bool) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always tells them from 0")
    torch.set_flush_denormal(False)  # or the next line would make a 0
    tiny, seen = torch.tensor([1e-39]), []

    class Witness(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(float(tiny * 1))
            return x

    data = load("digits")
    net = Nested([nn.Sequential(nn.Flatten(), Witness())], exits={0: nn.Linear(64, 10)})
    torch.set_flush_denormal(before)
    try:
        fit(net, data, Recipe(epochs=1, batch_size=500), cpu=True, progress=False)
        assert (float(tiny * 1) == 0) == before, "as it was"
    finally:
        torch.set_flush_denormal(False)
    assert seen and set(seen) == {0.0}
