"""How all laws are checked on a network that is left as it is."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from telescopic.ambient import plain
from telescopic.inputs import Tensors, each, examples, explained
from telescopic.layers import GradientScale
from telescopic.nested import Nested
from telescopic.shapes import Shape
from telescopic.subnet import Coordinates, Grid, Subnet
from telescopic.testing import laws
from telescopic.testing.trial import Trial
from telescopic.wrappers import copied, unwrapped

LAWS: tuple[Callable[[Trial], None], ...] = (
    laws.sized,
    laws.no_memory,
    laws.neighbours,
    laws.extraction,
    laws.nesting,
    laws.independence,
    laws.gradient_mix,
    laws.threads,
    laws.cost,
    laws.round_trip,
)
"""In the order in which they are checked: the later ones take the earlier for granted."""


@plain()
def check_nested(
    net: Nested,
    input_shape: Shape,
    *,
    members: int | Iterable[Subnet] | None = None,
    rebuild: bool = True,
    seed: int = 0,
) -> None:
    """Check that a network keeps the laws of nested networks.

    1. Sized: given the first groups of channels, a stage gives the first groups of what it gives of all.
    2. No memory: in eval mode an answer depends on the input and the member alone.
    3. Neighbours: an example's answer does not depend on the other examples of its batch.
    4. Extraction is exact, and so is each row of `net.all`.
    5. Nesting: the stages that a member runs are also run by each member that contains it; and of a layer's channels a
       narrower member uses the first.
    6. Independence: what lies outside a member neither changes its answer nor learns from it.
    7. The gradient mix is exact.
    8. Threads: two that share the network in eval mode get the answers of one.
    9. Cost is true.
    10. Round trip: a bundle saved and loaded gives the same answers.

    `telescopic.testing.laws` says of each what it means; with several widths they hold of each element of a weight.
    They are checked on a copy, in float64 on the CPU, in which random numbers are added to the weights (zeros would
    hide most mistakes) and each entry has seen a batch in training mode (so that statistics differ). The network, its
    mode, its gradients and torch's random state stay exactly as they are. Exact means within `TOLERANCE`, 1e-12.

    Args:
        net: the network.
        input_shape: shape of one example, without the batch, see `cost`: then inputs are random numbers, and those that
            are whole numbers all 1. Or a batch of examples, of which three different ones are taken.
        members: which members to check: so many of them, evenly spread over the grid, or just these. Default: all.
        rebuild: whether a bundle can describe the network. Give False if it holds classes of your own that
            `register_layer` cannot handle; then a copy of the network without its weights is what law 10 loads into.
        seed: of the random inputs and weights.

    Raises:
        AssertionError: if a law is broken; the message says which, by which member, and the numbers.
        ValueError: if the network does not take the input shape, or has no such member.
    """
    net = unwrapped(net)
    chosen = _chosen(net.grid, members)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = examples(3, input_shape, torch.float64, "cpu", seed=seed)
        trial = Trial(_lived_in(net, x), chosen, x, rebuild)
        for law in LAWS:
            try:
                law(replace(trial, net=copied(trial.net)))
            except (AssertionError, ValueError) as error:
                if isinstance(error, ValueError) and net.groups == 1:
                    raise
                # What is not causal fails as soon as it is made narrower.
                assert law.__doc__ is not None
                raise AssertionError(f"{law.__doc__.splitlines()[0]} But {error}") from error


def _chosen(grid: Grid, members: int | Iterable[Subnet] | None) -> tuple[Coordinates, ...]:
    if members is None:
        return tuple(grid)
    if isinstance(members, int):
        last = len(grid) - 1
        places = {round(last * i / (members - 1)) for i in range(members)} if members > 1 else {last}
        chosen = tuple(grid[place] for place in sorted(places)) if members > 0 else ()
    else:
        chosen = tuple(grid.resolve(member) for member in members)
    if not chosen:
        raise ValueError(f"check one member or more, not members={members}")
    return chosen


@torch.no_grad()
def _lived_in(net: Nested, x: Tensors) -> Nested:
    """A copy in which nothing is zero, or the same for all entries, only because the network is new."""
    lived = copied(net).to("cpu", torch.float64)
    for parameter in lived.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.01 * torch.randn_like(parameter))
    for module in lived.modules():
        if isinstance(module, GradientScale):  # a means of training that is no part of what a member is
            module.scale = 1.0
    with explained(lived, x):
        lived.eval()(each(torch.clone, x))
    lived.train().all(each(torch.clone, x))
    return lived.eval()
