"""The benchmarks that mutate files, for a few seconds: whatever comes of it is of one kind."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what a TIFF file says
@pytest.mark.parametrize(("name", "cases"), [("fuzz_pack", 150), ("fuzz_data", 30)])
def test_mutated_files_raise_one_kind_of_error(name: str, cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for module in ("results", "fuzz_bundle", name):
        monkeypatch.delitem(sys.modules, module, raising=False)
    script = importlib.import_module(name)
    monkeypatch.setattr(script.results, "write", lambda what, config, figures: told.append(figures))
    monkeypatch.setattr(sys, "argv", [name, "--cases", str(cases), "--seed", "7"])
    assert script.main() == 0, told
    outcomes = told[0]["outcomes"]
    # Some are well, some not.
    assert all(len(each) == 2 for each in outcomes.values()), outcomes
    assert sum(sum(each.values()) for each in outcomes.values()) == (len(outcomes) - 0.8 * ("svhn" in outcomes)) * cases
