"""What a plain module costs, counted by shape alone on the meta device."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """What one example costs in a forward pass in eval mode.

    Attributes:
        macs: multiply-adds, half of what torch's `FlopCounterMode` counts (1 MAC = 2 FLOPs). It counts matrix products
            and convolutions. Biases, activations, norms, pooling, softmax and sums count as zero. On the meta device
            attention and recurrent layers split into matrix products and are counted; on CPU tensors the same counter
            says 0 for them.
        params: number of parameters, shared ones once.
        bytes: parameters and buffers, in bytes.
        peak_activation: largest sum of feature maps alive at one time, in bytes. A feature map, the input and the
            output among them, is alive from the operation that makes it to the last that reads it, both included, as
            in a runtime that frees what it no longer needs (eager torch may hold more: a caller's variables). Views
            and in-place operations share memory, which counts once. Parameters, buffers, an operation's own workspace
            and results that nothing reads (a max pool's indices) do not count.
        largest_feature_map: the largest of these alone, in bytes (Doubly Nested's measure).
    """

    macs: int
    params: int
    bytes: int
    peak_activation: int
    largest_feature_map: int


def cost(module: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Price a module in eval mode without running it on data: nothing is allocated, and the module is not changed.

    Args:
        module: a plain module, such as `extract` returns, that takes one floating-point tensor.
        input_shape: shape of one example, without the batch.

    Raises:
        ValueError: if the module does not take this shape, has lazy layers, or its forward pass depends on values.
    """
    return cost_on_meta(on_meta(module), input_shape)


def on_meta(module: Module) -> Module:
    """A twin of a module in eval mode that has shapes and no data; the module itself is not copied or changed.

    Raises:
        ValueError: if a lazy layer does not know its shape yet.
    """
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(f"this {type(module).__name__} has lazy layers without a shape: call it on an input once")
    return twin(module, lambda tensor: torch.empty_like(tensor.detach(), device="meta"))


def cost_on_meta(module: nn.Module, input_shape: Sequence[int]) -> Cost:
    """Price what `on_meta` made, or a part of it, as it is; see `cost`."""
    dtype, _ = dtype_and_device(module)
    x = torch.empty(with_batch(1, input_shape), dtype=dtype, device="meta")
    lives = _Lives(x)
    with (
        explained(module, x),
        torch.no_grad(),  # not inference_mode: under it composite operations would stay whole
        torch.device("meta"),  # for tensors that forward creates
        FlopCounterMode(display=False) as flops,
        lives,
    ):
        out = module(x)
    peak, largest = lives.peak_and_largest(out)
    params = sum(parameter.numel() for parameter in module.parameters())
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    return Cost(flops.get_total_flops() // 2, params, size, peak, largest)


class _Lives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when each storage of a forward pass is made and when it is last read, counted in operations."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        # Storages hash by identity. All are kept to the end, so that none takes another's place; they hold no data.
        self.made = dict.fromkeys(_storages(x), 0)
        self.read: dict[torch.UntypedStorage, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.read |= dict.fromkeys(_storages((args, kwargs)), self.operations)
        out = func(*args, **(kwargs or {}))
        new = (s for s in _storages(out) if s not in self.read)  # no parameter, no view, not written in place
        self.made |= dict.fromkeys(new, self.operations)
        return out

    def peak_and_largest(self, out: Any) -> tuple[int, int]:
        """Largest sum of live feature maps and the largest of them, in bytes; `out` is what the module returned."""
        read = self.read | dict.fromkeys(_storages(out), self.operations + 1)
        sizes = {storage: storage.nbytes() for storage in self.made if storage in read}
        change = [0] * (self.operations + 3)
        for storage, size in sizes.items():
            change[self.made[storage]] += size
            change[read[storage] + 1] -= size
        return max(accumulate(change)), max(sizes.values(), default=0)


def twin(module: Module, replace: Callable[[Tensor], Tensor]) -> Module:
    """A copy in eval mode whose tensors are `replace` of the module's own, which are not copied themselves."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(tensor): replace(tensor) for tensor in tensors}).eval()


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def dtype_and_device(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Of a module's first floating-point tensor; torch's default type on the CPU if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.get_default_dtype(), torch.device("cpu")


def with_batch(batch: int, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a batch of inputs.

    Raises:
        ValueError: if a size is no whole number above 0.
    """
    shape = (batch, *input_shape) if isinstance(input_shape, Sequence) else ()
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            f"batch {batch} and input_shape {input_shape} must be whole numbers above 0, "
            "input_shape that of one example without the batch, for example (1, 28, 28)"
        )
    return shape


@contextmanager
def explained(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Turn what a forward pass raises into one ValueError that names the cause."""
    try:
        yield
    except Exception as error:
        name, shape = type(module).__name__, tuple(x.shape)
        if x.is_meta and (isinstance(error, NotImplementedError) or "meta" in str(error)):
            raise ValueError(
                f"the cost of this {name} cannot be counted by shape alone, because its forward pass reads values: "
                f"{error}. Leave .item(), .numpy() and branches on values out of forward, and make constants buffers"
            ) from error
        raise ValueError(
            f"this {name} failed on an input of shape {shape}, batch first: {error}. Is input_shape right?"
        ) from error
