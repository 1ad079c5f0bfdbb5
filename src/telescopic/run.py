"""A finished training run, or a family that ships with the package: what the commands work on."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telescopic import data as datasets
from telescopic.bundle import Bundle, BundleError, save
from telescopic.catalogue import Catalogue, measure, measure_latency
from telescopic.data import DataError, Dataset, Preprocess
from telescopic.nested import Nested
from telescopic.provenance import commit
from telescopic.shrink.family import fold_family
from telescopic.train import History, Recipe, fit
from telescopic.train.checkpoint import read_facts
from telescopic.train.keeper import LAST

MODEL, CATALOGUE = "model.safetensors", "catalogue.json"


def train(
    net: Nested, data: Dataset, recipe: Recipe, out: Path, *, method: str, seed: int, **options: Any
) -> Catalogue:
    """Train a network into a folder, measure every member, and leave the bundle and the catalogue there.

    Args:
        net: the network, initialised.
        data: what it learns.
        recipe: how.
        out: the folder of the run.
        method: name of the method, for the bundle's provenance.
        seed: see `telescopic.fit`.
        options: further options of `telescopic.fit`.

    Returns:
        The catalogue of the trained network: the epoch chosen on validation images. What has learned its widths is
        kept as it is after the last epoch, when it is smallest, and without filters.
    """
    if recipe.shrink is not None:
        options = {"keep": "last"} | options
    history = fit(net, data, recipe, out=out, seed=seed, **options)
    if recipe.shrink is not None:
        first = next(net.parameters())
        net = fold_family(net, recipe.preprocess(data.train.images[:2].to(first.device)).to(first.dtype))
    catalogue = measure(net, data, preprocess=recipe.preprocess)
    if int(os.environ.get("RANK", "0")) == 0:
        catalogue.to_json(out / CATALOGUE)
        catalogue.to_csv((out / CATALOGUE).with_suffix(".csv"))
        provenance = {
            "method": method,
            "data": data.name,
            "validation_images": len(data.validation),
            "seed": seed,
            "epoch": (history[-1] if options.get("keep") == "last" else history.best()).epoch,
            "epochs": len(history),
            "precision": history.precision,
            "recipe": recipe.to_dict(),
            "commit": commit(),
        }
        save(
            net,
            out / MODEL,
            catalogue,
            preprocess=recipe.preprocess,
            classes=data.classes,
            input_shape=data.input_shape,
            provenance=provenance,
        )
    return catalogue


@dataclass(frozen=True)
class Source:
    """Where a command finds a trained family.

    Attributes:
        name: as the user calls it.
        bundle: the network and what is known of it.
        folder: the folder of its run, if it has one.
    """

    name: str
    bundle: Bundle
    folder: Path | None = None

    @classmethod
    def open(cls, name: str) -> "Source":
        """Find a run's folder, a bundle's file, or a family that ships with the package.

        Raises:
            BundleError: if there is none, or it is damaged, or the run has not finished.
        """
        folder = Path(name)
        if not folder.is_dir():
            return cls(name, Bundle.open(name))
        if not (folder / MODEL).exists() and (folder / LAST).exists():
            done = read_facts(folder / LAST)["position"].epoch - 1
            raise BundleError(
                f"the run in {folder} stopped after {done} epochs: finish it with the same command and --resume"
            )
        if not (folder / MODEL).exists():
            raise BundleError(f"{folder} is not the folder of a run: it has no {MODEL}")
        return cls(name, Bundle.open(folder / MODEL), folder)

    def network(self) -> Nested:
        """The network.

        Raises:
            BundleError: if the bundle holds a plain module, which has no members to choose from.
        """
        net = self.bundle.network()
        if not isinstance(net, Nested):
            raise BundleError(f"{self.name} holds a plain module, not a nested network")
        return net

    def catalogue(self) -> Catalogue:
        """Every member measured: as last measured in the run's folder, or as the bundle has it.

        Raises:
            ValueError: if there is none, or the folder's is damaged.
        """
        if self.folder is not None and (self.folder / CATALOGUE).exists():
            return Catalogue.from_json(self.folder / CATALOGUE)
        if self.bundle.catalogue is None:
            raise BundleError(f"{self.name} was saved without a catalogue: measure it with telescopic.measure")
        return self.bundle.catalogue

    def timed(
        self, *, batch: int = 1, threads: int | None = None, progress: Callable[[str, int, int], None] | None = None
    ) -> Catalogue:
        """The catalogue with latencies of this machine, measured now if need be, and then kept in the folder."""
        catalogue = self.catalogue()
        if catalogue.latency_is_from_here(batch=batch, threads=threads):
            return catalogue
        catalogue = measure_latency(self.network(), catalogue, batch=batch, threads=threads, progress=progress)
        if self.folder is not None:
            catalogue.to_json(self.folder / CATALOGUE)
            catalogue.to_csv((self.folder / CATALOGUE).with_suffix(".csv"))
        return catalogue

    def history(self) -> History | None:
        """What training has seen, if the run's folder is there."""
        if self.folder is None or not (self.folder / LAST).exists():
            return None
        return History.from_dict(read_facts(self.folder / LAST)["history"])

    def samples(self, number: int = 64, data_dir: str | None = None) -> tuple[Tensor, str]:
        """Images uint8 `[number, channels, height, width]` to compare exported files on, and what they are.

        They are test images of the data it learned if those are on this machine, else random ones.

        Raises:
            BundleError: if the bundle does not know the shape of its images.
        """
        shape = self.bundle.input_shape
        if shape is None:
            raise BundleError(f"{self.name} was saved without input_shape, so there are no images to compare on")
        name = self.bundle.provenance.get("data")
        if isinstance(name, str):
            try:
                test = datasets.load(name, data_dir=data_dir, download=False).test
                if test.images.shape[1:] == shape:
                    return test.images[:number], f"test images of {name}"
            except DataError:
                pass
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (number, *shape), generator=generator).to(torch.uint8)
        return images, f"random images, because {name or 'its data'} is not on this machine"

    def data(self, name: str | None = None, data_dir: str | Path | None = None) -> Dataset:
        """The data it learned, with the training and validation images that its run had.

        Args:
            name: of the data set, or its path; by default what the bundle says.
            data_dir: see `telescopic.data.load`.

        Raises:
            ValueError: if the bundle does not say what it learned, or takes images of another shape.
            DataError: if the data cannot be had.
        """
        known = self.bundle.provenance
        learned = known.get("data")
        wanted = name or learned
        if not isinstance(wanted, str):
            raise ValueError(f"{self.name} does not say what data it was trained on: name them with --data")
        seed, number = known.get("seed"), known.get("validation_images")  # these have chosen the validation images
        loaded = datasets.load(
            wanted,
            data_dir=data_dir,
            validation=number if type(number) is int and wanted == learned else None,
            seed=seed if type(seed) is int else 0,
        )
        if self.bundle.input_shape not in (None, loaded.input_shape):
            raise ValueError(f"{self.name} takes images of shape {self.bundle.input_shape}, not {loaded.input_shape}")
        return loaded

    def preprocess(self) -> Preprocess:
        """From pixels to the network's input."""
        return self.bundle.preprocess or Preprocess()

    def facts(self) -> Mapping[str, str]:
        """Where it came from, to be shown."""
        facts = self.bundle.provenance
        recipe = facts.get("recipe") if isinstance(facts.get("recipe"), dict) else {}
        shown = {
            key: value
            for key, value in facts.items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)
        }
        told = dict(recipe or {})
        for part in (told, told.get("shrink")):
            values = dict(part) if isinstance(part, dict) else {}
            shown |= {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        versions = facts.get("versions")
        if isinstance(versions, dict):
            shown["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
        return {
            key.replace("_", " "): f"{value:g}" if isinstance(value, float) else str(value)
            for key, value in shown.items()
        }
