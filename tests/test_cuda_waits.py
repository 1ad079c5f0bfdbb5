"""No step of training makes the host wait for the device, on which it would then have nothing to do.

On a GPU torch tells (`torch.cuda.set_sync_debug_mode`). The same step is taken on the meta device too, where no number
can be read, and what copies from the CPU is noted.
"""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from telescopic.data import Dataset, Preprocess, Split
from telescopic.nested import Nested
from telescopic.papers import cnsn, doubly_nested, nsn, shrinknets
from telescopic.tasks import classification
from telescopic.train import Recipe, loop, shrinking
from telescopic.train.loop import Training

CHANNELS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def noise(num: int = 24) -> Dataset:
    inputs = torch.randint(256, (num, 3, 32, 32), generator=torch.manual_seed(0), dtype=torch.uint8)
    split = Split(inputs, torch.arange(num) % 10)
    return Dataset("noise", split, split, split, tuple("0123456789"), "made")


def learned() -> tuple[Nested, Recipe]:
    return shrinknets.random_model("shrinknets", "lenet", penalty=1e-3, widths=None, epochs=1, input_shape=(3, 32, 32))


def causal(way: str) -> tuple[Nested, Recipe]:
    return doubly_nested.experiment(way, groups=4, blocks=1, epochs=1, preprocess=CHANNELS)


METHODS = {
    "NSN": lambda: nsn.experiment("model0-1-2", epochs=1, inputs=3 * 32 * 32),
    "CNSN": lambda: cnsn.experiment("joint", scale=0.05, epochs=1, preprocess=CHANNELS),
    "CNSN, distilled": lambda: cnsn.experiment("stem-distilled", scale=0.05, epochs=1, preprocess=CHANNELS, short=True),
    "ShrinkNets": learned,
    "Doubly Nested, uniform": lambda: causal("uniform"),
    "Doubly Nested, the default": lambda: causal(doubly_nested.BEST_WAY),
    "Doubly Nested, its moving average teaches": lambda: causal("delayed-ema"),
    "Doubly Nested, groups apart": lambda: causal("apart-taught"),
}


class Waits(TorchFunctionMode):
    """Notes what would wait for a device, or be copied to it other than by `batches.sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, given = getattr(func, "__name__", ""), args[0] if args else None
        meta = isinstance(out, Tensor) and out.is_meta
        made = name in ("tensor", "as_tensor", "new_tensor", "from_numpy") and meta
        copied = name in ("to", "cuda", "copy_") and meta and isinstance(given, Tensor) and not given.is_meta
        listed = name == "__getitem__" and meta and isinstance(args[1], list)
        if made or copied or listed:
            self.found.append(name)
        return out


def training(method: str, device: torch.device) -> Training:
    torch.manual_seed(0)
    net, recipe = METHODS[method]()
    alone = {"process_index": 0, "num_processes": 1, "prepare_model": lambda module: module.to(device)}
    accelerator: Any = SimpleNamespace(device=device, **alone)
    task = classification(label_smoothing=recipe.label_smoothing)
    options: dict[str, Any] = {"seed": 0, "precision": "fp32", "told": False, "checkpoint_seconds": 1e9}
    begun = Training(accelerator, net, noise(), recipe, task, None, lambda: False, **options)
    begun.net.train()
    begun.examples = 0
    return begun


@pytest.mark.parametrize("method", METHODS)
def test_a_step_reads_nothing_and_sends_only_what_is_drawn(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def send(x: Tensor, device: torch.device) -> Tensor:
        sent.append(x.numel())
        return torch.empty_like(x, device=device)

    monkeypatch.setattr(shrinking, "price_", lambda *args: None)  # of which a step knows nothing
    begun = training(method, torch.device("meta"))
    inputs, targets = begun.train.inputs[:8], begun.train.targets[:8]
    monkeypatch.setattr(sys.modules["telescopic.data.batches"], "sent", send)
    autocast = lambda *args, **kwargs: torch.autocast("cpu", enabled=False)  # noqa: E731 (meta has none)
    monkeypatch.setattr(loop, "torch", SimpleNamespace(**{**vars(torch), "autocast": autocast}))
    with Waits() as waits:
        begun._step(0, inputs, targets)
    assert waits.found == []
    assert sum(sent) == (2 * 8 + 8 if begun.recipe.augment.pad else 0) + 6 * (begun.recipe.preprocess == CHANNELS)


def test_what_waits_is_noticed() -> None:
    device = torch.device("meta")
    with Waits() as waits:
        torch.tensor([1.0, 2.0], device=device)
        torch.zeros(2).to(device)
        torch.zeros(2, device=device)[[0, 1]]
    assert waits.found == ["tensor", "to", "__getitem__"]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(1, device=device).item()


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_not_wait_for_the_gpu(method: str) -> None:
    begun = training(method, torch.device("cuda"))
    inputs, targets = begun.train.inputs[:8], begun.train.targets[:8]
    begun._step(0, inputs, targets)  # the first of all allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        begun._step(1, inputs, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")
