"""Claims: at twice the load that the largest member can serve, none is late, and more are right than by the smallest.

A simulation, the same every time: one machine, requests at random (Poisson) or in bursts, batches of up to 32. Members
are those of a causal ResNet as they were measured once (medians; p95 a fifth more). Passes take these times with noise;
in one case the machine is twice as slow for a while. Compared: always the largest member, always the smallest, SlackFit
(SuperServe, NSDI 2025) as we understand it, and our controller. SlackFit divides the latencies of all (member, batch)
into equal buckets, goes to the bucket below the slack of the most urgent request, takes the largest batch in it, and
of these the most accurate member. Accuracy counts an answer that is late as wrong. Writes results/controller.json:

    python benchmarks/controller.py [--seconds 20] [--slo-ms 20]
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from telescopic.engine.controller import Controller
from telescopic.engine.manifest import Packed

import results
from simulation import Machine, Outcome, Policy, simulate

BATCHES = (1, 2, 4, 8, 16, 32)
FAMILY = ((0.80, 0.5), (0.86, 0.9), (0.89, 1.5), (0.91, 2.4), (0.92, 4.0), (0.93, 6.0))  # accuracy, ms at batch 1


def fixed(member: Packed) -> Policy:
    """Always the same, with all that waits."""
    return lambda now, deadlines: (member, min(len(deadlines), BATCHES[-1]))


def slackfit(machine: Machine, number: int = 16) -> Policy:
    """The bucket that the most urgent request's slack allows."""
    choices = [(machine.timing(m.subnet, b).p95_ms, b, m) for m in machine.members for b in BATCHES]
    low, high = min(c[0] for c in choices), max(c[0] for c in choices)
    edges = np.linspace(low, high, number + 1)[1:]

    def policy(now: float, deadlines: Sequence[float]) -> tuple[Packed, int]:
        slack = 1000 * (min(deadlines) - now)
        within = [edge for edge in edges if edge <= slack]
        most = within[-1] if within else low
        fitting = [c for c in choices if c[0] <= max(most, low) and c[1] <= 2 * len(deadlines)]
        bucket = max(int(np.searchsorted(edges, c[0])) for c in fitting)
        _, batch, member = max(
            (c for c in fitting if int(np.searchsorted(edges, c[0])) == bucket), key=lambda c: (c[1], c[2].accuracy)
        )
        return member, batch

    return policy


def ours(machine: Machine, slo_ms: float) -> tuple[Policy, Controller]:
    """The controller, with all that waits in batches of up to 32."""
    controller = Controller(machine, slo_ms=slo_ms, clock=lambda: machine.now)  # type: ignore[arg-type]

    def policy(now: float, deadlines: Sequence[float]) -> tuple[Packed, int]:
        machine.now = now
        batch = min(len(deadlines), BATCHES[-1])
        slacks = [1000 * (deadline - now) for deadline in deadlines[::batch]]
        return controller.choose(batch, slacks_ms=slacks).member, batch

    return policy, controller


def poisson(rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Arrivals at random."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return list(np.cumsum(gaps))


def bursts(rate: float, seconds: float) -> list[float]:
    """Every second a twentieth of a second's requests at once, the others at random."""
    together = [float(second) for second in range(1, int(seconds)) for _ in range(round(rate / 20))]
    return sorted(poisson(0.95 * rate, seconds) + together)


def compared(
    arrivals: list[float], slo_ms: float, slow: Callable[[float], float] = lambda now: 1.0
) -> dict[str, dict[str, float]]:
    """Every policy on the same requests and the same noise."""
    figures = {}
    for name in ("largest", "smallest", "SlackFit", "ours"):
        machine, noise = Machine(FAMILY, BATCHES, each=0.7), np.random.default_rng(1)
        told: Callable[[Packed, int, float], None] = lambda member, batch, seconds: None  # noqa: E731
        if name == "ours":
            policy, controller = ours(machine, slo_ms)
            told = lambda m, b, s, c=controller: c.observe(m.subnet, b, s)  # noqa: E731
        elif name == "SlackFit":
            policy = slackfit(machine)
        else:
            policy = fixed(machine.members[-1 if name == "largest" else 0])

        def seconds(member: Packed, batch: int, now: float, machine=machine, noise=noise) -> float:
            return slow(now) * machine.timing(member.subnet, batch).median_ms / 1000 * noise.lognormal(0, 0.07)

        outcome: Outcome = simulate(policy, arrivals, seconds, slo_ms=slo_ms, told=told)
        figures[name] = {
            "accuracy in time": round(outcome.accuracy, 4),
            "late": round(outcome.late, 4),
            "p99 ms": round(outcome.p99_ms, 1),
            "switches a second": round(outcome.switches / arrivals[-1], 1),
        }
    return figures


def main() -> None:
    """Simulate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--slo-ms", type=float, default=20)
    args = parser.parse_args()
    machine = Machine(FAMILY, BATCHES, each=0.7)
    largest = machine.timing(machine.members[-1].subnet, BATCHES[-1]).median_ms
    capacity = 1000 * BATCHES[-1] / largest  # requests a second, by the largest member in full batches
    figures = {
        f"{load}x": compared(poisson(load * capacity, args.seconds), args.slo_ms) for load in (0.5, 1.0, 2.0, 4.0)
    }
    figures["bursts, 1x"] = compared(bursts(capacity, args.seconds), args.slo_ms)
    half = args.seconds / 2
    figures["1x, twice as slow in the second half"] = compared(
        poisson(capacity, args.seconds), args.slo_ms, lambda now: 2.0 if now > half else 1.0
    )
    results.write("controller", vars(args), figures)


if __name__ == "__main__":
    main()
