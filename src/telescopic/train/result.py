"""What a finished run leaves beside its checkpoints: the network as a bundle, and the catalogue of its members."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telescopic.architecture import describe
from telescopic.bundle import Bundle, BundleError, save
from telescopic.catalogue import Catalogue, measure
from telescopic.data import Dataset, prepared
from telescopic.files import CATALOGUE as CATALOGUE
from telescopic.files import MODEL as MODEL
from telescopic.nested import Nested
from telescopic.provenance import commit
from telescopic.shrink.family import filters, fold_family
from telescopic.statistics import warn_of_unseen
from telescopic.tasks import Task
from telescopic.train.checkpoint import read_facts
from telescopic.train.history import Epoch, History
from telescopic.train.keeper import LAST
from telescopic.train.recipe import Recipe


class Result:
    """A run's bundle and catalogue, which are written at its end; whether they can be is found out at its start.

    What has learned its widths is kept without filters: an ordinary network. Scores are those that the history
    has of the epoch kept. A network that cannot be priced or described gets a warning, and is trained all the same.

    Args:
        net: the network.
        data: what it learns.
        recipe: how.
        task: what that is.
        out: the folder of the run.
        seed: of its random numbers.
        facts: more of them for the bundle's provenance.
    """

    def __init__(
        self,
        net: Nested,
        data: Dataset,
        recipe: Recipe,
        task: Task,
        out: Path,
        seed: int,
        facts: Mapping[str, Any],
    ) -> None:
        self.net, self.data, self.recipe, self.out = net, data, recipe, out
        self.facts = {
            **facts,
            "data": data.name,
            "images": data.fingerprint,
            "validation_images": None if data.validation.loader is not None else len(data.validation),
            "seed": seed,
            "task": task.facts(),
            "recipe": recipe.to_dict(),
            "commit": commit(),
        }
        self.priced: Catalogue | None = None
        self.described = True
        try:
            plain = self._plain()
            self.priced = measure(plain, input_shape=data.input_shape)
        except ValueError as error:
            warnings.warn(f"the run in {out} will have no {MODEL} for the command line to open: {error}", stacklevel=3)
            return
        try:
            describe(plain)
        except ValueError as error:
            self.described = False
            warnings.warn(
                f"the command line will know only the catalogue of the run in {out}, not its network: {error}. Once "
                "that is mended, fit it again with resume=True, at any time",
                stacklevel=3,
            )

    def write(self, epoch: Epoch, history: History) -> None:
        """Write both, unless they are there already.

        Args:
            epoch: the one whose weights the network has.
            history: of the run.

        Raises:
            WriteError: if a file cannot be written.
            BundleError: if the network cannot be kept, which was not so before it was trained.
        """
        facts = {**self.facts, "epoch": epoch.epoch, "epochs": len(history), "precision": history.precision}
        if self.priced is None or self._stands(facts):
            return
        warn_of_unseen(self.net)
        plain = self._plain()
        priced = self.priced if plain is self.net else measure(plain, input_shape=self.data.input_shape)
        catalogue = priced.scored(history.metric, epoch.validation, epoch.test)
        catalogue.to_json(self.out / CATALOGUE)
        catalogue.to_csv((self.out / CATALOGUE).with_suffix(".csv"))
        save(
            plain,
            self.out / MODEL,
            catalogue,
            preprocess=self.recipe.preprocess,
            classes=self.data.classes,
            input_shape=self.data.input_shape,
            provenance=facts,
            architecture=self.described,
        )

    def _plain(self) -> Nested:
        """The network; a copy without filters if it has some."""
        if not filters(self.net):
            return self.net
        first = next(self.net.parameters())
        return fold_family(self.net, prepared(self.data.train[:2].inputs, self.recipe.preprocess, first))

    def _stands(self, facts: Mapping[str, Any]) -> bool:
        """Whether what is there is of this very state, and perhaps has latencies measured."""
        model, last = self.out / MODEL, self.out / LAST
        try:
            bundle = Bundle.open(model)
        except BundleError:
            return False
        newer = model.stat().st_mtime_ns >= last.stat().st_mtime_ns and (self.out / CATALOGUE).exists()
        same = all(bundle.provenance.get(key) == facts[key] for key in ("epoch", "epochs"))
        return newer and same and (bundle.architecture is not None) == self.described


def unfinished(folder: Path) -> str:
    """Why a folder has no bundle, and what to do about it."""
    if not (folder / LAST).exists():
        return f"{folder} is not the folder of a run: it has no {MODEL}"
    facts = read_facts(folder / LAST)
    done, wanted = facts["position"].epoch - 1, facts.get("recipe", {}).get("epochs", math.inf)
    how = "the same command with --resume, or telescopic.fit(..., resume=True)"
    if done < wanted:
        return f"the run in {folder} stopped after {done} of {wanted} epochs: {how} finishes it"
    return f"the run in {folder} has trained all of its {done} epochs, but has no {MODEL} yet: {how} writes it"
