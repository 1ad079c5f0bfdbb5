"""CNSN's experiments, repeated: Table 1 with ours beside it, and what else they tell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import torch

from telescopic.cost import cost
from telescopic.data import Dataset
from telescopic.extract import extract
from telescopic.nested import Nested
from telescopic.papers import cnsn
from telescopic.papers.paper import Option, Paper, Run, Runs, Trained, known, sizes
from telescopic.papers.policies import by_policy, keep_shared
from telescopic.papers.tables import PROTOCOLS, by_settings, narrow, spread
from telescopic.quantities import human, one_of
from telescopic.subnet import Subnet
from telescopic.train import Recipe
from telescopic.train.checkpoint import load_checkpoint
from telescopic.train.keeper import LAST

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Train the paper's networks (table 1) and ours, and print its numbers beside ours. Stop and go on at will.

    Of joint ones all policies for BatchNorm's statistics are measured, in the epoch chosen on validation images and in
    the last one.
    """

    only: Annotated[
        list[str] | None, Option("An experiment; may be given several times. (default: joint, alone-0)")
    ] = None
    scale: Annotated[float, Option("Share of the paper's channels, e.g. 0.25.", least=0.01, most=4)] = 1.0
    recipe: Annotated[str, Option("The paper's (300 epochs), or short (20, one cycle).")] = "paper"
    epochs: Annotated[int | None, Option("Passes over the images. (default: the recipe's)", least=1)] = None
    batch: Annotated[
        int | None, Option("Images in a batch; the learning rate grows with it. (default: the recipe's)", least=1)
    ] = None

    def __post_init__(self) -> None:
        one_of("recipe", self.recipe, cnsn.RECIPES)
        for name in self.names:
            known("CNSN", name, cnsn.EXPERIMENTS)

    @property
    def names(self) -> Sequence[str]:
        """Those that are wanted."""
        return self.only or ("joint", "alone-0")

    @property
    def settings(self) -> dict[str, Any]:
        """What a summary says of them."""
        epochs = self.epochs or cnsn.RECIPES[self.recipe]().epochs
        name = self.recipe if self.batch is None else f"{self.recipe} (batch {self.batch})"
        return {"scale": self.scale, "recipe_name": name, "epochs": epochs}

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        """Network and recipe of one; networks of several members keep the shared statistics, too."""
        net, how = cnsn.experiment(
            name,
            scale=self.scale,
            epochs=self.epochs,
            short=self.recipe == "short",
            **sizes(images),
        )
        if len(net.grid) > 1:
            keep_shared(net)
        if self.batch is not None:
            rate = how.learning_rate * self.batch / how.batch_size
            how = replace(how, batch_size=self.batch, learning_rate=rate)
        return net, how

    def facts(self, trained: Trained) -> dict[str, Any]:
        """The members with their costs, and what each policy makes of the run."""
        net, images, history = trained.net, trained.images, trained.history
        prices = [cost(extract(net, member), images.input_shape) for member in net.grid]
        facts: dict[str, Any] = {
            "members": [net.grid.label(member) for member in net.grid],
            "macs": [price.macs for price in prices],
            "params": [price.params for price in prices],
        }
        if len(net.grid) > 1:
            best = last = by_policy(net, images, trained.recipe)
            if history.best() is not history[-1]:
                load_checkpoint(trained.folder / LAST, net)
                last = by_policy(net, images, trained.recipe)
            facts["policies"] = {"validation": best, "last": last}
        return facts


_SETTINGS = ("data", "train_images", "scale", "recipe_name", "epochs", "precision")
_PAPERS: dict[str, Any] = {"data": "cifar10", "scale": 1.0, "recipe_name": "paper", "epochs": 300}
_FAMILIES = {"step-down": ("joint", "distilled"), "stem": ("stem", "stem-distilled")}


def tables(found: Runs) -> "list[Table]":
    """Table 1 with ours beside it, members against the same networks trained alone, and BatchNorm's policies.

    Runs are averaged over seeds only if they agree in everything else: other settings make tables of their own.
    """
    groups = by_settings(found, _SETTINGS)
    if not groups:
        return [_table1({}, None)]
    tables = []
    for facts, some in groups:
        tables.append(_table1(some, facts))
        tables += [table for protocol in PROTOCOLS if (table := _against_alone(some, facts, protocol)).rows]
        tables += [table for protocol in PROTOCOLS if (table := _policies(some, facts, protocol)).rows]
    return tables


def _table1(found: Runs, facts: Mapping[str, Any] | None) -> "Table":
    columns = ("model", "paper", "best\non test", "chosen on\nvalidation", "last\nepoch", "seeds", "MACs,\npaper")
    table = narrow("Table 1: test accuracy", *columns, "MACs,\nours")
    if facts is not None:
        table.caption = (
            f"Ours: {_settings(facts)} Statistics of BatchNorm are per entry; the paper shares them. MACs are counted "
            "as in the paper, with what works element by element: biases, BatchNorm, ReLU, pooling."
        )
    for row in cnsn.ROWS:
        ours = found.get("alone-0" if row.model == "baseline" else "joint", [])
        accuracies = [_tests(ours, name, row.entry) for name in ("best_test", "validation", "last")]
        cells = [f"{mean(values):.4f}" if values else "–" for values in accuracies]
        macs = human(row.gmacs * 1e9), "–" if facts is None else human(_macs(facts["scale"], row.entry))
        table.add_row(row.model, f"{row.test_accuracy:.4f}", *cells, str(len(ours) or "–"), *macs)
    return table


@cache
def _macs(scale: float, entry: int) -> int:
    """Of a member, counted as in the paper."""
    with torch.device("meta"):  # only its shapes matter
        net = cnsn.network(scale=scale)
    return cost(extract(net, Subnet(entry=entry)), (3, 32, 32), elementwise=True).macs


def _against_alone(found: Runs, facts: Mapping[str, Any], protocol: str) -> "Table":
    """What sharing costs each member, or gives it."""
    title = f"Members, and trained alone: {PROTOCOLS[protocol]}"
    table = narrow(title, "entry", "family", "MACs", "alone", "joint", "distilled")
    for entry in (7, 2, 0):
        for family, names in _FAMILIES.items():
            # The full network has no adapter, so the same one stands beside both families.
            alone = f"alone-{entry}-stem" if family == "stem" and entry else f"alone-{entry}"
            some = [found.get(name, []) for name in (alone, *names)]
            if not any(some[1:] if family == "stem" and not entry else some):
                continue
            macs = next(run["macs"][_place(run, entry)] for group in some for run in group)
            cells = [spread(_tests(group, protocol, entry)) for group in some]
            table.add_row(str(entry), family, human(macs), *cells)
    table.caption = f"{_settings(facts)} {_seeds(found)} MACs without what works element by element."
    return table


def _policies(found: Runs, facts: Mapping[str, Any], protocol: str) -> "Table":
    """What each policy for BatchNorm's statistics makes of one and the same training."""
    title = f"BatchNorm's statistics: {PROTOCOLS[protocol]}"
    table = narrow(title, "experiment", "policy", *(f"entry={entry}" for entry in (7, 2, 0)))
    shown = {name: found[name] for name in _FAMILIES["step-down"] if name in found}
    for name, some in shown.items():
        for policy in some[0]["policies"][protocol]:
            accuracies = [[run["policies"][protocol][policy][_place(run, e)] for run in some] for e in (7, 2, 0)]
            table.add_row(name, policy, *map(spread, accuracies))
    table.caption = f"{_settings(facts)} {_seeds(shown)}"
    return table


def _settings(facts: Mapping[str, Any]) -> str:
    """How the runs came about; where that is not the paper's way, nobody is to miss it."""
    text = "{data}, {train_images:,} training images, scale {scale:g}, {recipe_name} recipe, {epochs} epochs, "
    text = (text + "{precision}.").format(**facts)
    if any(facts[name] != value for name, value in _PAPERS.items()):
        text += " Not the paper's setting: {data}, scale {scale:g}, its own recipe, {epochs} epochs.".format(**_PAPERS)
    return text


def _seeds(found: Runs) -> str:
    numbers = [f"{name} {len(found[name])}" for name in cnsn.EXPERIMENTS if name in found]
    several = any(len(some) > 1 for some in found.values())
    return f"Seeds: {', '.join(numbers)}{'; ± is their standard deviation' if several else ''}."


def _tests(some: Sequence[Run], protocol: str, entry: int) -> list[float]:
    return [run["protocols"][protocol]["test"][_place(run, entry)] for run in some]


def _place(run: Run, entry: int) -> int:
    """Where a member stands in a run's lists; a network trained alone has one."""
    return int(run["members"].index(f"entry={entry}")) if len(run["members"]) > 1 else 0


PAPER = Paper(
    name="cnsn",
    title="CNSN: A Sub-Model Detachable Convolutional Neural Network (Fuengfusin and Tamukoh 2021, "
    "doi 10.2991/jrnal.k.210521.012)",
    data=("cifar10",),
    train=cnsn.train,
    experiments=Experiments,
    tables=tables,
    says=cnsn.says,
    examples=("--data cifar10 --entries 2,7 --scale 0.25 --out runs/cnsn", "--only joint --scale 0.25 --recipe short"),
)
