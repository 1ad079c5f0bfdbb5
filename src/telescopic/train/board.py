"""A run's curves in TensorBoard, where that is installed."""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from telescopic.train.history import History


def tensorboard(folder: Path) -> Callable[[History], None]:
    """A function that writes the newest epoch of a history; it does nothing if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return lambda history: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(history: History) -> None:
        last = asdict(history[-1])
        for name in ("loss", "learning_rate", "images_per_s"):
            writer.add_scalar(name, last[name], last["epoch"])
        for kind in ("losses", "validation", "test"):
            for label, value in zip(history.labels, last[kind], strict=True):
                writer.add_scalar(f"{kind}/{label}", value, last["epoch"])
        for label, width in zip(history.filters, last["widths"], strict=True):
            writer.add_scalar(f"channels/{label}", width, last["epoch"])
        writer.flush()

    return write
