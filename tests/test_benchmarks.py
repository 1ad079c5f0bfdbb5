"""Benchmarks measure what they say, rehearsed on little: that of ShrinkNets, and that of crashing layers."""

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from telescopic.cost import cost
from telescopic.data import Dataset, Preprocess, Split
from telescopic.layers import Filter

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("shrink_benchmark", BENCHMARKS / "shrink.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load", lambda name: few())
    yield module
    sys.modules.pop("results", None)
    torch.set_num_threads(threads)


def few() -> Dataset:
    """Bright images and dark ones."""
    labels = torch.arange(600) % 2
    images = (labels * 120).view(-1, 1, 1, 1) + torch.randint(120, (600, 1, 28, 28), generator=torch.manual_seed(0))
    split = Split(images.to(torch.uint8), labels)
    return Dataset("few", split, split, split, ("dark", "bright"), "")


def test_with_and_without_removal_training_is_the_same(script: Any) -> None:
    args = argparse.Namespace(threads=1, images=None, units=60, penalty=1.0)
    told = []
    for collects in (True, False):
        ours, theirs = Pipe()
        thread = threading.Thread(target=script.worker, args=(theirs, args, collects))
        thread.start()
        for _ in range(12):
            ours.send(True)
        ours.send(False)
        told.append([ours.recv() for _ in range(12)])
        thread.join()
    removed, kept = told
    assert removed[-1]["units"] < 60
    assert [epoch["units"] for epoch in removed] == [epoch["units"] for epoch in kept]
    assert [epoch["test"] for epoch in removed] == pytest.approx([epoch["test"] for epoch in kept], abs=0.01)
    assert sum(epoch["collecting"] for epoch in removed) > 0 == sum(epoch["collecting"] for epoch in kept)
    assert all(0 < epoch["collecting"] < epoch["seconds"] or not epoch["collecting"] for epoch in removed)
    assert all(100 < epoch["peak MB"] < 100_000 for epoch in removed + kept)


def test_small_networks_of_equal_price(script: Any) -> None:
    data = few()
    preprocess = Preprocess.fit(data.train)
    example = preprocess(data.train.images[:2])
    args = argparse.Namespace(seconds=1.0, by="macs", cnn_penalty=0.3, every=5)
    torch.manual_seed(0)
    train = script.Phase(data, preprocess, 0)
    whole = script.cnn(1)
    made, removing = script.shrunk(whole, train, args, example)
    assert not any(isinstance(part, Filter) for part in made.modules()) and isinstance(made[0], nn.Conv2d)
    assert 1 < train.seconds > removing >= 0 and train.steps > 0  # how many depends on the machine
    macs = cost(whole, (1, 28, 28)).macs // 3
    even = script.scaled(script.Phase(data, preprocess, 0), argparse.Namespace(seconds=0.5), example, macs)
    assert 0.8 * macs < cost(even, (1, 28, 28)).macs <= macs
    nn.init.zeros_(even[-1].weight)
    even[-1].bias.data = torch.arange(10.0).neg()
    assert script.accuracy(even, data.test, preprocess) == 0.5  # the first class for all


def test_a_pruned_network_keeps_to_the_price(script: Any) -> None:
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")
    data = few()
    preprocess = Preprocess.fit(data.train)
    net, macs = script.cnn(1), cost(script.cnn(1), (1, 28, 28)).macs // 3
    train, args = script.Phase(data, preprocess, 0), argparse.Namespace(seconds=8.0)
    pruned, seconds = script.pruned(net, train, args, preprocess(data.train.images[:2]), macs)
    assert 0.7 * macs < cost(pruned, (1, 28, 28)).macs <= macs and seconds > 0


BROKEN = """
import ctypes, os, sys
from torch import nn
import crashes

class Crashing(nn.Identity):
    def forward(self, x):
        os.abort()

class Wrong(nn.Identity):
    def forward(self, x):
        return x * (1 + 1e-3 * (x.dtype != crashes.torch.float64))

class Greedy(nn.Identity):
    def forward(self, x):
        y = x + 0
        ctypes.memset(y.data_ptr() + y.nbytes + 8, 0, 4)
        return y

for kind in (Crashing, Wrong, Greedy):
    setattr(nn, kind.__name__, kind)
names = ("PReLU", "Crashing", "Wrong", "Greedy", "PReLU")
some = [crashes.Case(name, {}, 4, 2, "channels_last", 1, "fp32") for name in names]
print("\\n".join(crashes.outcomes(some)))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the guard is built with cc, for Linux"
)
def test_crashing_and_wrong_layers_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    crashes = importlib.import_module("crashes")
    environment = {"LD_PRELOAD": str(crashes.guard(tmp_path)), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BROKEN]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "right",
        "crashed: SIGABRT",
        "wrong: output by 0.1 %",
        "crashed: wrote past the end of a buffer",
        "right",
    ]
    told = crashes.examined({}, [3], ["PReLU", "Linear"])
    assert told == {"cases": 24, "of them in the loop's layout": {}, "crashed": {}, "wrong": {}, "refused": {}}
    assert crashes.instructions(crashes.PROCESSORS["SSE41"]) == "oneDNN: Intel SSE4.1; torch: DEFAULT"
    for name in ("crashes", "results"):
        sys.modules.pop(name, None)
