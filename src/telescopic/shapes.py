"""What one example looks like, as plain data: shape and type of each tensor that a network is given. No torch."""

from collections.abc import Mapping
from typing import Any

Shape = Any
"""`(3, 32, 32)`: numbers of the network's own type. `("int64", 128)`: of another. A dict or tuple of such: several."""

TYPES = ("bool", "uint8", "int8", "int16", "int32", "int64")
"""What a shape may begin with."""

INPUT = "input"
"""What an input is called that is alone and has no name."""


def several(shape: Shape) -> dict[str, Shape]:
    """The shape of each input by its name."""
    return dict(shape) if isinstance(shape, Mapping) else {INPUT: shape}


def parted(shape: tuple[Any, ...]) -> tuple[str | None, tuple[int, ...]]:
    """The type of one tensor, None for the network's own, and its sizes."""
    return (shape[0], tuple(shape[1:])) if shape and shape[0] in TYPES else (None, tuple(shape))


def checked_shape(shape: object) -> Shape:
    """A shape of one example with tuples for lists, as it may come from a file of anyone.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(shape, Mapping) and shape and all(isinstance(name, str) and name for name in shape):
        return {name: checked_shape(each) for name, each in shape.items()}
    if isinstance(shape, tuple | list):
        if shape and all(isinstance(each, tuple | list | Mapping) for each in shape):
            return tuple(checked_shape(each) for each in shape)
        if all(type(size) is int and 0 < size < 2**63 for size in parted(tuple(shape))[1]):
            return tuple(shape)
    raise ValueError(
        f"input_shape {shape!r:.100} must be whole numbers above 0, that of one example without the batch, for example "
        '(1, 28, 28); of other types than the network\'s ("int64", 128); of several inputs a dict of such'
    )
