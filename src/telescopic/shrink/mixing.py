"""What functions with weights do to channels: convolutions, linear layers, norms that treat each channel alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from telescopic.shrink.channels import Absorption
from telescopic.shrink.flow import Flow, alive, along, every, spread
from telescopic.shrink.watch import Call, Rule, Watch


def _linear(watch: Watch, call: Call) -> Flow | None:
    """`x @ weight.T + bias`, along the last dimension."""
    x, weight, bias = call.args[0], call.given(1, "weight"), call.given(2, "bias")
    return _mixed(watch, call, x, weight, bias, -1, 1, x.shape[1:-1].numel())


def _matmul(watch: Watch, call: Call) -> Flow | None:
    """`x @ weight`."""
    x, weight = call.args[:2]
    if watch.name(weight) is None or weight.ndim != 2:
        return None
    return _mixed(watch, call, x, weight, None, -1, 0, x.shape[1:-1].numel())


def _convolved(watch: Watch, call: Call) -> Flow | None:
    """Convolutions, transposed ones too."""
    x, weight, bias, transposed = call.args[0], call.given(1, "weight"), call.given(2, "bias"), "trans" in call.name
    groups = int(call.given(6, "groups", 1))
    if x.ndim != weight.ndim:
        return None
    places = (x if transposed else call.out).shape[2:].numel()
    if groups > 1 and groups == x.shape[1]:
        return _depthwise(watch, call, weight, bias, transposed, places)
    return _mixed(watch, call, x, weight, bias, 1, 0 if transposed else 1, places, groups)


def _mixed(
    watch: Watch,
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dim: int,
    takes: int,
    places: int,
    groups: int = 1,
) -> Flow | None:
    """Each output from all inputs, or all of its group.

    Args:
        watch: who asks.
        call: the call.
        x: its input, with channels along `dim`.
        weight: a parameter, whose dimension `takes` is the input's channels and whose other is the output's.
        bias: of the output's channels, if any.
        dim: of channels.
        takes: 0 or 1.
        places: number of times the weight is used for one example.
        groups: number of groups.
    """
    flow, where = watch.flow(x), f"{call.name} in {watch.where()}"
    ids = along(flow.ids, dim)
    if watch.name(weight) is None or (bias is not None and watch.name(bias) is None) or ids is None:
        return None
    inputs = watch.axis(weight, takes, ids, groups if takes == 1 else 1)
    outputs = watch.axis(weight, 1 - takes, groups=groups if takes == 0 else 1)
    if bias is not None:
        watch.axis(bias, 0, outputs)
    zero = every(flow.zero, dim)
    if watch.absorb and bias is not None and not zero.all():
        zero = zero | _absorbed(watch, call, flow, weight, bias, dim, takes, groups, ids, zero)
    watch.channels.read(ids[~zero], f"{where}, which takes it as something else than 0")
    if groups > 1:
        watch.channels.equal(inputs, groups)
        watch.channels.equal(outputs, groups)
    if watch.price:
        macs = float(places * weight.numel())
        watch.channels.work(inputs, macs)
        watch.channels.work(outputs, macs)
    return alive(spread(outputs, call.out.shape, dim))


def _absorbed(
    watch: Watch,
    call: Call,
    flow: Flow,
    weight: Tensor,
    bias: Tensor,
    dim: int,
    takes: int,
    groups: int,
    ids: Tensor,
    zero: Tensor,
) -> Tensor:
    """Which input channels are dead and add the same to each place, so that the bias can take it over."""
    value = along(flow.value.nan_to_num(torch.inf), dim)
    none = torch.zeros_like(zero)
    padding = call.given(4, "padding", 0)
    padded = dim == 1 and (isinstance(padding, str) or any(p != 0 for p in _tuple(padding)))
    transposed = dim == 1 and takes == 0
    if value is None or padded or transposed or groups > 1 or id(bias) in watch.channels.absorptions:
        return none
    sums = weight.detach().double().cpu().flatten(2).sum(2) if weight.ndim > 2 else weight.detach().double().cpu()
    each = sums.T if takes == 0 else sums
    known = value.isfinite()
    shifts = each * torch.where(known & ~zero, value, 0.0)
    watch.channels.absorptions[id(bias)] = Absorption(bias, ids, shifts)
    return known


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _depthwise(
    watch: Watch, call: Call, weight: Tensor, bias: Tensor | None, transposed: bool, places: int
) -> Flow | None:
    """One or several outputs from each input alone."""
    x = watch.flow(call.args[0])
    ids = along(x.ids, 1)
    if watch.name(weight) is None or (bias is not None and watch.name(bias) is None) or ids is None:
        return None
    times = call.out.shape[1] // x.shape[1]
    outputs = ids.repeat_interleave(times)
    watch.axis(weight, 0, ids if transposed else outputs)
    if bias is not None:
        watch.axis(bias, 0, outputs)
    if watch.price:
        watch.channels.work(ids if transposed else outputs, float(places * weight.numel()))
    plain = [t if t is None else t.detach().double().cpu() for t in (weight, bias)]
    rest = {k: v for k, v in call.kwargs.items() if k not in ("input", "weight", "bias")}
    value = call.func(x.value.nan_to_num(), *plain, *call.args[3:], **rest)
    living = spread((~every(~x.value.isnan(), 1)).repeat_interleave(times), value.shape, 1)
    zero = spread(every(x.zero, 1).repeat_interleave(times), value.shape, 1) & (bias is None)
    return Flow(spread(outputs, value.shape, 1), value.masked_fill(living, torch.nan), zero)


def _normed(watch: Watch, call: Call) -> Flow | None:
    """BatchNorm and InstanceNorm: each channel alone; a dead one becomes a constant that may be trained."""
    x = watch.flow(call.args[0])
    ids = along(x.ids, 1)
    mean, variance = call.given(1, "running_mean"), call.given(2, "running_var")
    weight, bias = call.given(3, "weight"), call.given(4, "bias")
    tensors = [t for t in (mean, variance, weight, bias) if t is not None]
    if ids is None or any(watch.name(t) is None for t in tensors):
        return None
    for tensor in tensors:
        watch.axis(tensor, 0, ids)
    shape = [1, -1] + [1] * (x.ids.ndim - 2)
    plain = [t if t is None else t.detach().double().cpu().view(shape) for t in (mean, variance, weight, bias)]
    value = x.value
    instance = call.name == "instance_norm"
    if plain[0] is not None and plain[1] is not None and not instance:
        value = (value - plain[0]) / (plain[1] + call.given(7, "eps", 1e-5)).sqrt()
    else:  # by itself: a constant becomes 0
        value = value * 0
    value = value if plain[2] is None else value * plain[2]
    value = value if plain[3] is None else value + plain[3]
    # Zeros stay zeros for ever if they are normalised by themselves, and nothing is added.
    zero = x.zero & (plain[3] is None) & (plain[0] is None)
    return Flow(x.ids, value.expand(x.shape), zero)


def _prelu(watch: Watch, call: Call) -> Flow | None:
    """A slope for each channel, or for all."""
    x, weight = watch.flow(call.args[0]), call.given(1, "weight")
    ids = along(x.ids, 1)
    if ids is None or watch.name(weight) is None:
        return None
    if weight.numel() > 1:
        watch.axis(weight, 0, ids)
    value = functional.prelu(x.value.contiguous(), weight.detach().double().cpu())
    return Flow(x.ids, value.masked_fill(x.value.isnan(), torch.nan), x.zero)


_CONVOLUTIONS = [f"conv{kind}{d}d" for d in (1, 2, 3) for kind in ("", "_transpose")]
FUNCTIONS: dict[str, Rule] = dict.fromkeys(_CONVOLUTIONS, _convolved)
FUNCTIONS |= {"linear": _linear, "matmul": _matmul, "mm": _matmul, "prelu": _prelu}
FUNCTIONS |= {"batch_norm": _normed, "instance_norm": _normed}
