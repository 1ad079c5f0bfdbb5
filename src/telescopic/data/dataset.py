"""What a network learns from, and what it is judged by: three splits."""

from dataclasses import dataclass, replace

import torch

from telescopic.data.batches import Split
from telescopic.data.readers import DataError
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
                there, here = getattr(self.train, kind), getattr(split, kind)
                alike = (there.dtype, there.shape[1:]) == (here.dtype, here.shape[1:])
                if len(split) and len(self.train) and not alike:
                    raise DataError(f"{self.name}: training {kind} are {facts(there)}, but {part} {kind} {facts(here)}")
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
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input, without the batch; of an image its channels, height and width."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image.

        Raises:
            DataError: if the inputs are no images.
        """
        if len(shape := self.input_shape) != 3:
            raise DataError(f"{self.name} has inputs {list(shape)}, and images are [channels, height, width]")
        return shape[0], shape[1], shape[2]

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on a device."""
        train, validation, test = (split.to(device) for split in self.splits)
        return replace(self, train=train, validation=validation, test=test)
