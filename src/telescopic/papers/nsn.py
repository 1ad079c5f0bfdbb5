"""NSN: Network with Sub-Networks (Fuengfusin and Tamukoh 2019, arXiv 1908.00763).

A multi-layer perceptron with n hidden layers as wide as its input. Dropping the *first* layers leaves a smaller network
that reads the image directly: model0 is softmax regression, model1 has one hidden layer, model2 two. All members share
one set of weights; each weight learns from the smallest member that has it and from the next larger one (Eq. 2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from torch import nn

from telescopic.data import Dataset
from telescopic.nested import Nested
from telescopic.networks import mlp
from telescopic.papers.paper import Build, Option, Paper, Run, Runs, Trained, known
from telescopic.papers.tables import narrow
from telescopic.train import Recipe, pairwise

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the paper's tables: accuracy (best epoch on the test images) and the L2 penalty's λ."""

    table: int
    experiment: str
    model: str
    hidden: int
    test_accuracy: float
    l2: float | None


ROWS = (
    Row(1, "ref-model2", "ref-model2", 2, 0.9886, 1e-5),
    Row(1, "ref-model1", "ref-model1", 1, 0.9882, 5e-6),
    Row(1, "ref-model0", "ref-model0", 0, 0.9241, 9e-5),
    Row(2, "model0-1", "model1", 1, 0.9857, 9e-6),
    Row(2, "model0-1", "model0", 0, 0.9253, None),
    Row(3, "model0-1-2", "model2", 2, 0.9890, 9e-5),
    Row(3, "model0-1-2", "model1", 1, 0.9843, None),
    Row(3, "model0-1-2", "model0", 0, 0.9260, None),
)
"""Tables 1 to 3. Only the full network of each experiment has an L2 penalty."""

AUTHORS_RUN = {
    1: (0.9035, 0.9373, 0.9488),
    11: (0.9222, 0.9783, 0.9832),
    51: (0.9244, 0.9826, 0.9842),
    202: (0.9266, 0.9837, 0.9888),
    600: (0.9254, 0.9836, 0.9868),
}
"""Test accuracy of model0, model1, model2 after some epochs of a run of the authors' own (seed 0)."""


def network(num_hidden: int = 2, *, inputs: int = 784, classes: int = 10, reference: bool = False) -> Nested:
    """The paper's network, initialised: weights Xavier-uniform, biases 0.01.

    Dropout of 0.2 follows the first hidden layer that a member runs, 0.5 each further one; the paper's p are the
    probabilities of keeping. Softmax regression has none (section 4).

    Args:
        num_hidden: hidden layers n of the full network.
        inputs: features of the input, and of each hidden layer.
        classes: number of classes.
        reference: build the ordinary network that the paper compares with: one member, the full network.

    Returns:
        A network with members of 0 to n hidden layers, or one member of n.
    """
    net = mlp(
        inputs,
        (inputs,) * num_hidden,
        classes,
        entries=(0,) if reference else None,
        dropout=(0.2, *(0.5,) * (num_hidden - 1))[:num_hidden],
    )
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, 0.01)
    return net


def recipe(num_hidden: int = 2, *, epochs: int = 600, l2: float | None = None) -> Recipe:
    """The paper's recipe for its network (section 4): pairwise gradient sharing, Eq. 4's momentum.

    Eq. 4 is V ← 0.9 V + 0.1 G; torch's V is ten times that, so its learning rate is a tenth of the paper's 0.3.
    The rate is divided by 3 after each third of the epochs (the paper's 200 and 400 of 600).

    Args:
        num_hidden: hidden layers n of the full network.
        epochs: passes over the training images.
        l2: λ of the full network's penalty; default: the paper's, 9e-6 for one hidden layer and 9e-5 for more.
    """
    return _recipe(
        epochs=epochs,
        learning_rate=0.3 * 0.1,
        l2=(9e-6 if num_hidden == 1 else 9e-5) if l2 is None else l2,
        weights=(1.0,) * (num_hidden + 1),
        mix=pairwise(num_hidden + 1),
    )


def reference_recipe(num_hidden: int, *, epochs: int = 600, learning_rate: float | None = None) -> Recipe:
    """The recipe of the ordinary networks in Table 1: Eq. 3's momentum, which is torch's own.

    Args:
        num_hidden: 0, 1 or 2 hidden layers, which have an L2 penalty in Table 1; for more, that of 2.
        epochs: passes over the training images.
        learning_rate: default: the paper's 0.3 up to one hidden layer, and 0.1 above, because with 0.3 two hidden
            layers do not learn well: the gradients that Eq. 3 adds up make steps ten times those of Eq. 4.
    """
    return _recipe(
        epochs=epochs,
        learning_rate=(0.3 if num_hidden < 2 else 0.1) if learning_rate is None else learning_rate,
        l2={0: 9e-5, 1: 5e-6}.get(num_hidden, 1e-5),
    )


EXPERIMENTS = ("model0-1-2", "model0-1", "ref-model2", "ref-model1", "ref-model0", "joint", "distilled")
"""What `experiment` builds: the paper's five, and two other ways to train model0-1-2."""


def experiment(name: str, *, epochs: int = 600, inputs: int = 784, classes: int = 10) -> tuple[Nested, Recipe]:
    """The network and recipe of one experiment, named as in the paper.

    `joint` and `distilled` are ours. `joint` trains model0-1-2 with plain gradients of the sum of all losses, and
    `distilled` also lets the full network teach the others (half of their loss, at temperature 2).

    Raises:
        ValueError: if there is no such experiment.
    """
    known("NSN", name, EXPERIMENTS)
    if name.startswith("ref-"):
        n = int(name[-1])
        return network(n, inputs=inputs, classes=classes, reference=True), reference_recipe(n, epochs=epochs)
    n = 1 if name == "model0-1" else 2
    how = recipe(n, epochs=epochs)
    if name in ("joint", "distilled"):
        how = replace(how, mix=None, distillation=0.5 if name == "distilled" else 0.0)
    return network(n, inputs=inputs, classes=classes), how


def _recipe(*, epochs: int, **options: Any) -> Recipe:
    milestones = (epochs // 3, 2 * epochs // 3) if epochs >= 3 else ()
    return Recipe(epochs=epochs, batch_size=128, milestones=milestones, gamma=1 / 3, momentum=0.9, **options)


def train(
    *,
    hidden: Annotated[int, Option("Hidden layers of the full network; each may be left out later.", least=0)] = 2,
    epochs: Annotated[int, Option("Passes over the training images; the paper uses 600.", least=1)] = 60,
) -> Build:
    """Train NSN: a multi-layer perceptron that can lose its first layers (Fuengfusin and Tamukoh 2019)."""

    def build(images: Dataset) -> tuple[Nested, Recipe]:
        inputs = images.train.images[0].numel()
        return network(hidden, inputs=inputs, classes=len(images.classes)), recipe(hidden, epochs=epochs)

    return build


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """Train the paper's networks (tables 1 to 3) and print its numbers beside ours. Stop and go on at will."""

    only: Annotated[list[str] | None, Option("An experiment; may be given several times.")] = None
    epochs: Annotated[int, Option("Passes over the training images.", least=1)] = 600

    def __post_init__(self) -> None:
        for name in self.names:
            known("NSN", name, EXPERIMENTS)

    @property
    def names(self) -> Sequence[str]:
        """Those that are wanted."""
        return self.only or EXPERIMENTS[:5]

    @property
    def settings(self) -> dict[str, Any]:
        """What a summary says of them."""
        return {"epochs": self.epochs}

    def build(self, name: str, images: Dataset, finished: Callable[[str], Path]) -> tuple[Nested, Recipe]:
        """Network and recipe of one."""
        inputs = images.train.images[0].numel()
        return experiment(name, epochs=self.epochs, inputs=inputs, classes=len(images.classes))

    def facts(self, trained: Trained) -> dict[str, Any]:
        """The members, and the accuracies that stand beside those of the authors' run."""
        return {
            "models": [f"model{member.stages}" for member in trained.net.grid],
            "curve": {epoch.epoch: epoch.test for epoch in trained.history if epoch.epoch in AUTHORS_RUN},
        }


def tables(found: Runs) -> "list[Table]":
    """Tables 1 to 3 with ours beside them, the curve against the authors' run, and the ways to mix gradients."""
    first = {experiment: some[0] for experiment, some in found.items()}  # seed
    titles = {1: "Table 1: references", 2: "Table 2: model0-1", 3: "Table 3: model0-1-2"}
    tables = []
    for number, title in titles.items():
        ours = (f"ours,\n{epoch}" for epoch in ("best on test", "chosen on validation", "last epoch"))
        table = narrow(title, "model", "paper", *ours)
        rows = [row for row in ROWS if row.table == number]
        for row in rows:
            table.add_row(row.model, f"{row.test_accuracy:.4f}", *_ours(first.get(row.experiment), row.hidden))
        runs = {row.experiment: first[row.experiment] for row in rows if row.experiment in first}
        how = [f"{name}: {run['data']}, {run['epochs']} epochs, {run['precision']}." for name, run in runs.items()]
        other = any(run["data"] != PAPER.data[0] for run in runs.values())
        table.caption = " ".join([*how, "The paper's are of MNIST."] if other else how) or None
        tables.append(table)
    main = first.get("model0-1-2")
    if main is not None:
        curve = narrow("model0-1-2 while training: test accuracy of model0 / 1 / 2", "epoch", "authors' run", "ours")
        for epoch, theirs in AUTHORS_RUN.items():
            ours = main["curve"].get(str(epoch))
            curve.add_row(str(epoch), _slashed(theirs), _slashed(ours) if ours else "–")
        tables.append(curve)
    mixes = {name: first[name] for name in ("model0-1-2", "joint", "distilled") if name in first}
    if len(mixes) > 1:
        ways = narrow("Ways to share gradients, last epoch", "experiment", "epochs", "model0 / 1 / 2")
        for name, summary in mixes.items():
            ways.add_row(name, str(summary["epochs"]), _slashed(summary["protocols"]["last"]["test"]))
        tables.append(ways)
    return tables


def _ours(summary: Run | None, hidden: int) -> list[str]:
    if summary is None:
        return ["–"] * 3
    place = summary["models"].index(f"model{hidden}")
    rows = (summary["protocols"][name] for name in ("best_test", "validation", "last"))
    return [f"{row['test'][place]:.4f} (epoch {row['epoch']})" for row in rows]


def _slashed(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.4f}" for value in values)


PAPER = Paper(
    name="nsn",
    title="Network with Sub-Networks (Fuengfusin and Tamukoh 2019, arXiv 1908.00763)",
    data=("mnist",),
    train=train,
    experiments=Experiments,
    tables=tables,
    at_hand="digits",
    folder="{name}",
    examples=("--data mnist --epochs 600 --out runs/nsn-mnist", "--only model0-1-2 --epochs 600"),
)
