"""Batches that come from a loader of the user's, such as a torch DataLoader: read anew in each epoch, and looked at."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from telescopic.data.readers import DataError
from telescopic.inputs import Tensors, each, named
from telescopic.tasks import facts

_END = object()


def streamed(
    loader: Any, like: tuple[Tensors, Tensor], *, seed: int, epoch: int, rank: int, world: int, least: int
) -> Iterator[tuple[Tensors, Tensor]]:
    """The batches of an epoch, each as it comes, or this process's share of it: see `telescopic.data.Loaders`.

    Args:
        loader: gives them.
        like: a batch whose types and shapes the others must have, but for their number of examples.
        seed: of torch's random numbers while the loader works, together with the epoch.
        epoch: told to all that has a `set_epoch`.
        rank: of this process.
        world: processes that share a batch, unless a DistributedSampler has divided the examples.
        least: fewest examples of a batch.

    Raises:
        DataError: naming the batch that is anything else, is too small, or has a number that is not finite.
    """
    iterator = _begun(loader, seed, epoch)
    number, length, share = 0, length_of(loader), slice(rank, None, world)
    if sampler_of(loader) is not None:  # what it gives is a share already
        share, least = slice(None), -(-least // world)
    while True:
        # Anew for each batch: so it is the same after a resumption, whatever training has drawn in between.
        with _seeded(seed, epoch, number + 1):
            given = next(iterator, _END)
        if given is _END:
            break
        number += 1
        if length is not None and number > length:
            raise DataError(f"a loader says that it has {length} batches, and gives more")
        where = f"batch {number} of a loader"
        batch = pair(given, where)
        if (there := _form(batch)) != (here := _form(like)):
            different = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
            told = "; ".join(f"{name}: {here.get(name)}, and now {there.get(name)}" for name in different)
            raise DataError(f"{where} is unlike the first, {told}")
        if len(batch[1]) < least:
            raise DataError(
                f"{where} has {len(batch[1])} examples, and BatchNorm needs {least}: DataLoader(..., drop_last=True)"
            )
        for name, tensor in both(*batch).items():
            if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
                place = (~tensor.isfinite()).nonzero()[0].tolist()
                raise DataError(f"{where}: {name}{place} is {tensor[tuple(place)].item()}: leave the example out")
        yield each(lambda x: x[share], batch[0]), batch[1][share]
    if length is not None and number < length:
        raise DataError(f"a loader says that it has {length} batches, and gave {number}")


def both(inputs: Tensors, targets: Any) -> dict[str, Any]:
    """Inputs and targets by name.

    Raises:
        DataError: if two have the same name.
    """
    try:
        given = named(inputs, "inputs")
    except ValueError as error:
        raise DataError(str(error)) from error
    if "targets" in given:
        raise DataError("an input is called targets, as what is to be answered is: rename it")
    return given | {"targets": targets}


def length_of(loader: Any) -> int | None:
    """How many batches it has; None if it does not know, such as a DataLoader over an IterableDataset."""
    try:
        return len(loader)
    except TypeError:
        return None


def pair(given: Any, where: str) -> tuple[Tensors, Tensor]:
    """Inputs and targets, as tensors with as many examples.

    Raises:
        DataError: if it is anything else.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        kind = f"{type(given).__name__}{f' of {len(given)}' if isinstance(given, tuple | list | dict) else ''}"
        raise DataError(f"{where} is a {kind}, not (inputs, targets): give the loader a collate_fn that makes those")
    inputs, targets = _plain(given[0]), given[1]
    tensors = both(inputs, targets)
    if strangers := {name: one for name, one in tensors.items() if not isinstance(one, Tensor)}:
        name, stranger = next(iter(strangers.items()))
        raise DataError(f"{where}: {name} is a {type(stranger).__name__}, not a tensor [batch, ...]")
    if len({tuple(tensor.shape[:1]) for tensor in tensors.values()} | {(0,), ()}) != 3:
        told = ", ".join(f"{name} {facts(tensor)}" for name, tensor in tensors.items())
        raise DataError(f"{where} has not as many targets as inputs, or none: {told}")
    if len(tensors) < 2:
        raise DataError(f"{where} has no inputs")
    return inputs, targets


def first_of(loader: Any, what: str) -> tuple[Tensors, Tensor]:
    """The first batch of a loader, which is looked at before anything is done.

    Raises:
        DataError: if there is none, or the loader cannot be read again.
    """
    try:
        iterator = _begun(loader, 0, 0)
    except TypeError as error:
        raise DataError(f"the {what} loader is a {type(loader).__name__}, which gives no batches: {error}") from error
    if iterator is loader:
        raise DataError(
            f"the {what} loader is a {type(loader).__name__} that ends when it has been read, and each epoch reads it "
            "anew: give a DataLoader, a list of batches, or an object whose __iter__ begins again"
        )
    with _seeded(0, 0, 1):
        given = next(iterator, _END)
    if given is _END:
        raise DataError(f"the {what} loader gives no batches")
    return pair(given, f"the first batch of the {what} loader")


def sampler_of(loader: Any) -> "DistributedSampler[Any] | None":
    """The sampler by which a loader gives each process examples of its own, if it does."""
    return next((part for part in _parts(loader) if isinstance(part, DistributedSampler)), None)


def _begun(loader: Any, seed: int, epoch: int) -> Iterator[Any]:
    """A loader's batches of an epoch, which is told to all of it that asks for it."""
    for part in _parts(loader):
        if callable(tell := getattr(part, "set_epoch", None)):
            tell(epoch)
    with _seeded(seed, epoch, 0):
        return iter(loader)


def _parts(loader: Any) -> list[Any]:
    """A loader and what it may be made of."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = [getattr(part, "sampler", None) for part in (loader, batches)]
    parts = [loader, batches, *samplers, getattr(loader, "dataset", None)]
    return [part for place, part in enumerate(parts) if not any(part is other for other in parts[:place])]


def _plain(inputs: Any) -> Any:
    """Dicts and tuples for what collating makes: mappings of other kinds, and lists."""
    if isinstance(inputs, Mapping):
        return {name: _plain(one) for name, one in inputs.items()}
    return tuple(map(_plain, inputs)) if isinstance(inputs, tuple | list) else inputs


def _form(batch: tuple[Tensors, Tensor]) -> dict[str, str]:
    tensors = both(*batch)
    return {name: f"{facts(tensor[0])} in each example" for name, tensor in tensors.items()}


@contextmanager
def _seeded(*seed: int) -> Iterator[None]:
    """In which torch draws numbers of its own, and after which it goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
        yield
