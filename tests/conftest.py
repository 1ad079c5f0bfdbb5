import math
from collections.abc import Callable
from pathlib import Path

import pytest

from packs import family_packs


@pytest.fixture(autouse=True)
def precision_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is fp32 in tests, also on a processor that is faster in bf16: what they compare depends on no clock."""
    monkeypatch.setattr("telescopic.train.precision.step_seconds", lambda *args: (0.0, math.inf))


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs of all families, each made once, for whoever does not change them."""
    return family_packs(tmp_path_factory.mktemp("families"))
