"""How a family is made of a network that one has: its blocks as they are, more places to enter and to leave."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.causal import with_widths
from telescopic.cost.counting import on_meta
from telescopic.inputs import Tensors, dtype_and_device, each, examples, explained, leaves
from telescopic.layers.adapters import Adapter, step_down, strided_stem
from telescopic.layers.axes import Watch
from telescopic.layers.heads import Head, pooled_head, token_head
from telescopic.nested import Nested
from telescopic.shapes import Shape
from telescopic.subnet import Statistics
from telescopic.wrappers import unwrapped


@plain()
def nest(
    network: nn.Sequential | Iterable[nn.Module],
    *,
    input_shape: Shape,
    entries: Sequence[int] | Mapping[int, nn.Module] = (),
    exits: Sequence[int] | Mapping[int, nn.Module] = (),
    adapter: Adapter = step_down,
    head: Head = pooled_head,
    statistics: Statistics = "per-entry",
    dropout: Sequence[float] = (),
    groups: int = 1,
) -> Nested:
    """Turn a network into a nested one: every block stays as it is, with its weights, and becomes a stage.

    The input may always enter before block 0 and the prediction be read behind the last block, so the full network is
    the network given, and answers as it did. Every pair of an entry and an exit behind it is a member. The shapes
    between the blocks are found by running it on the meta device, which computes nothing. What passes between blocks
    is a tensor, or a dict or tuple of several, such as hidden states and a mask.

    Args:
        network: an `nn.Sequential` of blocks, or a list of them, the last of which gives logits `[batch, classes]`, or
            whatever the task asks for.
        input_shape: shape of one input, without the batch; see `cost`. Of whole numbers that go into an embedding
            `("int64", 128)`, of several inputs a dict or tuple.
        entries: further blocks before which the input may enter; or block → an adapter of your own from the input to
            what the block expects.
        exits: further blocks behind which a prediction may be read; or block → a head of your own from the block's
            features to logits.
        adapter: makes the adapters: `layers.step_down` (CNSN), `layers.strided_stem`, or a function of yours, which is
            given the shapes of an input and of the features to make, without the batch.
        head: makes the heads: by default `layers.pooled_head`, and of a network that has scores for each position,
            `[batch, positions, classes]`, `layers.token_head`; or a function of yours, which is given the shape of the
            features and the number of scores.
        statistics: see `Nested`.
        dropout: see `Nested`.
        groups: number of channel groups, and so of widths, of a network that `causal_` has made channel-causal. Then
            block 0 is run as the adapter of entry 0 and the last block as a head; numbers stay those of the blocks.

    Raises:
        TypeError: if what is given is no sequence of modules.
        ValueError: if a block's number lies outside the network; if something else than tensors passes between
            blocks, or they do not fit; if blocks share parameters; if an adapter or a head gives the wrong shape; or if
            a block works in place on features that something else reads too; or if there are several groups, and a
            part does not take the first of them.
    """
    blocks = _blocks(network)
    head = partial(pooled_head, width_groups=groups) if head is pooled_head and groups > 1 else head
    last = len(blocks) - 1
    ins, outs = _places("entry", entries, last), _places("exit", exits, last)
    dtype, device = dtype_and_device(nn.ModuleList(blocks))
    x = examples(2, input_shape, dtype, "meta")
    shared = [_seen("the raw input, which every member reads", x)]
    features, watch = [x], Watch()
    for number, block in enumerate(blocks):
        features.append(_run(block, features[-1], f"block {number} ({type(block).__name__})", shared, watch))
        if number in outs and number != last:
            name = f"the features of block {number}, which exit {number} and block {number + 1} read"
            shared.append(_seen(name, features[-1]))
    logits = features[-1]
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3) or len(logits) != 2:
        raise ValueError(
            f"the last block gives {_whole(logits)} for 2 inputs, which are no logits [batch, classes]: add a "
            "block that makes them, such as nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
            "nn.Linear(channels, classes))"
        )
    if logits.ndim == 3 and head is pooled_head:
        head = token_head

    def fitted(make: Adapter | Head, given: Tensors, wanted: Tensors, size: Any, own: Any, what: str) -> Any:
        """The user's own adapter or head, or a new one, brought to the network's type; and what it gives."""
        try:
            made = _placed(make, watch, given, wanted)(_shape(given), size) if own is None else own
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"{what} is a {type(made).__name__}, and no module: call what makes it, and give the result"
            )
        out = _run(made.to(device, dtype), given, what, shared)
        if _shape(out) != _shape(wanted):
            raise ValueError(f"{what} gives features of shape {_shape(out)}, where {_shape(wanted)} is expected")
        return made, out

    adapters: dict[int, nn.Module] = {0: nn.Identity()}
    for place, own in ins.items():
        if place != 0 or own is not None:
            what, wanted = f"the adapter of entry {place}", features[place]
            adapters[place], out = fitted(adapter, x, wanted, _shape(wanted), own, what)
            for number in range(place, last + 1):
                stores = [{part.untyped_storage() for part in leaves(some)} for some in (out, x)]
                if stores[0].isdisjoint(stores[1]):
                    break
                out = _run(blocks[number], out, f"block {number}, which entry {place} gives the raw input,", shared)
    heads: dict[int, nn.Module] = {last: nn.Identity()}
    for place, own in outs.items():
        if place != last or own is not None:
            given, what = features[place + 1], f"the head of exit {place}"
            heads[place], _ = fitted(head, given, logits, logits.shape[-1], own, what)
    stages = with_widths(blocks, adapters, heads, features, groups) if groups > 1 else blocks
    net = Nested(stages, adapters, heads, dropout=dropout, statistics=statistics, groups=groups)
    return net if any(block.training for block in blocks) else net.eval()


def _blocks(network: Any) -> list[nn.Module]:
    remedy = "give an nn.Sequential or a list of the blocks, in the order in which they run"
    network = unwrapped(network) if isinstance(network, nn.Module) else network
    # A Sequential by inheritance may run its parts in another way.
    plain = isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward
    if isinstance(network, nn.Module) and not plain and not isinstance(network, nn.ModuleList):
        raise TypeError(f"it is not known in which order a {type(network).__name__} runs its parts: {remedy}")
    blocks = list(network) if isinstance(network, Iterable) else [network]
    if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
        kinds = ", ".join(sorted({type(block).__name__ for block in blocks})) or "nothing"
        raise TypeError(f"blocks are modules, not {kinds}: {remedy}")
    return blocks


def _places(name: str, places: Any, last: int) -> dict[int, Any]:
    """Place → the user's own adapter or head there, None where one is to be made."""
    if not isinstance(places, Iterable):
        raise TypeError(f"{name} {places!r} is no list of blocks: give [{places!r}]")
    found: dict[int, Any] = {}
    for place in places:
        if type(place) is not int or not 0 <= place <= last:
            raise ValueError(f"{name} {place!r} is outside this network of {last + 1} blocks: give 0 to {last}")
        if place in found:
            raise ValueError(f"{name} {place} is given twice: each block is named once")
        found[place] = places[place] if isinstance(places, Mapping) else None
    return found


def _placed(make: Any, watch: Watch, given: Tensors, wanted: Tensors) -> Any:
    """What makes an adapter or a head, told where the channels are if it is one of ours, which ask for it."""
    kind = make.func if isinstance(make, partial) else make
    if kind not in (pooled_head, step_down, strided_stem):
        return make
    for features in (given, wanted):
        if not isinstance(features, Tensor):
            raise ValueError(f"several tensors pass here, {_whole(features)}: give an adapter or a head of your own")
        if not features.is_floating_point():
            raise ValueError(
                f"the input is {_whole(features)}, and {kind.__name__} makes layers for floating-point numbers: give "
                "an adapter of your own, such as an embedding"
            )
        place = watch.channels(features) if features.ndim > 2 else 1
        if place is None and features.ndim == 3:
            raise ValueError(
                f"features of shape {_shape(features)} are [channels, length] or [tokens, channels], and no layer that "
                "makes or reads them says which: give an adapter or a head of your own here"
            )
        if place == -1 and kind is pooled_head:
            return partial(make, channels_last=True)
        if place == -1:
            raise ValueError(
                f"features of shape {_shape(features)} have their channels last, and {kind.__name__} makes "
                "convolutions, for which they come first: give an adapter of your own here"
            )
    return make


def _run(part: nn.Module, x: Tensors, what: str, shared: "Iterable[_Seen]", watch: Watch | None = None) -> Tensors:
    """Run a part by shape alone, and refuse it if it changes features that others read too."""
    try:
        on_paper = on_meta(part)
        for layer in on_paper.modules():
            layer.train(getattr(layer, "inplace", False) is True)  # dropout works in place in training only
        with (
            torch.no_grad(),
            torch.device("meta"),
            explained(on_paper, x),
            watch.on(on_paper) if watch else nullcontext(),
        ):
            out = on_paper(x)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    for name, versions in shared:
        if any(tensor._version != version for tensor, version in versions):  # which views of them count too
            raise ValueError(f"{what} works in place on {name}: use inplace=False")
    if strangers := [one for one in leaves(out) or [out] if not isinstance(one, Tensor)]:
        kind = type(strangers[0] if isinstance(out, tuple | list | dict) else out).__name__
        raise ValueError(f"{what} gives a {kind}: one tensor passes from part to part, or a dict or tuple of several")
    return out


_Seen = tuple[str, list[tuple[Tensor, int]]]
"""What is read in several places, and how often each of its tensors had been written to."""


def _seen(name: str, features: Tensors) -> _Seen:
    return name, [(tensor, tensor._version) for tensor in leaves(features)]


def _shape(features: Tensors) -> Any:
    return each(lambda tensor: tuple(tensor.shape[1:]), features)


def _whole(features: Tensors) -> str:
    """Type and shape of all of them."""
    kinds = {t: "" if t.is_floating_point() else f"{str(t.dtype).removeprefix('torch.')} " for t in leaves(features)}
    return ", ".join(f"{kind}{tuple(t.shape)}" for t, kind in kinds.items())
