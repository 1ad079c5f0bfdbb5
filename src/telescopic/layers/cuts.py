"""Which entries of tensors stay when channels are taken out of a module, and the sizes that its layers say then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


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


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a module once, by name."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def call_with(module: nn.Module, tensors: Mapping[int, Tensor], *inputs: Any) -> Any:
    """Call a module with other tensors in place of some of its parameters and buffers, given by their ids.

    Each place that holds one is named once: with `tie_weights`, torch would not give back those of a layer that stands
    in the module twice.
    """
    places = {
        f"{path}.{name}".removeprefix("."): tensors[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in (*part._parameters.items(), *part._buffers.items())
        if id(tensor) in tensors
    }
    return functional_call(module, places, inputs, tie_weights=False)


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
    elif isinstance(part, nn.Embedding | nn.EmbeddingBag):
        part.num_embeddings, part.embedding_dim = part.weight.shape
