"""Numbers too small to be normal, with which processors reckon many times more slowly than with others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Take numbers below 1.2e-38 (float32; 2.2e-308 in float64) for 0, on the CPU and in this thread.

    Weights that nothing but weight decay moves become as small, and the moments of their gradients before them, after
    some thousand steps. A few hundred of them among 400,000 weights make a training step half as long again.

    Threads of torch's pool take it over if they begin while it holds; those that are there already do not.
    """
    was = not _tells()
    torch.set_flush_denormal(True)  # which says False, and does nothing, on processors that cannot
    try:
        yield
    finally:
        torch.set_flush_denormal(was)


def _tells() -> bool:
    """Whether such numbers are told from 0 now."""
    return float(torch.tensor(1e-39) * 1) != 0
