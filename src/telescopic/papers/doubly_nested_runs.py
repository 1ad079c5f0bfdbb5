"""Doubly Nested Network's experiments, repeated: Figures 4 and 5, and what joint training costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from telescopic.cost import nominal_macs, nominal_params
from telescopic.data import Dataset
from telescopic.evaluate import evaluate
from telescopic.nested import Nested
from telescopic.papers import doubly_nested
from telescopic.papers.paper import Option, Paper, Runs, Trained, sizes
from telescopic.papers.reproduce import protocols
from telescopic.papers.tables import PROTOCOLS, by_settings, narrow
from telescopic.quantities import human
from telescopic.subnet import Grid, Subnet
from telescopic.train import Epoch, Recipe
from telescopic.train.checkpoint import load_checkpoint
from telescopic.train.keeper import BEST

if TYPE_CHECKING:
    from rich.table import Table

_SETTINGS = ("data", "train_images", "groups", "channels", "blocks", "epochs", "precision")


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Train the paper's network, and what Figures 4 and 5 compare it with, and show both. Stop and go on at will.

    Names are those of `doubly_nested.experiment`, and `sliced-w8`: the first 8 groups of what the experiment `dense`
    left in the epoch chosen on validation images, of which then the classifier alone is trained (Figure 4).
    """

    only: Annotated[
        list[str] | None,
        Option(
            "An experiment; may be given several times: a way to train all members, such as uniform or macs; one "
            "network by itself, such as alone, alone-w8, alone-x7, dense-w8; or sliced-w8, which is cut from dense. "
            "(default: all that Figures 4 and 5 need at four widths)"
        ),
    ] = None
    groups: Annotated[int, Option("Channel groups, and so widths; the paper has 22.", least=2)] = 22
    channels: Annotated[
        tuple[int, ...], Option("Channels of a group in each part of the network.", such_as="1,2,4")
    ] = doubly_nested.CHANNELS
    blocks: Annotated[int, Option("Residual blocks in each part.", least=1)] = 5
    epochs: Annotated[int, Option("Passes over the training images.", least=1)] = 30

    def __post_init__(self) -> None:
        for name in self.names:
            doubly_nested.member(_whole(name), self.groups, len(self.channels) * self.blocks - 1)

    @property
    def names(self) -> Sequence[str]:
        """Those that are wanted."""
        quarters = sorted({self.groups * k // 4 for k in (1, 2, 3)} - {0}, reverse=True)
        cut = [f"{kind}-w{width}" for kind in ("dense", "sliced") for width in quarters]
        return self.only or ["uniform", doubly_nested.BEST_WAY, "depth-only", "alone", "dense", *cut]

    @property
    def settings(self) -> dict[str, Any]:
        """What a summary says of them."""
        facts = asdict(self) | {"channels": list(self.channels)}
        return {name: fact for name, fact in facts.items() if name != "only"}

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        """Network and recipe of one."""
        net, recipe = doubly_nested.experiment(
            _whole(name),
            groups=self.groups,
            channels=self.channels,
            blocks=self.blocks,
            epochs=self.epochs,
            **sizes(images),
        )
        if not name.startswith("sliced"):
            return net, recipe
        wide, _ = self.build("dense", images, finished)
        load_checkpoint(finished("dense") / BEST, wide)
        doubly_nested.slice_(net, wide)
        return net, doubly_nested.classifier_only_(net, recipe)

    def facts(self, trained: Trained) -> dict[str, Any]:
        """All members, with costs and accuracies."""
        net, recipe, shape = trained.net, trained.recipe, trained.images.input_shape
        history, fitted = trained.history, trained.history.fitted  # heads are fitted in one epoch's network alone
        facts = {
            "epochs": self.epochs,  # of a sliced network, those of the dense one; its own are the recipe's
            "recipe": without_weights(recipe.to_dict()),
            "exits": net.grid.exits,
            "widths": net.grid.widths,
            "macs": nominal_macs(net, shape),
            "params": nominal_params(net),
            "protocols": {
                protocol: {
                    "epoch": row["epoch"],
                    **_accuracies(fitted if fitted and protocol == "validation" else history[row["epoch"] - 1]),
                }
                for protocol, row in protocols(history).items()
            },
        }
        if trained.name.startswith("sliced"):
            untouched, _ = trained.build()
            test = evaluate(untouched.eval(), [trained.images.test], recipe.preprocess)[0].tolist()
            facts["brute_force"] = _rounded(test)
        return facts


def without_weights(told: Any) -> Any:
    """What is told of a recipe, without the weights of hundreds of members."""
    if isinstance(told, Mapping):
        return {name: without_weights(value) for name, value in told.items() if name != "weights"}
    return [without_weights(value) for value in told] if isinstance(told, list | tuple) else told


def _whole(name: str) -> str:
    """The experiment with the network that a sliced one begins with."""
    return name.replace("sliced-w", "dense-w")


def _accuracies(epoch: Epoch) -> dict[str, list[float]]:
    return {"validation": _rounded(epoch.validation), "test": _rounded(epoch.test)}


def _rounded(values: Sequence[float]) -> list[float]:
    """Of hundreds of members, no more digits than 10,000 images can tell."""
    return [round(value, 4) for value in values]


def tables(found: Runs) -> "list[Table]":
    """Every way to train all members beside members trained alone, and what Figures 4 and 5 show, in percent.

    Runs that differ in their settings make tables of their own.
    """
    tables = []
    for _, some in by_settings(found, _SETTINGS):
        results = Results(some)
        tables += [_ways(results, protocol) for protocol in PROTOCOLS]
        tables += [_figure_4(results), *_figure_5(results)]
    return [table for table in tables if table.rows]


@dataclass(frozen=True)
class Results:
    """What the experiments with the same settings have come to."""

    found: Runs

    @property
    def facts(self) -> Mapping[str, Any]:
        """Those of any run."""
        return next(iter(self.found.values()))[0]

    @property
    def full(self) -> tuple[int, int]:
        """Exit and width of the full member."""
        return len(self.facts["channels"]) * self.facts["blocks"] - 1, self.facts["groups"]

    @property
    def ways(self) -> list[str]:
        """Experiments that train all members, in the order in which they are listed."""
        return [name for name in doubly_nested.WAYS if name in self.found]

    @property
    def best(self) -> str | None:
        """The way with the best validation accuracy, a mean over members weighted by their MACs.

        Weighted alike, the many that are too small to be of use would decide.
        """

        def worth(way: str) -> float:
            some = self.found[way]
            return mean(fmean(run["protocols"]["validation"]["validation"], weights=run["macs"]) for run in some)

        return max((way for way in self.ways if way != "depth-only"), key=worth, default=None)

    def tests(self, way: str | None, exit_: int, width: int, protocol: str = "validation") -> list[float]:
        """Test accuracy of a member, for each seed."""
        some = [] if way is None else self.found.get(way, [])
        return [run["protocols"][protocol]["test"][grid_of(run).index(Subnet(exit=exit_, width=width))] for run in some]

    def single(self, kind: str, exit_: int, width: int, protocol: str = "validation") -> list[float]:
        """Test accuracy of the network that is one member by itself, for each seed."""
        last, groups = self.full
        name = kind + (f"-x{exit_}" if exit_ != last else "") + (f"-w{width}" if width != groups else "")
        return [run["protocols"][protocol]["test"][-1] for run in self.found.get(name, [])]

    def sliced(self, width: int) -> list[float]:
        """Test accuracy of the first channels of the ordinary network, for each seed; nothing is trained any more."""
        return [run["brute_force"][0] for run in self.found.get(f"sliced-w{width}", [])]

    def caption(self) -> str:
        """How the runs came about."""
        facts, (exits, widths) = self.facts, (doubly_nested.FACTS.exits, doubly_nested.FACTS.widths)
        channels = "/".join(str(self.full[1] * part) for part in facts["channels"])
        text = "{data}, {train_images:,} training images, {epochs} epochs, {precision}".format(**facts)
        text = f"{text}; {self.full[0] + 2} exits × {self.full[1]} widths, {channels} channels."
        if (self.full[0] + 2, self.full[1], tuple(facts["channels"])) != (exits, widths, doubly_nested.CHANNELS):
            text += f" The paper's network has {exits} exits × {widths} widths."
        return text


def grid_of(run: Mapping[str, Any]) -> Grid:
    """The members, in the order of a summary's lists."""
    return Grid((0,), run["exits"], run["widths"])


def _ways(results: Results, protocol: str) -> "Table":
    """Some members in each way to train, below the same networks by themselves."""
    last, groups = results.full
    widths = sorted({groups * k // 4 for k in (1, 2, 3)} - {0, groups}, reverse=True)
    exits = sorted({last * k // 4 for k in (1, 2, 3)} - {last}, reverse=True)
    members = [(last, groups), *((last, width) for width in widths), *((exit_, groups) for exit_ in exits)]
    names = [f"w{width}" for width in widths] + [f"x{exit_}" for exit_ in exits]
    title = f"Ways to train all members: {PROTOCOLS[protocol]}"
    table = narrow(title, "experiment", "full", *names, "seeds")
    alone = [results.single("alone", *member, protocol) for member in members]
    if any(alone):
        table.add_row("each alone", *_cells(alone), str(max(map(len, alone))))
    for way in results.ways:
        each = [results.tests(way, *member, protocol) for member in members]
        table.add_row(way, *_cells(each), str(len(each[0])))
    table.caption = (
        f"Test accuracy, %. {results.caption()} w is the width at the last exit; x the exit at full width, and {last} "
        "the last."
    )
    return table


def _figure_4(results: Results) -> "Table":
    """Ways to a network of some width."""
    last, groups = results.full
    columns: dict[str, Callable[[int], list[float]]] = {
        "full\ntraining": lambda width: results.single("dense", last, width),
        "brute-force\nslicing": results.sliced,
        "fine-tuned\nclassifier": lambda width: results.single("sliced", last, width),
        "ours,\nuniform": lambda width: results.tests("uniform", last, width),
        "ours,\nbest": lambda width: results.tests(results.best, last, width),
        "causal,\nalone": lambda width: results.single("alone", last, width),
    }
    table = narrow("Figure 4: networks of some width", "width", *columns)
    for width in range(groups, 0, -1):
        values = {name: values_at(width) for name, values_at in columns.items()}
        if any(values[name] for name in columns if not name.startswith("ours")):
            table.add_row(str(width), *_cells(list(values.values()), spread=False))
    table.caption = (
        f"Test accuracy, %, chosen on validation. {results.caption()} The best way is that with the best "
        f"validation accuracy, members weighted by their MACs: {results.best or '–'}."
    )
    return table


def _figure_5(results: Results) -> "list[Table]":
    """The best members within a budget, if they may be cut by depth alone and if by width too; and all of them."""
    best, facts, (last, groups) = results.best, doubly_nested.FACTS, results.full
    if best is None:
        return []
    ours = results.found[best][0]
    sizes = last + 2, groups, tuple(ours["channels"])
    # Of another network, the same share.
    budget = facts.budget
    if sizes != (facts.exits, facts.widths, doubly_nested.CHANNELS):
        budget *= ours["macs"][-1] / facts.full_macs
    table = narrow(
        f"Figure 5: the best members with at most {human(budget)} MACs", "model", "exit", "width", "MACs", "%"
    )
    models = {"trained and cut by depth": ("depth-only", (groups,)), f"{best}, cut by depth": (best, (groups,))}
    models[f"{best}, cut both ways"] = best, ours["widths"]
    for model, (way, widths) in models.items():
        for run in results.found.get(way, [])[:1]:
            row, members = run["protocols"]["validation"], enumerate(grid_of(run))
            fitting = [(i, member) for i, member in members if run["macs"][i] <= budget and member.width in widths]
            if fitting:
                place, member = max(fitting, key=lambda pair: row["validation"][pair[0]])
                macs = human(run["macs"][place])
                table.add_row(model, str(member.exit), str(member.width), macs, f"{100 * row['test'][place]:.1f}")
    table.caption = (
        f"Chosen on validation images; MACs without weights that may not be read. {results.caption()} The paper's gain "
        f"from cutting both ways is {100 * facts.gain:g} points, exit {facts.ours[0] - 1} and width {facts.ours[1]} "
        f"against exit {facts.depth_only[0] - 1}."
    )
    return [table, _all_members(ours, budget)]


def _all_members(run: Mapping[str, Any], budget: float) -> "Table":
    """Test accuracy of all members within a budget, in whole percent."""
    grid, tests = grid_of(run), run["protocols"]["validation"]["test"]
    title = f"Figure 5: all members of {run['experiment']} with at most {human(budget)} MACs, %"
    table = narrow(title, "exit", *map(str, grid.widths))
    table.padding = (0, 1, 0, 0)
    for exit_ in reversed(grid.exits):
        places = [grid.index(Subnet(exit=exit_, width=width)) for width in grid.widths]
        table.add_row(str(exit_), *(f"{100 * tests[i]:.0f}" if run["macs"][i] <= budget else "" for i in places))
    return table


def _cells(members: Sequence[Sequence[float]], *, spread: bool = True) -> list[str]:
    """Means over seeds in percent; the first with their standard deviation."""
    cells = [f"{100 * mean(values):.1f}" if values else "–" for values in members]
    if spread and len(members[0]) > 1:
        cells[0] += f" ±{100 * stdev(members[0]):.1f}"
    return cells


PAPER = Paper(
    name="doubly-nested",
    title="Doubly Nested Network for Resource-Efficient Inference (Kim et al. 2018, arXiv 1806.07568)",
    data=("cifar10", "svhn"),
    train=doubly_nested.train,
    experiments=Experiments,
    tables=tables,
    examples=("--data cifar10 --out runs/dnn", "--only uniform --only alone"),
)
