"""What is known of the papers before one is chosen, for which nothing is loaded. No torch."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from telescopic.papers.paper import Paper


@dataclass(frozen=True)
class Listed:
    """A paper in the lists of commands.

    Attributes:
        name: the paper's.
        method: what `telescopic train` calls its networks.
        about: these, in a sentence.
        module: where its `PAPER` is.
    """

    name: str
    method: str
    about: str
    module: str

    def paper(self) -> "Paper":
        """The paper itself."""
        found: Paper = import_module(self.module).PAPER
        return found


LISTED = (
    Listed(
        "nsn",
        "nsn",
        "NSN: a multi-layer perceptron that can lose its first layers (Fuengfusin and Tamukoh 2019).",
        "telescopic.papers.nsn",
    ),
    Listed(
        "cnsn",
        "cnsn",
        "CNSN: a VGG-16 that can lose its first convolutions (Fuengfusin and Tamukoh 2021).",
        "telescopic.papers.cnsn_runs",
    ),
    Listed(
        "doubly-nested",
        "doubly-nested",
        "Doubly Nested: a ResNet that can be cut by depth and by width (Kim et al. 2018).",
        "telescopic.papers.doubly_nested_runs",
    ),
    Listed(
        "shrinknets",
        "shrinknet",
        "ShrinkNets: a network that learns its widths and gets faster meanwhile (Leclerc et al.).",
        "telescopic.papers.shrinknets_runs",
    ),
)
"""What there are commands, runs and tables of."""
