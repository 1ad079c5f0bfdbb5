"""What a plain module costs, counted by shape alone on the meta device."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from telescopic.ambient import plain
from telescopic.cost.macs import Counter
from telescopic.inputs import Tensors, dtype_and_device, examples, explained
from telescopic.shapes import Shape
from telescopic.wrappers import copied, unwrapped

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """What one example costs in a forward pass in eval mode.

    Attributes:
        macs: multiply-adds (1 MAC = 2 FLOPs) of matrix products, convolutions, attention, recurrent and bilinear layers
            and distances, as `cost.macs.Counter` counts them everywhere. Biases, activations, norms, pooling, softmax
            and sums count as zero, unless `cost` was asked for `elementwise`. A warning names what cannot be counted.
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


@plain()
def cost(module: nn.Module, input_shape: Shape, *, elementwise: bool = False) -> Cost:
    """Price a module in eval mode without running it on data: nothing is allocated, and the module is not changed.

    Multiply-adds are counted in one of two ways. The usual one is that of `Cost.macs`. Some papers, CNSN among them,
    print what the tool ptflops counts, which adds what works element by element; `elementwise` follows it:

    - 1 for each element of the output: the bias of a convolution or a linear layer, an activation, a sum of two
      branches and any other operation that torch calls pointwise, interpolation;
    - 1 for each element of the input: pooling (adaptive too), a sum, mean or maximum over dimensions, softmax;
    - 2 for each element: BatchNorm and other norms; 1 if they have no weight;
    - 0: views, copies, padding, concatenation, dropout (which does nothing in eval mode).

    ptflops says less where it does not know an operation (sums written with `+`, means in forward, sigmoids,
    log-softmax) and for the bias of a linear layer on several tokens, which it counts once for all of them; it says
    more for a transposed convolution, whose kernel it applies at each place of the output instead of the input.

    Args:
        module: a plain module, such as `extract` returns.
        input_shape: shape of one example, without the batch, such as `(3, 32, 32)`. Where it is of another type than
            the module's, that stands in front: `("int64", 128)`; of several inputs it is a dict or tuple of such. Or a
            batch of examples themselves.
        elementwise: whether `macs` has what works element by element too. Nothing else in the `Cost` changes.

    Raises:
        ValueError: if the module does not take this shape, has lazy layers, or its forward pass depends on values.
    """
    return cost_on_meta(on_meta(module), input_shape, elementwise=elementwise)


def on_meta(module: Module) -> Module:
    """A twin of a module in eval mode that has shapes and no data; the module itself is not copied or changed.

    Raises:
        ValueError: if a lazy layer does not know its shape yet.
    """
    module = unwrapped(module)
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(f"this {type(module).__name__} has lazy layers without a shape: call it on an input once")
    return with_tensors(module, lambda tensor: torch.empty_like(tensor.detach(), device="meta"))


def cost_on_meta(module: nn.Module, input_shape: Shape, *, elementwise: bool = False) -> Cost:
    """Price what `on_meta` made, or a part of it, as it is; see `cost`."""
    return costs_on_meta([], {0: module}, input_shape, elementwise=elementwise)[0]


def costs_on_meta(
    trunk: Sequence[nn.Module],
    heads: Mapping[int, nn.Module],
    input_shape: Shape,
    *,
    elementwise: bool = False,
) -> dict[int, Cost]:
    """Price modules on the meta device that begin alike, and run once what they share.

    Args:
        trunk: modules, each of which reads what the one before gives.
        heads: number of modules of the trunk that run before it → what then gives the answer.
        input_shape: see `cost`.
        elementwise: see `cost`.

    Returns:
        For each head the price of all that runs up to its answer.
    """
    dtype, _ = dtype_and_device(nn.Sequential(*trunk, *heads.values()))
    x = features = examples(1, input_shape, dtype, "meta")
    lives, elements = _Lives(x), _Elements()
    prices: dict[int, Cost] = {}
    with (
        torch.no_grad(),  # not inference_mode: under it composite operations would stay whole
        torch.device("meta"),  # for tensors that forward creates
        _Remembered(),  # type: ignore[no-untyped-call]  # the first, so that all others see every operation
        Counter() as counter,
        lives,
        elements if elementwise else nullcontext(),
    ):
        aside = 0  # multiply-adds of heads, which are not of those that come later
        for place in range(max(heads) + 1):
            if place in heads:
                module = nn.Sequential(*trunk[:place], heads[place]) if place else heads[place]
                before, known = counter.macs + elements.count, lives.known()
                with explained(module, x):
                    out = heads[place](features)
                peak, largest = lives.peak_and_largest(out)
                lives.forget(known)
                params = sum(parameter.numel() for parameter in module.parameters())
                size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
                macs = counter.macs + elements.count
                prices[place] = Cost(macs - aside, params, size, peak, largest)
                aside += macs - before
            if place < max(heads):
                with explained(nn.Sequential(*trunk), x):
                    features = trunk[place](features)
    return prices


class _Remembered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds out once what an operation gives for inputs of some shapes, and then makes as much.

    Many operations are written in Python on the meta device, and take longer there than on numbers.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            key = func, _form(args), _form(tuple(kwargs.items())), torch.get_default_dtype()
            forms = _FORMS.get(key)
        except TypeError:  # of something that cannot be compared
            return func(*args, **kwargs)
        if forms:
            made = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype, *_ in forms]
            return made[0] if len(forms) == 1 else tuple(made)
        out = func(*args, **kwargs)
        if forms is None:
            if len(_FORMS) >= _MOST_FORMS:
                _FORMS.clear()
            _FORMS[key] = _repeatable(func, (args, kwargs), out)
        return out


_Form = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
_FORMS: dict[Any, tuple[_Form, ...]] = {}
"""An operation and what it is given → the tensors that it gives; none if they are not to be made without it."""
_MOST_FORMS = 20_000


def _form(value: Any) -> Any:
    """What the shapes that an operation gives may depend on."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
            raise TypeError
        return value.shape, value.stride(), value.dtype, value.device
    return tuple(map(_form, value)) if isinstance(value, tuple | list) else (type(value), value)


def _repeatable(func: Any, given: Any, out: Any) -> tuple[_Form, ...]:
    """Forms of what an operation gave, if that are tensors of their own memory, all of which they fill."""
    outs = [out] if isinstance(out, Tensor) else [*out] if type(out) is tuple and len(out) > 1 else []
    if not outs or not all(isinstance(one, Tensor) and one.device.type == "meta" for one in outs):
        return ()
    stores, others = _storages(outs), _storages(given)
    if len({*stores}) < len(stores) or {*stores} & {*others} or func._schema.is_mutable:
        return ()
    forms = tuple(_form(one) for one in outs)
    alike = (torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype, _ in forms)
    same = all(one.untyped_storage().nbytes() == store.nbytes() for one, store in zip(alike, stores, strict=True))
    return forms if same and not any(one.storage_offset() for one in outs) else ()


class _Lives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes when each storage of a forward pass is made and when it is last read, counted in operations."""

    def __init__(self, x: Tensors) -> None:
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

    def known(self) -> tuple[Any, ...]:
        """What was noted so far."""
        return self.operations, dict(self.made), dict(self.read)

    def forget(self, known: tuple[Any, ...]) -> None:
        """Go on from where `known` was called."""
        self.operations, self.made, self.read = known

    def peak_and_largest(self, out: Any) -> tuple[int, int]:
        """Largest sum of live feature maps and the largest of them, in bytes; `out` is what the module returned."""
        read = self.read | dict.fromkeys(_storages(out), self.operations + 1)
        sizes = {storage: storage.nbytes() for storage in self.made if storage in read}
        change = [0] * (self.operations + 3)
        for storage, size in sizes.items():
            change[self.made[storage]] += size
            change[read[storage] + 1] -= size
        return max(accumulate(change)), max(sizes.values(), default=0)


# Names of aten operations, without underscores around them.
_REDUCTIONS = {"sum", "mean", "var", "var_mean", "std", "std_mean", "prod", "max", "min", "amax", "amin", "aminmax"}
_REDUCTIONS |= {"argmax", "argmin", "logsumexp", "linalg_vector_norm", "softmax", "safe_softmax", "log_softmax"}
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")
# They add a bias; or are pointwise and torch does not tag them so, some of them only where they work in place.
_PER_OUTPUT = {"addmm", "addmv", "addbmm", "baddbmm", "prelu_kernel", "hardswish", "hardtanh", "mish", "gelu", "glu"}
_PER_OUTPUT |= {"softplus", "threshold", "log_sigmoid_forward", "masked_fill"}
_COPIES = {"clone", "positive"}  # pointwise to torch, but nothing is computed


class _Elements(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a forward pass does element by element, as `cost` says."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        made = next((leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), 0)
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        if "pool" in name or name in _REDUCTIONS:
            self.count += args[0].numel()
        elif any(norm in name for norm in _NORMS):
            self.count += made * (1 if given.get("weight") is None else 2)
        elif name == "convolution":
            self.count += made * (given["bias"] is not None)
        else:
            pointwise = torch.Tag.pointwise in func.tags and name not in _COPIES
            self.count += made * (pointwise or name in _PER_OUTPUT or name.startswith("upsample"))
        return out


def with_tensors(module: Module, replace: Callable[[Tensor], Tensor]) -> Module:
    """A copy in eval mode whose tensors are `replace` of the module's own, which are not copied themselves."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return copied(module, {id(tensor): replace(tensor) for tensor in tensors}).eval()


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
