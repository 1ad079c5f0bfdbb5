from collections.abc import Callable
from pathlib import Path

import pytest

from packs import family_packs


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs of all families, each made once, for whoever does not change them."""
    return family_packs(tmp_path_factory.mktemp("families"))
