"""A run's curves in TensorBoard, where that is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from telescopic.train.history import History


def tensorboard(folder: Path) -> Callable[[History], None]:
    """A function that writes the newest epoch of a history; it does nothing if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return lambda history: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(history: History) -> None:
        for name, value in history.scalars().items():
            writer.add_scalar(name, value, history[-1].epoch)
        writer.flush()

    return write
