"""The methods: one paper, one page."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from telescopic.papers.listed import LISTED as LISTED
from telescopic.papers.listed import Listed as Listed

if TYPE_CHECKING:
    from telescopic.papers import cnsn as cnsn
    from telescopic.papers import doubly_nested as doubly_nested
    from telescopic.papers import nsn as nsn
    from telescopic.papers import shrinknets as shrinknets
    from telescopic.papers.paper import Paper as Paper

    PAPERS: tuple[Paper, ...]
    """All of them."""


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first used: lists of commands do without."""
    if name == "PAPERS":
        return tuple(listed.paper() for listed in LISTED)
    if name == "Paper":
        return import_module(f"{__name__}.paper").Paper
    if name in ("cnsn", "doubly_nested", "nsn", "shrinknets"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
