"""Serve a pack on several machines with Ray Serve: replicas behind its proxy, each with its own engine and queue.

    pip install '.[serve]' 'ray[serve]'
    telescopic pack nsn-mnist --to mnist.telescope
    TELESCOPIC_PACK=mnist.telescope serve run ray_serve:app

Every replica is the application that `telescopic serve` runs: it answers POST /predict, keeps the objective by changing
members, and says 503 when not even the smallest is fast enough. Ray starts replicas, spreads requests over them, and
starts new ones in the place of those that die; the pack must be at the same path on every machine.
"""

import os

from fastapi import FastAPI
from ray import serve

import telescopic as tl
from telescopic.serve import application


def replica() -> FastAPI:
    """What one replica runs; called in its process."""
    engine = tl.Engine(os.environ["TELESCOPIC_PACK"], threads=1)
    hosts = os.environ.get("TELESCOPIC_ALLOW_HOSTS", "").split()  # names by which it is called, beside addresses
    return application(engine, slo_ms=float(os.environ.get("TELESCOPIC_SLO_MS", "50")), allow_hosts=hosts)


SETTINGS = {name: value for name, value in os.environ.items() if name.startswith("TELESCOPIC_")}


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=2000,  # more than a queue holds, so that its bound decides and not Ray's
    ray_actor_options={"num_cpus": 1, "runtime_env": {"env_vars": SETTINGS}},
)
@serve.ingress(replica)
class Family:
    """A family behind Ray's proxy."""


app = Family.bind()
