"""How every benchmark writes what it measured: figures with their configuration, versions, machine and commit."""

import json
from pathlib import Path
from typing import Any

from telescopic.cost import machine
from telescopic.provenance import commit, versions

FOLDER = Path(__file__).parents[1] / "results"


def write(name: str, config: dict[str, Any], figures: dict[str, Any]) -> Path:
    """Write results/NAME.json and print the figures."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    result = {"config": config, "figures": figures, "versions": versions(), "machine": machine(), "commit": commit()}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return path
