"""Two processes with `DistributedDataParallel` remove the same channels, and train as one does on the same batches.

As a program (`python tests/test_shrink_distributed.py FOLDER`) it forks them, because a fresh Python with torch takes
seconds, and only imports what they need.
"""

import faulthandler
import importlib
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed.nn  # before there is a group, which it would hold for ever, and with it threads
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from telescopic import shrink


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 3))
    return shrink.add_filters(net.double(), torch.randn(2, 1, 6, 6))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 6, 6, generator=generator, dtype=torch.float64)
    return images, images.flatten(1)[:, :3].argmax(1)


def train(net: nn.Module, rank: int, world: int) -> list[int]:
    """Train on this process's share of the images; widths after each collection."""
    images, labels = (part[rank::world] for part in data())
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    wrapped: nn.Module = DistributedDataParallel(net) if world > 1 else net
    widths = []
    for step in range(60):
        loss = cross_entropy(wrapped(images), labels) + 0.03 * shrink.size(net)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 6 == 5:
            log = shrink.compact_(net, optimizer)
            widths.append(sum(log.left.values()))
            if log and world > 1:
                wrapped = DistributedDataParallel(net)
    return widths


def each_process(folder: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    net = network()
    widths = train(net, rank, 2)
    save_file({**net.state_dict(), "widths": torch.tensor(widths)}, folder / f"{rank}.safetensors")
    distributed.destroy_process_group()


def forked(folder: Path, rank: int) -> int:
    """A process that trains as one of two: its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    faulthandler.dump_traceback_later(100, exit=True)  # whoever waits for the other one in vain
    try:
        each_process(folder, rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def test_two_processes_remove_the_same_channels(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    net = network()
    widths = train(net, 0, 1)
    assert len(set(widths)) > 3 and widths[-1] < 20  # it did shrink, several times
    assert one.pop("widths").tolist() == widths
    torch.testing.assert_close(one, dict(net.state_dict()), rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    for module in ("torch._dynamo", "torch.distributed.tensor"):
        importlib.import_module(module)
    children = [forked(Path(sys.argv[1]), rank) for rank in (0, 1)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
