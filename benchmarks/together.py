"""Many small networks trained at once, each exactly as `telescopic search` trains it by itself (ShrinkNets' Figure 2).

What a GPU does for one small network takes it hardly longer for fifty: most of a step is the launching of kernels. So
the weights of all networks lie in one tensor for each layer, `[networks, ...]`, and `torch.func.vmap` runs them side by
side, each on batches of its own. What makes them differ forbids nothing of that:

* λ, of ShrinkNets or of L2, is a number for each network.
* Fixed widths that differ are filled up with zeros. What stands behind a zero gets no gradient, so zeros stay.
* Dead channels are removed as in a network by itself: each network's living channels are put in front, and all are cut
  to the widest. What a narrower one has behind its own is dead, and multiplied by 0.

Sums are taken in another order than in a single network, and nothing else differs (tests/test_cuda_together.py).
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from telescopic.cost import cost
from telescopic.data import Dataset, Preprocess, Split, batch_sizes, batches, prepared
from telescopic.extract import extract
from telescopic.layers.cuts import named_tensors, put_
from telescopic.nested import Nested
from telescopic.papers import shrinknets
from telescopic.papers.search.results import Model
from telescopic.papers.search.study import study_name
from telescopic.provenance import commit


@dataclass(frozen=True)
class Drawn:
    """A model of Figure 2 before it is trained: its number, λ (0 if it has none), widths if fixed, and seed."""

    number: int
    penalty: float
    widths: tuple[int, ...] | None
    seed: int


def draw(data: str, network: str, kind: str, epochs: int, models: int) -> list[Drawn]:
    """The first models of a cell, from the distributions that `telescopic search` draws from, but not the same ones."""
    space, (channels, hidden) = shrinknets.space(Path(data).stem), shrinknets.NETWORKS[network]
    found = []
    for number in range(models):
        seed = zlib.crc32(f"{study_name(data, network, kind, epochs)}/0/{number}".encode())
        random = np.random.default_rng(seed)
        penalty = float(np.exp(random.uniform(*np.log(space.penalties)))) if kind != "fixed" else 0.0
        widths = [int(random.integers(space.channels[0], space.channels[1] + 1)) for _ in channels]
        widths += [round(2 ** random.uniform(*space.hidden)) for _ in hidden]
        found.append(Drawn(number, penalty, None if kind == "shrinknets" else tuple(widths), seed))
    return found


class Together:
    """Networks of one cell of Figure 2 in training.

    Args:
        images: what they learn.
        network: `mlp` or `lenet`.
        kind: one of `shrinknets.KINDS`.
        drawn: the models.
        epochs: passes over the training images.
        device: where.
        dtype: of weights.

    Attributes:
        seen: of each epoch that is over, each network's accuracy on validation and test images, and widths.
        seconds: for which they were trained.
    """

    def __init__(
        self,
        images: Dataset,
        network: str,
        kind: str,
        drawn: Sequence[Drawn],
        *,
        epochs: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.images, self.drawn, self.epochs, self.device = images.to(device), drawn, epochs, device
        self.network, self.kind = network, kind
        self.seen: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.preprocess = Preprocess.fit(images.train)
        self.shape, self.classes = images.image_shape, len(images.classes)
        nets = [self._one(model).to(dtype) for model in drawn]
        self.net = max(nets, key=lambda net: sum(p.numel() for p in net.parameters()))
        self.layers = [name for name, part in self.net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        learns = {name for name, _ in self.net.named_parameters()}
        stacked = {name: _stacked([named_tensors(net)[name] for net in nets]) for name in named_tensors(self.net)}
        self.tensors = {
            name: nn.Parameter(t.to(device)) if name in learns else t.to(device) for name, t in stacked.items()
        }
        self.parameters = [t for t in self.tensors.values() if isinstance(t, nn.Parameter)]
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.recipe.learning_rate, fused=device.type != "meta")
        self.penalties = torch.tensor([model.penalty for model in drawn], dtype=dtype, device=device)
        self.thetas = [name for name in self.tensors if name.endswith(".theta")]

    def _one(self, model: Drawn) -> Nested:
        """A network as the search makes it."""
        torch.manual_seed(model.seed)
        net, self.recipe = shrinknets.random_model(
            self.kind,
            self.network,
            penalty=model.penalty,
            widths=model.widths,
            epochs=self.epochs,
            preprocess=self.preprocess,
            input_shape=self.shape,
            classes=self.classes,
        )
        return net

    def run(self, late: Callable[[], bool] = lambda: False, told: Callable[[str], None] = lambda _: None) -> bool:
        """Train until the last epoch is over, or it is late after one: whether they are done."""
        while len(self.seen) < self.epochs and not late():
            began = time.monotonic()
            self._epoch(len(self.seen) + 1)
            with torch.no_grad():
                self._compact()
                scores = {"validation": self._scores(self.images.validation), "test": self._scores(self.images.test)}
                self.seen.append({**scores, "widths": self._living()})
            self.seconds += time.monotonic() - began
            best = max(self.seen[-1]["test"])
            told(f"{self.network}, {self.kind}: epoch {len(self.seen)} of {self.epochs}, best {best:.4f} on test")
        return len(self.seen) == self.epochs

    def _epoch(self, epoch: int) -> None:
        train = self.images.train
        numbers = Split(torch.arange(len(train)), torch.arange(len(train)))
        orders = [next(batches(numbers, len(train), seed=model.seed, epoch=epoch))[0] for model in self.drawn]
        order, start = torch.stack(orders).to(self.device), 0
        for size in batch_sizes(len(train), self.recipe.batch_size):
            chosen = order[:, start : start + size]
            start += size
            inputs = train.inputs.index_select(0, chosen.reshape(-1)).unflatten(0, chosen.shape)
            self._step(inputs, train.targets[chosen])

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        """Learn from a batch of each network's own `[networks, batch, ...]`."""
        x = prepared(inputs.flatten(0, 1), self.preprocess, self.parameters[0]).unflatten(0, inputs.shape[:2])
        with torch.no_grad():
            for theta in self.thetas:  # as a filter's forward pass does, which here is given a view
                self.tensors[theta.replace(".theta", ".alive")].logical_and_(self.tensors[theta] > 0)
        logits = vmap(self._called)(self.tensors, x)
        losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view(targets.shape).mean(1)
        if self.kind == "shrinknets":
            losses = losses + self.penalties * sum(self._scale(name).sum(1) for name in self.thetas)
        for parameter in self.parameters:
            parameter.grad = None
        losses.sum().backward()
        if self.kind == "fixed-l2":  # as torch's Adam adds it
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.grad.addcmul_(parameter.detach(), self.penalties.view(-1, *[1] * (parameter.ndim - 1)))
        self.optimizer.step()

    def _called(self, tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        logits: Tensor = functional_call(self.net, tensors, (x,))
        return logits

    def _scale(self, name: str) -> Tensor:
        theta, alive = self.tensors[name], self.tensors[name.replace(".theta", ".alive")]
        return torch.where(alive & (theta > 0), theta, 0.0)

    def _scores(self, split: Split) -> list[float]:
        right = torch.zeros(len(self.drawn), dtype=torch.int64, device=self.device)
        for inputs, targets in batches(split, 1000):
            x = prepared(inputs, self.preprocess, self.parameters[0])
            right += (vmap(self._called, (0, None))(self.tensors, x).argmax(2) == targets).sum(1)
        return (right.double() / len(split)).tolist()

    def _living(self) -> list[list[int]]:
        """Of each network, how wide its layers are."""
        if self.kind != "shrinknets":
            return [list(model.widths or ()) for model in self.drawn]
        return torch.stack([(self._scale(name) > 0).sum(1) for name in self.thetas], 1).tolist()

    def _compact(self) -> None:
        """Put living channels in front, and cut all networks to what the widest has."""
        for layer, reader in pairwise(self.layers) if self.thetas else ():
            living = self._scale(f"{layer}.filter.theta") > 0
            if living.all():
                continue
            most = max(1, int(living.sum(1).max()))
            kept = living.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
            for name in [name for name in self.tensors if name.startswith(f"{layer}.")]:
                self._cut(name, 1, kept)
            # A linear layer behind convolutions reads as many features of each channel as it has pixels.
            pixels = self.tensors[f"{reader}.weight"].shape[2] // living.shape[1]
            features = (kept[:, :, None] * pixels + torch.arange(pixels, device=self.device)).flatten(1)
            self._cut(f"{reader}.weight", 2, features)

    def _cut(self, name: str, dim: int, kept: Tensor) -> None:
        tensor = self.tensors[name]

        def of(x: Tensor) -> Tensor:
            shape = [len(kept) if d == 0 else kept.shape[1] if d == dim else 1 for d in range(x.ndim)]
            return torch.take_along_dim(x, kept.view(shape), dim)

        for key, value in self.optimizer.state.get(tensor, {}).items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                self.optimizer.state[tensor][key] = of(value)
        tensor.grad = None
        put_(tensor, of(tensor.detach()))

    def models(self) -> list[Model]:
        """What has come of them, in the epoch in which each is best on validation images."""
        found = []
        for place, model in enumerate(self.drawn):
            scores = [epoch["validation"][place] for epoch in self.seen]
            best = scores.index(max(scores))
            widths = tuple(self.seen[best]["widths"][place])
            net = shrinknets.network(
                self.network,
                input_shape=self.shape,
                classes=self.classes,
                widths=[max(1, width) for width in widths],  # a layer whose channels are all dead keeps one
                learned=False,
            )
            price = cost(extract(net), self.shape)
            facts: dict[str, Any] = {
                "validation": scores[best],
                "test": self.seen[best]["test"][place],
                "epoch": best + 1,
                "macs": price.macs,
                "params": price.params,
                "seconds": round(self.seconds / len(self.drawn), 2),
                "epochs": self.epochs,
                "commit": commit() or "",
            }
            found.append(Model(self.kind, model.number, model.penalty, widths, **facts))
        return found

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on."""
        stored = {f"net/{name}": tensor.detach() for name, tensor in self.tensors.items()}
        for name, tensor in self.tensors.items():
            stored |= {f"{key}/{name}": value for key, value in self.optimizer.state.get(tensor, {}).items()}
        about = {"drawn": [asdict(m) for m in self.drawn], "epochs": self.epochs, "kind": self.kind}
        about |= {"network": self.network, "seen": self.seen, "seconds": self.seconds}
        temporary = path.with_suffix(".part")
        save_file({name: t.contiguous().cpu() for name, t in stored.items()}, temporary, {"state": json.dumps(about)})
        os.replace(temporary, path)

    def load(self, path: Path) -> bool:
        """Go on with what was written, if that is of these models: whether it is."""
        if not path.exists():
            return False
        with safe_open(path, "pt", device=str(self.device)) as file:
            about = json.loads(file.metadata()["state"])
            mine = {"drawn": [asdict(m) for m in self.drawn], "epochs": self.epochs, "kind": self.kind}
            if any(json.loads(json.dumps(value)) != about[key] for key, value in mine.items()):
                return False
            for name, tensor in self.tensors.items():
                put_(tensor, file.get_tensor(f"net/{name}"))
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                key, _, of = name.partition("/")
                if key != "net":
                    self.optimizer.state[self.tensors[of]][key] = file.get_tensor(name)
        self.seen, self.seconds = about["seen"], about["seconds"]
        return True


def groups(drawn: Sequence[Drawn], most: int) -> list[list[Drawn]]:
    """Models that are trained together: those that become about as wide as each other, of which none waits for one."""
    if not drawn:
        return []
    alike = sorted(drawn, key=lambda model: (np.prod(model.widths or (1,), dtype=float), -model.penalty))
    return [list(alike[start : start + most]) for start in range(0, len(alike), most)]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors in front of each other, the smaller ones filled up with zeros."""
    size = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    made = tensors[0].new_zeros(len(tensors), *size)
    for place, tensor in zip(made, tensors, strict=True):
        place[tuple(slice(side) for side in tensor.shape)] = tensor.detach()
    return made
