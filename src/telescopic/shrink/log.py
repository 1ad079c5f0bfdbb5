"""What a compaction removed: for each tensor, which entries stay. Replayed on gradients, optimizers and copies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from telescopic.ambient import plain
from telescopic.layers.cuts import Cut, named_tensors, put_, resize_
from telescopic.shrink.optimizers import checked


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

    def __repr__(self) -> str:
        """A line for each filter that lost channels, or could not."""
        lines = [f"{path}: {number} removed, {self.left[path]} left" for path, number in self.removed.items()]
        lines += [f"{path}: dead channels stay: {what}" for path, what in self.held.items()]
        return "\n".join(lines) or (f"{len(self.cuts)} cuts, no channel removed" if self.cuts else "nothing removed")

    def __bool__(self) -> bool:
        return bool(self.cuts)

    @plain()
    def replay_(self, module: nn.Module, *optimizers: Optimizer) -> None:
        """Do the same to a copy of the network, such as a moving average of its weights.

        Raises:
            ValueError: if it has not the shapes that the network had, or the optimizers do not train it; see
                `compact_`.
        """
        trained_by, tensors = checked(module, optimizers), named_tensors(module)
        for cut in self.cuts:
            groups = len(cut.kept) if cut.kept.ndim == 2 else 1
            if cut.name not in tensors or tensors[cut.name].shape[cut.dim] * groups != cut.size:
                found = tuple(tensors[cut.name].shape) if cut.name in tensors else "none of this name"
                raise ValueError(
                    f"the log cuts dimension {cut.dim} of {cut.name} from {cut.size} entries; this module has {found}. "
                    "Replay the logs of all compactions, in order, on a copy of what the first one began with"
                )
        cut_(module, self.cuts, trained_by)
        for path, attributes in self.sizes.items():
            vars(module.get_submodule(path)).update(attributes)


def cut_(module: nn.Module, cuts: Sequence[Cut], optimizers: Iterable[Optimizer] = ()) -> None:
    """Cut tensors, their gradients and what optimizers keep of them, and have layers say their new sizes.

    All stay the objects they were.
    """
    tensors = named_tensors(module)
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
    resize_(module, {id(tensors[cut.name]) for cut in cuts})
