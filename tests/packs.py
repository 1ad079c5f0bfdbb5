"""Small packs: one made at once, of three members, of which the larger are more accurate; and one of each family."""

import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import nn

import telescopic as tl
from telescopic.layers import CausalConv2d, Residual, SharedHead
from telescopic.subnet import Subnet

MEMBERS = {Subnet(entry=0, exit=e, width=w): accuracy for e, w, accuracy in ((-1, 1, 0.5), (0, 1, 0.75), (1, 2, 0.9))}
MADE = tempfile.TemporaryDirectory()  # until the process ends


def small_pack(to: Path, shape: tuple[int, int, int]) -> Path:
    """For images of a shape, of three classes; exported once for each shape, for an export takes seconds."""
    return Path(shutil.copytree(small_packed(shape), to))


@cache
def small_packed(shape: tuple[int, int, int]) -> Path:
    torch.manual_seed(0)

    def conv(given: int, made: int) -> nn.Sequential:
        return nn.Sequential(CausalConv2d(given, made, 3, padding=1, width_groups=2), nn.ReLU())

    def head(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), SharedHead(channels, 3, width_groups=2))

    first = {0: nn.Conv2d(shape[0], 4, 3, padding=1)}
    net = tl.Nested([conv(4, 4), conv(4, 8)], first, {-1: head(4), 0: head(4), 1: head(8)}, groups=2).eval()
    found = tl.measure(net, input_shape=shape)
    catalogue = replace(found, members=tuple(replace(m, score=MEMBERS.get(m.subnet, 0.1)) for m in found))
    return tl.pack(
        net,
        Path(MADE.name) / "x".join(map(str, shape)),
        members=list(MEMBERS),
        catalogue=catalogue,
        preprocess=tl.Preprocess((0.5,), (0.25,)),
        classes=("ant", "bee", "cat"),
    )


IMAGE = (3, 8, 8)


def conv(given: int, made: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def residual() -> tl.Nested:
    """An exit behind every block, so that each block is a segment."""
    return tl.nest(tl.networks.resnet(8, 5, width=16), input_shape=IMAGE, exits=range(3))


def padded() -> tl.Nested:
    """The shortcut of the first block has its new channels padded with zeros; another sum comes after it."""
    wider = nn.Sequential(nn.ZeroPad3d((0, 0, 0, 0, 0, 16)))
    stages = [conv(3, 16), Residual(conv(16, 32)[:2], wider), Residual(conv(32, 32)[:2])]
    return tl.Nested(stages, exits={1: head(32), 2: head(32)})


def entries(statistics: str) -> tl.Nested:
    """Two entries that share the last stages; what passes between them has one name for each."""
    ways = {0: nn.Identity(), 1: nn.Conv2d(3, 16, 1), 2: nn.Conv2d(3, 32, 1)}
    stages = [conv(3, 16), conv(16, 32), conv(32, 32)]
    return tl.Nested(stages, ways, {2: head(32)}, statistics=statistics)  # type: ignore[arg-type]


def widths() -> tl.Nested:
    return tl.networks.causal_resnet(2, (16, 32), blocks=1, classes=5)


FAMILIES: dict[str, Callable[[], tl.Nested]] = {
    "residual": residual,
    "padded": padded,
    "entries": lambda: entries("shared"),
    "entries with statistics of their own": lambda: entries("per-entry"),
    "widths": widths,
}


def family_packs(folder: Path) -> Callable[[str], Path]:
    """What packs all members of a family in a folder, once, whichever process asks."""
    folder.mkdir(exist_ok=True)

    @cache
    def made(name: str) -> Path:
        to = folder / name.replace(" ", "-")
        with FileLock(folder / f"{to.name}.lock"):
            if to.exists():
                return to
            torch.manual_seed(0)
            net = FAMILIES[name]()
            net.train()
            net.all(torch.randn(16, *IMAGE))
            return tl.pack(net.eval(), to, members="all", input_shape=IMAGE)

    return made


def wrong_among_threads(engine: tl.Engine, inputs: Sequence[np.ndarray], turns: int) -> list[object]:
    """Run members on inputs in four threads at once, and return what was answered otherwise than by one alone."""
    subnets = [member.subnet for member in engine.members]
    wanted = {(i, s): engine.run(x, subnet=s).logits for i, x in enumerate(inputs) for s in subnets}
    wrong: list[object] = []

    def work(start: int) -> None:
        for turn in range(turns):
            i, subnet = (start + turn) % len(inputs), subnets[(start + turn // 3) % len(subnets)]
            if not np.array_equal(engine.run(inputs[i], subnet=subnet).logits, wanted[i, subnet]):
                wrong.append((i, subnet))

    workers = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return wrong
