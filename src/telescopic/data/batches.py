"""Examples on their way into a network: a split, its batches, augmentation, normalisation; on the examples' device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from telescopic.data.readers import DataError
from telescopic.data.streams import both, streamed
from telescopic.inputs import Tensors, checksum, each, first, leaves, named
from telescopic.tasks import facts


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs `[n, ...]` and what the network is to answer, targets `[n, ...]`, of any type.

    Inputs of networks that take several are a dict or a tuple of tensors, all `[n, ...]`.
    Of images classified, inputs are uint8 `[n, channels, height, width]` and targets int64 `[n]`, which count classes
    from 0; they may be called `images` and `labels`.

    Attributes:
        inputs: of all examples, or of the first batch of a loader.
        targets: theirs.
        loader: what the examples come from, batch by batch, if they do: see `telescopic.data.Loaders`.

    Raises:
        DataError: if they are no tensors, or not as many.
    """

    inputs: Tensors
    targets: Tensor
    loader: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not a split."""
        given = both(self.inputs, self.targets)
        if len(given) < 2 or not all(isinstance(some, Tensor) for some in given.values()):
            found = " and ".join(type(some).__name__ for some in given.values())
            raise DataError(f"inputs and targets are tensors, not {found}: see telescopic.data.of")
        if any(not some.ndim or some.shape[:1] != self.targets.shape[:1] for some in given.values()):
            all_ = ", ".join(f"{name} {facts(some)}" for name, some in given.items())
            raise DataError(f"there are as many targets [n, ...] as inputs [n, ...], and these are {all_}")

    def __repr__(self) -> str:
        """Types and shapes; of a loader's first batch."""
        given = both(self.inputs, self.targets)
        return f"Split({', '.join(f'{name} {facts(some)}' for name, some in given.items())})"

    @property
    def images(self) -> Tensors:
        """The inputs."""
        return self.inputs

    @property
    def labels(self) -> Tensor:
        """The targets."""
        return self.targets

    def __len__(self) -> int:
        """Number of examples; of a loader's first batch."""
        return len(self.targets)

    def __getitem__(self, part: slice) -> "Split":
        """Some of the examples, of a loader's first batch."""
        return Split(each(lambda x: x[part], self.inputs), self.targets[part])

    def checksum(self, number: int = 0) -> int:
        """CRC-32 of all numbers, or of a loader's first batch; behind those that have led to a number."""
        return checksum((*leaves(self.inputs), self.targets), number)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return Split(each(lambda x: x.to(device), self.inputs), self.targets.to(device), self.loader)


@dataclass(frozen=True)
class Preprocess:
    """Pixels to numbers: `(x / 255 - mean) / std`, one mean and std for all channels or one for each.

    Inputs that are no bytes are not divided by 255: `(x - mean) / std`, or as they are, such as the numbers of words.
    Of several inputs those that are bytes are divided; means and stds are for one.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse what cannot be divided by."""
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"Preprocess needs as many means as stds, found {len(self.mean)} and {len(self.std)}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and min(self.std) > 0):
            raise ValueError(f"Preprocess needs finite means and stds above 0, found {self.mean} and {self.std}")

    @classmethod
    def fit(cls, split: Split) -> "Preprocess":
        """Mean and standard deviation of each channel over all of a split; a constant channel gets std 1."""
        inputs = split.inputs
        if split.loader is not None:
            raise DataError("Preprocess.fit needs all examples in memory: of those of a loader, say mean and std")
        if not len(split) or not isinstance(inputs, Tensor) or inputs.ndim < 2:
            found = ", ".join(map(facts, leaves(inputs)))
            raise DataError(f"Preprocess.fit needs images, or one input [n, channels, ...]; the split has {found}")
        if inputs.is_floating_point():
            flat = inputs.double().transpose(0, 1).flatten(1)
            deviations = flat.std(1, correction=0)
            return cls(tuple(flat.mean(1).tolist()), tuple(torch.where(deviations > 0, deviations, 1.0).tolist()))
        if inputs.dtype != torch.uint8:
            raise DataError(f"Preprocess.fit takes bytes or floating-point numbers, not {facts(inputs)}")
        values = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in inputs.unbind(1):  # a histogram is exact and needs no float copy of the images, nor another one
            counts = torch.zeros(256, dtype=torch.int64)
            for start in range(0, len(channel), 4096):
                counts += torch.bincount(channel[start : start + 4096].flatten(), minlength=256).cpu()
            share = counts.double() / channel.numel()
            mean.append(float(share @ values))
            std.append(float(share @ (values - mean[-1]).square()) ** 0.5 or 1.0)
        return cls(tuple(mean), tuple(std))

    def __call__(self, inputs: Tensors) -> Tensors:
        """Inputs `[batch, channels, ...]` as the network sees them: bytes become float32, other types stay."""
        if not isinstance(inputs, Tensor):
            if self != Preprocess():
                several = ", ".join(named(inputs))
                raise ValueError(f"means and stds are for one input, and these are {several}: normalise them before")
            return each(self, inputs)
        x = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        if self == Preprocess():
            return x
        if not x.is_floating_point() or x.ndim < 2 or len(self.mean) not in (1, x.shape[1]):
            channels = "channels" if len(self.mean) == 1 else len(self.mean)
            raise ValueError(f"this Preprocess takes numbers [batch, {channels}, ...], not {facts(inputs)}")
        shape = (-1, *[1] * (x.ndim - 2))
        mean, std = (sent(torch.tensor(value), x.device).view(shape) for value in (self.mean, self.std))
        return (x - mean) / std


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; CUDA is not waited for, which has read memory that is not pinned at once.

    To wait for a copy is to wait for all that the device still has to do, and no step may be recorded that does.
    """
    return x.to(device, non_blocking=device.type == "cuda")


def prepared(inputs: Tensors, preprocess: Preprocess, like: Tensor) -> Tensors:
    """What a network sees: on the device of its parameters and, unless these are whole numbers, in their type."""
    x = preprocess(each(lambda x: x.to(like.device), inputs))
    return each(lambda x: x.to(like.dtype) if x.is_floating_point() else x, x)


@dataclass(frozen=True)
class Augment:
    """Random crops of the zero-padded image, and horizontal flips of half of the images, drawn for each image."""

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse a negative padding."""
        if self.pad < 0:
            raise ValueError(f"Augment pads by 0 pixels or more, not {self.pad}")

    def __call__(self, images: Tensors, generator: torch.Generator) -> Tensors:
        """Images uint8 `[batch, channels, height, width]` to as many of the same shape, determined by the generator.

        Raises:
            ValueError: if there is something to do, and these are no images.
        """
        if not (self.pad or self.flip):
            return images
        if not isinstance(images, Tensor) or images.ndim != 4:
            found = ", ".join(map(facts, leaves(images)))
            raise ValueError(f"Augment takes images [batch, channels, height, width], not {found}")
        batch, _, height, width = images.shape
        x = images
        if self.pad:
            down, right = self._draw(2 * self.pad + 1, (2, batch), generator, images.device)
            # All crops as a view, of which each image takes one: 5 times as fast as an index for each pixel.
            crops = functional.pad(x, [self.pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
            x = crops[torch.arange(batch, device=x.device), :, down, right]
        if self.flip:
            flipped = self._draw(2, (batch, 1, 1, 1), generator, images.device).bool()
            x = torch.where(flipped, x.flip(3), x)
        return x

    @staticmethod
    def _draw(high: int, size: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
        return sent(torch.randint(high, size, generator=generator, device=generator.device), device)


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    least: int = 1,
) -> Iterator[tuple[Tensors, Tensor]]:
    """Batches of inputs `[batch, ...]` and targets `[batch, ...]`, the last, smaller one included.

    A last one of fewer than `least` examples, of which a BatchNorm could not be trained, joins the one before.

    Without a seed the examples come in order, else in a permutation that depends on (seed, epoch) only. Of every batch
    each of `world` processes gets every `world`-th one, beginning at its `rank`: together they see exactly the
    batches that one process would see. A last batch of fewer than `world` examples is empty for some of them.

    From a loader batches come as it gives them; the seed, by default 0, and the epoch are those of torch's random
    numbers while it works.

    Raises:
        ValueError: at once, for a batch size below 1, a negative seed or a rank outside the world.
    """
    if batch_size < 1 or not 0 <= rank < world or min(seed or 0, epoch) < 0:
        raise ValueError(
            f"batches needs batch_size >= 1, 0 <= rank < world, seed and epoch >= 0; "
            f"found batch_size={batch_size}, rank={rank}, world={world}, seed={seed}, epoch={epoch}"
        )
    if split.loader is not None:
        like, options = (split.inputs, split.targets), {"rank": rank, "world": world, "least": least}
        return streamed(split.loader, like, seed=seed or 0, epoch=epoch, **options)
    return _batches(split, batch_sizes(len(split), batch_size, least), seed, epoch, rank, world)


def batch_sizes(images: int, batch_size: int, least: int = 1) -> list[int]:
    """Images in each of the batches that `batches` makes of so many."""
    sizes = [batch_size] * (images // batch_size)
    rest = images % batch_size
    if rest and (rest >= least or not sizes):
        return [*sizes, rest]
    return [*sizes[:-1], sizes[-1] + rest] if rest else sizes


def _batches(
    split: Split, sizes: Sequence[int], seed: int | None, epoch: int, rank: int, world: int
) -> Iterator[tuple[Tensors, Tensor]]:
    order = None
    if seed is not None:
        # Mixed, not added: seed 0's epoch 1 must not be seed 1's epoch 0. Drawn on the CPU: the same on every device.
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(state)).to(
            first(split.inputs).device
        )
    start = 0
    for size in sizes:
        part = slice(start + rank, start := start + size, world)
        if order is None:
            yield each(lambda x, part=part: x[part], split.inputs), split.targets[part]
        else:
            # index_select copies whole examples, 6 times as fast on CPU as indexing, which goes element by element.
            chosen = order[part]
            taken = each(lambda x, chosen=chosen: x.index_select(0, chosen), split.inputs)
            yield taken, split.targets.index_select(0, chosen)
