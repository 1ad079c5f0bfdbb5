"""The example runs on Ray Serve, where Ray is installed: it is no part of what the other tests need."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from packs import small_pack

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN = """
import json, sys, urllib.request
import ray
from ray import serve

ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={"port": int(sys.argv[1])})
import ray_serve
serve.run(ray_serve.app)
address = f"http://127.0.0.1:{sys.argv[1]}"
body = json.dumps({"pixels": [[[0] * 5] * 6], "quality": 0}).encode()
for _ in range(8):
    request = urllib.request.Request(f"{address}/predict", body, {"content-type": "application/json"})
    told = json.load(urllib.request.urlopen(request, timeout=60))
    assert told["member"]["accuracy"] == 0.5 and len(told["probabilities"][0]) == 3, told
replicas = serve.status().applications["default"].deployments["Family"].replica_states
assert {state.value if hasattr(state, "value") else state: n for state, n in replicas.items()} == {"RUNNING": 2}
serve.shutdown()
print("served")
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'ray[serve]'")
def test_two_replicas_answer(tmp_path: Path) -> None:
    pack = small_pack(tmp_path / "small.telescope", (1, 6, 5))
    environment = os.environ | {"TELESCOPIC_PACK": str(pack), "PYTHONPATH": str(EXAMPLES)}
    run = subprocess.run(
        [sys.executable, "-c", RUN, "8123"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0 and "served" in run.stdout, run.stderr[-3000:]
