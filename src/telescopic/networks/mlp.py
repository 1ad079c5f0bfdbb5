"""A multi-layer perceptron that can lose its first layers."""

from collections.abc import Sequence

from torch import nn

from telescopic.nested import Nested


def mlp(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    *,
    entries: Sequence[int] | None = None,
    dropout: Sequence[float] = (),
) -> Nested:
    """Build a nested MLP: each hidden layer (linear and ReLU) is a stage, and the input may enter before any of them.

    Where a stage expects as many features as the input has, the entry only flattens the input, as in NSN; elsewhere
    its adapter is a linear layer of its own from the input's size to the expected one.

    Args:
        inputs: number of input features; inputs `[batch, ...]` are flattened.
        hidden: features of each hidden layer, first to last; none at all is softmax regression.
        classes: number of classes.
        entries: hidden layers before which the input may enter; `len(hidden)` is softmax regression alone. Default:
            before each one and behind all.
        dropout: see `Nested`.

    Returns:
        A nested network with `len(entries)` members and one exit.

    Raises:
        ValueError: if a size is below 1 or an entry lies outside the network.
    """
    sizes = [inputs, *hidden]
    if min([*sizes, classes]) < 1:
        raise ValueError(f"sizes of an MLP are 1 or more, not {[*sizes, classes]}")
    chosen = range(len(sizes)) if entries is None else entries
    if not all(0 <= entry < len(sizes) for entry in chosen):
        raise ValueError(f"entries {tuple(chosen)} must lie in 0 to {len(hidden)}, the number of hidden layers")
    return Nested(
        stages=[nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(sizes, hidden, strict=False)],
        entries={
            entry: nn.Flatten()
            if sizes[entry] == inputs
            else nn.Sequential(nn.Flatten(), nn.Linear(inputs, sizes[entry]))
            for entry in chosen
        },
        exits={len(hidden) - 1: nn.Linear(sizes[-1], classes)},
        dropout=dropout,
    )
