"""Data that come from loaders: learned as arrays are, resumed, shared by processes; and what no loader may give."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from telescopic import data, tasks
from telescopic.bundle import Bundle
from telescopic.catalogue import measure
from telescopic.data import Augment, DataError, Preprocess, Split
from telescopic.nested import Nested
from telescopic.statistics import recalibrate
from telescopic.train import CheckpointError, Objective, Recipe, evaluate, fit

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.1)
OPTIONS: dict[str, Any] = {"cpu": True, "progress": False, "precision": "fp32", "keep": "last"}


def numbers(num: int = 100) -> tuple[Tensor, Tensor]:
    x = torch.randn(num, 5, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def network(seed: int = 0, norm: bool = False) -> Nested:
    torch.manual_seed(seed)
    stages = [nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Tanh()), nn.Linear(8, 8)]
    return Nested(stages, exits={0: nn.Linear(8, 2), 1: nn.Linear(8, 2)})


class Noisy(TorchDataset[tuple[Tensor, Tensor]]):
    """Examples that are changed at random each time they are read, with torch's numbers."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        x, y = numbers()
        return x[place] + 0.1 * torch.randn(5), y[place]


def shuffled(workers: int = 0) -> data.Dataset:
    loader = DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=workers)
    return data.Loaders(train=loader, validation=DataLoader(TensorDataset(*numbers(40)), batch_size=7))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_loader_teaches_what_the_same_batches_teach() -> None:
    """In order, a loader's batches are a step each by hand: the mean loss of all members, whatever the last's size."""
    x, y = numbers()
    given = data.Loaders(train=DataLoader(TensorDataset(x, y), batch_size=16), validation=[(x[:30], y[:30])])
    net, hand = network(), network()
    history = fit(net, given, replace(RECIPE, epochs=2, optimizer="sgd"), **OPTIONS)
    sgd = torch.optim.SGD(hand.parameters(), lr=0.1, momentum=RECIPE.momentum)
    losses = []
    for _ in range(2):
        total = 0.0
        for start in range(0, 100, 16):
            logits = hand.all(x[start : start + 16])
            each = torch.stack([nn.functional.cross_entropy(one, y[start : start + 16]) for one in logits])
            sgd.zero_grad()
            each.mean().backward()
            sgd.step()
            total += each.mean().item() * len(y[start : start + 16])
        losses.append(total / 100)
    assert [epoch.loss for epoch in history] == pytest.approx(losses, rel=1e-5)
    for one, other in zip(net.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        right = (net.all(x[:30]).argmax(2) == y[:30]).double().mean(1)
    assert history[-1].validation == pytest.approx(right.tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_run_ends_bit_for_bit_alike(tmp_path: Path, capfd: Any, workers: int) -> None:
    """Also where the loader shuffles and changes examples at random, in this process or in others."""
    whole = network()
    random = torch.get_rng_state()
    told = fit(whole, shuffled(workers), RECIPE, **OPTIONS)
    assert torch.equal(random, torch.get_rng_state())
    passes: list[int] = []

    def interrupt(module: nn.Module, *_: object) -> None:
        if isinstance(module, Objective):
            passes.append(1)
            if len(passes) == 11:  # in the second epoch of seven batches
                for process in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
                    os.kill(process or 0, signal.SIGINT)  # as a terminal does

    handle = nn.modules.module.register_module_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2 after 4 batches"):
        fit(network(), shuffled(workers), RECIPE, out=tmp_path, **OPTIONS)
    handle.remove()
    resumed = network(1)
    history = fit(resumed, shuffled(workers), RECIPE, out=tmp_path, resume=True, **OPTIONS | {"progress": None})
    assert same(state(resumed), state(whole))
    assert [e.loss for e in history] == [e.loss for e in told] and len(history) == 3
    assert "in epoch 2 behind batch 4 of 7: the loader reads those once more" in capfd.readouterr().err
    for train, name, reason in (
        ([numbers(16)] * 4, "loaders", "images = 7 batches from a loader, not 4 batches from a loader"),
        ([numbers(16)] * 7, "another", "data = .*, not another"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            fit(network(), data.Loaders(train=train, name=name), RECIPE, out=tmp_path, resume=True, **OPTIONS)


def test_a_run_from_loaders_is_measured_and_kept(tmp_path: Path) -> None:
    given = data.Loaders(
        train=DataLoader(TensorDataset(*numbers()), batch_size=16),
        validation=DataLoader(TensorDataset(*numbers(40)), batch_size=7),
        test=[numbers(30)],
        classes=("below", "above"),
        name="sign",
    )
    net = network(norm=True)
    fit(net, given, RECIPE, out=tmp_path / "run", **OPTIONS)
    catalogue = measure(net, given)
    x, y = numbers(40)
    right = [(net(x, row.subnet).argmax(1) == y).double().mean().item() for row in catalogue]
    assert [row.score for row in catalogue] == pytest.approx(right)
    bundle = Bundle.open(tmp_path / "run" / "model.safetensors")
    assert bundle.catalogue is not None and [r.score for r in bundle.catalogue] == [r.score for r in catalogue]
    assert bundle.provenance["images"] == given.fingerprint and bundle.classes == ("below", "above")
    made = recalibrate(net, given.train, batch_size=16, num_images=10**6)
    norm = made.stages[0][1]
    means = [nn.functional.linear(numbers()[0][i : i + 16], made.stages[0][0].weight, made.stages[0][0].bias).mean(0)
             for i in range(0, 96, 16)]  # fmt: skip
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))


def test_images_are_augmented_and_preprocessed_as_arrays_are() -> None:
    pixels = torch.randint(256, (48, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(48) % 3
    recipe = replace(RECIPE, augment=Augment(pad=1, flip=True), preprocess=Preprocess((0.4,), (0.3,)))

    def made() -> Nested:
        torch.manual_seed(0)
        return Nested([nn.Sequential(nn.Flatten(), nn.Linear(36, 8))], exits={0: nn.Linear(8, 3)})

    class Permuted:
        """The batches that arrays would be divided into, epoch by epoch."""

        def __len__(self) -> int:
            return 3

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return data.batches(Split(pixels, y), 16, seed=0, epoch=getattr(self, "epoch", 1))

    one, other = made(), made()
    fit(one, data.Loaders(train=Permuted()), recipe, **OPTIONS)
    arrays = data.of(pixels, y, test=0, validation=0)
    fit(other, arrays, recipe, **OPTIONS)
    assert same(state(one), state(other))


def test_mappings_and_lists_of_a_collate_become_dicts_and_tuples() -> None:
    from collections import UserDict

    x, y = numbers(8)
    found = data.Loaders(train=[(UserDict(a=x, b=[x, y]), y)])
    assert isinstance(found.train.inputs, dict) and isinstance(found.train.inputs["b"], tuple)
    assert found.input_shape == {"a": (5,), "b": ((5,), ("int64",))}


# ------------------------------------------------------------------------------------------------------ what is refused

X, Y = numbers(16)


class Batches:
    """Batches that end, or not, as they are told."""

    def __init__(self, *batches: Any, length: int | None = None) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return len(self.batches) if self.length is None else self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: data.Loaders(train=[]), "the training loader gives no batches"),
        (lambda: data.Loaders(train=[(X, Y)], test=[]), "the test loader gives no batches"),
        (lambda: data.Loaders(train=(pair for pair in [(X, Y)])), "a generator whose number of batches is not known"),
        (lambda: data.Loaders(train=[(X, Y)], test=iter([(X, Y)])), "test loader is a list_iterator that ends when it"),
        (
            lambda: data.Loaders(train=DataLoader(TensorDataset(X))),
            r"a list of 1, not \(inputs, .* collate_fn",
        ),
        (lambda: data.Loaders(train=[{"x": X, "labels": Y}]), r"is a dict of 2, not \(inputs, targets\)"),
        (lambda: data.Loaders(train=[(X.numpy(), Y)]), "inputs is a ndarray, not a tensor"),
        (lambda: data.Loaders(train=[(X, 3)]), "targets is a int, not a tensor"),
        (lambda: data.Loaders(train=[({"a": X, "b": None}, Y)]), "b is a NoneType, not a tensor"),
        (lambda: data.Loaders(train=[(X, Y[:3])]), r"not as many targets as inputs, or none: inputs float32 \[16, 5\]"),
        (lambda: data.Loaders(train=[({}, Y)]), "has no inputs"),
        (lambda: data.Loaders(train=3), "the training loader is a int whose number"),
        (
            lambda: data.Loaders(train=[(X, Y)], validation=[(X.double(), Y)]),
            r"inputs float32 .*, but validation",
        ),
        (
            lambda: data.Loaders(
                train=[(X, Y)],
                test=DataLoader(TensorDataset(X, Y), sampler=DistributedSampler(TensorDataset(X, Y), 2, 0)),
            ),
            "the test loader has a DistributedSampler, which repeats examples",
        ),
    ],
)
def test_loaders_of_other_things_are_refused_at_once(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        make()


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (
            [(X, Y), (X[:, :4], Y)],
            r"batch 2 of a loader is unlike the first, inputs: float32 \[5\] in each example, and",
        ),
        ([(X, Y), ({"a": X}, Y)], "batch 2 of a loader is unlike the first, a: None"),
        ([(X, Y), (X, Y.float())], r"targets: int64 \[\] in each example, and now float32"),
        ([(X, Y), None], "batch 2 of a loader is a NoneType, not"),
        (Batches((X, Y), length=2), "says that it has 2 batches, and gave 1"),
        (Batches((X, Y), (X, Y), length=1), "says that it has 1 batches, and gives more"),
        (
            [(X, Y), (torch.full_like(X, torch.nan), Y)],
            r"batch 2 of a loader: inputs\[0, 0\] is nan: leave",
        ),
        ([(X, Y), (X[:1], Y[:1])], r"has 1 examples, and BatchNorm needs 2: DataLoader\(..., drop_last=True\)"),
    ],
)
def test_a_batch_that_is_unlike_the_first_is_refused(loader: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        fit(network(norm=True), data.Loaders(train=loader), RECIPE, **OPTIONS)


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    net = network()
    before = state(net)
    sampler = DistributedSampler(TensorDataset(X, Y), 2, 0)
    for given, recipe, reason in (
        (data.Loaders(train=[(X, Y)]), replace(RECIPE, batch_size=64), "give the recipe batch_size=16"),
        (data.Loaders(train=[(X[:, :4], Y)]), RECIPE, r"the network does not take these inputs \[4\]"),
        (data.Loaders(train=[(X, Y + 7)]), RECIPE, "labels go from 7 to 8"),
        (data.Loaders(train=[(X / 0, Y)]), RECIPE, r"inputs\[\d, \d\] of a split"),
        (
            data.Loaders(train=DataLoader(TensorDataset(X, Y), 8, sampler=sampler)),
            replace(RECIPE, batch_size=8),
            "DistributedSampler divides examples among 2 processes, and here is 1",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            fit(net, given, recipe, **OPTIONS)
    with pytest.raises(ValueError, match="does not take these inputs"):
        evaluate(net, [data.Loaders(train=[(X[:, :4], Y)]).train], Preprocess())
    with pytest.raises(DataError, match="say mean and std"):
        Preprocess.fit(data.Loaders(train=[(X, Y)]).train)
    with pytest.raises(ValueError, match="labels are classes"):
        measure(net, data.Loaders(train=[(X, X)], test=[(X, X)]), task=tasks.classification())
    assert same(state(net), before)


class Drawn:
    """Batches of numpy's numbers, which nothing that torch is told makes anew."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng()
        for _ in range(3):
            yield torch.from_numpy(rng.standard_normal((16, 5), np.float32)), torch.arange(16) % 2


# ---------------------------------------------------------------------------------------------------- several processes


def each_process(folder: Path) -> None:
    """Shares of batches, examples by a sampler, and loaders that differ; test_distributed.py runs and compares it."""
    rank = int(os.environ["RANK"])
    net = network()
    fit(net, shuffled(), RECIPE, **OPTIONS)
    save_file(state(net), folder / f"shares-{rank}.safetensors")
    examples = TensorDataset(*numbers(96))
    net = network()
    sampler = DistributedSampler(examples, 2, rank, shuffle=True, seed=3)
    given = data.Loaders(train=DataLoader(examples, 8, sampler=sampler), validation=[numbers(41)])
    history = fit(net, given, RECIPE, **OPTIONS)
    save_file(state(net) | {"score": torch.tensor(history[-1].validation)}, folder / f"sampler-{rank}.safetensors")
    x, y = numbers(16)
    try:
        fit(network(), data.Loaders(train=[(x + rank, y)]), RECIPE, **OPTIONS)
    except ValueError as error:
        (folder / f"refused-{rank}").write_text(str(error))
    first = DataLoader(examples, 8, sampler=DistributedSampler(examples, 2, 0))
    for name, loader in (("same", first), ("half", first if rank == 0 else DataLoader(examples, 16))):
        try:
            fit(network(), data.Loaders(train=loader), RECIPE, **OPTIONS)
        except ValueError as error:
            (folder / f"{name}-{rank}").write_text(str(error))


class Sampled:
    """What two samplers give, together."""

    def __len__(self) -> int:
        return 6

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = numbers(96)
        parts = [DistributedSampler(range(96), 2, rank, shuffle=True, seed=3) for rank in range(2)]  # type: ignore[arg-type]
        for part in parts:
            part.set_epoch(getattr(self, "epoch", 1))
        one, other = ([*part] for part in parts)
        for start in range(0, 48, 8):
            index = one[start : start + 8] + other[start : start + 8]
            yield x[index], y[index]
