"""Ways to train all members of a Doubly Nested Network together: the paper's, and what we have tried against it.

λ(l, c) of the joint loss (Eq. 2) is not stated. Whatever it is, hundreds of weak members outvote the few that matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from telescopic.cost.nominal import nominal_macs
from telescopic.nested import Nested
from telescopic.train import Phase, Recipe
from telescopic.train.recipe import Teacher

LAMBDAS: Mapping[str, Mapping[str, float]] = {
    "uniform": {},
    "depth-width": {"depth": 1, "width": 2},
    "macs": {"macs": 1},
    "half-macs": {"macs": 1, "full": 0.5},
    "edges": {"full": 0.4, "edges": 0.6},
    "edges-macs": {"macs": 1, "full": 0.4, "edges": 0.4},
    "edges-15": {"macs": 1, "full": 0.33, "edges": 0.52},
    "edges-30": {"macs": 1, "full": 0.27, "edges": 0.43},
    "depth-only": {"width": inf},
    "full-only": {"depth": inf, "width": inf},
}
"""Ways to weigh the members' losses: arguments of `weights`."""


def weights(
    net: Nested,
    *,
    depth: float = 0.0,
    width: float = 0.0,
    macs: float = 0.0,
    full: float = 0.0,
    edges: float = 0.0,
    input_shape: Sequence[int] = (3, 32, 32),
) -> tuple[float, ...]:
    """λ(l, c) of the joint loss (Eq. 2) for each member, adding up to 1: proportional to depth^d · width^w · MACs^m.

    With all exponents 0 it is uniform, which is likely the paper's own choice, for it names none. With an infinite one
    only members that are largest in this respect have a weight.

    Args:
        net: the network.
        depth: exponent of the number of stages that a member runs, its adapter counted.
        width: exponent of its number of groups.
        macs: exponent of its nominal multiply-adds.
        full: share that the full member gets beforehand.
        edges: share that the largest others get beforehand, in equal parts: of the deepest members those of a quarter,
            half and three quarters of the widths, and of the widest the deeper half. All members share the rest.
        input_shape: shape of one input, for the multiply-adds.
    """
    prices = nominal_macs(net, input_shape) if macs else [1] * len(net.grid)
    sizes = [(m.exit - m.entry + 2, m.width, price) for m, price in zip(net.grid, prices, strict=True)]
    most = [max(column) for column in zip(*sizes, strict=True)]
    raw = [(d / most[0]) ** depth * (w / most[1]) ** width * (m / most[2]) ** macs for d, w, m in sizes]
    quarters = {-(-net.groups * part // 4) for part in (1, 2, 3)}
    on_edges = [(d == most[0] and w in quarters) or (w == most[1] and 2 * d > most[0]) for d, w, _ in sizes]
    on_edges[net.grid.index(net.grid.full)] = False
    of_edge = edges / sum(on_edges) if edges else 0.0
    shares = [(1 - full - edges) * r / sum(raw) + of_edge * on for r, on in zip(raw, on_edges, strict=True)]
    shares[net.grid.index(net.grid.full)] += full
    return tuple(shares)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train all members together. What is not said is as in the paper.

    Attributes:
        weights: λ of the joint loss, a name in `LAMBDAS`.
        drawn: see `Recipe`.
        balanced: see `Recipe`.
        first: weights of a first phase, which takes `share` of the epochs and in which nobody is taught; none if empty.
        share: of the epochs that are in the first phase, rounded to whole ones.
        distillation: see `Recipe`.
        teacher: see `Recipe`.
        ema: see `Recipe`.
        group_gradient: see `Recipe`.
        fit_heads: see `Recipe`.
        early_gradient: see `network`.
        early_transform: see `network`.
        conditioned: see `network`.
    """

    weights: str = "uniform"
    drawn: int | None = None
    balanced: bool = False
    first: str = ""
    share: float = 0.4
    distillation: float = 0.0
    teacher: Teacher = "full"
    ema: float = 0.0
    group_gradient: float = 1.0
    fit_heads: bool = False
    early_gradient: float = 1.0
    early_transform: bool = False
    conditioned: bool = False


WAYS: Mapping[str, Way] = {
    "uniform": Way(),
    "depth-only": Way(weights="depth-only"),
    "depth-width": Way(weights="depth-width"),
    "macs": Way(weights="macs"),
    "drawn-macs": Way(weights="macs", drawn=4),
    "half-macs": Way(weights="half-macs"),
    "balanced": Way(balanced=True),
    "balanced-macs": Way(weights="macs", balanced=True),
    "balanced-half-macs": Way(weights="half-macs", balanced=True),
    "balanced-conditioned": Way(weights="macs", balanced=True, conditioned=True),
    "balanced-half-distilled": Way(weights="half-macs", balanced=True, distillation=0.5),
    "balanced-edges": Way(weights="edges", balanced=True),
    "balanced-edges-macs": Way(weights="edges-macs", balanced=True),
    "balanced-edges-conditioned": Way(weights="edges", balanced=True, conditioned=True),
    "edges-15": Way(weights="edges-15", balanced=True, conditioned=True),
    "edges-30": Way(weights="edges-30", balanced=True, conditioned=True),
    "edges-15-own": Way(weights="edges-15", balanced=True, conditioned=True, early_transform=True),
    "edges-15-delayed": Way(weights="edges-15", balanced=True, conditioned=True, first="full-only"),
    "edges-15-delayed-20": Way(weights="edges-15", balanced=True, conditioned=True, first="full-only", share=0.2),
    "edges-30-delayed": Way(weights="edges-30", balanced=True, conditioned=True, first="full-only"),
    "edges-15-fitted": Way(weights="edges-15", balanced=True, conditioned=True, fit_heads=True),
    "edges-15-delayed-fitted": Way(
        weights="edges-15", balanced=True, conditioned=True, first="full-only", fit_heads=True
    ),
    "balanced-own": Way(weights="macs", balanced=True, early_transform=True),
    "balanced-half-quiet": Way(weights="half-macs", balanced=True, early_gradient=0.3),
    "delayed": Way(weights="macs", balanced=True, first="full-only"),
    "delayed-edges": Way(weights="macs", balanced=True, first="edges"),
    "delayed-taught": Way(weights="macs", balanced=True, first="full-only", distillation=0.7),
    "delayed-ema": Way(weights="macs", balanced=True, first="full-only", distillation=0.7, teacher="ema", ema=0.99),
    "taught": Way(weights="macs", balanced=True, distillation=0.7),
    "taught-exits": Way(weights="macs", balanced=True, distillation=0.7, teacher="exits"),
    "apart-7": Way(weights="macs", balanced=True, group_gradient=0.7),
    "apart-5": Way(weights="macs", balanced=True, group_gradient=0.5),
    "apart-3": Way(weights="macs", balanced=True, group_gradient=0.3),
    "apart-taught": Way(weights="macs", balanced=True, group_gradient=0.5, distillation=0.7),
    "apart-delayed-taught": Way(weights="macs", balanced=True, group_gradient=0.5, first="full-only", distillation=0.7),
}
"""Experiments that train all members. `uniform` is the paper's; `depth-only` is the conventional anytime network that
Figure 5 compares with: it learns to be cut along its depth alone."""

BEST_WAY = "edges-15-fitted"
"""The best on average over all members, of those that were tried: see docs/papers/doubly-nested.md."""


def told(how: Recipe, way: Way, net: Nested, input_shape: Sequence[int] = (3, 32, 32)) -> Recipe:
    """A recipe that trains a network in one of our ways.

    Raises:
        ValueError: if there are no weights of this name.
    """

    def named(name: str) -> tuple[float, ...] | None:
        if name not in LAMBDAS:
            raise ValueError(f"weights are one of {', '.join(LAMBDAS)}, not {name!r}")
        return weights(net, **LAMBDAS[name], input_shape=input_shape) if LAMBDAS[name] else None

    until = round(way.share * how.epochs)
    first = (
        [Phase(name=way.first, until=until, weights=named(way.first), distillation=0.0)] if way.first and until else []
    )
    same = ("drawn", "balanced", "distillation", "teacher", "ema", "group_gradient", "fit_heads")
    told = {name: getattr(way, name) for name in same}
    return replace(how, weights=named(way.weights), phases=tuple(first), **told)
