"""Saving a network to one file, and loading all of it or one member."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from telescopic.ambient import plain
from telescopic.architecture import build, describe
from telescopic.bundle.header import FORMAT, BundleError, find, read_facts
from telescopic.catalogue.table import Catalogue
from telescopic.data import Preprocess
from telescopic.extract import joined
from telescopic.files import make_folder, replacing
from telescopic.inputs import plain_shape
from telescopic.layers.cuts import named_tensors
from telescopic.layers.slim import InWidth
from telescopic.nested import Nested
from telescopic.provenance import versions
from telescopic.shapes import Shape
from telescopic.subnet import Coordinates, Grid, Subnet
from telescopic.tensorfile import DTYPES, TensorFile, opened, write
from telescopic.tensorheader import Place
from telescopic.wrappers import copied, unwrapped


@dataclass(frozen=True)
class Bundle:
    """What a bundle says about itself; its tensors stay on disk until `network` or `member` is called.

    Attributes:
        path: the file.
        grid: its members. A plain module counts as a network of one stage, which has one.
        catalogue: the members measured, if they were.
        preprocess: from pixels to the network's input, if known.
        classes: names of the classes, in the order of the logits; empty if unknown.
        input_shape: shape of one input, without batch, if known; see `telescopic.cost`.
        provenance: where the network came from: versions, and what else was given on saving.
        architecture: the network as `telescopic.architecture.describe` writes it; None if it was left out on saving.
    """

    path: Path
    grid: Grid
    catalogue: Catalogue | None
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    input_shape: Shape | None
    provenance: dict[str, Any]
    architecture: Any

    @classmethod
    def open(cls, path_or_name: str | Path) -> "Bundle":
        """Read a bundle's header.

        Args:
            path_or_name: a file, or the name of a family that comes with the package, such as "nsn-mnist".

        Raises:
            BundleError: if there is no such file or family, or the file is damaged or of an unknown version.
        """
        path = find(path_or_name)
        with opened(path, BundleError) as file:
            facts = read_facts(file.document)
            if facts["preprocess"] is not None:
                facts["preprocess"] = Preprocess(*facts["preprocess"])
            return cls(path, **facts)

    @plain()
    def network(self, into: nn.Module | None = None) -> nn.Module:
        """The whole network, in eval mode: a `Nested`, or the plain module that was saved.

        Args:
            into: a network of the same architecture, which gets the tensors and is returned. Without it, one is built.

        Raises:
            BundleError: if the file is damaged, or does not fit the architecture or `into`.
        """
        with opened(self.path, BundleError) as file:
            net = self._fitting(file.places, into)
            return _filled(net, list(named_tensors(net)), file)

    @plain()
    def member(self, subnet: Subnet | None, into: nn.Module | None = None) -> nn.Module:
        """One member, as `extract` gives it; only its own parts' bytes are read from disk.

        Of the large tensors of a slim family, only the rows that it has are.

        Args:
            subnet: which one; parts left open take the full network's value.
            into: a nested network of the same architecture from which to extract; it is left as it is.

        Raises:
            BundleError: if there is no such member, or the file is damaged, or does not fit the architecture or `into`.
        """
        with opened(self.path, BundleError) as file:
            subnet = self.grid.resolve(subnet)
            net = self._fitting(file.places, into)
            if not isinstance(net, Nested):
                return _filled(net, list(named_tensors(net)), file)
            name = {id(tensor): name for name, tensor in named_tensors(net).items()}
            parts = nn.ModuleList(module for _, module in net.path(subnet))
            names = [name[id(tensor)] for tensor in named_tensors(parts).values()]
            # Of a slim family's large tensors a narrow member has the first rows; what `into` holds is whole.
            narrow = [part for part in parts if isinstance(part, InWidth)] if into is None else []
            rows = {id(tensor): number for part in narrow for tensor, number in part.rows()}
            filled = _filled(parts if into is None else copied(parts), names, file, rows)
            assert isinstance(filled, nn.ModuleList)
            try:
                return joined(net, list(filled), subnet.width).eval()
            except Exception as error:  # layers that a file has put together may raise anything when they are cut
                raise BundleError(f"{subnet} cannot be taken out of it: {error}") from error

    def _fitting(self, stored: Mapping[str, Place], into: nn.Module | None) -> nn.Module:
        """A network that the file's tensors fit, judging by the header alone."""
        if into is None and self.architecture is None:
            raise BundleError("it was saved without architecture: build the network yourself and load `into=` it")
        net = build(self.architecture, max_tensors=len(stored)) if into is None else into
        if isinstance(net, Nested) and net.grid != self.grid:
            raise BundleError(f"its grid is {self.grid!s:.200}, but the network's is {net.grid!s:.200}")
        tensors = named_tensors(net)
        if different := sorted(stored.keys() ^ tensors.keys()):
            where = "file" if different[0] in stored else "network"
            raise BundleError(f"{different[0]!r:.200} is only in the {where}")
        for name, tensor in tensors.items():
            place = stored[name]
            dtype = DTYPES.get(place.dtype)
            if place.shape != tuple(tensor.shape):
                raise BundleError(
                    f"{name!r:.200} has shape {list(place.shape)!s:.200}, but {list(tensor.shape)!s:.200} in the "
                    "network"
                )
            # What is built is float32; the file may hold what `.double()` or `.bfloat16()` made of it.
            either = into is None and tensor.is_floating_point() and dtype is not None and dtype.is_floating_point
            if dtype != tensor.dtype and not either:
                raise BundleError(f"{name!r:.200} is {place.dtype!r:.20}, but {tensor.dtype} in the network")
        return net


@plain()
def save(
    net: nn.Module,
    path: str | Path,
    catalogue: Catalogue | None = None,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] = (),
    input_shape: Shape | None = None,
    provenance: Mapping[str, Any] | None = None,
    architecture: bool = True,
) -> Path:
    """Write a network to one `.safetensors` file, atomically.

    Args:
        net: a nested network, or a plain module such as an extracted member.
        path: the file to write; an older one is replaced.
        catalogue: its members measured.
        preprocess: from pixels to the network's input.
        classes: names of the classes, in the order of the logits.
        input_shape: shape of one input, without batch; see `telescopic.cost`.
        provenance: where it came from, as JSON data: seed, commit, ... The versions of telescopic, torch and Python
            are added.
        architecture: False for a network of classes that cannot be registered; then it loads only `into=` a network
            built by the same program.

    Returns:
        The path.

    Raises:
        BundleError: if the network cannot be rebuilt from a file, or a fact cannot be written as JSON.
    """
    path = Path(path)
    try:
        net = unwrapped(net)
        grid = _grid_of(net, catalogue)
        document = {
            "format": FORMAT,
            "grid": {"entries": grid.entries, "exits": grid.exits, "widths": grid.widths},
            "architecture": describe(net) if architecture else None,
            "catalogue": None if catalogue is None else catalogue.to_dict(),
            "preprocess": preprocess and {key: list(map(float, value)) for key, value in asdict(preprocess).items()},
            "classes": list(classes),
            "input_shape": None if input_shape is None else plain_shape(input_shape),
            "provenance": {"versions": versions(), **(provenance or {})},
        }
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
        read_facts(text)  # what could not be read again must not be written
        make_folder(path.parent)
        with replacing(path) as temporary:
            write(temporary, named_tensors(net), text)
            with opened(temporary, BundleError):
                pass
    except (ValueError, TypeError, RuntimeError) as error:
        raise BundleError(f"cannot save {path}: {error}") from error
    return path


@plain()
def load(path_or_name: str | Path, subnet: Subnet | None = None, *, into: nn.Module | None = None) -> nn.Module:
    """Load a network, or one member of it, in eval mode and in the dtype in which it was saved.

    Args:
        path_or_name: a file, or the name of a family that comes with the package, such as "nsn-mnist".
        subnet: which member to load, as `extract` gives it, reading only its own bytes from disk; parts left open take
            the full network's value. None: the whole network.
        into: a network of the same architecture to use instead of building one from the file: it gets the tensors
            itself, or the member is extracted from it.

    Returns:
        A `Nested`, or the plain module that was saved; with `subnet`, an `nn.Sequential` of ordinary layers.

    Raises:
        BundleError: if there is no such file, family or member, or the file is damaged, of an unknown version, holds
            a class that is unknown here, or does not fit `into`.
    """
    bundle = Bundle.open(path_or_name)
    return bundle.network(into) if subnet is None else bundle.member(subnet, into)


def _filled(module: nn.Module, names: Sequence[str], file: TensorFile, rows: Mapping[int, int] = {}) -> nn.Module:
    """Read a module's tensors; `names` says in their order what the file calls each, `rows` by id which are cut."""
    read: dict[int, Tensor] = {}
    with torch.no_grad():
        for tensor, name in zip(named_tensors(module).values(), names, strict=True):
            stored = file.read(name, rows.get(id(tensor)))
            if not tensor.is_meta:
                tensor.copy_(stored)
            else:
                learned = isinstance(tensor, nn.Parameter)
                read[id(tensor)] = nn.Parameter(stored, tensor.requires_grad) if learned else stored
    # Not `load_state_dict(assign=True)`, after which stages that share parameters would each have their own.
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({key: read[id(tensor)] for key, tensor in held.items() if id(tensor) in read})  # type: ignore
    return module.eval()


def _grid_of(net: nn.Module, catalogue: Catalogue | None) -> Grid:
    """A plain module has one member: the one that its catalogue lists, if there is one."""
    if isinstance(net, Nested):
        return net.grid
    member = catalogue[0].subnet if catalogue else Coordinates(entry=0, exit=0, width=1)
    return Grid([member.entry], [member.exit], [member.width])
