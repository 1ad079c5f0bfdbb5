"""A library that is missing is named, with the line that installs it. No torch."""

import importlib.metadata
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def install_line(extra: str) -> str:
    """The command that installs what an extra stands for: its requirements, for our own name is in no package index.

    Args:
        extra: as in `pyproject.toml`.
    """
    found = []
    for requirement in importlib.metadata.requires("telescopic") or ():
        wanted, _, marker = (part.strip() for part in requirement.partition(";"))
        if f'"{extra}"' in marker.replace("'", '"') and not ("win32" in marker and sys.platform == "win32"):
            found.append(wanted)
    return f"pip install {shlex.join(sorted(found))}"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what belongs to an extra inside; of a library that is missing it is said how to have it.

    Args:
        extra: as in `pyproject.toml`.

    Raises:
        ImportError: if one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "telescopic":
            raise
        name = error.name.partition(".")[0]
        raise ImportError(f"{name} is not installed: {install_line(extra)}", name=error.name) from error
