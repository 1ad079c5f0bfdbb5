"""What a part of a network computes for new channel groups alone, when those before them are known.

A channel-causal layer's output group i reads input groups up to i, so the groups that a wider member adds need the rows
of the weight that give them, and as input the channels known so far and the new ones. What treats each channel alone
needs the new channels only. A part is taken apart by `torch.fx` once; then each step of it is a function of tensors.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from telescopic.layers.causal import CausalBatchNorm1d, CausalBatchNorm2d, CausalConv2d, CausalLinear, prefix
from telescopic.layers.heads import GlobalAvgPool2d, GradientScale, SharedHead
from telescopic.layers.sized import ALONE, CAUSAL, NOTHING
from telescopic.wrappers import hooked

Kept = dict[str, Tensor]
"""What later groups need of those before: the input of layers that mix channels, and of heads whose widths
weigh it anew; the sum of other shared heads."""

Op = Callable[..., Tensor]
"""`op(kept, *values)`: the new channels of a value from those of others."""

_INNER = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus dropout "
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d"
)
_FUNCTIONS: dict[Any, Any] = {f: f for f in (getattr(functional, name) for name in _INNER.split())}
_FUNCTIONS |= {f: f for f in (torch.relu, torch.sigmoid, torch.tanh, torch.add, torch.sub, torch.mul)}
_FUNCTIONS |= {f: f for f in (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg)}
# Out of place, for a value may be kept for later groups.
_IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_IN_PLACE |= {functional.relu_: torch.relu, torch.relu_: torch.relu}
_FUNCTIONS |= _IN_PLACE
_METHODS: dict[Any, Any] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "contiguous": Tensor.contiguous}
_METHODS |= {name + end: getattr(torch, name) for name in ("relu", "add", "mul", "sub") for end in ("", "_")}


@dataclass(frozen=True)
class Span:
    """Which groups a step adds.

    Attributes:
        groups: of the network.
        have: number of groups known before.
        width: number of groups known after.
        keep: whether more will follow.
    """

    groups: int
    have: int
    width: int
    keep: bool

    def of(self, channels: int) -> slice:
        """The channels of the new groups."""
        return slice(prefix(channels, self.groups, self.have), prefix(channels, self.groups, self.width))


class Part:
    """A stage or a head, taken apart, so that the channels of new groups can be computed alone.

    Args:
        name: as errors call it, such as `stages.3`.
        module: the stage or head, in eval mode. It is read again whenever groups are bound, and not changed.
        groups: of the network.

    Raises:
        ValueError: if `torch.fx` cannot take it apart, or it does something that is not known to treat each channel
            alone.
    """

    def __init__(self, name: str, module: nn.Module, groups: int) -> None:
        self.name, self.groups = name, groups
        self.root = nn.Sequential(module)  # a leaf itself may be the whole part
        try:
            self.graph = _Tracer().trace(self.root)
        except Exception as error:
            raise ValueError(
                f"{name} cannot be made wider step by step, because torch.fx cannot follow its forward pass: {error}"
            ) from error
        self.bind(0, groups, keep=True)  # refuses what is unknown now, and not in the middle of an answer

    @property
    def sums(self) -> bool:
        """Whether it gives logits of all groups from the new ones alone: a shared head."""
        (result,) = (node.args[0] for node in self.graph.nodes if node.op == "output")
        last = isinstance(result, fx.Node) and result.op == "call_module"
        return last and isinstance(self.root.get_submodule(str(result.target)), SharedHead)

    def bind(self, have: int, width: int, *, keep: bool) -> Callable[[Tensor, Kept], Tensor]:
        """What computes groups `have + 1` to `width` of the part's output from those of its input.

        Args:
            have: number of groups computed before; 0 for none, and then the input has all groups up to `width`.
            width: number of groups after it.
            keep: whether a wider step will follow, for which the inputs of layers that mix channels are kept.

        Returns:
            A function of the new channels and of what was kept.
        """
        span = Span(self.groups, have, width, keep)
        places: dict[fx.Node, int] = {}
        steps: list[tuple[Op, tuple[int, ...]]] = []
        result = 0
        for node in self.graph.nodes:
            if node.op == "output":
                if not isinstance(returned := node.args[0], fx.Node):
                    kind = type(returned).__name__
                    raise ValueError(f"{self.name} cannot be made wider step by step: it returns {kind}")
                result = places[returned]
                continue
            if node.op != "placeholder":
                op, sources = self._op(node, span)
                steps.append((op, tuple(places[source] for source in sources)))
            elif places:
                raise self._refusal("a second input")
            places[node] = len(places)

        def run(x: Tensor, kept: Kept) -> Tensor:
            values = [x]
            for op, sources in steps:
                values.append(op(kept, *[values[i] for i in sources]))
            return values[result]

        return run

    def _op(self, node: fx.Node, span: Span) -> tuple[Op, list[fx.Node]]:
        """A node as a function of new channels, and the nodes it reads."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            key = f"{self.name}/{node.name}"  # a module that is called twice has two inputs
            if getattr(module, "inplace", False):
                self._refuse_overwriting(node)
            op = _of_module(module, key, span)
            if op is None:
                raise self._refusal(f"{str(node.target).removeprefix('0.')}, a {type(module).__name__},")
            return op, node.all_input_nodes
        if node.op in ("call_function", "call_method"):
            return self._of_call(node)
        raise self._refusal(f"the tensor {node.target}, which is read in its forward pass")

    def _of_call(self, node: fx.Node) -> tuple[Op, list[fx.Node]]:
        """A call of a function or a method, the same with or without an underscore behind its name."""
        args, kwargs, in_place = _out_of_place(node)
        if in_place or node.target in _IN_PLACE or str(node.target).endswith("_"):
            self._refuse_overwriting(node)
        flattens = node.target in (torch.flatten, "flatten") and kwargs.get("start_dim", (*args, 0)[1]) == 1
        if flattens and len(args) < 3 and "end_dim" not in kwargs:
            return lambda kept, x: torch.flatten(x, 1), node.all_input_nodes
        known = (_FUNCTIONS if node.op == "call_function" else _METHODS).get(node.target)
        sources = [arg for arg in args if isinstance(arg, fx.Node)]
        if known is None or len(set(sources)) != len(node.all_input_nodes):
            raise self._refusal(f"a call of {getattr(node.target, '__name__', node.target)}")
        if known is functional.dropout:
            return lambda kept, x: x, sources
        if len(sources) == len(args) and not kwargs:
            return lambda kept, *values: known(*values), sources

        def call(kept: Kept, *values: Tensor) -> Tensor:
            given = iter(values)
            out: Tensor = known(*[next(given) if isinstance(arg, fx.Node) else arg for arg in args], **kwargs)
            return out

        return call, sources

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"{self.name} cannot be made wider step by step: {what} is not known to treat each channel alone. Known "
            "are the channel-causal layers of telescopic.layers, activations, pooling, flatten, sums and products; "
            "give a module of yours a method new_groups(x, have, width), or a path that only goes deeper"
        )

    def _refuse_overwriting(self, node: fx.Node) -> None:
        """In place is as good as not, unless another one reads what is overwritten."""
        if len(node.all_input_nodes[0].users) > 1:
            raise self._refusal(f"{node.name}, which overwrites what others read,")


class _Tracer(fx.Tracer):
    """Stops at the layers that are known, and at those that say themselves what new groups are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*CAUSAL, GlobalAvgPool2d, GradientScale)) or hasattr(m, "new_groups")
        return known or super().is_leaf_module(m, module_qualified_name)


def _out_of_place(node: fx.Node) -> tuple[list[Any], dict[str, Any], bool]:
    """Arguments of a call without what makes it write in place, and whether it did."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a method's name, or a function of torch that is not written in Python
        return list(node.args), dict(node.kwargs), False
    in_place = bound.arguments.pop("inplace", False)  # which is the last of the functions that have it
    return list(bound.args), dict(bound.kwargs), bool(in_place)


def _of_module(module: Any, key: str, span: Span) -> Op | None:
    """A layer as a function of the new channels of its input; None if it is not known, or has hooks, as filters are."""
    if hooked(module):
        return None
    if hasattr(module, "new_groups"):
        return lambda kept, x: module.new_groups(x, span.have, span.width)
    if isinstance(module, CAUSAL) and module.width_groups != span.groups:
        return None
    if isinstance(module, CausalConv2d):
        return _convolution(module, key, span)
    if isinstance(module, CausalLinear):
        return _linear(module, key, span)
    if isinstance(module, CausalBatchNorm1d | CausalBatchNorm2d):
        return _norm(module, span)
    if isinstance(module, SharedHead):
        return _head(module, key, span)
    if type(module) in (nn.Flatten, nn.Unflatten) and _keeps_order(module):
        return lambda kept, x: module(x)
    if type(module) in NOTHING:
        return lambda kept, x: x
    if type(module) not in ALONE:
        return None
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        module.inplace = False  # what it would overwrite may be kept
    return lambda kept, x: module(x)


def _keeps_order(module: Any) -> bool:
    """Whether dimension 1 is channels, or groups of them, before and after."""
    if type(module) is nn.Flatten:
        return bool(module.start_dim == 1)
    return bool(module.dim == 1 and module.unflattened_size[0] == -1)


def _known(kept: Kept, key: str, new: Tensor, span: Span) -> Tensor:
    """All channels so far, of which the new ones are given."""
    known = torch.cat((kept[key], new), 1) if span.have else new
    if span.keep:
        kept[key] = known
    return known


def _rows(layer: CausalConv2d | CausalLinear, span: Span) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that give the new channels; as views of the network's own, where its mask changes nothing."""
    masked, bias = layer.of_width(span.width)
    rows = span.of(len(layer.weight))
    wanted, weight = masked.detach()[rows], layer.weight.detach()[rows, : masked.shape[1]]
    return weight if torch.equal(weight, wanted) else wanted, None if bias is None else bias.detach()[rows]


def _convolution(layer: CausalConv2d, key: str, span: Span) -> Op:
    weight, bias = _rows(layer, span)
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if layer.depthwise:
        return lambda kept, x: functional.conv2d(x, weight, bias, stride, padding, dilation, len(weight))
    return lambda kept, x: functional.conv2d(_known(kept, key, x, span), weight, bias, stride, padding, dilation)


def _linear(layer: CausalLinear, key: str, span: Span) -> Op:
    weight, bias = _rows(layer, span)

    def linear(kept: Kept, x: Tensor) -> Tensor:
        if x.ndim != 2:
            raise ValueError(f"a CausalLinear is made wider on features [batch, features], not on {list(x.shape)}")
        return functional.linear(_known(kept, key, x, span), weight, bias)

    return linear


def _norm(layer: CausalBatchNorm1d | CausalBatchNorm2d, span: Span) -> Op | None:
    channels = span.of(layer.num_features)
    tensors = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    mean, variance, weight, bias = (None if tensor is None else tensor.detach()[channels] for tensor in tensors)
    if mean is None:  # it normalises by the batch, which is another one when examples leave
        return None
    return lambda kept, x: functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, layer.eps)


def _head(layer: SharedHead, key: str, span: Span) -> Op:
    if layer.shift is not None:  # each width weighs all groups anew, so there is no sum to add to
        own = tuple(tensor.detach() for tensor in layer.of_width(span.width))
        return lambda kept, x: functional.linear(_known(kept, key, x, span), *own)
    columns = layer.weight.detach()[:, span.of(layer.in_features)]
    bias, divided = layer.bias.detach(), 1 / span.width if layer.average else 1.0

    def head(kept: Kept, x: Tensor) -> Tensor:
        if not span.have and not layer.average and not span.keep:
            return functional.linear(x, columns, bias)
        total = functional.linear(x, columns)
        if span.have:
            total = total + kept[key]
        if span.keep:
            kept[key] = total
        return torch.add(bias, total, alpha=divided)

    return head
