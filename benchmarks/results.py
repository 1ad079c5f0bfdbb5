"""How every benchmark writes what it measured: figures with their configuration, versions, machine and commit."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from telescopic.cost import machine
from telescopic.run import commit

FOLDER = Path(__file__).parents[1] / "results"


def write(name: str, config: dict[str, Any], figures: dict[str, Any]) -> Path:
    """Write results/NAME.json and print the figures."""
    FOLDER.mkdir(exist_ok=True)
    versions = {package: version(package) for package in ("telescopic", "torch")} | {
        "python": platform.python_version()
    }
    path = FOLDER / f"{name}.json"
    result = {"config": config, "figures": figures, "versions": versions, "machine": machine(), "commit": commit()}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return path
