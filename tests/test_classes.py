import gc
import weakref

from torch import nn

from telescopic.classes import drops


def test_a_class_that_was_looked_at_is_not_kept() -> None:
    """In a notebook each run of a cell makes one anew, and with it all that its functions see."""

    class Block(nn.Module):
        def __init__(self, size: int, kept: int) -> None:
            super().__init__()
            self.kept = kept

    assert drops(Block, "size") and not drops(Block, "kept")
    gone = weakref.ref(Block)
    del Block
    gc.collect()
    assert gone() is None
