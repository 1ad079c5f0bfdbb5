"""A finished training run, or a family that ships with the package: what the commands work on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from telescopic.bundle.header import BundleError, find, read_catalogue
from telescopic.catalogue.table import Catalogue
from telescopic.files import CATALOGUE, MODEL

if TYPE_CHECKING:
    from telescopic.bundle import Bundle
    from telescopic.data import Dataset, Preprocess
    from telescopic.inputs import Tensors
    from telescopic.nested import Nested
    from telescopic.train import History

# What needs torch is imported where it is used, for choosing a member does not.


@dataclass(frozen=True)
class Source:
    """Where a command finds a trained family.

    Attributes:
        name: as the user calls it.
        path: the file of its bundle.
        measured: the catalogue in the bundle, if it has one.
        folder: the folder of its run, if it has one.
    """

    name: str
    path: Path
    measured: Catalogue | None
    folder: Path | None = None

    @classmethod
    def open(cls, name: str) -> "Source":
        """Find a run's folder, a bundle's file, or a family that ships with the package.

        Raises:
            BundleError: if there is none, or it is damaged, or the run has not finished.
        """
        folder = Path(name)
        if not folder.is_dir():
            path = find(name)
            return cls(name, path, read_catalogue(path))
        path = folder / MODEL
        if not path.exists():
            from telescopic.train.result import unfinished

            raise BundleError(unfinished(folder))
        return cls(name, path, read_catalogue(path), folder)

    @cached_property
    def bundle(self) -> "Bundle":
        """The network and what is known of it."""
        from telescopic.bundle import Bundle

        return Bundle.open(self.path)

    def network(self) -> "Nested":
        """The network.

        Raises:
            BundleError: if the bundle holds a plain module, which has no members to choose from.
        """
        from telescopic.nested import Nested

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
        if self.measured is None:
            raise BundleError(f"{self.name} was saved without a catalogue: measure it with telescopic.measure")
        return self.measured

    def timed(
        self, *, batch: int = 1, threads: int | None = None, progress: Callable[[str, int, int], None] | None = None
    ) -> Catalogue:
        """The catalogue with latencies of this machine, measured now if need be, and then kept in the folder."""
        catalogue = self.catalogue()
        if catalogue.latency_is_from_here(batch=batch, threads=threads):
            return catalogue
        from telescopic.catalogue import measure_latency

        catalogue = measure_latency(self.network(), catalogue, batch=batch, threads=threads, progress=progress)
        if self.folder is not None:
            catalogue.to_json(self.folder / CATALOGUE)
            catalogue.to_csv((self.folder / CATALOGUE).with_suffix(".csv"))
        return catalogue

    def history(self) -> "History | None":
        """What training has seen, if the run's folder is there."""
        from telescopic.train.checkpoint import read_history
        from telescopic.train.keeper import LAST

        if self.folder is None or not (self.folder / LAST).exists():
            return None
        return read_history(self.folder / LAST)

    def samples(self, number: int = 64, data_dir: str | None = None) -> "tuple[Tensors, str]":
        """Inputs `[number, ...]` to compare exported files on, such as images uint8, and what they are.

        They are test examples of the data it learned if those are on this machine, else random ones.

        Raises:
            BundleError: if the bundle does not know the shape of its inputs.
        """
        import torch

        from telescopic import data as datasets
        from telescopic.inputs import examples, shape_of

        shape = self.bundle.input_shape
        if shape is None:
            raise BundleError(f"{self.name} was saved without input_shape, so there are no inputs to compare on")
        name = self.bundle.provenance.get("data")
        if isinstance(name, str):
            try:
                test = datasets.load(name, data_dir=data_dir, size=self._size(name), download=False).test
                if shape_of(test.inputs) == shape:
                    return test[:number].inputs, f"test examples of {name}"
            except datasets.DataError:
                pass
        why = f"because {name or 'its data'} is not on this machine"
        if len(shape) != 3 or not all(isinstance(size, int) for size in shape):
            return examples(number, shape, torch.float32, "cpu"), f"random inputs, {why}"
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (number, *shape), generator=generator).to(torch.uint8), f"random images, {why}"

    def data(self, name: str | None = None, data_dir: str | Path | None = None) -> "Dataset":
        """The data it learned, with the training and validation images that its run had.

        A data set that was made of tensors in a program cannot be had again by its name.

        Args:
            name: of the data set, or its path; by default what the bundle says.
            data_dir: see `telescopic.data.load`.

        Raises:
            ValueError: if the bundle does not say what it learned, or takes images of another shape.
            DataError: if the data cannot be had, or what goes by their name is not what it learned.
        """
        from telescopic import data as datasets
        from telescopic.data import DataError

        known = self.bundle.provenance
        learned = known.get("data")
        wanted = name or learned
        if not isinstance(wanted, str):
            raise ValueError(f"{self.name} does not say what data it was trained on: name them with --data")
        seed, number = known.get("seed"), known.get("validation_images")  # these have chosen the validation images
        number = number if type(number) is int and wanted == learned else None
        try:
            # The seed of a program of the user's own need not be that of its validation images.
            for one in dict.fromkeys((seed if type(seed) is int else 0, 0)):
                loaded = datasets.load(wanted, data_dir=data_dir, validation=number, size=self._size(wanted), seed=one)
                same = name is not None or known.get("images") in (None, loaded.fingerprint)
                if same:
                    break
            if not same:
                raise DataError(f"{loaded.source} has other images now, or they were divided in another way")
        except DataError as error:
            if name is not None:
                raise
            raise DataError(f"{self.name} learned {wanted!r}: {error}; or name the data with --data") from error
        if self.bundle.input_shape not in (None, loaded.input_shape):
            raise ValueError(f"{self.name} takes images of shape {self.bundle.input_shape}, not {loaded.input_shape}")
        return loaded

    def _size(self, name: str) -> Any:
        """To what the images of a folder were brought; None for any other data."""
        from telescopic.data import names

        shape = self.bundle.input_shape
        if not isinstance(shape, tuple) or len(shape) != 3 or name in names():
            return None
        return shape[1:] if Path(name).expanduser().is_dir() else None

    def preprocess(self) -> "Preprocess":
        """From pixels to the network's input."""
        from telescopic.data import Preprocess

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
