import gc
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

gc.set_threshold(20_000, 20, 20)
settings.register_profile("many")  # see chance.py
SLOW = set((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").split())


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """What slow.txt names is slow: `make check` leaves it out. Files with many of these come first, not last.

    Tests marked `cuda` need a GPU.
    """
    without, slow = pytest.mark.skip(reason="torch sees no GPU"), Counter[Path]()
    for item in items:
        if item.get_closest_marker("cuda") and not _gpu():
            item.add_marker(without)
        if SLOW & {item.path.name, f"{item.path.name}::{item.originalname}"}:
            item.add_marker("slow")
            slow[item.path] += 1
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What was imported stays, so that Python's collector need not read all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def precision_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` is fp32 in tests, also on a processor that is faster in bf16: what they compare depends on no clock."""
    monkeypatch.setattr("telescopic.train.precision.step_seconds", lambda *args: (0.0, math.inf))


@pytest.fixture(autouse=True, scope="session")
def one_table_of_operators() -> Iterator[None]:
    """Torch's exporter reads its 500 functions anew for each file, which takes longer than the file; here once.

    Likewise it asks six times for each file which operators C++ makes of others.
    """
    import torch  # not above: pytest-xdist's first process, for which the others wait, needs none

    export = torch.onnx.export

    def exported(*args: Any, **options: Any) -> Any:
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
            patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
            patch.setattr(utils, "_materialize_cpp_cia_ops", cache(utils._materialize_cpp_cia_ops))
        return export(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", exported)
        yield


@pytest.fixture(autouse=True, scope="session")
def measuring_is_short() -> Iterator[None]:
    """Where a test does not say how long to measure, for it needs no exact times, a fifth of the usual will do.

    An engine takes a fifth of what it is told, too: it has no default that could be another one; 20 runs are the least.
    """
    from telescopic.anytime import answers
    from telescopic.catalogue import measuring
    from telescopic.cost import timing
    from telescopic.engine import runner

    timed = runner._timed
    with pytest.MonkeyPatch.context() as patch:
        for function in (timing.latency, timing.latencies, measuring.measure_latency, answers.step_costs):
            patch.setitem(inspect.unwrap(function).__kwdefaults__, "seconds", 0.1)
        patch.setattr(answers, "_SECONDS", 0.1)
        patch.setattr(runner, "_timed", lambda *args: timed(*args[:-1], args[-1] / 5))
        yield


@pytest.fixture(autouse=True, scope="session")
def whole_dpi() -> Iterator[int]:
    """PNG files of plots have few pixels, for to draw many takes longer than all else; how many they have of users."""
    from telescopic.report import plots

    with pytest.MonkeyPatch.context() as patch:
        whole = plots.DPI
        patch.setattr(plots, "DPI", 40)
        yield whole


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Packs of all families, each made once, for whoever does not change them: pytest-xdist's processes share them."""
    from packs import family_packs

    own = tmp_path_factory.getbasetemp()
    return family_packs((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "families")
