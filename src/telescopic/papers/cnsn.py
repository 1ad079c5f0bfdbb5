"""CNSN: A Sub-Model Detachable Convolutional Neural Network (Fuengfusin and Tamukoh 2021).

Journal of Robotics, Networking and Artificial Life 8, 52, doi 10.2991/jrnal.k.210521.012.

A VGG-16 for 32 × 32 pixels that can lose its first 2 or its first 7 convolutions: the image then enters through a
step-down convolution, which brings it to the shape that the next layer expects. All members are trained together by
the multi-model loss, a linear combination of their losses.

The paper's table has the names of its sub-models swapped against its text, so they are called here by what they skip.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from torch import nn

from telescopic.catalogue import Catalogue
from telescopic.data import Augment, Dataset, Preprocess
from telescopic.layers import step_down, strided_stem
from telescopic.layers.adapters import Adapter
from telescopic.nest import nest
from telescopic.nested import Nested
from telescopic.networks import vgg
from telescopic.papers.paper import Build, Option, known
from telescopic.quantities import human, numbers, one_of
from telescopic.subnet import Statistics
from telescopic.train import Recipe
from telescopic.train.result import CATALOGUE, MODEL


@dataclass(frozen=True)
class Row:
    """One line of the paper's table: accuracy of the best epoch on the test images, and billions of multiply-adds."""

    model: str
    entry: int
    test_accuracy: float
    gmacs: float
    weight_decay: float


ROWS = (
    Row("entry=7", 7, 0.7738, 0.124, 6e-4),
    Row("entry=2", 2, 0.9115, 0.275, 6e-4),
    Row("base", 0, 0.9267, 0.314, 6e-4),
    Row("baseline", 0, 0.9316, 0.314, 6e-3),
)
"""Table 1. The baseline is the same network trained alone."""


def network(
    *,
    entries: Sequence[int] = (2, 7),
    scale: float = 1.0,
    classes: int = 10,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    adapter: Adapter = step_down,
    statistics: Statistics = "shared",
) -> Nested:
    """The paper's network: VGG-16 with BatchNorm, of which the first convolutions may be left out (section 3).

    Args:
        entries: convolutions that may be skipped, from the first; the paper's are 2 and 7.
        scale: multiplies the channels of all layers.
        classes: number of classes.
        input_shape: channels, height and width of an image: 32 pixels or more each way, and whole multiples of what the
            entries' step-downs reduce them to.
        adapter: what stands at the later entries: `layers.step_down`, or `layers.strided_stem`, which is not the
            paper's.
        statistics: the paper shares BatchNorm's statistics; see `Nested` for better policies.

    Raises:
        ValueError: if an entry lies outside the network, or cannot be reached from this input.
    """
    base = vgg(16, classes, channels=input_shape[0], scale=scale)
    return nest(base, input_shape=input_shape, entries=entries, adapter=adapter, statistics=statistics)


def alone(net: Nested, entry: int) -> Nested:
    """A member of `network()` by itself, as an ordinary network with the same initial weights, to compare with."""
    stages: list[nn.Module] = list(net.stages[entry:])
    return Nested(stages, {0: net.entries[str(entry)]}, {len(stages) - 1: net.exits[str(net.grid.full.exit)]})


def recipe(*, epochs: int = 300, preprocess: Preprocess | None = None, baseline: bool = False) -> Recipe:
    """The paper's recipe (section 3): steps at 50, 100 and 150 of 300 epochs, and the mean of all losses.

    Eq. 1 is missing from the print; "a linear combination of losses" is taken as their mean. For other lengths the
    steps come after the same shares of the run.

    Args:
        epochs: passes over the training images.
        preprocess: mean and standard deviation of each channel.
        baseline: whether it is for the network trained alone, which has ten times the weight decay.
    """
    return Recipe(
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-2,
        warmup=1.0 if epochs > 1 else 0.0,
        milestones=tuple(sorted({max(1, epochs * k // 6) for k in (1, 2, 3)})),
        gamma=0.1,
        weight_decay=6e-3 if baseline else 6e-4,
        preprocess=preprocess or Preprocess(),
        augment=Augment(pad=4, flip=True),
    )


def short_recipe(*, epochs: int = 20, preprocess: Preprocess | None = None) -> Recipe:
    """A recipe for people without 300 epochs: one cycle of the learning rate, Nesterov, label smoothing, batch 128.

    Args:
        epochs: passes over the training images.
        preprocess: mean and standard deviation of each channel.
    """
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        schedule="one-cycle",
        warmup=epochs / 5,
        nesterov=True,
        weight_decay=5e-4,
        label_smoothing=0.1,
        preprocess=preprocess or Preprocess(),
        augment=Augment(pad=4, flip=True),
    )


RECIPES: Mapping[str, Callable[..., Recipe]] = {"paper": recipe, "short": short_recipe}
ADAPTERS: Mapping[str, Adapter] = {"step-down": step_down, "stem": strided_stem}
EXPERIMENTS: tuple[str, ...] = ("joint", "distilled", "stem", "stem-distilled")
EXPERIMENTS += ("alone-0", "alone-2", "alone-7", "alone-2-stem", "alone-7-stem")
"""What `experiment` builds: all members together, or one of them alone."""


def experiment(
    name: str,
    *,
    scale: float = 1.0,
    epochs: int | None = None,
    short: bool = False,
    preprocess: Preprocess | None = None,
    input_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
) -> tuple[Nested, Recipe]:
    """The network and recipe of one experiment.

    `joint` is the paper's; `distilled` lets the full network teach the others (half of their loss, at temperature 2);
    `stem` has a strided stem at each entry instead of the step-down convolution. `alone-2` is the member of entry 2 as
    a network of its own. Joint networks keep statistics per entry here, which changes none of their weights.

    Args:
        name: one of `EXPERIMENTS`.
        scale: see `network`.
        epochs: default: the recipe's own number.
        short: take `short_recipe` instead of the paper's.
        preprocess: mean and standard deviation of each channel.
        input_shape: see `network`.
        classes: number of classes.

    Raises:
        ValueError: if there is no such experiment.
    """
    known("CNSN", name, EXPERIMENTS)
    single = name.startswith("alone")
    adapter = strided_stem if "stem" in name else step_down
    net = network(scale=scale, classes=classes, input_shape=input_shape, adapter=adapter, statistics="per-entry")
    options: dict[str, Any] = {"preprocess": preprocess} | ({} if epochs is None else {"epochs": epochs})
    how = short_recipe(**options) if short else recipe(**options, baseline=single)
    if single:
        net = alone(net, int(name.split("-")[1]))
    return net, replace(how, distillation=0.5 if "distilled" in name else 0.0)


def train(
    *,
    entries: Annotated[tuple[int, ...], Option("How many first convolutions may be left out later.", such_as="2,7")] = (
        2,
        7,
    ),
    scale: Annotated[float, Option("Share of the paper's channels, e.g. 0.25.", least=0.01, most=4)] = 1.0,
    recipe: Annotated[str, Option("short (20 epochs, one cycle), or the paper's (300).")] = "short",
    epochs: Annotated[int | None, Option("Passes over the images. (default: the recipe's)", least=1)] = None,
    statistics: Annotated[str, Option("BatchNorm's: shared (the paper), per-entry, or recalibrated.")] = "per-entry",
    adapter: Annotated[str, Option("Where images enter: step-down (the paper), or stem.")] = "step-down",
    distillation: Annotated[
        float, Option("Share of a smaller member's loss that the full network teaches.", least=0, most=1)
    ] = 0.0,
    weights: Annotated[str, Option("Of the losses: mean, sum, or a number for each member, smallest first.")] = "mean",
) -> Build:
    """Train CNSN: a VGG-16 that can lose its first convolutions (Fuengfusin and Tamukoh 2021)."""
    one_of("recipe", recipe, RECIPES)
    one_of("adapter", adapter, ADAPTERS)
    one_of("statistics", statistics, get_args(Statistics))
    shares: tuple[float, ...] | None = None
    if weights not in ("mean", "sum"):
        shares = numbers("--weights", weights, float, "mean, sum, or a number for each member such as 0.2,0.3,0.5")

    def build(images: Dataset) -> tuple[Nested, Recipe]:
        channels, height, width = images.image_shape
        if min(height, width) < 32:
            raise ValueError(
                f"the images of {images.name} are {height} × {width} pixels, and VGG-16 takes 32 × 32 or more: pad "
                "them, say with numpy.pad, and give them as an .npz file; or train nsn, which takes any size"
            )
        net = network(
            entries=entries,
            scale=scale,
            classes=len(images.classes),
            input_shape=(channels, height, width),
            adapter=ADAPTERS[adapter],
            statistics=statistics,  # type: ignore[arg-type] # checked above
        )
        length = {} if epochs is None else {"epochs": epochs}
        how = RECIPES[recipe](**length, preprocess=Preprocess.fit(images.train))
        each = (1.0,) * len(net.grid) if weights == "sum" else shares
        return net, replace(how, weights=each, distillation=distillation)

    return build


def says(folder: Path) -> str:
    """What the file of all members takes, against what they would take by themselves (the paper's claim)."""
    table = Catalogue.from_json(folder / CATALOGUE)
    if len(table) == 1:
        return ""
    file, full, separate = (folder / MODEL).stat().st_size, table[-1].bytes, sum(member.bytes for member in table)
    kept = "" if table.statistics in (None, "shared") else ", their BatchNorm statistics"
    return (
        f"Storage: {human(file, 'B')} for all {len(table)} members in one file; {human(separate, 'B')} if each had "
        f"its own, {human(full, 'B')} for the largest alone.\n"
        f"The {human(file - full, 'B')} beyond the largest are the other entries' adapters{kept}, and a header."
    )
