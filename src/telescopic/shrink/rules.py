"""What torch's functions do to channels: the known ones, and those that are registered for layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from telescopic.layers.filter import Filter, TokenFilter
from telescopic.shrink.channels import Channels
from telescopic.shrink.example import Inputs, unchanged
from telescopic.shrink.flow import Flow, alive, along, every, free, spread, varies
from telescopic.shrink.mixing import FUNCTIONS as MIXING
from telescopic.shrink.mixing import broadcast
from telescopic.shrink.watch import Call, Counted, Rule, Watch


def register_rule(layer: type[nn.Module], rule: Rule) -> None:
    """Say what a layer of yours does to channels, so that those in front of it and behind it can be removed.

    It is asked for only if a layer has weights that it uses in another way than torch's layers do, or calls something
    that is not known; layers without weights that treat each channel alone need none, and `each_channel` is the rule
    for those that cannot be looked into. What the layer keeps in attributes about its size is for a method `resize_()`
    of its own, which is called when a tensor of it was cut.

    Args:
        layer: its class; subclasses are others.
        rule: `rule(watch, call)`: what the call's output is. `watch.flow(x)` says what is known of an input,
            `watch.axis(tensor, dim, ids)` that an axis of a parameter or buffer has these channels, and
            `watch.channels.read` and `hold` which must stay. None refuses the call.
    """
    LAYERS[layer] = rule


def each_channel(watch: Watch, call: Call) -> Flow | None:
    """The rule of what works on `[batch, channels, ...]` and treats each channel alone, alike and without weights."""
    x = watch.flow(call.args[0])
    ids = along(x.ids, 1) if x.ids.ndim > 1 else None
    if ids is None or not isinstance(call.out, Tensor) or call.out.shape[1:2] != x.shape[1:2]:
        return None
    of_zeros = call.func(torch.zeros(x.shape), *call.args[1:], **call.kwargs)
    zero = spread(every(x.zero, 1), of_zeros.shape, 1) & (of_zeros == 0)
    return Flow(spread(ids, of_zeros.shape, 1), zero)


def _single(watch: Watch, call: Call) -> Flow | None:
    """A function of one tensor, element by element."""
    x = watch.flow(call.args[0])
    if any(isinstance(arg, Tensor) and arg.numel() > 1 for arg in call.args[1:]):
        return None
    return Flow(x.ids, x.zero & (call.func(torch.zeros(1), *call.args[1:], **call.kwargs) == 0))


def _same(watch: Watch, call: Call) -> Flow | None:
    """What changes nothing, or only in training, and zeros never."""
    return watch.flow(call.args[0])


def _several(watch: Watch, call: Call) -> Flow:
    """Sums and products, element by element."""
    operands = [watch.flow(arg) if isinstance(arg, Tensor) else arg for arg in call.args[:2]]
    shape = call.out.shape
    flows = [flow for flow in operands if isinstance(flow, Flow)]
    ids = broadcast(watch, call, [flow.ids for flow in flows], shape)
    zeros = [flow.zero.expand(shape) for flow in flows]
    if call.name in ("mul", "imul", "rmul", "div", "true_divide", "truediv"):
        zero = torch.stack(zeros if "mul" in call.name else zeros[:1]).any(0) if flows else zeros[0]
        if "div" in call.name and not isinstance(operands[0], Flow):
            zero = torch.zeros_like(zeros[0])
        return Flow(ids, zero)
    plain = [torch.zeros(1) if isinstance(flow, Flow) else flow for flow in operands]
    of_zeros = call.func(*plain, **{k: v for k, v in call.kwargs.items() if k != "out"})
    return Flow(ids, torch.stack(zeros).all(0) & (of_zeros == 0))


def _moved(watch: Watch, call: Call) -> Sequence[Flow] | None:
    """What puts elements elsewhere and computes nothing: the same is done to what is known of them."""
    func = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(call.name, call.func)
    if call.name == "view" and isinstance(call.given(1, "dtype"), torch.dtype):
        return None
    results = []
    for part in ("ids", "zero"):

        def chosen(leaf: Any, part: str = part) -> Any:
            if isinstance(leaf, Tensor) and call.name == "getitem" and leaf is not call.args[0]:
                return leaf.cpu()  # an index
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or id(leaf) in watch.known):
                kept: Tensor = getattr(watch.flow(leaf), part)
                return kept.contiguous()
            return leaf

        made = func(*tree_map(chosen, call.args), **tree_map(chosen, call.kwargs))
        results.append([made] if isinstance(made, Tensor) else list(made))
    if isinstance(call.args[0], Tensor):
        results[0] = _picked(watch, call, watch.flow(call.args[0]).ids, results[0])
    return [Flow(*parts) for parts in zip(*results, strict=True)]


def _picked(watch: Watch, call: Call, ids: Tensor, made: list[Tensor]) -> list[Tensor]:
    """Channels that are told apart by their number, as in halves or the first four, stay in step or stay at all.

    Those that are put along several dimensions, of which one follows their number, are as many as are along that one:
    groups of one size, such as the heads of an attention, if it is the first; and in step, group by group, if not.
    """
    given = [d for d in range(ids.ndim) if varies(ids, d)]
    vector = along(ids, given[0]) if len(given) == 1 else None
    if all(torch.equal(torch.unique(out), torch.unique(ids)) for out in made):
        split = [d for d in range(made[0].ndim) if varies(made[0], d)]
        if len(split) <= max(len(given), 1):
            # Unlike turned round, their order depends on how many there are.
            if call.name not in ("roll", "getitem") or torch.equal(_rows(made[0], split), _rows(ids, given)):
                return made
        elif vector is not None and torch.equal(_rows(made[0], split), vector):
            dim = _open(watch, call, split)
            rows = vector.view([made[0].shape[d] for d in split]).movedim(split.index(dim), 0).flatten(1)
            watch.channels.join(rows[:, :1].expand_as(rows), rows)
            return [spread(rows[:, 0], made[0].shape, dim)]  # which may be put into another order next
    elif vector is not None and len(vector) % len(made) == 0 and _evenly(call):
        watch.channels.equal(vector, len(made))
        return made
    watch.channels.hold(ids, f"{call.name} in {watch.where()}, which tells channels apart by their number")
    return made


def _evenly(call: Call) -> bool:
    """Whether it gives halves, or the like, of however many there are."""
    return call.name == "chunk" or isinstance(call.given(1, "split_size_or_sections"), Counted)


def _open(watch: Watch, call: Call, split: Sequence[int]) -> int:
    """Which of some dimensions of the result follows the number of channels.

    That is one whose size was computed from it, one that a -1 leaves to torch or a layer to `sizes.following`, or the
    last.
    """
    sizes: Sequence[Any] = call.args[1:] or tuple(call.kwargs.values())
    before = 0
    if call.name == "unflatten":
        before, sizes = call.given(1, "dim") % call.args[0].ndim, call.given(2, "sizes")
        if -1 not in sizes and isinstance(watch.network.get_submodule(watch.path), nn.Unflatten):
            return int(before)
    elif sizes and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    if call.name not in ("view", "reshape", "unflatten"):
        return split[-1]
    found = {d: size for d, size in enumerate(sizes, before) if d in split}
    counted = [d for d, size in found.items() if isinstance(size, Counted)]
    return next(iter([*counted, *(d for d, size in found.items() if size == -1), split[-1]]))


def _shuffled(watch: Watch, call: Call) -> Sequence[Flow] | None:
    """The first channel of each group, then the second of each, and so on: they go in step."""
    ids = along(watch.flow(call.args[0]).ids, 1)
    first, *others = [] if ids is None else ids.view(call.given(1, "groups"), -1)
    for other in others:
        watch.channels.join(first, other)
    return _moved(watch, call)


def _rows(ids: Tensor, dims: Sequence[int]) -> Tensor:
    """What varies along two dimensions, in one row."""
    for d in range(ids.ndim):
        if d not in dims:
            ids = ids.narrow(d, 0, 1)
    return ids.reshape(-1)


def _padded(watch: Watch, call: Call) -> Flow | None:
    """Padding in space, or constants as further channels."""
    x, pad = watch.flow(call.args[0]), call.given(1, "pad")
    if all(amount == 0 for amount in pad[2 * (len(x.shape) - 2) :]):
        return each_channel(watch, call)
    if call.given(2, "mode", "constant") != "constant":
        return None
    added = int(watch.channels.fixed((), f"what {watch.where()} pads with"))
    pads: Callable[..., Tensor] = torch.nn.functional.pad
    return Flow(pads(x.ids, pad, value=added), pads(x.zero, pad, value=False))


def _reduced(watch: Watch, call: Call) -> Flow | None:
    """Sums and the like over pixels, and sums over channels."""
    x, dims = watch.flow(call.args[0]), call.given(1, "dim")
    if not isinstance(call.out, Tensor) or any(isinstance(arg, Tensor) for arg in call.args[1:]):
        return None
    dims = range(len(x.shape)) if dims is None or dims == () else (dims,) if isinstance(dims, int) else tuple(dims)
    keep = bool(call.given(2, "keepdim", False))
    over = [d % len(x.shape) for d in dims] or list(range(len(x.shape)))
    if any(varies(x.ids, d) for d in over):
        if call.name != "sum":
            return None
        if all(d in over or not varies(x.ids, d) for d in range(len(x.shape))):
            watch.channels.read(x.ids[~x.zero], f"sum in {watch.where()}")
            return free(call.out.shape)
        first = x.ids  # a sum of stacked tensors, whose channels lie along another dimension
        for d in over:
            first = first.narrow(d, 0, 1)
        watch.channels.join(first.expand(x.shape), x.ids)
    return Flow(x.ids.amax(over, keep), x.zero.long().amin(over, keep).bool())


def _chosen(watch: Watch, call: Call) -> Flow:
    """Comparisons and choices between numbers, element by element; and new tensors of the shape of another."""
    operands = [watch.flow(leaf).ids for leaf in call.args if isinstance(leaf, Tensor)]
    return alive(broadcast(watch, call, operands, call.out.shape))


def _within(watch: Watch, call: Call) -> Flow | None:
    """What mixes numbers along dimensions, if channels lie along others: for each channel, or each head, by itself."""
    x = watch.flow(call.args[0])
    over = call.given(2, "dim", 1) if call.name == "normalize" else call.given(1, "dim")
    if call.name in ("layer_norm", "rms_norm"):
        over = range(-len(call.given(1, "normalized_shape")), 0)
    given = {d for d in range(len(x.shape)) if varies(x.ids, d)}
    dims = {d % len(x.shape) for d in ([over] if isinstance(over, int) else over)}
    return None if not given or given & dims else alive(x.ids)


def _filter(watch: Watch, call: Call) -> Flow | None:
    """Where a channel dies."""
    x, part = watch.flow(call.args[0]), call.func
    ids = along(x.ids, part.dim)
    if ids is None:
        return None
    watch.axis(part.theta, 0, ids)
    for buffer in (part.alive, part.params, part.macs):
        watch.axis(buffer, 0, ids)
    return Flow(x.ids, spread(part.dead().cpu(), x.shape, part.dim) | x.zero)


def observed(model: nn.Module, inputs: Inputs, channels: Channels, *, training: bool = False) -> Watch:
    """Run a network, and note in `channels` what becomes of them."""
    with unchanged(model, training):
        watch = Watch(model, channels, FUNCTIONS, LAYERS)
        watch.run(inputs)
    return watch


_KNOWN: dict[Rule, str] = {
    _single: "relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh softplus softsign "
    "logsigmoid sigmoid tanh tanhshrink hardshrink softshrink threshold neg abs square sqrt exp expm1 log1p sin cos "
    "erf sign clamp clip clamp_min clamp_max floor ceil round trunc pow reciprocal rsqrt log",
    _same: "dropout dropout1d dropout2d dropout3d feature_dropout to float double half bfloat16 type_as contiguous "
    "clone detach data alias requires_grad rrelu cuda cpu",
    _several: "add sub rsub mul div true_divide truediv maximum minimum iadd isub imul radd rmul",
    each_channel: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d interpolate upsample",
    _moved: "view reshape flatten unflatten permute transpose swapaxes t T mT squeeze unsqueeze chunk split "
    "tensor_split unbind getitem select narrow cat concat stack expand expand_as view_as reshape_as movedim flip roll "
    "pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave tile",
    _chosen: "where masked_fill eq ne lt le gt ge logical_and logical_or logical_not zeros_like ones_like rand_like "
    "randn_like empty_like full_like",
    _within: "softmax log_softmax cumsum normalize layer_norm rms_norm",
    _shuffled: "channel_shuffle native_channel_shuffle",
    _padded: "pad",
    _reduced: "sum mean amax amin",
}
FUNCTIONS = MIXING | {name: rule for rule, names in _KNOWN.items() for name in names.split()}
LAYERS: dict[type[nn.Module], Rule] = {Filter: _filter, TokenFilter: _filter}
