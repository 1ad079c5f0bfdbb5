"""A module in several widths from one store of weights: a narrower one uses some of the channels of each layer.

(Slimmable Neural Networks, Yu et al. 2019, arXiv 1812.08928.) Nothing in the module has to know of it. What is cut out
of its tensors for each width is found by `telescopic.slim`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.layers.cuts import Cut, named_tensors, put_, resize_
from telescopic.wrappers import copied, twin

Runs = Sequence[Sequence[Sequence[int]]]
"""Indices as runs [first, last), in a row; of a grouped convolution's inputs a row for each group."""


class Slim(nn.Module):
    """A module that is there in several widths; the widest is the module as it is.

    A narrower one computes with the entries of the module's own parameters that stay, so gradients reach those alone.
    Its buffers are its own: the statistics of BatchNorm are others in another width.

    Args:
        part: the module.
        cuts: for each width but the widest, which entries stay: (name of the tensor, dimension, entries before, runs).
        sizes: for each of them, attributes of layers without tensors that say a size: (path, name, value).

    Raises:
        ValueError: if they do not fit the module.
    """

    def __init__(
        self,
        part: nn.Module,
        cuts: Sequence[Sequence[tuple[str, int, int, Runs]]],
        sizes: Sequence[Sequence[tuple[str, str, Any]]] = (),
    ) -> None:
        super().__init__()
        self.part, self.cuts = part, tuple(tuple(each) for each in cuts)
        self.sizes = tuple(tuple(each) for each in sizes) or ((),) * len(self.cuts)
        if len(self.sizes) != len(self.cuts):
            raise ValueError(f"sizes are given for {len(self.sizes)} widths, and cuts for {len(self.cuts)}")
        shapes = {name: list(tensor.shape) for name, tensor in named_tensors(part).items()}
        for each, written in zip(self.cuts, self.sizes, strict=True):
            _require_fitting({name: list(shape) for name, shape in shapes.items()}, each)
            paths = {path for path, _ in part.named_modules()}
            if strangers := [path for path, _, _ in written if path not in paths]:
                raise ValueError(f"it has no module {strangers[0]!r:.80}")

    def forward(self, *inputs: Any) -> Any:
        """What the module computes, as wide as it is."""
        return self.part(*inputs)

    def in_width(self, width: int) -> nn.Module:
        """What members of a width run: it shares the module's parameters."""
        return self if width > len(self.cuts) else InWidth(self.part, self.cuts[width - 1], self.sizes[width - 1])

    def narrow(self, width: int) -> nn.Module:
        """The same as ordinary layers with parameters of their own; of the greatest width, the module itself."""
        return self.part if width > len(self.cuts) else self.in_width(width).narrow(width)  # type: ignore[operator]

    def used(self, width: int) -> dict[str, Tensor]:
        """Which elements of each parameter a width uses: bool, to be broadcast to its shape."""
        tensors = named_tensors(self.part)
        left: dict[str, Tensor] = {}
        for name, dim, _, runs in self.cuts[width - 1] if width <= len(self.cuts) else ():
            shape = tensors[name].shape
            left[name] = _kept(left.get(name, torch.arange(shape.numel()).view(shape)), dim, runs)
        masks = {}
        for name, kept in left.items():
            mask = torch.zeros(tensors[name].numel(), dtype=torch.bool)
            masks[f"part.{name}"] = mask.index_fill_(0, kept.flatten(), True).view_as(tensors[name])
        return masks


class InWidth(nn.Module):
    """A module as narrow as some of its cuts make it, with the module's own parameters.

    Args:
        part: the module.
        cuts: of its tensors, as `Slim` has them for a width.
        sizes: attributes of layers without tensors: (path, name, value).
    """

    def __init__(
        self,
        part: nn.Module,
        cuts: Sequence[tuple[str, int, int, Runs]],
        sizes: Sequence[tuple[str, str, Any]],
    ) -> None:
        super().__init__()
        self.skeleton = twin(part)
        parameters = dict(self.skeleton.named_parameters())
        self.cuts: dict[str, list[tuple[int, Runs]]] = {}
        for name, dim, _, runs in cuts:
            if name in parameters:
                self.cuts.setdefault(name, []).append((dim, runs))
            else:
                buffer = self.skeleton.get_buffer(name)
                put_(buffer, _kept(buffer, dim, runs).clone())
        self._say_sizes(sizes)

    @torch.no_grad()
    def _say_sizes(self, sizes: Sequence[tuple[str, str, Any]]) -> None:
        """Have its layers say the sizes of what they compute with."""
        small = self._shown(lambda name, tensor: tensor.to("meta"))
        tensors = {id(tensor) for cuts in self.cuts for tensor in [_named(small, cuts)]}
        tensors |= {id(tensor) for tensor in small.buffers()}
        resize_(small, tensors)
        for mine, shown in zip(self.skeleton.modules(), small.modules(), strict=True):
            for name, value in vars(shown).items():
                if type(value) is int and vars(mine).get(name) != value:
                    setattr(mine, name, value)
        for path, name, value in sizes:
            setattr(self.skeleton.get_submodule(path), name, value)

    def forward(self, *inputs: Any) -> Any:
        """What the module computes in this width."""
        return self._shown(lambda name, tensor: tensor)(*inputs)

    def rows(self) -> Iterator[tuple[Tensor, int]]:
        """Parameters of which it reads the first rows only, each with their number."""
        for name, cuts in self.cuts.items():
            number = max((row[-1][1] for dim, (row, *_) in cuts if dim == 0), default=None)
            if number is not None and all(len(runs) == 1 for _, runs in cuts):
                yield _named(self.skeleton, name), number

    def narrow(self, width: int) -> nn.Module:
        """The same as ordinary layers with copies of the parameters."""

        def own(name: str, tensor: Tensor) -> Tensor:
            learns = _named(self.skeleton, name).requires_grad
            return nn.Parameter(tensor.detach().clone(), learns)

        return copied(self._shown(own))

    def _shown(self, of: Callable[[str, Tensor], Tensor]) -> nn.Module:
        """The module with its parameters cut: made anew at each call, so that threads may share it."""
        made: dict[int, Tensor] = {}
        for name, cuts in self.cuts.items():
            parameter = tensor = _named(self.skeleton, name)
            for cut in cuts:
                tensor = _kept(tensor, *cut)
            made[id(parameter)] = of(name, tensor)
        return _with(self.skeleton, made, {})


def _with(module: nn.Module, tensors: Mapping[int, Tensor], done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The same modules with other tensors as parameters, and the buffers themselves."""
    if module in done:
        return done[module]
    made = done[module] = copy.copy(module)
    own = {name: p if p is None else tensors.get(id(p), p) for name, p in module._parameters.items()}
    made.__dict__["_parameters"] = own
    made.__dict__["_modules"] = {n: child and _with(child, tensors, done) for n, child in module._modules.items()}
    if isinstance(made, nn.RNNBase):  # it keeps a list of them
        made._flat_weights = [getattr(made, name, None) for name in made._flat_weights_names]
    return made


def _named(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    tensor = module.get_submodule(path)._parameters[last]
    assert tensor is not None
    return tensor


def _kept(tensor: Tensor, dim: int, runs: Runs) -> Tensor:
    """What stays of a tensor: a view, where that is one run. Nothing is allocated that a file could only speak of."""
    if len(runs) > 1:
        groups = torch.unflatten(tensor, 0, (len(runs), -1))  # [groups, outputs of a group, inputs of a group, ...]
        return torch.stack([_kept(group, dim, [row]) for group, row in zip(groups, runs, strict=True)]).flatten(0, 1)
    pieces = [tensor.narrow(dim, first, last - first) for first, last in runs[0]]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def described(cut: Cut) -> tuple[str, int, int, Runs]:
    """A cut in numbers, as `Slim` takes it."""
    rows = cut.kept if cut.kept.ndim == 2 else cut.kept[None]
    runs = []
    for row in rows:
        breaks = [0, *((row.diff() != 1).nonzero().view(-1) + 1).tolist(), len(row)]
        runs.append(tuple((int(row[a]), int(row[b - 1]) + 1) for a, b in pairwise(breaks)))
    return cut.name, cut.dim, cut.size, tuple(runs)


def _require_fitting(shapes: dict[str, list[int]], cuts: Sequence[tuple[str, int, int, Runs]]) -> None:
    """Refuse cuts of other tensors than these; the shapes become those that are left."""
    for name, dim, size, runs in cuts:
        shape, rows = shapes.get(name), len(runs)
        if shape is None:
            raise ValueError(f"there is no tensor {name!r:.80}")
        fits = 0 <= dim < len(shape) and shape[dim] * rows == size and (rows == 1 or (dim == 1 and not shape[0] % rows))
        numbers = [sum(last - first for first, last in row) for row in runs] if fits else []
        inside = all(0 <= first < last <= shape[dim] for row in runs for first, last in row) if fits else False
        if not inside or not numbers or len(set(numbers)) > 1 or numbers[0] > shape[dim]:
            raise ValueError(f"dimension {dim} of {name!r:.80}, of shape {shape}, cannot be cut to {runs!s:.80}")
        shape[dim] = numbers[0]
