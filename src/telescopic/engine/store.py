"""Where an engine keeps on this machine what it need not find out anew at the next start. No torch."""

import hashlib
from collections.abc import Container
from pathlib import Path

from telescopic.engine.host import num_cpus, processor
from telescopic.engine.timings import Timings
from telescopic.files import replacing
from telescopic.subnet import Subnet

_TIMINGS = "timings.json"


class Store:
    """A folder of one pack, for this processor and what runs the pack.

    Args:
        digest: the pack's.
        runs: what runs it, with its version.
        cache: folder of all such folders; True for the user's cache, False for none.
    """

    def __init__(self, digest: str, runs: str, cache: str | Path | bool) -> None:
        facts = "\n".join([digest, runs, processor(), str(num_cpus())])
        key = hashlib.sha256(facts.encode()).hexdigest()[:24]
        self.folder = None if cache is False else (_of_the_user() if cache is True else Path(cache)) / key

    def timings(self, members: Container[Subnet]) -> Timings:
        """What was measured; nothing if it was not, or the file is damaged."""
        if self.folder is None:
            return Timings()
        try:
            found = Timings.from_json((self.folder / _TIMINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return Timings()
        return found if all(row.subnet in members for row in found) else Timings()

    def keep(self, timings: Timings) -> None:
        """Write what was measured; a folder that cannot be written is no reason not to run."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / _TIMINGS) as file:
                file.write_text(timings.to_json(), encoding="utf-8")
        except OSError:
            self.folder = None


def _of_the_user() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("telescopic") / "engines"
