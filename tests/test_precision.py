"""`auto` takes the precision in which a step takes less time, says so, stays with it, and changes nothing else."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from telescopic.data import Dataset, Split
from telescopic.nested import Nested
from telescopic.papers import nsn
from telescopic.papers.reproduce import reproduce, summaries
from telescopic.run import Source
from telescopic.train import CheckpointError, Recipe, fit
from telescopic.train.checkpoint import read_facts
from telescopic.train.precision import step_seconds

RECIPE = Recipe(epochs=2, batch_size=16, learning_rate=0.05)
CAPABLE, INCAPABLE = {"amx_bf16": False, "avx512_bf16": True}, {"amx_bf16": False, "avx512_bf16": False}


def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = images.flatten(1)[:, :3].long().argmax(1)
    parts = [Split(images[s], labels[s]) for s in (slice(40), slice(40, 50), slice(50, None))]
    return Dataset("brightest", *parts, tuple("abc"), "made")


def network() -> Nested:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
    return Nested([block], {0: nn.Identity()}, {0: nn.Sequential(nn.Flatten(), nn.Linear(128, 3))})


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def timed(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> None:
    monkeypatch.setattr("telescopic.train.precision.step_seconds", lambda *args: (fp32, bf16))


def capable(monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)


def tried(net: Nested) -> tuple[tuple[float, float], int]:
    """What is timed, and the number of passes that it took."""
    passes: list[int] = []
    handle = net.stages[0].register_forward_hook(lambda *args: passes.append(1))
    split = data().train
    seconds = step_seconds(net, RECIPE, split.images[:16], split.labels[:16])
    handle.remove()
    return seconds, len(passes)


def test_what_accelerate_was_told_before_is_no_precision_of_ours() -> None:
    """Neither `accelerate launch --mixed_precision bf16` nor an Accelerator of the program's own."""
    losses = []
    for told in ("no", "bf16"):
        AcceleratorState._reset_state()
        Accelerator(cpu=True, mixed_precision=told)
        history = fit(network(), data(), RECIPE, precision="fp32", cpu=True, progress=False)
        losses.append([epoch.loss for epoch in history])
    AcceleratorState._reset_state()
    assert losses[0] == losses[1]


def test_timing_leaves_everything_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, CAPABLE)
    net = network().eval()
    net.stages[0].train()
    before, random, modes = state(net), torch.get_rng_state(), [module.training for module in net.modules()]
    (fp32, bf16), passes = tried(net)
    assert 0 < fp32 < math.inf and 0 < bf16 < math.inf and passes >= 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())


class Centred(nn.Module):
    """Exchanges its buffer in training instead of writing to it."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().float().mean((0, 2, 3))
        return x - self.mean[:, None, None]


def test_timing_leaves_buffers_that_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, CAPABLE)
    net, centred = network(), Centred()
    net.stages.insert(1, centred)
    buffer = centred.mean
    net = Nested(net.stages, {0: nn.Identity()}, {1: net.exits["0"]})
    tried(net)
    assert centred.mean is buffer and not buffer.any()


def test_what_is_known_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    capable(monkeypatch, INCAPABLE)
    assert tried(network()) == ((0.0, math.inf), 0)
    capable(monkeypatch, CAPABLE)
    assert tried(network().double()) == ((0.0, math.inf), 0)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of torch, which do not know
    assert tried(network())[1] >= 4


@pytest.mark.parametrize(
    ("seconds", "taken"), [((1.0, 0.5), "bf16"), ((0.5, 1.0), "fp32"), ((1.0, 0.9), "fp32"), ((0.0, math.inf), "fp32")]
)
def test_the_faster_is_taken_and_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seconds: tuple[float, float], taken: Any
) -> None:
    """One tenth is within what clocks err by."""
    timed(monkeypatch, *seconds)
    auto, named, other = network(), network(), network()
    assert fit(auto, data(), RECIPE).precision == taken
    said = capfd.readouterr().err.splitlines()[0]
    assert said.startswith(f"precision: {taken} (") and (f"{1e3 * seconds[1]:.1f} in bf16" in said) == (seconds[0] > 0)
    assert fit(named, data(), RECIPE, precision=taken, progress=False).precision == taken
    fit(other, data(), RECIPE, precision="fp32" if taken == "bf16" else "bf16", progress=False)
    assert all(torch.equal(tensor, named.state_dict()[name]) for name, tensor in auto.state_dict().items())
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in auto.state_dict().items())
    fit(network(), data(), RECIPE, progress=False)
    assert capfd.readouterr().err == ""


def test_a_run_goes_on_in_the_precision_that_it_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed(monkeypatch, 1.0, 0.5)
    whole, halved = network(), network()
    fit(whole, data(), RECIPE, keep="last", progress=False)

    def stop(history: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(network(), data(), RECIPE, out=tmp_path, on_epoch=stop, checkpoint_seconds=0, progress=False)
    assert read_facts(tmp_path / "last.safetensors")["precision"] == "bf16"
    monkeypatch.setattr("telescopic.train.precision.step_seconds", lambda *args: pytest.fail("timed again"))
    history = fit(halved, data(), RECIPE, out=tmp_path, resume=True, keep="last", progress=False)
    assert len(history) == 2 and history.precision == "bf16"
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in halved.state_dict().items())


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision is one of auto, fp32, bf16, not 'fp8'"):
        fit(network(), data(), RECIPE, out=tmp_path / "run", precision="fp8")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_what_was_trained_says_in_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed(monkeypatch, 1.0, 0.5)
    fit(network(), data(), RECIPE, out=tmp_path, progress=False)
    source = Source.open(str(tmp_path))
    history = source.history()
    assert source.bundle.provenance["precision"] == "bf16" and history is not None and history.precision == "bf16"


def test_experiments_that_are_compared_are_trained_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first one decides; one that has finished in another precision than is named is not taken for it."""
    options: dict[str, Any] = {"data": "digits", "epochs": 1, "progress": False}
    timed(monkeypatch, 1.0, 0.5)
    reproduce(nsn.PAPER, tmp_path, only=["model0-1-2"], **options)
    monkeypatch.setattr("telescopic.train.precision.step_seconds", lambda *args: pytest.fail("timed again"))
    reproduce(nsn.PAPER, tmp_path, only=["model0-1-2", "model0-1"], **options)
    assert {name: found["precision"] for name, found in summaries(tmp_path).items()} == {
        "model0-1-2": "bf16",
        "model0-1": "bf16",
    }
    with pytest.raises(CheckpointError, match="trained with precision = bf16, not fp32"):
        reproduce(nsn.PAPER, tmp_path, only=["model0-1"], precision="fp32", **options)
