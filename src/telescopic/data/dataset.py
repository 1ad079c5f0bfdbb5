"""What a network learns from, and what it is judged by: three splits."""

from dataclasses import dataclass, replace

import torch

from telescopic.data.batches import Split
from telescopic.data.readers import DataError
from telescopic.inputs import named, shape_of
from telescopic.shapes import Shape
from telescopic.tasks import facts


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits that share no example, the names of the classes if there are some, and where the data came from.

    Raises:
        DataError: if inputs or targets of two splits have different shapes or types, or a label has no name although
            others have.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        """Refuse splits that do not belong together."""
        for part in ("validation", "test"):
            split: Split = getattr(self, part)
            for kind in ("inputs", "targets"):
                there, here = (named(getattr(one, kind), kind) for one in (self.train, split))
                forms = [{key: (x.dtype, x.shape[1:]) for key, x in some.items()} for some in (there, here)]
                if len(split) and len(self.train) and forms[0] != forms[1]:
                    told = [" and ".join(f"{key} {facts(x)}" for key, x in some.items()) for some in (there, here)]
                    raise DataError(
                        f"{self.name}: training {told[0]}, but {part} {told[1]}; give both the same, but for how many"
                    )
        if not self.classes:
            return
        filled = [split for split in self.splits if len(split) and not split.targets.is_meta]
        highest = max((int(split.targets.max()) for split in filled), default=0)
        if highest >= len(self.classes):
            raise DataError(
                f"{self.name}: a label is {highest}, and the {len(self.classes)} classes are counted from 0"
            )

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Training, validation and test examples."""
        return self.train, self.validation, self.test

    @property
    def input_shape(self) -> Shape:
        """Shape of an input, without the batch; of an image its channels, height and width.

        Other types than bytes and floating-point numbers stand in front, `("int64", 128)`; of several inputs it is a
        dict or tuple of such.
        """
        return shape_of(self.train.inputs)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image.

        Raises:
            DataError: if the inputs are no images.
        """
        shape = self.input_shape
        if not isinstance(shape, tuple) or len(shape) != 3 or not all(isinstance(size, int) for size in shape):
            raise DataError(f"{self.name} has inputs {shape}, and images are [channels, height, width]")
        return shape[0], shape[1], shape[2]

    @property
    def fingerprint(self) -> str:
        """What tells whether data are the same: of its training and validation examples, in this order.

        Of a loader it is the number of batches: to look at them would take random numbers that are the training's.
        """
        loader = self.train.loader
        if loader is None:
            return f"crc32 {self.validation.checksum(self.train.checksum()):08x}"
        return f"{len(loader)} batches from a loader"

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on a device."""
        train, validation, test = (split.to(device) for split in self.splits)
        return replace(self, train=train, validation=validation, test=test)
