"""How a network that one has is made channel-causal, layer by layer and in place, with its weights."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.cost.counting import on_meta, with_tensors
from telescopic.inputs import explained
from telescopic.layers.causal import (
    CausalBatchNorm1d,
    CausalBatchNorm2d,
    CausalConv2d,
    CausalLinear,
    prefix,
    require_groups,
)
from telescopic.layers.causality import prove_causal
from telescopic.layers.heads import SharedHead
from telescopic.layers.narrowing import narrow, narrow_outputs
from telescopic.layers.sized import CAUSAL, MIXING, require_channels_first
from telescopic.nested import Nested
from telescopic.shapes import checked_shape
from telescopic.wrappers import called, is_compiled, unwrapped

Network = TypeVar("Network", bound=nn.Module)

_SIZES = (32, 28, 64, 96, 224, 16, 8, 48, 128, 256, 299)  # of images, the likeliest first
_BATCH = 3  # in a batch of two, BatchNorm of single pixels leaves nothing but signs


@plain()
def causal_(
    network: Network, groups: int, *, input_shape: Sequence[int] | None = None, first: str | None = None
) -> Network:
    """Make a network channel-causal in place: channel group i of each layer reads groups up to i of the one before.

    So the first w groups never depend on the rest, and `nest(network, groups=...)` makes a family of every width of it.
    Convolutions, linear layers and BatchNorms are exchanged for those of `layers` with the very same parameters, in
    which weights from a later group to an earlier one are set to zero: an optimizer made before stays valid, type,
    device and `requires_grad` stay, and the network answers as before up to those weights. Everything else stays.

    The layer that reads the raw input stays an ordinary one, for the raw input has no groups. The last linear layer,
    which gives the logits, becomes a `layers.SharedHead`; one without a bias gets a zero that is not trained.

    What is allowed in between is what keeps the groups apart, which is not guessed but proven before anything changes:
    a copy of the network with random weights, in float64, runs at every width, and what each of its modules takes and
    gives must be the first groups of what it takes and gives at full width.

    Args:
        network: the module that holds the layers: an `nn.Sequential` of blocks, or one with a forward of your own.
        groups: number of channel groups; of C channels, the first w groups are the first C·w // groups.
        input_shape: shape of one input, without the batch. Default: as many channels as the first convolution takes,
            and the first of the usual sizes of images that the network runs on; or the features that it takes.
        first: path of the module, such as `0` or `stem.conv`, that reads the raw input and stays as it is, together
            with all that runs before it. Default: the first convolution or linear layer that runs.

    Returns:
        The network given.

    Raises:
        TypeError: if what is given is no module, or nested already.
        ValueError: if a layer cannot be made causal, or a group would depend on a later one; the message names the
            module by its path, and the reason. Nothing has changed then.
    """
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"a network has 1 channel group or more, not {groups!r}")
    if not isinstance(network, nn.Module) or isinstance(network, Nested):
        raise TypeError(
            f"layers of a {type(network).__name__} cannot be exchanged: give an nn.Sequential, an nn.ModuleList of "
            "blocks or a module of your own, and what comes back to nest"
        )
    if is_compiled(network):
        causal_(unwrapped(network), groups, input_shape=input_shape, first=first)
        return network
    for path, part in unwrapped(network).named_modules():
        if isinstance(part, CAUSAL):
            raise ValueError(f"{called(path, part)} is channel-causal already: give a network of ordinary layers")
    one = _usual_shape(network) if input_shape is None else checked_shape(input_shape)
    if isinstance(one, dict) or not all(isinstance(size, int) for size in one):
        raise ValueError(f"groups are of channels of one input, and these are {one}: what reads them stays an adapter")
    shape = (_BATCH, *one)
    order = _order(_chained(on_meta(network)), torch.empty(shape, device="meta"))
    start, kept, head = _ends(network, order, first)
    plan = _plan(network, groups, kept, head)
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e-3):  # what saturates at large features, such as a sigmoid, hides nothing at small ones
        trial, x = _trial(network, shape, scale, generator)
        _exchange(trial, plan, head, groups)
        prove_causal(_chained(_by_batch(trial)), x, start, head, range(1, groups), groups)
    _exchange(network, plan, head, groups)
    return network


def _usual_shape(network: nn.Module) -> tuple[int, ...]:
    """The shape of an input, by trying."""
    parts = list(network.modules())
    channels = dict.fromkeys(part.in_channels for part in parts if isinstance(part, nn.Conv2d))
    features = dict.fromkeys(part.in_features for part in parts if isinstance(part, nn.Linear))
    paper = _chained(on_meta(network))
    for shape in [(c, size, size) for c in channels for size in _SIZES] + [(f,) for f in features]:
        try:
            _order(paper, torch.empty((_BATCH, *shape), device="meta"))
        except ValueError:
            continue
        return shape
    raise ValueError(
        f"what this {type(network).__name__} takes was not found by trying: give input_shape=(channels, height, width)"
    )


def _chained(network: nn.Module) -> nn.Module:
    """Something to call, in which modules have the same paths."""
    return nn.Sequential(*network) if type(network) is nn.ModuleList else network


def _order(paper: nn.Module, x: Tensor) -> list[str]:
    """Paths of the modules with parameters of their own, in the order in which they first run."""
    order: dict[str, None] = {}
    dtype = next((p.dtype for p in paper.parameters() if p.is_floating_point()), x.dtype)
    with ExitStack() as hooks, explained(paper, x), torch.no_grad(), torch.device("meta"):
        for path, part in paper.named_modules():
            if any(True for _ in part.parameters(recurse=False)):
                note = part.register_forward_pre_hook(lambda *_, path=path: order.setdefault(path))
                hooks.enter_context(note)
        paper(x.to(dtype))
    return list(order)


def _ends(network: nn.Module, order: list[str], first: str | None) -> tuple[str, set[str], str]:
    """What reads the raw input; all modules that stay as they are for it; and what gives the logits; by their paths."""
    parts = dict(network.named_modules())
    if first is None:
        weighted = [path for path in order if any(p.ndim > 1 for p in parts[path].parameters(recurse=False))]
        start = weighted[0] if weighted else ""
    else:
        start = first
        if start not in parts:
            raise ValueError(f"the network has no module {start!r}: give one of its paths, such as {order[0]!r}")
    inside = [path for path in order if _within(path, start)]
    if start == "" or not inside:
        raise ValueError(
            f"{called(start, parts[start])} cannot be the first layer: give the path of a convolution or linear layer "
            "that reads the raw input, in the module that holds it"
        )
    before = set(order[: order.index(inside[0])])
    head = order[-1]
    if type(parts[head]) is not nn.Linear or head in inside:
        raise ValueError(
            f"{called(head, parts[head])} is the last layer with parameters, and logits of every width are read off by "
            "an nn.Linear: end the network in one, behind the first layer"
        )
    return start, before | {path for path in parts if _within(path, start)}, head


def _within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _plan(network: nn.Module, groups: int, kept: set[str], head: str) -> list[str]:
    """Paths of all that is to be exchanged; refuses what cannot be."""
    plan: list[str] = []
    for path, part in network.named_modules():
        if path in kept:
            continue
        why = _refusal(part, groups, is_head=path == head)
        if why:
            raise ValueError(f"{called(path, part)} cannot be made channel-causal: {why}")
        if type(part) in _EXCHANGED:
            plan.append(path)
    return plan


def _refusal(part: nn.Module, groups: int, *, is_head: bool) -> str | None:
    """Why a module cannot be in a causal network, if its type or its arguments say so."""
    if type(part) in MIXING:
        return MIXING[type(part)]
    if type(part) not in _EXCHANGED:
        own = [name for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))]
        if own and not callable(getattr(part, "narrow", None)):
            return (
                f"it is none of nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, and has tensors of its own "
                f"({', '.join(own)}); use these, or give the class a method narrow(width) that returns what it is for "
                "the first groups"
            )
        return None
    if any(hooks for name, hooks in vars(part).items() if name.endswith("_hooks") and isinstance(hooks, dict)):
        return "it has hooks, which its successor would not have: remove them first, and add them again"
    if isinstance(part, nn.Conv2d):
        if part.groups > 1 and not part.groups == part.in_channels == part.out_channels:
            return (
                f"its {part.groups} groups are its own; a convolution is in 1 group, or depthwise with one output each"
            )
        if part.padding_mode != "zeros":
            return f"it pads with {part.padding_mode!r}, and causal convolutions with zeros"
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and (part.weight is None) != (part.bias is None):
        return "it has a weight and no bias: use one with both or neither"
    sizes = {
        nn.Conv2d: ("in_channels", "out_channels"),
        nn.Linear: ("in_features",) if is_head else ("in_features", "out_features"),
    }.get(type(part), ("num_features",))
    try:
        require_groups(groups, *(getattr(part, size) for size in sizes))
    except ValueError as error:
        return str(error)
    return None


def _conv(conv: nn.Conv2d, groups: int) -> nn.Module:
    how: Any = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.bias is not None)
    return CausalConv2d(conv.in_channels, conv.out_channels, *how, width_groups=groups, depthwise=conv.groups > 1)


def _linear(linear: nn.Linear, groups: int) -> nn.Module:
    return CausalLinear(linear.in_features, linear.out_features, linear.bias is not None, width_groups=groups)


def _norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, groups: int) -> nn.Module:
    made = CausalBatchNorm1d if type(norm) is nn.BatchNorm1d else CausalBatchNorm2d
    how = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return made(norm.num_features, *how, width_groups=groups)


_EXCHANGED: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
}


@torch.no_grad()
def _exchange(network: nn.Module, plan: Iterable[str], head: str, groups: int) -> None:
    """Put causal layers in place of ordinary ones wherever these stand."""
    made: dict[nn.Module, nn.Module] = {}
    for path in plan:
        old = network.get_submodule(path)
        with torch.device("meta"):
            if path == head:
                new: nn.Module = SharedHead(old.in_features, old.out_features, width_groups=groups)  # type: ignore[arg-type]
            else:
                new = _EXCHANGED[type(old)](old, groups)
        new._parameters.update(old._parameters)
        new._buffers.update(old._buffers)
        weight = new._parameters["weight"]
        if path == head:
            if new._parameters["bias"] is None:
                assert weight is not None
                new._parameters["bias"] = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
        elif isinstance(new, CausalConv2d | CausalLinear):
            new.weight.copy_(new.of_width(groups)[0])
        made[old] = new.train(old.training)
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]


def _trial(network: Network, shape: Sequence[int], scale: float, generator: torch.Generator) -> tuple[Network, Tensor]:
    """A copy of a network with random weights in float64, and inputs for it."""
    trial = with_tensors(network, lambda tensor: _random(tensor, scale, generator))
    return trial, scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def _by_batch(trial: Network) -> Network:
    """With BatchNorms that go by the batch's own statistics, so that features keep their size."""
    for part in trial.modules():
        part.train(isinstance(part, CausalBatchNorm1d | CausalBatchNorm2d))
    return trial


def _random(tensor: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Numbers for a copy of a tensor: weights that keep the size of features, and biases and factors of some size."""
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().cpu().clone()
    if tensor.ndim < 2:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).add_(0.5).mul_(scale)
    fan_in = tensor[0].numel()
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).div_(fan_in**0.5)


def with_widths(
    blocks: Sequence[nn.Module],
    adapters: dict[int, nn.Module],
    heads: dict[int, nn.Module],
    features: Sequence[Tensor],
    groups: int,
) -> list[nn.Module]:
    """The stages of a network with several widths, each under the number of its block.

    Only what lies between the first block and the last has channel groups at both ends. So block 0 becomes the end of
    the adapter of entry 0, and the last block the start of the head behind it; their stages do nothing.

    Args:
        blocks: of the network, channel-causal but for what reads the raw input.
        adapters: block → adapter; that of entry 0 is changed.
        heads: block → head; that of the last exit is changed.
        features: what each block takes, and what the last one gives, at full width on the meta device.
        groups: number of channel groups.

    Raises:
        ValueError: if a part does not take, or give, the first groups of channels.
    """
    last = len(blocks) - 1
    if not isinstance(groups, int):
        raise ValueError(f"a network has 1 channel group or more, not {groups!r}")
    if last < 1:
        raise ValueError("a network with several widths has two blocks or more: the first layer, and the logits")
    adapters[0] = _chain(adapters[0], blocks[0])
    heads[last] = _chain(blocks[last], heads[last])
    for place, adapter in adapters.items():
        try:
            require_channels_first(adapter, features[max(place, 1)])
            narrow_outputs(on_meta(adapter), 1, groups)
        except ValueError as error:
            also = "" if place else ". Block 0 is the end of it: have all up to the network's first layer there"
            raise ValueError(f"the adapter of entry {place}: {error}{also}") from error
    first = [x[:, : prefix(x.shape[1], groups, 1)] for x in features]
    parts = [(f"block {i}", blocks[i], first[i], first[i + 1].shape) for i in range(1, last)]
    parts += [(f"the head of exit {i}", head, first[min(i + 1, last)], features[-1].shape) for i, head in heads.items()]
    for what, part, given, wanted in parts:
        why = _no_first_group(part, given, wanted, groups)
        if why:
            raise ValueError(
                f"{what} does not do with the first of {groups} groups of channels: {why}. Make the network "
                f"channel-causal with telescopic.causal_(network, groups={groups}), with all up to its first layer in "
                "block 0 and all from its last linear layer on in the last block; heads of your own end in a SharedHead"
            )
    # Shapes do not tell what blocks of one's own compute: run once at full width, and once as the narrowest member.
    trial, x = _trial(nn.Sequential(*blocks), (_BATCH, *features[0].shape[1:]), 1.0, torch.Generator().manual_seed(0))
    prove_causal(_by_batch(trial), x, "0", str(last), (1,), groups)
    return [nn.Identity(), *blocks[1:last], nn.Identity()]


def _chain(one: nn.Module, other: nn.Module) -> nn.Module:
    """Both, without what does nothing."""
    kept = [part for part in (one, other) if type(part) is not nn.Identity]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)


def _no_first_group(part: nn.Module, given: Tensor, wanted: torch.Size, groups: int) -> str | None:
    """Why a part does not make the first group of what it gives, of the first group of what it takes."""
    for layer in part.modules():
        made_for = getattr(layer, "width_groups", groups)
        if made_for != groups:
            return f"its {type(layer).__name__} has {made_for} groups"
    try:
        paper = on_meta(part)
        with torch.no_grad(), torch.device("meta"):
            out = paper(given)
        narrow(paper, 1)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None if out.shape == wanted else f"it gives {tuple(out.shape[1:])}, and not {tuple(wanted[1:])}"
