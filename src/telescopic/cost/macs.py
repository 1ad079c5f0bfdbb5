"""The one counter of multiply-adds: what torch counts, what torch leaves out, and the names of what nobody counts."""

import warnings
from collections.abc import Callable, Sequence
from math import prod
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]
aten = torch.ops.aten


class Counter:
    """Counts the multiply-adds of all that runs inside `with`, on the meta device or on numbers.

    Torch's `FlopCounterMode` knows matrix products and convolutions, and takes apart what is made of them. It says 0
    for products with a vector, `nn.Bilinear` and distances, and on the CPU for fused attention and LSTMs; these are
    counted here. What works element by element counts as zero, a product written with `*` and summed up too.

    Warns:
        UserWarning: of operations that may multiply and add, and for which no count is known: inverses, Fourier
            transforms, custom operations; the warning names them.
    """

    def __init__(self) -> None:
        self._flops = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        # In which module is not asked, and to note it fails without gradients where one is given a view of a parameter.
        nothing = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None)
        self._flops.mod_tracker = nothing  # type: ignore[assignment]
        self._strangers = _Strangers(set(self._flops.flop_registry))

    @property
    def macs(self) -> int:
        """Multiply-adds so far."""
        return int(self._flops.get_total_flops()) // 2

    def __enter__(self) -> "Counter":
        self._strangers.__enter__()  # type: ignore[no-untyped-call]  # outside, where it sees what the other has taken apart
        self._flops.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flops.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._strangers.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._strangers.names and kind is None:
            names = ", ".join(sorted(self._strangers.names))
            warnings.warn(f"the multiply-adds of {names} are not known, and not counted", stacklevel=2)


class _Strangers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that may multiply and add, and are not counted."""

    supports_higher_order_operators = True

    def __init__(self, counted: set[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func._overloadpacket not in self.counted:
            name = func.overloadpacket.__name__.strip("_")
            if func.namespace not in ("aten", "prims", "prim", "profiler"):
                self.names.add(func._schema.name)
            elif name not in _FREE and not any(part in name for part in _FREE_KINDS):
                # To multiply and add takes two tensors, unless the operation is known to do so with one.
                floats = sum(
                    isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
                    for leaf in tree_leaves((args, kwargs))
                )
                if name.startswith(("linalg_", "fft_")) or (floats > 1 and torch.Tag.pointwise not in func.tags):
                    self.names.add(func._schema.name)
        return func(*args, **kwargs)


# Of several tensors they only move numbers, or work element by element though torch does not tag them so.
_FREE = {"cat", "stack", "copy", "masked_scatter", "put", "where", "prelu_kernel", "rrelu_with_noise", "equal", "set"}
_FREE |= {"complex", "polar", "take", "addcmul", "addcdiv", "lerp", "embedding_bag", "embedding_bag_forward_only"}
_FREE |= {"thnn_fused_lstm_cell", "thnn_fused_gru_cell", "linalg_vector_norm", "linalg_cross", "linalg_check_errors"}
_FREE |= {"grid_sampler_2d", "grid_sampler_3d", "grid_sampler_2d_cpu_fallback", "linalg_diagonal", "isin"}
_FREE |= {"searchsorted", "bucketize", "hardtanh", "nested_tensor_from_mask", "assert_tensor_metadata"}
_FREE_KINDS = ("norm_interface", "_norm", "layer_norm", "index", "scatter", "fake_quant", "pack_padded", "pool", "loss")


def _vector(matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _added_vector(bias: Shape, matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _outer(bias: Shape, one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(one) * prod(other)


def _added_batches(bias: Shape, one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(one) * other[-1]


def _product(one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(one) * other[-1]


def _bilinear(x: Shape, weight: Shape, y: Shape, *_: Any, **__: Any) -> int:
    # For each output Σ_i x_i (Σ_j W_ij y_j): the matrix times the one input, and then the other.
    outputs, first, second = weight[-3:]
    return 2 * x[0] * outputs * first * (second + 1)


def _distances(one: Shape, other: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(one) * other[-2]  # a square, or another power, for each feature of each pair


def _distances_within(x: Shape, *_: Any, **__: Any) -> int:
    return x[0] * (x[0] - 1) * x[1]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _lstm(x: Shape, of_input: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(of_input) + prod(of_state))


def _many_heads(
    query: Shape, key: Shape, value: Shape, size: int, heads: int, qkv: Shape, _: Any, proj: Shape, *__: Any, **___: Any
) -> int:
    tokens = prod(query[:-1])
    return 2 * (tokens * (prod(qkv) + prod(proj)) + 2 * tokens * key[-2] * size)


def _encoder_layer(
    x: Shape, size: int, heads: int, qkv: Shape, _: Any, proj: Shape, __: Any, gelu: Any, first: Any, eps: Any,
    *rest: Any, **___: Any,
) -> int:  # fmt: skip
    tokens = prod(x[:-1])  # two norms with weight and bias come first
    weights = prod(qkv) + prod(proj) + prod(rest[4]) + prod(rest[6])
    return int(2 * tokens * (weights + 2 * x[-2] * size))


_NAMED: dict[str, Callable[..., int]] = {
    "mv": _vector,
    "dot": _vector,
    "vdot": _vector,
    "addmv": _added_vector,
    "addr": _outer,
    "addbmm": _added_batches,
    "_addmm_activation": _added_batches,
    "_int_mm": _product,
    "_trilinear": _bilinear,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    "_pdist_forward": _distances_within,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "mkldnn_rnn_layer": _lstm,
    "_native_multi_head_attention": _many_heads,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}
_FORMULAS = {getattr(aten, name): formula for name, formula in _NAMED.items() if hasattr(aten, name)}
