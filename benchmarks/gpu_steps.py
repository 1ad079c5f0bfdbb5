"""What a training step takes: of each method against the dense network, run as it is written, compiled, and recorded.

Small networks are bound by the launching of kernels, of which a joint step has hundreds. `torch.compile` makes fewer
of them, and a CUDA graph launches all of a step's work at once. A part of benchmarks/gpu.py.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

import telescopic as tl
from telescopic.data import Dataset, Split, prepared
from telescopic.nested import Nested
from telescopic.networks import resnet
from telescopic.papers import cnsn, doubly_nested, nsn, shrinknets
from telescopic.train import Recipe
from telescopic.train.layout import laid_out
from telescopic.train.loop import Training
from telescopic.train.objective import task_for

IMAGE = (3, 32, 32)


@dataclass(frozen=True)
class Measured:
    """A network whose step is timed, and the one that it is compared with."""

    name: str
    against: str
    make: Callable[[], tuple[Nested, Recipe]]
    shape: tuple[int, int, int] = IMAGE


def networks(tiny: bool) -> Iterator[Measured]:
    """All that are measured; each dense network before what is compared with it."""
    scale, hidden = (0.05, (20, 20, 20)) if tiny else (1.0, None)
    sizes: dict[str, Any] = {"groups": 4, "blocks": 1} if tiny else {}
    for name in ("ref-model2", "model0-1-2"):
        yield Measured(f"NSN {name}", "NSN ref-model2", lambda name=name: nsn.experiment(name), (1, 28, 28))
    for batch in (32, 128):
        for name in ("alone-0", "joint"):

            def make(name: str = name, batch: int = batch) -> tuple[Nested, Recipe]:
                net, recipe = cnsn.experiment(name, scale=scale)
                return net, replace(recipe, batch_size=batch)

            yield Measured(f"CNSN {name}, batch {batch}", f"CNSN alone-0, batch {batch}", make)
    for network in ("mlp", "lenet"):
        widths = hidden or [*shrinknets.NETWORKS[network][0], *shrinknets.NETWORKS[network][1]]
        options = {"penalty": 1e-4, "widths": widths, "epochs": 1, "input_shape": IMAGE}
        for kind in ("fixed", "shrinknets"):

            def drawn(kind: str = kind, network: str = network, options: Any = options) -> tuple[Nested, Recipe]:
                return shrinknets.random_model(kind, network, **options)

            yield Measured(f"{network} {kind}", f"{network} fixed", drawn)
    for way in ("dense", "alone", "uniform", doubly_nested.BEST_WAY):
        yield Measured(
            f"Doubly Nested {way}",
            "Doubly Nested dense",
            lambda way=way: doubly_nested.experiment(way, epochs=150, **sizes),
        )
    for kind in ("dense", "slim, 4 widths"):
        yield Measured(f"ResNet-20 {kind}", "ResNet-20 dense", lambda kind=kind: _slim(kind, 4 if tiny else 16))


def _slim(kind: str, width: int) -> tuple[Nested, Recipe]:
    blocks = list(resnet(20, 10, width=width))
    net = Nested(blocks[:-1], exits={len(blocks) - 2: blocks[-1]})
    recipe = replace(tl.recipes.slim(30), batch_size=128)
    if kind == "dense":
        return net, replace(recipe, drawn=None, distillation=0.0)
    return tl.slim(net, torch.zeros(2, *IMAGE), 4), recipe


class Step:
    """A step of a network on noise, as the loop takes it.

    Args:
        measured: the network.
        precision: fp32 or bf16.
        device: where.
        tiny: whether to take next to no images.
    """

    def __init__(self, measured: Measured, precision: str, device: torch.device, *, tiny: bool) -> None:
        torch.manual_seed(0)
        net, recipe = measured.make()
        recipe = replace(recipe, batch_size=8) if tiny else recipe
        inputs = torch.randint(256, (2 * recipe.batch_size, *measured.shape), dtype=torch.uint8)
        split = Split(inputs, torch.arange(len(inputs)) % 10)
        noise = Dataset("noise", split, split[:20], split[:20], tuple("0123456789"), "made")
        options: dict[str, Any] = {"seed": 0, "precision": precision, "told": False, "checkpoint_seconds": math.inf}
        accelerator = Accelerator(cpu=device.type == "cpu")
        accelerator.native_amp = False
        task = task_for(None, recipe)
        self.training = Training(accelerator, net, noise, recipe, task, None, lambda: False, **options)
        self.training.examples = 0
        self.device, self.precision, self.batch = device, precision, recipe.batch_size
        some = self.training.train[: recipe.batch_size]
        self.inputs, self.targets = some.inputs, some.targets
        self.objective: Callable[..., tuple[Tensor, Tensor]] = self.training.objective
        self.state = {name: t.clone() for name, t in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        net = self.training.net.train()
        return {name: t.data for name, t in (*net.named_parameters(), *net.named_buffers())}

    def restore(self) -> None:
        """The weights and buffers of the beginning, in place."""
        for name, tensor in self._tensors().items():
            tensor.copy_(self.state[name])

    def eager(self) -> Tensor:
        """The loop's own step."""
        return self.training._step(0, self.inputs, self.targets)

    def prepared(self) -> Tensor:
        """What the network is given."""
        recipe = self.training.recipe
        augmented = recipe.augment(self.inputs, torch.manual_seed(0))
        x: Tensor = laid_out(prepared(augmented, recipe.preprocess, self.training.like), self.training.layout)
        return x

    def learn(self, x: Tensor, targets: Tensor) -> Tensor:
        """All of a step that is done on the device with a batch that is there."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss, _ = self.objective(x, targets)
        optimizer = self.training.optimizer
        optimizer.zero_grad()
        torch.autograd.backward(self.training.method.minimised(loss / len(targets)))
        for parameter, factor in self.training.factors[self.training.joint.place]:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        optimizer.step()
        return loss.detach() / len(targets)

    def compiled(self) -> Callable[[], Tensor]:
        """The same with the networks and losses compiled; without a GPU only as far as torch reads the code."""
        torch.compiler.reset()
        backend = "inductor" if self.device.type == "cuda" else "eager"
        self.objective = torch.compile(self.training.objective, backend=backend)
        return lambda: self.learn(self.prepared(), self.targets)

    def recorded(self) -> Callable[[], Tensor]:
        """The same as a CUDA graph; without a GPU it works on the graph's own memory, but launches as usual."""
        self.objective = self.training.objective
        for group in self.training.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        x, targets = self.prepared().clone(), self.targets.clone()
        replay: Callable[[], object] = lambda: made.copy_(self.learn(x, targets))  # noqa: E731
        made = torch.zeros((), dtype=torch.promote_types(x.dtype, torch.float32), device=self.device)
        if self.device.type == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.learn(x, targets)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made.copy_(self.learn(x, targets))
            replay = graph.replay

        def step() -> Tensor:
            x.copy_(self.prepared())
            targets.copy_(self.targets)
            replay()
            return made

        return step


def seconds(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Of one step: the median of three rounds of several, after some that warm up."""
    for _ in range(min(5, steps)):
        step()
    times = []
    for _ in range(3):
        _wait(device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _wait(device)
        times.append((time.perf_counter() - began) / steps)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    device: torch.device, *, tiny: bool, late: Callable[[], bool], told: Callable[[str], None]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name → figures, one network and precision after the other, until it is late."""
    dense: dict[tuple[str, str], float] = {}
    for measured in networks(tiny):
        for precision in ("fp32", "bf16"):
            if late():
                told("no time is left to measure the rest")
                return
            figures: dict[str, Any] = {}
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step = Step(measured, precision, device, tiny=tiny)
            ways = {"eager": lambda step=step: step.eager, "graph": step.recorded, "compiled": step.compiled}
            losses = {}
            for way, make in ways.items():
                try:
                    run = make()
                    if way != "eager":  # the first step's loss tells whether it is the same step
                        step.restore()
                        losses[way] = float(run())
                    figures[f"{way} ms"] = round(1e3 * seconds(run, device, 1 if tiny else 20), 3)
                except Exception as error:  # that a network cannot be compiled or recorded is a result
                    figures[f"{way} failed"] = f"{type(error).__name__}: {error}"[:300]
            step.objective = step.training.objective
            step.restore()
            expected = float(step.learn(step.prepared(), step.targets))
            for way, loss in losses.items():
                figures[f"{way} loss / eager"] = round(loss / expected, 5)
            if "eager ms" in figures:
                mine = dense[measured.name, precision] = figures["eager ms"]
                figures["images/s"] = round(1e3 * step.batch / mine)
                if (
                    other := dense.get((measured.against, precision))
                ) is not None and measured.name != measured.against:
                    figures["times dense"] = round(mine / other, 2)
            if device.type == "cuda":
                figures["peak MB"] = round(torch.cuda.max_memory_allocated() / 1e6)
            told(f"{measured.name}, {precision}: {figures}")
            yield f"{measured.name}, {precision}", figures
