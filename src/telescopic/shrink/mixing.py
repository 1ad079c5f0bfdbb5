"""What functions with weights do to channels: convolutions, linear layers, norms that treat each channel alone."""

from torch import Tensor

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
    watch.channels.read(ids[~every(flow.zero, dim)], f"{where}, which takes it as something else than 0")
    if groups > 1:
        watch.channels.equal(inputs, groups)
        watch.channels.equal(outputs, groups)
    if watch.price:
        macs = float(places * weight.numel())
        watch.channels.work(inputs, macs)
        watch.channels.work(outputs, macs)
    return alive(spread(outputs, call.out.shape, dim))


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
    zero = every(x.zero, 1).repeat_interleave(times) & (bias is None)
    return Flow(spread(outputs, call.out.shape, 1), spread(zero, call.out.shape, 1))


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
    # Zeros stay zeros for ever if they are normalised by themselves, and nothing is added.
    return Flow(x.ids, x.zero & (bias is None) & (mean is None))


def _prelu(watch: Watch, call: Call) -> Flow | None:
    """A slope for each channel, or for all."""
    x, weight = watch.flow(call.args[0]), call.given(1, "weight")
    ids = along(x.ids, 1)
    if ids is None or watch.name(weight) is None:
        return None
    if weight.numel() > 1:
        watch.axis(weight, 0, ids)
    return x


_CONVOLUTIONS = [f"conv{kind}{d}d" for d in (1, 2, 3) for kind in ("", "_transpose")]
FUNCTIONS: dict[str, Rule] = dict.fromkeys(_CONVOLUTIONS, _convolved)
FUNCTIONS |= {"linear": _linear, "matmul": _matmul, "mm": _matmul, "prelu": _prelu}
FUNCTIONS |= {"batch_norm": _normed, "instance_norm": _normed}
