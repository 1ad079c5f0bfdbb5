"""What this machine is, for what is measured or optimised on it. No torch."""

import functools
import os
import platform
import re
from pathlib import Path

from telescopic import provenance


@functools.cache
def processor() -> str:
    """The processor's name and what it can do, so that code made for one is not run on another."""
    return ", ".join(filter(None, [*provenance.processor(), platform.machine()]))


def num_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of this process in memory, a page that several share counted in parts; None where it is not told."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
