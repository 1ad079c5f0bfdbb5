"""Images on their way into a network: a split, its batches, augmentation, normalisation; on the images' device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from telescopic.data.readers import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 `[n, channels, height, width]` with their labels int64 `[n]`, which count classes from 0.

    Raises:
        DataError: another type or shape, or a negative label.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        """Refuse what is not a split."""
        if not isinstance(self.images, Tensor) or not isinstance(self.labels, Tensor):
            found = f"{type(self.images).__name__} and {type(self.labels).__name__}"
            raise DataError(f"images and labels are tensors, not {found}: see torch.as_tensor")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(f"images are uint8 [n, channels, height, width], not {_facts(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(f"labels are int64 [{len(self.images)}] for these images, not {_facts(self.labels)}")
        if (
            len(self) and not self.labels.is_meta and int(self.labels.min()) < 0
        ):  # which torch's loss may take for images to be left out
            raise DataError(f"labels count classes from 0, and one is {int(self.labels.min())}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Preprocess:
    """Pixels to numbers: `(x / 255 - mean) / std`, one mean and std for all channels or one for each."""

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
        """Mean and standard deviation of each channel over all pixels of a split; a constant channel gets std 1."""
        if not len(split):
            raise DataError("Preprocess.fit needs images, the split has none")
        values = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in split.images.unbind(1):  # a histogram is exact and needs no float copy of the images
            share = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
            mean.append(float(share @ values))
            std.append(float(share @ (values - mean[-1]).square()) ** 0.5 or 1.0)
        return cls(tuple(mean), tuple(std))

    def __call__(self, images: Tensor) -> Tensor:
        """Images uint8 `[batch, channels, height, width]` to float32 of the same shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or len(self.mean) not in (1, images.shape[1]):
            channels = "channels" if len(self.mean) == 1 else len(self.mean)
            raise ValueError(f"Preprocess takes uint8 [batch, {channels}, height, width], not {_facts(images)}")
        x = images.float() / 255
        if self != Preprocess():
            mean, std = (torch.tensor(value, device=x.device).view(-1, 1, 1) for value in (self.mean, self.std))
            x = (x - mean) / std
        return x


@dataclass(frozen=True)
class Augment:
    """Random crops of the zero-padded image, and horizontal flips of half of the images, drawn for each image."""

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Refuse a negative padding."""
        if self.pad < 0:
            raise ValueError(f"Augment pads by 0 pixels or more, not {self.pad}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images uint8 `[batch, channels, height, width]` to as many of the same shape, determined by the generator."""
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
        return torch.randint(high, size, generator=generator, device=generator.device).to(device)


def batches(
    split: Split,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    least: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images uint8 `[batch, channels, height, width]` and labels `[batch]`, the last, smaller one included.

    A last one of fewer than `least` images, of which a BatchNorm could not be trained, joins the one before.

    Without a seed the images come in order, else in a permutation that depends on (seed, epoch) only. Of every batch
    each of `world` processes gets every `world`-th image, beginning at its `rank`: together they see exactly the
    batches that one process would see. A last batch of fewer than `world` images is empty for some of them.

    Raises:
        ValueError: at once, for a batch size below 1, a negative seed or a rank outside the world.
    """
    if batch_size < 1 or not 0 <= rank < world or min(seed or 0, epoch) < 0:
        raise ValueError(
            f"batches needs batch_size >= 1, 0 <= rank < world, seed and epoch >= 0; "
            f"found batch_size={batch_size}, rank={rank}, world={world}, seed={seed}, epoch={epoch}"
        )
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
) -> Iterator[tuple[Tensor, Tensor]]:
    order = None
    if seed is not None:
        # Mixed, not added: seed 0's epoch 1 must not be seed 1's epoch 0. Drawn on the CPU: the same on every device.
        state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(state)).to(split.images.device)
    start = 0
    for size in sizes:
        part = slice(start + rank, start := start + size, world)
        if order is None:
            yield split.images[part], split.labels[part]
        else:
            # index_select copies whole images, 6 times as fast on CPU as indexing, which goes element by element.
            yield split.images.index_select(0, order[part]), split.labels.index_select(0, order[part])


def _facts(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
