"""What a network is, as plain data: a module tree written as JSON values, without code, and built again from them."""

import inspect
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from telescopic.classes import drops
from telescopic.documents import MAX_PARTS, printable
from telescopic.layers import (
    CausalBatchNorm1d,
    CausalBatchNorm2d,
    CausalConv2d,
    CausalLinear,
    GlobalAvgPool2d,
    GradientScale,
    Residual,
    SharedHead,
)
from telescopic.layers.cuts import named_tensors
from telescopic.layers.filter import Filter, TokenFilter, attach_, attached
from telescopic.layers.narrowing import takes_width
from telescopic.layers.slim import Slim
from telescopic.nested import Nested
from telescopic.stock import STOCK
from telescopic.tensorfile import DTYPES
from telescopic.wrappers import is_compiled

MAX_DEPTH = 100
"""Most levels of modules and lists within each other."""
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class _Layer:
    """How one class is written and built: the names of its arguments, how to read them off and how to apply them."""

    cls: type[nn.Module]
    defaults: dict[str, Any]  # argument → the constructor's own value
    read: Callable[[Any, str], Any]
    make: Callable[..., nn.Module]
    plain: bool = False  # whether no argument is a module


def register_layer(cls: type[nn.Module], arguments: Iterable[str] | None = None) -> None:
    """Let networks that hold modules of a class be described, saved, and loaded again.

    A module is written as the class's name and its constructor's arguments, which are read from attributes of the
    same names: numbers, strings, booleans, None, modules, and lists of these (which come back as tuples). Call this in
    the program that saves and in the one that loads; a file never says what to import. Register only classes whose
    constructor may safely be called with any values, for a file of unknown origin chooses them.

    Args:
        cls: the class; its name, without its module, identifies it in files.
        arguments: names of the constructor's arguments to keep. Default: all of them.

    Raises:
        ValueError: if it is no class of modules, another class has this name, the constructor takes no such argument
            or one more that it needs, or it can be seen not to keep one as an attribute.
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ValueError(f"register a class of modules, not {cls!r:.80}")
    layer = _layer(cls, arguments)
    if arguments is None and (dropped := [name for name in layer.defaults if drops(cls, name)]):
        raise ValueError(
            f"{cls.__name__} does not keep its argument {dropped[0]!r}: give it an attribute of that name, so that it "
            "can be written; or name the arguments to keep, if the constructor can do without this one"
        )
    _LAYERS[_name(cls)] = layer


def _layer(cls: type[nn.Module], arguments: Iterable[str] | None) -> _Layer:
    known = _LAYERS.get(_name(cls))
    # The same definition may be run again (a notebook's cell), which makes a new class of the same name and place.
    if known and (known.cls.__module__, known.cls.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__name__} is already registered, as {known.cls.__module__}.{known.cls.__qualname__}")
    own = cls.__init__ is not nn.Module.__init__
    parameters = inspect.signature(cls).parameters if own else {}  # not the *args of torch's, which takes none
    names = tuple(parameters if arguments is None else arguments)
    if unknown := sorted(set(names) - set(parameters)):
        takes = ", ".join(parameters) or "none"
        raise ValueError(f"{cls.__name__} takes no argument {', '.join(unknown)}; it takes {takes}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in _MANY
        if name in names and parameter.kind in (*_MANY, parameter.POSITIONAL_ONLY):
            raise ValueError(f"{cls.__name__} takes {parameter}, which cannot be given by its name")
        if name not in names and needed:
            raise ValueError(f"{cls.__name__} cannot be built without its argument {name!r}: keep it too")
    return _Layer(cls, {name: parameters[name].default for name in names}, _argument, cls)


def describe(module: nn.Module) -> dict[str, Any]:
    """Write a module tree as JSON data, without its tensors.

    Args:
        module: a tree of the common `torch.nn` layers, `Nested`, and registered classes.

    Returns:
        `{"class": name, argument: value, ...}`. An argument equal to the constructor's default is left out.

    Raises:
        ValueError: if a class is unknown, or the description would not build a module with the same tensors.
    """
    names = {id(part): name or "the network" for name, part in module.named_modules()}
    if strange := [
        f"{name} is {t.dtype}" for name, t in named_tensors(module).items() if t.dtype not in DTYPES.values()
    ]:
        raise ValueError(f"{strange[0]}, a type that no file of ours can hold")
    description: dict[str, Any] = _describe(module, names)
    ours, built = ({n: tuple(t.shape) for n, t in named_tensors(m).items()} for m in (module, build(description)))
    if different := sorted(name for name in ours.keys() | built.keys() if ours.get(name) != built.get(name)):
        name = different[0]
        raise ValueError(
            f"{name} is {ours.get(name, 'absent')} here but {built.get(name, 'absent')} if the layers are built anew "
            "from their arguments: a layer was changed after its construction, or stands in two places"
        )
    return description


def build(description: Any, max_tensors: int = sys.maxsize) -> nn.Module:
    """Build a module from its description, on the meta device: it has shapes but no memory.

    Args:
        description: what `describe` returned, perhaps by way of JSON; it may come from anyone.
        max_tensors: how many tensors there are for it; if it wants more, building stops there.

    Raises:
        ValueError: if it is no description, names an unknown class, has arguments which that class refuses, or
            amounts to more than `MAX_PARTS` parts or `max_tensors` tensors.
    """
    with torch.device("meta"):
        return _Builder(max_tensors).module(description, "", 0)


def _name(cls: type[nn.Module]) -> str:
    """What a class is called in files. Ours have a prefix, so that users may have a Residual of their own."""
    return f"layers.{cls.__name__}" if cls.__module__.startswith("telescopic.layers.") else cls.__name__


def _describe(value: Any, names: dict[int, str]) -> Any:
    if isinstance(value, nn.Module):
        name, cls = names.get(id(value), "a module"), type(value)
        layer = _LAYERS.get(_name(cls))
        if is_compiled(value):
            raise ValueError(
                f"{name} is what torch.compile returned: have what that was given in its place, for which "
                "`module.compile()` does the same"
            )
        if layer is None or layer.cls is not cls:
            raise ValueError(
                f"{name} is a {cls.__qualname__}, a class that cannot be rebuilt from a file: {_first(cls)}save with "
                "architecture=False and load `into=` a network that you build yourself"
            )
        if len(value._forward_hooks) + len(value._forward_pre_hooks) > (attached(value) is not None):
            raise ValueError(
                f"{name} ({cls.__name__}) has hooks, which a file cannot keep, and which may change what it gives: "
                "remove them first, or save with architecture=False and load `into=` a network that has them"
            )
        if tensors := [key for key, held in vars(value).items() if isinstance(held, Tensor)]:
            raise ValueError(f"{name} holds the tensor {tensors[0]} as a plain attribute: make it a buffer")
        description = {"class": _name(cls)}
        if part := attached(value):
            description["filter"] = _describe(part, names)
        for key, default in layer.defaults.items():
            argument = layer.read(value, key)
            if type(argument) is not type(default) or argument != default:
                description[key] = _describe(argument, names)
        return description
    if isinstance(value, list | tuple):
        return [_describe(item, names) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"the argument {value!r} cannot be kept: only finite numbers, text, booleans, None, modules and "
                     "lists of these can")  # fmt: skip


def _first(cls: type[nn.Module]) -> str:
    """What to try first with an unknown class."""
    if issubclass(cls, LazyModuleMixin):
        return "call the network on an input once, or "
    if cls.__module__ == "torch.nn.utils.parametrize":
        return "make its weight an ordinary one with torch.nn.utils.parametrize.remove_parametrizations, or "
    if issubclass(cls, torch.fx.GraphModule) or _name(cls) in _LAYERS:  # made anew each time, or its name is taken
        return ""
    return f"call telescopic.register_layer({cls.__qualname__}) here and in the program that loads the file, or "


class _Builder:
    """Builds one description, and counts what it amounts to, so that a small text cannot ask for endless work."""

    def __init__(self, max_tensors: int) -> None:
        self.parts, self.tensors, self.max_tensors = 0, 0, max_tensors
        self.sizes: dict[int, int] = {}  # id of a module → the parts it amounts to

    def module(self, description: Any, where: str, depth: int) -> nn.Module:
        shown, before = where or "the network", self.parts
        self.spend(1)
        if not isinstance(description, dict) or not isinstance(name := description.get("class"), str):
            raise ValueError(f"the description of {shown} is no object with a class")
        if name == "layers.Filtered":
            raise ValueError(f"{shown} has its filter around it, as version 0.1.0 wrote it: have that version fold it")
        if name not in _LAYERS:
            raise ValueError(
                f"{shown} is a {name!r:.80}, a class unknown here: import the program that defines it and calls "
                "telescopic.register_layer (on the command line: --import FILE.py), or build the network yourself and "
                "load `into=` it"
            )
        layer = _LAYERS[name]
        given = {key: value for key, value in description.items() if key != "class"}
        behind = None if "filter" in layer.defaults else given.pop("filter", None)
        if unknown := sorted(given.keys() - layer.defaults.keys()):
            raise ValueError(f"{shown}: {name} takes no argument {unknown[0]!r:.80}")
        values = {key: self.value(value, f"{where}.{key}" if where else key, depth) for key, value in given.items()}
        if layer.plain and self.parts > before + 1:
            raise ValueError(f"{shown}: {name} takes no modules")
        try:
            if layer.cls is Nested:
                self.spend(self.multiplied(**values))
            built = layer.make(**values)
        except Exception as error:  # a constructor may raise anything at arguments that make no sense
            raise ValueError(f"{shown}: {name} refuses the arguments given: {_short(str(error))}") from error
        if behind is not None:
            part = self.value(behind, f"{where}.filter" if where else "filter", depth)
            if not isinstance(part, Filter) or hasattr(built, "filter"):
                raise ValueError(f"{shown}: {name} has something else than a filter behind it, or 'filter' of its own")
            attach_(built, part)
        self.sizes[id(built)] = self.parts - before
        self.tensors += layer.plain and sum(
            t is not None for t in (*built._parameters.values(), *built._buffers.values())
        )
        if self.tensors > self.max_tensors:
            raise ValueError(f"the network has more than the {self.max_tensors} tensors there are")
        return built

    def value(self, value: Any, where: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"the description has more than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            return self.module(value, where, depth + 1)
        if isinstance(value, list):
            return tuple(self.value(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} is {value}, no finite number")
        return value

    def spend(self, parts: int) -> None:
        self.parts += parts
        if self.parts > MAX_PARTS:
            raise ValueError(f"the network has more than {MAX_PARTS} modules and members")

    def multiplied(
        self, stages: Any, entries: Any, exits: Any, statistics: Any = None, groups: Any = 1, **_: Any
    ) -> int:
        """What `Nested` makes of its arguments: members, and with statistics per entry copies of stages for each."""
        places = sorted(entry for entry, _ in entries)
        parts = len(places) * len(exits) * (max(groups, 1) if isinstance(groups, int) else 1)
        if statistics not in (None, "shared"):
            heads = sum(self.sizes[id(head)] for _, head in exits)
            parts += 3 * heads * max(0, len(places) - 1)
            sizes = [self.sizes[id(stage)] for stage in stages]
            behind = [*list(accumulate(reversed(sizes)))[::-1], 0]  # stage → parts from there on
            parts += 3 * sum(behind[place] for place in places[1:] if 0 <= place < len(behind))
        held = [*stages, *(part for _, part in (*entries, *exits))]
        if any(takes_width(part) for part in held if isinstance(part, nn.Module)):  # and so what each width runs
            parts += 3 * sum(self.sizes[id(part)] for part in held) * (max(groups, 1) if isinstance(groups, int) else 1)
        return parts


def _argument(module: nn.Module, name: str) -> Any:
    """The value an argument had, from the attribute of its name."""
    if name in module._parameters:  # such as `bias`: the argument says whether there is one
        present = module._parameters[name] is not None
        # BatchNorm(affine=False) has neither weight nor bias, which does not mean that it was given bias=False.
        return present or module._parameters.get("weight", True) is None
    if not hasattr(module, name):
        raise ValueError(
            f"{type(module).__name__} does not keep its argument {name!r}: give it an attribute of that name, or "
            "leave it out of the arguments registered"
        )
    return getattr(module, name)


def _short(text: str) -> str:
    """One line that any terminal can show, whatever a file made an error quote."""
    return printable(text[:200]).replace("\n", " ") + " …" * (len(text) > 200)


def _part(net: Nested, name: str) -> Any:
    """The value of an argument of `Nested`, as lists and pairs."""
    if name == "stages":
        return list(net.stages)
    if name in ("entries", "exits"):
        return [(int(place), module) for place, module in getattr(net, name).items()]
    return getattr(net, name)


def _nested(stages: Any, entries: Any, exits: Any, **options: Any) -> Nested:
    return Nested(_parts(stages), _named_parts(entries), _named_parts(exits), **options)


def _parts(modules: Any) -> list[Any]:
    """The modules of a container, which torch would let be None too."""
    if strangers := [part for part in modules if not isinstance(part, nn.Module)]:
        raise ValueError(f"{strangers[0]!r:.80} is no module")
    return list(modules)


def _named_parts(pairs: Any) -> OrderedDict[Any, nn.Module]:
    named = OrderedDict(pairs)
    _parts(named.values())
    return named


def _children(module: nn.Module, _: str) -> Any:
    # Not `named_children`, which leaves out a module's second appearance.
    return list(module._modules.items())


_LAYERS: dict[str, _Layer] = {
    # All arguments of Nested, so that an option it gains is kept too.
    "Nested": _Layer(Nested, {n: p.default for n, p in inspect.signature(Nested).parameters.items()}, _part, _nested),
    "Sequential": _Layer(
        nn.Sequential, {"children": []}, _children, lambda children=(): nn.Sequential(_named_parts(children))
    ),
    "ModuleDict": _Layer(
        nn.ModuleDict, {"children": []}, _children, lambda children=(): nn.ModuleDict(_named_parts(children))
    ),
    "ModuleList": _Layer(
        nn.ModuleList, {"modules": []}, lambda held, _: list(held), lambda modules=(): nn.ModuleList(_parts(modules))
    ),
    **{
        _name(cls): _Layer(cls, {"channels": None}, lambda held, _: len(held.theta), cls, plain=True)
        for cls in (Filter, TokenFilter)
    },
}
for _classes, _arguments in STOCK:
    for _cls in _classes:
        # Older versions of torch lack an argument here and there, such as BatchNorm's bias.
        _kept = [name for name in _arguments if name in inspect.signature(_cls).parameters]
        _LAYERS[_cls.__name__] = replace(_layer(_cls, _kept), plain=True)
_LAYERS[_name(Residual)] = _layer(Residual, None)
_LAYERS[_name(Slim)] = _layer(Slim, None)
for _cls in (
    CausalBatchNorm1d,
    CausalBatchNorm2d,
    CausalConv2d,
    CausalLinear,
    GlobalAvgPool2d,
    GradientScale,
    SharedHead,
):
    _LAYERS[_name(_cls)] = replace(_layer(_cls, None), plain=True)
