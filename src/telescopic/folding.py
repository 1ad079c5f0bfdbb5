"""How BatchNorm is folded into the convolution before it, which then gives the same answers alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from telescopic.ambient import plain
from telescopic.wrappers import copied, unwrapped

Module = TypeVar("Module", bound=nn.Module)
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

_CONVS, _TRANSPOSED, _NORMS = Conv.__args__, Conv.__args__[3:], Norm.__args__


@plain()
def fold_bn(module: Module) -> Module:
    """A copy of a module in eval mode whose BatchNorms are part of the convolutions they follow.

    A BatchNorm is folded if a convolution's output goes to it and nowhere else, and each of the two is called once;
    `nn.Identity` takes its place, so that blocks keep their class and the names of their other parts. The convolution
    gets a bias if it had none, trainable if its weight is. Answers agree to rounding, not to the last bit.

    These stay as they are: a BatchNorm that follows anything else than a convolution, or that keeps no running
    statistics; a convolution whose parameters something else uses too; layers with hooks or parametrizations, and
    subclasses of torch's layers, whose forward pass may be another one.

    Which layer follows which is found by `torch.fx`, which runs the forward pass once on symbols. It takes over every
    module's call meanwhile: no other thread may run a network.

    Raises:
        ValueError: if a part with convolutions or BatchNorms cannot be run on symbols, or not without the BatchNorms.
    """
    module = copied(unwrapped(module)).eval()
    pairs = list(_pairs(module))
    for conv, norm in pairs:
        _fold(conv, norm)
        for name in [name for name, part in module.named_modules(remove_duplicate=False) if part is norm]:
            module.set_submodule(name, nn.Identity())
    if pairs:  # a forward pass that keeps its layers in a list of its own would still call the BatchNorm
        _graph(module, " without them")
    return module


def _fold(conv: Any, norm: Any) -> None:
    """Change a convolution so that it does what the two did."""
    transposed = isinstance(conv, _TRANSPOSED)
    weight, bias = conv.weight, conv.weight if conv.bias is None else conv.bias
    if transposed:  # fused in an ordinary convolution's layout, for torch's own way is wrong if there are groups
        conv.weight = nn.Parameter(_swapped(weight.detach(), conv.groups))
    with torch.no_grad():
        fused = fuse_conv_bn_eval(conv, norm)
    scaled = _swapped(fused.weight.detach(), conv.groups) if transposed else fused.weight
    conv.weight, conv.bias = nn.Parameter(scaled, weight.requires_grad), nn.Parameter(fused.bias, bias.requires_grad)


def _swapped(weight: Tensor, groups: int) -> Tensor:
    """From `[input, output / groups, ...]` of a transposed convolution to `[output, input / groups, ...]`, and back."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each convolution and BatchNorm of which the latter can be folded."""
    kinds = {type(part) for part in module.modules()}
    if kinds.isdisjoint(_CONVS) or kinds.isdisjoint(_NORMS):
        return
    graph = _graph(module, "")
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    # Parts whose tensors are read by name, as in `functional.conv2d(x, self.conv.weight)`.
    opened = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    uses = Counter(p for part in module.modules() for _, p in _own(part))
    alone = [n for n in graph.nodes if n.op == "call_module" and calls[n.target] == 1 and n.target not in opened]
    for node in alone:
        before = node.all_input_nodes[0] if node.all_input_nodes else node
        if before not in alone or len(before.users) > 1:
            continue
        conv, norm = (module.get_submodule(str(n.target)) for n in (before, node))
        parameters = dict(_own(conv))
        if (
            type(conv) in _CONVS
            and type(norm) in _NORMS
            and isinstance(norm.running_mean, Tensor)
            and isinstance(norm.running_var, Tensor)
            and "weight" in parameters
            and all(uses[parameter] == 1 for parameter in parameters.values())
            and not any(part._forward_hooks or part._forward_pre_hooks for part in (conv, norm))
        ):
            yield conv, norm


def _own(part: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return part.named_parameters(recurse=False, remove_duplicate=False)


def _graph(module: nn.Module, how: str) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(module)
    except Exception as error:
        names = {part: name for name, part in module.named_modules()}
        inner = next(part for part in [*reversed(tracer.inside), module] if part in names)
        where = f"{f'part {names[inner]}' if names[inner] else 'this module'} ({type(inner).__name__})"
        raise ValueError(
            f"BatchNorms cannot be folded in {where}, whose forward pass does not run on symbols{how}: {error}. "
            "Extract without fold_bn, or let it call layers and functions only, without branches on values or shapes"
        ) from error


class _Tracer(fx.Tracer):
    """Looks into all modules that have convolutions or BatchNorms inside, and knows where it is."""

    proxy_buffer_attributes = True  # so that the graph shows where forward reads a buffer by name

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = (*_CONVS, *_NORMS)
        return isinstance(m, layers) or not any(isinstance(part, layers) for part in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.inside.append(m)
        out = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not if it failed: then the last ones show where
        return out
