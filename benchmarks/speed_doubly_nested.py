"""Claims: a joint step of all 256 members costs at most 1.10 steps of the dense network with one head.

And evaluating all members at most 1.15 times evaluating the full one. Also measured: slimmable networks' way to train,
four widths in turn, or the sandwich of the largest, the smallest and two others; and what one causal network with one
head costs. The network is Doubly Nested's with 16 groups: 16, 32 and 64 channels, 16 exits.

Everything takes turns in one process, on random images; the ratios are medians of ratios within a round. Writes
results/speed-doubly-nested.json:

    python benchmarks/speed_doubly_nested.py [--threads 1] [--rounds 15] [--batch 128]
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from telescopic.nested import Nested
from telescopic.papers import doubly_nested
from telescopic.subnet import Subnet
from telescopic.train import Objective
from telescopic.train.layout import layout_for
from telescopic.train.optimizer import groups_for

import results
from speed_cnsn import ratio, timed

GROUPS = 16


class InTurn(nn.Module):
    """Slimmable networks' way: each width runs by itself, and their losses are added up."""

    def __init__(self, net: Nested, widths: Sequence[int]) -> None:
        super().__init__()
        self.net, self.widths = net, widths

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the widths' losses; each has its own pass, back too, as theirs has."""
        losses = []
        for width in self.widths:
            loss = nn.functional.cross_entropy(self.net(x, Subnet(width=width)).float(), labels, reduction="sum")
            losses.append(loss.detach())
            loss.backward()
        return torch.zeros((), requires_grad=True), torch.stack(losses)


def step(name: str, batch: int, precision: str, widths: Sequence[int] = ()) -> Callable[[], None]:
    """One training step as the loop does it."""
    net, recipe = doubly_nested.experiment(name, groups=GROUPS)
    layout = layout_for(net, torch.device("cpu"), precision)
    net.train().to(memory_format=layout)
    objective = InTurn(net, widths) if widths else Objective(net, recipe)
    optimizer = torch.optim.SGD(groups_for(net, recipe), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(10, (batch,))

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = objective(x, labels)
        (loss / batch).backward()
        optimizer.step()

    return run


def training(batch: int, precision: str, rounds: int) -> dict[str, object]:
    """Steps of all members against steps of one."""
    quarters = [GROUPS * k // 4 for k in (4, 3, 2, 1)]
    times = timed(
        {
            "all members": step("uniform", batch, precision),
            "dense, one head": step("dense", batch, precision),
            "causal, one head": step("alone", batch, precision),
            "four widths in turn": step("alone", batch, precision, quarters),
            "sandwich": step("alone", batch, precision, [16, 1, 5, 11]),
        },
        rounds,
    )
    return {
        "ms": {name: round(median(values) * 1e3, 1) for name, values in times.items()},
        **{f"{name} / dense, one head": ratio(times, name, "dense, one head") for name in times if "dense" not in name},
        "four widths in turn / all members": ratio(times, "four widths in turn", "all members"),
    }


@torch.inference_mode()
def evaluation(batch: int, rounds: int) -> dict[str, object]:
    """Classifying by all members against by the full one."""
    net, _ = doubly_nested.experiment("uniform", groups=GROUPS)
    net.eval()
    x = torch.randn(batch, 3, 32, 32)
    times = timed({"all members": partial(net.all, x), "full member": partial(net, x)}, rounds)
    return {
        "ms": {name: round(median(values) * 1e3, 1) for name, values in times.items()},
        "all members / full member": ratio(times, "all members", "full member"),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    figures: dict[str, object] = {
        f"training, batch {args.batch}, {precision}": training(args.batch, precision, args.rounds)
        for precision in ("bf16", "fp32")
    }
    figures["evaluation, batches of 200"] = evaluation(200, args.rounds)
    results.write("speed-doubly-nested", vars(args), figures)


if __name__ == "__main__":
    main()
