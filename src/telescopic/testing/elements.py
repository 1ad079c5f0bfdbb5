"""Which elements of its parameters a member of several widths uses: by definition, and by what is taken out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telescopic.layers import CausalConv2d, CausalLinear, SharedHead
from telescopic.layers.sized import CAUSAL


@dataclass(frozen=True)
class Share:
    """What a member uses of a parameter or buffer.

    Attributes:
        read: which elements, bool of its shape.
        size: how many elements it takes in an ordinary layer, which has zeros where a causal one may not read; none
            if they are folded into others.
    """

    read: Tensor
    size: int


def shares(path: Sequence[nn.Module], groups: int, width: int, causal: bool) -> dict[int, Share]:
    """What the first `width` of `groups` groups use of an adapter, stages and a head: id of a tensor → its share.

    By definition, not by asking the layers: the first w of G groups of C channels are the first C·w // G channels; an
    output channel of a causal layer reads the input channels of its own group and of those before; a shared head reads
    the first groups, and of what each width has of its own there its own row, which is folded into the rest; of
    an adapter's last convolution or linear layer, and of the norms behind it, the first rows are used. Only of classes
    of one's own with a method `narrow` it is asked which elements they keep; where widths are told, all others are
    whole, adapters too.
    """
    found: dict[int, Share] = {}
    adapter, *others = path
    layers = list(_flat(adapter)) if groups > 1 and causal else []
    cut = max((i for i, layer in enumerate(layers) if type(layer) in (nn.Conv2d, nn.Linear)), default=len(layers))
    others = others if causal else list(path)
    parts = [(layer, groups) for layer in (*layers[cut:], *others)] + [(layer, 1) for layer in layers[:cut]]
    for part, of in parts if groups > 1 else [(part, 1) for part in path]:
        if of > 1:
            found |= _told(part, width)
        for module in part.modules():
            for name, tensor in _own(module):
                if of == 1:
                    found[id(tensor)] = _first(tensor, ())
                elif isinstance(module, CAUSAL) or any(part is layer for layer in layers):
                    found[id(tensor)] = _by_rule(module, name, tensor, groups, width)
                else:
                    found.setdefault(id(tensor), _first(tensor, ()))
    return found


def origins(net: nn.Module, take: Callable[[nn.Module], nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Where each parameter of `take(net)` comes from: which elements of all of `net`'s parameters, and times what.

    Found by numbering the elements and looking which numbers come out; a factor of 0 is a weight that is masked. What
    each width of a head has of its own takes rounds of its own, for what is taken out is made of it and of others. In
    the end the network's parameters are what they were.

    Returns:
        For each parameter taken, the elements' places among all, and its derivatives by them, both `[rounds, numel]`.
    """
    heads = [module for module in net.modules() if isinstance(module, SharedHead)]
    rows = {id(row): which for head in heads for which, row in ((1, head.scale), (1, head.shift), (2, head.own))}
    which = [rows.get(id(parameter), 0) for parameter in net.parameters()]
    rounds = [_round(net, take, [one == number for one in which]) for number in sorted({0, *which})]
    return [
        (torch.stack([index for index, _ in each]), torch.stack([factor for _, factor in each]))
        for each in zip(*rounds, strict=True)
    ]


def _round(
    net: nn.Module, take: Callable[[nn.Module], nn.Module], chosen: Sequence[bool]
) -> list[tuple[Tensor, Tensor]]:
    """Places and derivatives of the parameters chosen, while the others stay as they are."""
    kept, taken = [(parameter, parameter.data) for parameter in net.parameters()], []
    sizes = [parameter.numel() for parameter, _ in kept]
    numbers = torch.split(torch.arange(1, sum(sizes) + 1, dtype=torch.float64), sizes)
    try:
        for values in (
            numbers,
            [torch.ones_like(number) for number in numbers],
            [torch.zeros_like(n) for n in numbers],
        ):
            for (parameter, _), value, is_chosen in zip(kept, values, chosen, strict=True):
                if is_chosen:
                    parameter.data = value.to(parameter.dtype).view_as(parameter)
            # Copies, for a class of one's own may hand on the very parameter.
            taken.append([parameter.detach().clone() for parameter in take(net).parameters()])
    finally:
        for parameter, value in kept:
            parameter.data = value
    found = []
    for number, one, zero in zip(*taken, strict=True):
        factor = one - zero
        index = ((number - zero) / factor.where(factor != 0, 1)).round().long() - 1
        found.append((index.where(factor != 0, 0).flatten(), factor.flatten()))
    return found


def _by_rule(module: nn.Module, name: str, tensor: Tensor, groups: int, width: int) -> Share:
    def group(channels: int) -> Tensor:
        """The group of each channel, from 0."""
        ends = [channels * w // groups for w in range(1, groups + 1)]
        return torch.tensor([sum(end <= channel for end in ends) for channel in range(channels)])

    kept = [size * width // groups for size in tensor.shape[:2]]
    if isinstance(module, SharedHead):
        if name in ("scale", "shift", "own"):
            of_features = tensor.shape[-1] * width // groups
            read = _first(tensor, [width, *tensor.shape[1:]]).read
            read[: width - 1] = False
            if name != "shift":
                read[..., of_features:] = False
            return Share(read, 0)
        return _first(tensor, [len(tensor), kept[1]] if name == "weight" else [])
    causal = isinstance(module, CausalConv2d | CausalLinear) and name == "weight"
    if not causal or getattr(module, "depthwise", False):
        return _first(tensor, kept[:1])
    share = _first(tensor, kept)
    may_read = group(tensor.shape[0])[:, None] >= group(tensor.shape[1])
    return Share(share.read & may_read.view(*may_read.shape, *[1] * (tensor.ndim - 2)), share.size)


def _told(part: nn.Module, width: int) -> dict[int, Share]:
    """What classes with a method `narrow` keep, ours aside."""
    found: dict[int, Share] = {}
    for module in part.modules():
        own, tensors = getattr(module, "narrow", None), list(module.parameters())
        if not callable(own) or isinstance(module, CAUSAL) or not tensors:
            continue
        taken = origins(module, lambda numbered: numbered.narrow(width))  # type: ignore[operator]
        kept = torch.cat([index[factor != 0] for index, factor in taken]) if taken else torch.zeros(0).long()
        read = torch.zeros(sum(t.numel() for t in tensors), dtype=torch.bool).index_fill(0, kept, True)
        for tensor, mask in zip(tensors, torch.split(read, [t.numel() for t in tensors]), strict=True):
            found[id(tensor)] = Share(mask.view_as(tensor), int(mask.sum()))
    return found


def _first(tensor: Tensor, kept: Sequence[int]) -> Share:
    """So many of the first along each axis, all along the others."""
    read = torch.zeros(tensor.shape, dtype=torch.bool)
    part = read[tuple(slice(number) for number in kept)] if tensor.ndim else read
    part.fill_(True)
    return Share(read, part.numel())


def _flat(part: nn.Module) -> Iterator[nn.Module]:
    if type(part) is nn.Sequential:
        for layer in part:
            yield from _flat(layer)
    else:
        yield part


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
