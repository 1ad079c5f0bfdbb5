"""What a compaction removed: for each tensor, which entries stay. Replayed on gradients, optimizers and copies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from telescopic.ambient import plain
from telescopic.shrink.optimizers import checked


@dataclass(frozen=True, eq=False)
class Cut:
    """Entries of one dimension of a parameter or buffer that stay.

    Attributes:
        name: of the tensor.
        dim: which dimension.
        kept: their indices, in the order in which they stand then: `[kept]`; for the inner dimension of a grouped
            convolution `[groups, kept]`.
        size: number of entries before.
    """

    name: str
    dim: int
    kept: Tensor
    size: int

    def of(self, tensor: Tensor) -> Tensor:
        """The entries of a tensor that stay, as a new tensor."""
        kept = self.kept.to(tensor.device)
        if kept.ndim == 1:
            out = tensor.index_select(self.dim, kept)
        else:
            groups = torch.unflatten(tensor, 0, (len(kept), -1))  # [groups, outputs of a group, inputs of a group, ...]
            out = torch.stack([group.index_select(1, row) for group, row in zip(groups, kept, strict=True)]).flatten(
                0, 1
            )
        last = tensor.ndim == 4 and not tensor.is_contiguous()
        if last and tensor.is_contiguous(memory_format=torch.channels_last):
            return out.contiguous(memory_format=torch.channels_last)
        return out


@dataclass(frozen=True, eq=False)
class Log:
    """What `compact_` removed, or `order_` moved; false if nothing.

    Attributes:
        cuts: of parameters and buffers, in the order in which they are applied.
        removed: number of channels removed from each filter that lost some, by its path.
        left: number of channels of each filter now, by its path.
        held: for each filter with dead channels that something else needs: what that is, by the filter's path.
        seconds: what it took.
        sizes: attributes of layers without tensors, which say another size now, by the layer's path.
    """

    cuts: tuple[Cut, ...] = ()
    removed: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.cuts)

    @plain()
    def replay_(self, module: nn.Module, *optimizers: Optimizer) -> None:
        """Do the same to a copy of the network, such as a moving average of its weights.

        Raises:
            ValueError: if it has not the shapes that the network had, or the optimizers do not train it; see
                `compact_`.
        """
        optimizers = checked(module, optimizers)
        tensors = named_tensors(module)
        for cut in self.cuts:
            if cut.name not in tensors or tensors[cut.name].shape[cut.dim] * _groups(cut) != cut.size:
                found = tuple(tensors[cut.name].shape) if cut.name in tensors else "none of this name"
                raise ValueError(
                    f"the log cuts dimension {cut.dim} of {cut.name} from {cut.size} entries; this module has {found}. "
                    "Replay the logs of all compactions, in order, on a copy of what the first one began with"
                )
        apply_(self.cuts, tensors, optimizers)
        resize_(module, {id(tensors[cut.name]) for cut in self.cuts})
        for path, attributes in self.sizes.items():
            vars(module.get_submodule(path)).update(attributes)


def _groups(cut: Cut) -> int:
    return len(cut.kept) if cut.kept.ndim == 2 else 1


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def apply_(cuts: Iterable[Cut], tensors: Mapping[str, Tensor], optimizers: Iterable[Optimizer]) -> None:
    """Cut tensors, their gradients and what optimizers keep of them. All stay the objects they were."""
    for cut in cuts:
        tensor = tensors[cut.name]
        shape, grad = tensor.shape, tensor.grad
        for optimizer in optimizers:
            state: dict[str, Any] = optimizer.state.get(tensor, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == shape:
                    state[key] = cut.of(value)
        tensor.grad = None
        put_(tensor, cut.of(tensor.detach()))
        tensor.grad = None if grad is None else cut.of(grad)


def put_(tensor: Tensor, data: Tensor) -> None:
    """Give a tensor data of another shape.

    Autograd keeps the shape of a parameter for as long as an old graph, such as that of the last loss, is alive, and
    would refuse gradients of the new one. It forgets it when the type of the data changes.
    """
    if tensor.is_leaf and tensor.requires_grad:
        other = torch.float32 if data.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


def resize_(module: nn.Module, changed: set[int]) -> None:
    """Have layers whose tensors were cut say their new sizes."""
    for part in module.modules():
        own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if any(id(tensor) in changed for tensor in own):
            _resize(part)


def _resize(part: Any) -> None:
    if callable(getattr(part, "resize_", None)) and not isinstance(part, Tensor):
        part.resize_()
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.modules.conv._ConvNd):
        first, second = part.weight.shape[:2]
        one = part.groups == part.in_channels  # each input for itself, or there is one only
        if part.transposed:
            part.groups = first if one else part.groups
            part.in_channels, part.out_channels = first, second * part.groups
        else:
            times = part.out_channels // part.groups
            part.groups = first // times if one and part.groups > 1 else part.groups
            part.in_channels, part.out_channels = second * part.groups, first
    elif isinstance(part, nn.modules.batchnorm._NormBase):
        own = (part.weight, part.bias, part.running_mean, part.running_var)
        part.num_features = next(len(tensor) for tensor in own if tensor is not None)
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(part.weight)
