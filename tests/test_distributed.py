"""Two processes under torchrun train as one process does on the same batches.

As a program (`torchrun --nproc-per-node 2 tests/test_distributed.py FOLDER`) it is what each process runs.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import test_loaders as loaders  # whose processes are those of this file, for two more would load torch again
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telescopic.data import Dataset, Loaders, Split
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.shrink.family import add_filters_to_family, filters
from telescopic.slim import slim
from telescopic.train import CheckpointError, History, Objective, Phase, Recipe, Shrink, fit, pairwise, precision
from telescopic.train.checkpoint import read_facts

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.1, l2=1e-3, mix=pairwise(3), distillation=0.2)
SHRINKING = Recipe(epochs=4, batch_size=16, learning_rate=0.1, shrink=Shrink(penalty=0.4, collect=3))
NORMED = Recipe(epochs=1, batch_size=16, learning_rate=0.1, fit_heads=True)
DRAWN = Recipe(
    epochs=3,
    batch_size=16,
    learning_rate=0.1,
    weights="sum",
    drawn=1,
    distillation=0.5,
    teacher="ema",
    ema=0.9,
    phases=(Phase(name="full alone", until=1, weights="full", distillation=0.0),),
)
SIZES = (53, 49)
"""Training images: the last batch has 5, of which one process gets 3 and the other 2; or 1, and one gets none."""


def data(num: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num + 70, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = images.flatten(1)[:, :3].long().argmax(1)
    parts = [Split(images[s], labels[s]) for s in (slice(70, None), slice(33), slice(33, 70))]
    return Dataset("brightest", *parts, tuple("abc"), "made")


def network(seed: int = 0) -> Nested:
    torch.manual_seed(seed)
    return mlp(16, (16, 16), 3)


def normed() -> Nested:
    torch.manual_seed(0)
    return Nested([nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5))], exits={0: nn.Linear(5, 3)})


def filtered(seed: int = 0) -> Nested:
    """That learns its widths: with three members, whose adapters shrink too."""
    torch.manual_seed(seed)
    return add_filters_to_family(mlp(16, (24, 20), 3), torch.rand(2, 1, 4, 4))


def slimmed(seed: int = 0) -> Nested:
    """Of four widths, each a pass."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    return slim(net, torch.rand(2, 1, 4, 4), 4, order="given")


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


def without_times(history: History) -> list[dict[str, Any]]:
    epochs = [
        {k: v for k, v in asdict(e).items() if k not in ("seconds", "images_per_s", "compacting")} for e in history
    ]
    return list(json.loads(json.dumps(epochs)))


def each_process(folder: Path) -> None:
    """Train on each size; go on with a run that one process left within an epoch; stop after one got a signal."""
    rank = int(os.environ["RANK"])
    # Called last of all, when the group is left.
    atexit.register(lambda: (folder / f"threads-{rank}").write_text("\n".join(threads())))
    seen: dict[str, Any] = {}
    for num in SIZES:
        net = network(rank)  # the first process's weights are everyone's
        called: list[int] = []
        options: dict[str, Any] = {"keep": "last", "precision": "fp32", "cpu": True, "progress": False}
        history = fit(
            net, data(num), RECIPE, out=folder / f"two-{num}", on_epoch=lambda h, c=called: c.append(len(h)), **options
        )
        save_file(state(net), folder / f"{num}-{rank}.safetensors")
        seen[str(num)] = without_times(history), called
    net = filtered(rank)
    seen["shrunk"] = without_times(fit(net, data(53), SHRINKING, out=folder / "shrunk", **options))
    save_file(state(net), folder / f"shrunk-{rank}.safetensors")
    longer = replace(SHRINKING, epochs=6)
    seen["shrunk on"] = without_times(
        fit(filtered(rank), data(53), longer, out=folder / "shrunk", resume=True, **options)
    )
    net = network(rank)
    seen["resumed"] = without_times(fit(net, data(53), RECIPE, out=folder / "begun", resume=True, **options))
    save_file(state(net), folder / f"resumed-{rank}.safetensors")

    net = slimmed(rank)
    seen["drawn"] = without_times(fit(net, data(53), DRAWN, **options))
    save_file(state(net), folder / f"drawn-{rank}.safetensors")

    (folder / "loaders").mkdir(exist_ok=True)
    loaders.each_process(folder / "loaders")

    # What the clocks of the processes say together decides for both: one alone would take bf16.
    precision.step_seconds = lambda *args: (1.0, 0.5) if rank == 0 else (1.0, 2.0)
    options["precision"] = "auto"
    seen["precision"] = fit(network(), data(53), replace(RECIPE, epochs=1), **options).precision

    def interrupt(module: nn.Module, args: object, out: object) -> None:
        if isinstance(module, Objective) and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
            handle.remove()

    net = normed()  # of 49 images in batches of 16 the last is one, of which no process could make a variance
    history = fit(net, data(49), NORMED, **options)
    assert history.fitted is not None
    seen["normed"], seen["fitted"] = without_times(history), history.fitted.validation
    save_file({name: tensor for name, tensor in net.state_dict().items()}, folder / f"normed-{rank}.safetensors")
    handle = nn.modules.module.register_module_forward_hook(interrupt)
    try:
        fit(network(), data(53), RECIPE, out=folder / "stopped", **options)
    except KeyboardInterrupt as stopped:
        seen["stopped"] = str(stopped)
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def threads() -> list[str]:
    """Names of the threads of this process, where the system tells."""
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("distributed")

    def stop(module: nn.Module, args: object, out: object) -> None:
        passes.append(isinstance(module, Objective))
        if sum(passes) == 6:
            handle.remove()
            os.kill(os.getpid(), signal.SIGINT)

    passes: list[bool] = []
    handle = nn.modules.module.register_module_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2 after 2 batches"):
        # Not "auto": where bf16 is fast, that is tried out beforehand, in passes of its own.
        fit(network(), data(53), RECIPE, out=folder / "begun", keep="last", precision="fp32", cpu=True, progress=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, __file__, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def assert_alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Losses to the tolerance of float32 sums, everything else exactly."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("epoch", "learning_rate", "validation", "test"):
            assert one[name] == other[name], name
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)


@pytest.mark.parametrize("num", SIZES)
def test_two_processes_train_as_one(folder: Path, num: int) -> None:
    net = network()
    history = fit(net, data(num), RECIPE, keep="last", cpu=True, progress=False)
    for rank, epochs in ((0, [1, 2, 3]), (1, [])):
        seen, called = json.loads((folder / f"{rank}.json").read_text())[str(num)]
        assert_alike(seen, without_times(history))
        assert called == epochs, "only the first process reports"
        stored = load_file(folder / f"{num}-{rank}.safetensors")
        for name, tensor in state(net).items():
            torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-6)
    moved = max(float((state(net)[name] - tensor).abs().max()) for name, tensor in state(network()).items())
    assert moved > 0.05, "weights that hardly move would prove nothing"


def test_two_processes_draw_the_members_that_one_draws(folder: Path) -> None:
    """What is not run has no gradient, in each process alike; and the moving average teaches both the same."""
    net = slimmed()
    history = fit(net, data(53), DRAWN, keep="last", cpu=True, progress=False)
    for rank in (0, 1):
        seen = json.loads((folder / f"{rank}.json").read_text())["drawn"]
        assert [row["phase"] for row in seen] == ["full alone", "", ""]
        assert_alike(seen[1:], without_times(history)[1:])  # in the first, losses are not numbers
        stored = load_file(folder / f"drawn-{rank}.safetensors")
        for name, tensor in state(net).items():
            torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [str(num) for num in SIZES] + ["resumed", "shrunk", "drawn"])
def test_both_processes_end_with_the_same_weights(folder: Path, name: str) -> None:
    one, other = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_last_batch_too_small_for_batch_norm_joins_the_one_before(folder: Path) -> None:
    state = load_file(folder / "normed-0.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert [int(tensor) for name, tensor in state.items() if "num_batches_tracked" in name] == [3]


def test_two_processes_have_the_same_fitted_heads(folder: Path) -> None:
    states = [load_file(folder / f"normed-{rank}.safetensors") for rank in (0, 1)]
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name in ("exits.0.weight", "exits.0.bias"):
        assert torch.equal(*(state[name] for state in states))
    assert seen[0]["fitted"] == seen[1]["fitted"] and seen[0]["fitted"] != seen[0]["normed"][0]["validation"]


def test_two_processes_shrink_as_one(folder: Path) -> None:
    """Channels are removed within epochs, and in the resumed run from the start."""
    net = filtered()
    history = fit(net, data(53), replace(SHRINKING, epochs=6), keep="last", cpu=True, progress=False)
    for rank in (0, 1):
        seen = json.loads((folder / f"{rank}.json").read_text())
        assert [row["widths"] for row in seen["shrunk on"]] == [list(epoch.widths) for epoch in history]
        assert_alike(seen["shrunk"], without_times(history)[:4])
        assert_alike(seen["shrunk on"], without_times(history))
    assert history[3].widths[0] < 20 and len(next(iter(filters(net).values())).theta) < 20
    stored = load_file(folder / "shrunk-0.safetensors")
    assert {tuple(t.shape) for t in stored.values()} != {tuple(t.shape) for t in state(filtered()).values()}


def test_two_processes_go_on_where_one_stopped(folder: Path) -> None:
    net = network()
    history = fit(net, data(53), RECIPE, keep="last", cpu=True, progress=False)
    assert_alike(json.loads((folder / "1.json").read_text())["resumed"], without_times(history))
    for name, tensor in load_file(folder / "resumed-0.safetensors").items():
        torch.testing.assert_close(tensor, state(net)[name], rtol=0, atol=1e-6)


def test_one_process_goes_on_where_two_ended(folder: Path) -> None:
    longer, net, whole = replace(RECIPE, epochs=5), network(), network()
    history = fit(whole, data(53), longer, keep="last", cpu=True, progress=False)
    again = fit(net, data(53), longer, out=folder / "two-53", resume=True, keep="last", cpu=True, progress=False)
    assert_alike(without_times(again)[3:], without_times(history)[3:])
    with pytest.raises(CheckpointError, match="trained with seed = 0, not 1"):
        fit(net, data(53), longer, out=folder / "two-53", resume=True, seed=1, cpu=True, progress=False)


def test_two_processes_learn_from_loaders_what_one_learns(folder: Path) -> None:
    alone, sampled = loaders.network(), loaders.network()
    fit(alone, loaders.shuffled(), loaders.RECIPE, **loaders.OPTIONS)
    fit(sampled, Loaders(train=loaders.Sampled()), loaders.RECIPE, **loaders.OPTIONS)
    for rank in range(2):
        for name, expected in (("shares", loaders.state(alone)), ("sampler", loaders.state(sampled))):
            found = load_file(folder / "loaders" / f"{name}-{rank}.safetensors")
            score = found.pop("score", None)
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)
            if score is not None:
                x, y = loaders.numbers(41)
                sampled.load_state_dict(found)
                right = (sampled.all(x).argmax(2) == y).double().mean(1)
                torch.testing.assert_close(score.double(), right, rtol=0, atol=1e-6)
        told = {name: (folder / "loaders" / f"{name}-{rank}").read_text() for name in ("refused", "same", "half")}
        assert "the loader gives each process other batches" in told["refused"]
        assert "DistributedSamplers have the ranks 0, 0: leave rank out" in told["same"]
        assert ("have the ranks 0, none", "gives each process other batches")[rank] in told["half"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not name threads")
def test_no_thread_is_left_to_run_into_the_end_of_the_interpreter(folder: Path) -> None:
    """One that lets go of a tensor then aborts the process ("terminate called without an active exception")."""
    for rank in (0, 1):
        names = (folder / f"threads-{rank}").read_text().split()
        assert names and not [name for name in names if "gloo" in name]


def test_both_processes_take_the_same_precision(folder: Path) -> None:
    assert [json.loads((folder / f"{rank}.json").read_text())["precision"] for rank in (0, 1)] == ["fp32", "fp32"]


def test_a_signal_to_one_process_stops_both_after_the_epoch(folder: Path) -> None:
    messages = [json.loads((folder / f"{rank}.json").read_text())["stopped"] for rank in (0, 1)]
    assert messages[0] == messages[1] and messages[0].startswith("stopped in epoch 2 after 0 batches; saved in")
    facts = read_facts(folder / "stopped" / "last.safetensors")
    assert facts["position"].epoch == 2 and facts["processes"] == 2


if __name__ == "__main__":
    each_process(Path(sys.argv[1]))
