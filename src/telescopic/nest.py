"""How a family is made of a network that one has: its blocks as they are, more places to enter and to leave."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.cost.counting import dtype_and_device, explained, on_meta, with_batch
from telescopic.layers.adapters import Adapter, step_down
from telescopic.layers.heads import Head, pooled_head
from telescopic.nested import Nested, Statistics


def nest(
    network: nn.Sequential | Iterable[nn.Module],
    *,
    input_shape: Sequence[int],
    entries: Sequence[int] | Mapping[int, nn.Module] = (),
    exits: Sequence[int] | Mapping[int, nn.Module] = (),
    adapter: Adapter = step_down,
    head: Head = pooled_head,
    statistics: Statistics = "per-entry",
    dropout: Sequence[float] = (),
) -> Nested:
    """Turn a network into a nested one: every block stays as it is, with its weights, and becomes a stage.

    The input may always enter before block 0 and the prediction be read behind the last block, so the full network is
    the network given, and answers as it did. Every pair of an entry and an exit behind it is a member. The shapes
    between the blocks are found by running it on the meta device, which computes nothing.

    Args:
        network: an `nn.Sequential` of blocks, or a list of them, the last of which gives logits `[batch, classes]`.
        input_shape: shape of one input, without the batch.
        entries: further blocks before which the input may enter; or block → an adapter of your own from the input to
            what the block expects.
        exits: further blocks behind which a prediction may be read; or block → a head of your own from the block's
            features to logits.
        adapter: makes the adapters: `layers.step_down` (CNSN), `layers.strided_stem`, or a function of yours.
        head: makes the heads.
        statistics: see `Nested`.
        dropout: see `Nested`.

    Raises:
        TypeError: if what is given is no sequence of modules.
        ValueError: if a block's number lies outside the network; if something else than one tensor passes between
            blocks, or they do not fit; if blocks share parameters; if an adapter or a head gives the wrong shape; or if
            a block works in place on features that something else reads too.
    """
    blocks = _blocks(network)
    twins = [on_meta(block) for block in blocks]
    dtype, device = dtype_and_device(nn.ModuleList(blocks))
    x = torch.empty(with_batch(2, input_shape), dtype=dtype, device="meta")
    for name, places, low, high in (("entry", entries, 0, len(blocks) - 1), ("exit", exits, 0, len(blocks) - 1)):
        for place in places:
            if not low <= place <= high:
                raise ValueError(
                    f"{name} {place} is outside this network of {len(blocks)} blocks: give {low} to {high}"
                )
    features = [x]
    for number, block in enumerate(twins):
        what, version = f"block {number} ({type(blocks[number]).__name__})", features[-1]._version
        out = _run(block, features[-1], what)
        read_by = [f"exit {number - 1}"] if number - 1 in exits else []
        read_by += [f"entry {e}" for e in entries if e > 0] if number == 0 else []
        if features[-1]._version != version and read_by:
            raise ValueError(f"{what} works in place on its input, which {read_by[0]} reads too: use inplace=False")
        features.append(out)
    logits = features.pop()
    if logits.ndim != 2:
        raise ValueError(
            f"the last block gives {_shape(logits)} for one input, which are no logits [classes]: add a block that "
            "makes them, such as nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))"
        )
    adapters: dict[int, nn.Module] = {0: nn.Identity()}
    for place in entries:
        made = entries[place] if isinstance(entries, Mapping) else None
        if place == 0 and made is None:
            continue
        wanted = features[place]
        made = adapter(tuple(input_shape), _shape(wanted)).to(device, dtype) if made is None else made
        _require(_run(on_meta(made), x, f"the adapter of entry {place}"), wanted, f"the adapter of entry {place}")
        adapters[place] = made
    heads: dict[int, nn.Module] = {len(blocks) - 1: nn.Identity()}
    for place in exits:
        given = [*features[1:], logits][place]
        made = exits[place] if isinstance(exits, Mapping) else None
        if place == len(blocks) - 1 and made is None:
            continue
        made = head(_shape(given), logits.shape[1]).to(device, dtype) if made is None else made
        _require(_run(on_meta(made), given, f"the head of exit {place}"), logits, f"the head of exit {place}")
        heads[place] = made
    return Nested(blocks, adapters, heads, dropout=dropout, statistics=statistics)


def _blocks(network: Any) -> list[nn.Module]:
    remedy = "give an nn.Sequential or a list of the blocks, in the order in which they run"
    if isinstance(network, nn.Module) and not isinstance(network, nn.Sequential | nn.ModuleList):
        raise TypeError(f"it is not known in which order a {type(network).__name__} runs its parts: {remedy}")
    blocks = list(network)
    if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
        kinds = ", ".join(sorted({type(block).__name__ for block in blocks})) or "nothing"
        raise TypeError(f"blocks are modules, not {kinds}: {remedy}")
    return blocks


def _run(module: nn.Module, x: Tensor, what: str) -> Tensor:
    try:
        with torch.no_grad(), torch.device("meta"), explained(module, x):
            out = module(x)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if not isinstance(out, Tensor):
        raise ValueError(f"{what} gives a {type(out).__name__}: between blocks exactly one tensor may pass")
    return out


def _require(got: Tensor, wanted: Tensor, what: str) -> None:
    if got.shape != wanted.shape:
        raise ValueError(f"{what} gives features of shape {_shape(got)}, where {_shape(wanted)} is expected")


def _shape(features: Tensor) -> tuple[int, ...]:
    return tuple(features.shape[1:])
