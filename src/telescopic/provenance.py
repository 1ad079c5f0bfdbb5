"""What made a result: versions and commit. No torch."""

import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from telescopic.metric import ACCURACY, Metric

_version = cache(version)  # which reads a file


def versions(*packages: str) -> dict[str, str]:
    """Versions of telescopic, torch, further packages, and Python."""
    return {package: _version(package) for package in ("telescopic", "torch", *packages)} | {
        "python": platform.python_version()
    }


def processor() -> tuple[str, str]:
    """The processor's name, and what it can do, where the system says so."""
    if (info := Path("/proc/cpuinfo")).exists():
        text = info.read_text(encoding="utf-8", errors="replace")
        said = (re.search(rf"^(?:{key})\s*: (.+)$", text, re.MULTILINE) for key in ("model name", "flags|Features"))
        name, skills = (found[1].strip() if found else "" for found in said)
        return name or platform.processor() or platform.machine(), skills
    if platform.system() == "Darwin":
        with suppress(OSError):  # of a service whose PATH does not lead there
            asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
            return asked.stdout.strip() or platform.machine(), ""
    return platform.processor() or platform.machine(), ""


def task_of(provenance: Mapping[str, object], metric: Metric | None = None) -> str:
    """What a network has learned to do: the name of its task, or what its score says of it where none is said."""
    task = provenance.get("task")
    guess = "classification" if metric in (None, ACCURACY) else "one's own"
    return str(task.get("name")) if isinstance(task, Mapping) else guess


def commit() -> str | None:
    """The commit of this package's source, with `+` if it was changed since; None if it is not a git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An environment inside somebody else's checkout must not report that checkout's commit.
        git("ls-files", "--error-unmatch", __file__)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
