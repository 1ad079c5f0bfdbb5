"""What a plain module costs: counted by shape alone, or timed on this machine."""

from telescopic.cost.counting import Cost, cost, cost_on_meta, on_meta
from telescopic.cost.nominal import nominal_macs, nominal_params
from telescopic.cost.timing import Latency, latencies, latency, machine

__all__ = [
    "Cost",
    "Latency",
    "cost",
    "cost_on_meta",
    "latencies",
    "latency",
    "machine",
    "nominal_macs",
    "nominal_params",
    "on_meta",
]
