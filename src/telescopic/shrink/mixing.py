"""What functions with weights do to channels, and products of features: sums over channels, and norms of each alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from telescopic.shrink.flow import FREE, Flow, alive, along, every, free, lean, spread, varies
from telescopic.shrink.watch import Call, Rule, Watch


def _linear(watch: Watch, call: Call) -> Flow | None:
    """`x @ weight.T + bias`, along the last dimension."""
    x, weight, bias = call.args[0], call.given(1, "weight"), call.given(2, "bias")
    return _mixed(watch, call, weight, bias, -1, 1, x.shape[1:-1].numel())


def _matmul(watch: Watch, call: Call) -> Flow | None:
    """`x @ weight`, or features times features."""
    x, other = call.args[:2]
    if watch.knows(other) and other.ndim == 2:
        return _mixed(watch, call, other, None, -1, 0, x.shape[1:-1].numel())
    if min(x.ndim, other.ndim) < 2:
        return None
    batch = "abcdefgh"[: max(x.ndim, other.ndim) - 2]
    terms = (batch[len(batch) + 2 - x.ndim :] + "xz", batch[len(batch) + 2 - other.ndim :] + "zy", batch + "xy")
    return _contracted(watch, call, watch.flow(x), watch.flow(other), terms)


def _einsum(watch: Watch, call: Call) -> Flow | None:
    """The same as an equation of two."""
    operands = [leaf for leaf in tree_leaves(call.args[1:]) if isinstance(leaf, Tensor)]
    first, comma, rest = str(call.args[0]).replace(" ", "").partition(",")
    second, arrow, out = rest.partition("->")
    terms = (first, second, out)
    if not comma or not arrow or len(operands) != 2 or any(len({*t}) < len(t) or not t.isalpha() for t in terms):
        return None
    return _contracted(watch, call, watch.flow(operands[0]), watch.flow(operands[1]), terms)


def _attended(watch: Watch, call: Call) -> Flow | None:
    """`softmax(q @ k.T + mask) @ v`, in which a key may serve several queries' heads."""
    query, key, value = (watch.flow(each) for each in call.args[:3])
    mask, num = call.given(3, "attn_mask"), len(query.shape)
    if call.given(7, "enable_gqa", False):
        times = query.shape[-3] // key.shape[-3]
        key, value = (
            Flow(each.ids.repeat_interleave(times, -3), each.zero.repeat_interleave(times, -3)) for each in (key, value)
        )
    if {len(key.shape), len(value.shape)} != {num}:
        return None
    batch = "abcdefgh"[: num - 2]
    scores = _contracted(watch, call, query, key, (batch + "qc", batch + "kc", batch + "qk"))
    if scores is None:
        return None
    ids = scores.ids if mask is None else broadcast(watch, call, [scores.ids, watch.flow(mask).ids], scores.shape)
    return _contracted(watch, call, alive(ids), value, (batch + "qk", batch + "kc", batch + "qc"))


def _contracted(watch: Watch, call: Call, one: Flow, other: Flow, terms: tuple[str, str, str]) -> Flow | None:
    """Sums of products of features. What one tensor has along a dimension of both goes with what the other has there.

    Args:
        watch: who asks.
        call: the call.
        one: what is known of the first tensor.
        other: and of the second.
        terms: a letter for each dimension of the two and of the result; sums are over those that it does not have.
    """
    flows, letters = (one, other), terms[:2]
    given = [{c for d, c in enumerate(term) if varies(flow.ids, d)} for flow, term in zip(flows, letters, strict=True)]
    sizes = [dict(zip(term, flow.shape, strict=True)) for flow, term in zip(flows, letters, strict=True)]
    size = {c: max(each.get(c, 1) for each in sizes) for c in letters[0] + letters[1]}
    shape = torch.Size(size[c] for c in terms[2])
    over = {*size} - {*terms[2]}
    macs = float(torch.Size(size.values())[1:].numel())
    if (given[0] | given[1]) & over:
        if given[0] != given[1] or len(given[0]) > 1:
            return None
        dims = [term.index(c) for term in letters for c in given[0]]
        first, second = (along(flow.ids, dim) for flow, dim in zip(flows, dims, strict=True))
        assert first is not None and second is not None
        zero = torch.stack([every(flow.zero, dim) for flow, dim in zip(flows, dims, strict=True)]).any(0)
        watch.channels.join(first, second)
        watch.channels.read(first[~zero], f"{call.name} in {watch.where()}, which takes it as something else than 0")
        watch.work(first, macs)
        return free(shape)
    if given[0] - given[1] and given[1] - given[0]:
        return None

    def laid(values: Tensor, term: str) -> Tensor:
        for dim in reversed([d for d, c in enumerate(term) if c in over]):
            values = values.all(dim) if values.dtype == torch.bool else values.select(dim, 0)
        left = [c for c in term if c not in over]
        values = values.permute([left.index(c) for c in terms[2] if c in left])
        for dim in [d for d, c in enumerate(terms[2]) if c not in left]:
            values = values.unsqueeze(dim)
        return values.expand(shape)

    wide, thin = sorted((0, 1), key=lambda i: -len(given[i]))
    most, least = lean(*(laid(flows[i].ids, letters[i]) for i in (wide, thin)))
    if any(min(each.get(c, 1) for each in sizes) > 1 for c in given[0] | given[1]):
        watch.channels.join(most, least)
    ids = torch.where(most == FREE, least, most).expand(shape)
    for dim in [d for d in range(len(shape)) if varies(ids, d)][:1]:
        watch.work(ids.movedim(dim, 0).flatten(1)[:, 0], macs)
    return Flow(ids, laid(one.zero, terms[0]) | laid(other.zero, terms[1]))


def broadcast(watch: Watch, call: Call, operands: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Joins the channels of operands element by element; one that is spread over channels of others stays."""
    full = [ids.view([1] * (len(shape) - ids.ndim) + list(ids.shape)) for ids in operands]
    for d in range(len(shape)):
        if any(ids.shape[d] > 1 and varies(ids, d) for ids in full):
            for i, ids in enumerate(full):
                if ids.shape[d] == 1:
                    watch.channels.hold(ids, f"{call.name} in {watch.where()}, which spreads it over all channels")
                    full[i] = torch.full((), FREE).expand(ids.shape)
    first, *others = lean(*(ids.expand(shape) for ids in full))
    for other in others:
        watch.channels.join(first, other)
        first = torch.where(first == FREE, other, first)
    return first.expand(shape)


def _numbered(watch: Watch, call: Call) -> None:
    """Torch's own attention, which has as many channels as it is given, in a number of heads that it names."""
    reason = (
        f"{call.name} in {watch.where()}, which makes {call.given(4, 'num_heads')} heads of whatever it gets, as many "
        "channels as its inputs have: heads become narrow of linear layers for queries, keys and values, a "
        "view(..., -1, channels of a head), and scaled_dot_product_attention"
    )
    for tensor in tree_leaves((call.args, call.kwargs)):
        if isinstance(tensor, Tensor):
            watch.channels.hold(watch.flow(tensor).ids, reason)


def _embedded(watch: Watch, call: Call) -> Flow | None:
    """A row of channels for each number."""
    weight, numbers = call.given(1, "weight"), watch.flow(call.args[0]).ids
    if not watch.knows(weight) or call.given(3, "max_norm") is not None or not isinstance(call.out, Tensor):
        return None
    if any(varies(numbers, d) for d in range(numbers.ndim)):
        return None
    return alive(spread(watch.axis(weight, 1), call.out.shape, -1))


def _convolved(watch: Watch, call: Call) -> Flow | None:
    """Convolutions, transposed ones too."""
    x, weight, bias, transposed = call.args[0], call.given(1, "weight"), call.given(2, "bias"), "trans" in call.name
    groups = int(call.given(6, "groups", 1))
    if x.ndim != weight.ndim:
        return None
    places = (x if transposed else call.out).shape[2:].numel()
    if groups > 1 and groups == x.shape[1]:
        return _depthwise(watch, call, weight, bias, transposed, places)
    return _mixed(watch, call, weight, bias, 1, 0 if transposed else 1, places, groups)


def _mixed(
    watch: Watch, call: Call, weight: Tensor, bias: Tensor | None, dim: int, takes: int, places: int, groups: int = 1
) -> Flow | None:
    """Each output from all inputs, or all of its group.

    Args:
        watch: who asks.
        call: the call; its first argument has channels along `dim`, and so has what it gives.
        weight: a parameter, whose dimension `takes` is the input's channels and whose other is the output's.
        bias: of the output's channels, if any.
        dim: of channels.
        takes: 0 or 1.
        places: number of times the weight is used for one example.
        groups: number of groups.
    """
    flow, where = watch.flow(call.args[0]), f"{call.name} in {watch.where()}"
    ids = along(flow.ids, dim)
    if ids is None or not watch.knows(weight, bias):
        return None
    inputs = watch.axis(weight, takes, ids, groups if takes == 1 else 1)
    outputs = watch.axis(weight, 1 - takes, groups=groups if takes == 0 else 1)
    if bias is not None:
        watch.axis(bias, 0, outputs)
    watch.channels.read(ids[~every(flow.zero, dim)], f"{where}, which takes it as something else than 0")
    if groups > 1:
        watch.channels.equal(inputs, groups)
        watch.channels.equal(outputs, groups)
    macs = float(places * weight.numel())
    watch.work(inputs, macs)
    watch.work(outputs, macs)
    return alive(spread(outputs, call.out.shape, dim))


def _depthwise(
    watch: Watch, call: Call, weight: Tensor, bias: Tensor | None, transposed: bool, places: int
) -> Flow | None:
    """One or several outputs from each input alone."""
    x = watch.flow(call.args[0])
    ids = along(x.ids, 1)
    if ids is None or not watch.knows(weight, bias):
        return None
    times = call.out.shape[1] // x.shape[1]
    outputs = ids.repeat_interleave(times)
    watch.axis(weight, 0, ids if transposed else outputs)
    if bias is not None:
        watch.axis(bias, 0, outputs)
    watch.work(ids if transposed else outputs, float(places * weight.numel()))
    zero = every(x.zero, 1).repeat_interleave(times) & (bias is None)
    return Flow(spread(outputs, call.out.shape, 1), spread(zero, call.out.shape, 1))


def _normed(watch: Watch, call: Call) -> Flow | None:
    """BatchNorm and InstanceNorm: each channel alone; a dead one becomes a constant that may be trained."""
    x = watch.flow(call.args[0])
    ids = along(x.ids, 1)
    mean, variance = call.given(1, "running_mean"), call.given(2, "running_var")
    weight, bias = call.given(3, "weight"), call.given(4, "bias")
    if ids is None or not watch.knows(mean, variance, weight, bias):
        return None
    for tensor in (mean, variance, weight, bias):
        if tensor is not None:
            watch.axis(tensor, 0, ids)
    # Zeros stay zeros for ever if they are normalised by themselves, and nothing is added.
    return Flow(x.ids, x.zero & (bias is None) & (mean is None))


def _prelu(watch: Watch, call: Call) -> Flow | None:
    """A slope for each channel, or for all."""
    x, weight = watch.flow(call.args[0]), call.given(1, "weight")
    ids = along(x.ids, 1)
    if ids is None or not watch.knows(weight):
        return None
    if weight.numel() > 1:
        watch.axis(weight, 0, ids)
    return x


_CONVOLUTIONS = [f"conv{kind}{d}d" for d in (1, 2, 3) for kind in ("", "_transpose")]
FUNCTIONS: dict[str, Rule] = dict.fromkeys(_CONVOLUTIONS, _convolved)
FUNCTIONS |= {"linear": _linear, "prelu": _prelu, "embedding": _embedded, "embedding_bag": _embedded}
FUNCTIONS |= {"multi_head_attention_forward": _numbered}
FUNCTIONS |= {"matmul": _matmul, "mm": _matmul, "bmm": _matmul, "einsum": _einsum}
FUNCTIONS |= {"scaled_dot_product_attention": _attended}
FUNCTIONS |= {"batch_norm": _normed, "instance_norm": _normed}
