"""Claim: what the server says of itself in OpenAPI is true: nothing that schemathesis makes of it gets another answer.

schemathesis reads /openapi.json of a server in a process of its own and makes requests that the description allows, and
such that it does not: no answer may be a 5xx, or have a status or a type that is not described. Fewer than 300 requests
tell nothing, and the claim does not hold then. It writes
results/fuzz-openapi.json:

    pip install schemathesis   # or with --target FOLDER, and PYTHONPATH=FOLDER
    python benchmarks/fuzz_openapi.py [--seconds 120] [--seed 0]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import telescopic as tl

import results
import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"

LEAST = 300  # requests


def main() -> int:
    """Run the benchmark; the exit status tells whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = serving.Server(tl.pack("nsn-mnist", Path(folder) / "packed.telescope"), 1000, 32, 1)
        try:
            address = f"http://127.0.0.1:{server.port}/openapi.json"
            options = ["--checks", CHECKS, "--seed", str(given.seed), "--max-time", str(given.seconds)]
            command = [sys.executable, "-m", "schemathesis.cli", "run", address, *options, "--no-color"]
            more = os.environ | {"COLUMNS": "200"}
            run = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=more)
            ended = server.process.poll()
        finally:
            server.kill()
    print(run.stdout[-4000:], run.stderr[-1000:])
    made = re.search(r"(\d+) generated", run.stdout)
    number = int(made[1]) if made else 0
    figures = {
        "requests": number,
        "well": run.returncode == 0 and ended is None and number >= LEAST,
        "failures": re.findall(r"^ +❌ (\w+ .{0,100}: \d+)$", run.stdout, re.M),
    }
    results.write("fuzz-openapi", vars(given), figures)
    return 0 if figures["well"] else 1


if __name__ == "__main__":
    sys.exit(main())
