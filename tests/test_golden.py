"""Thirty steps of NSN end where they always have: a change that should not alter the computation must not move them.

The losses were computed once, on an x86-64 processor with one thread. They are compared to 1 part in 10,000 and not
exactly, because matrix products add up in another order on another processor, which changes weights in their last bit;
such a change moves the last loss by 1 part in several million. What the method is made of moves a loss by 5 to 3,000
parts in 10,000: the mix, the dropout and its order, the L2 and how it is mixed, the initial weights, the order of the
images, the momentum. Rate and L2 are higher than the paper's, for whose L2 thirty steps are too few to tell.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from telescopic.data import load
from telescopic.papers import nsn
from telescopic.train import Objective, fit

GOLDEN = {1: 7.20544434, 10: 6.25153446, 30: 4.70296144}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_golden_losses_of_nsn() -> None:
    losses: list[float] = []

    def note(module: nn.Module, args: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]) -> None:
        if isinstance(module, Objective):
            losses.append(out[0].item() / len(args[1]))

    data = load("digits")
    torch.manual_seed(0)
    net = nsn.network(inputs=64)
    recipe = replace(nsn.recipe(epochs=3, l2=3e-3), batch_size=128, learning_rate=0.1)
    handle = nn.modules.module.register_module_forward_hook(note)
    fit(net, data, recipe, cpu=True, progress=False)
    handle.remove()
    assert len(losses) == 33
    assert {step: losses[step - 1] for step in GOLDEN} == pytest.approx(GOLDEN, rel=1e-4)
