"""A network is run, and every function of torch that it calls tells what becomes of its channels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from telescopic.ambient import on_cpu
from telescopic.inputs import each, first_line, leaves
from telescopic.layers.filter import Filter
from telescopic.nested import Nested
from telescopic.shrink.channels import INPUT, OUTPUT, Channels
from telescopic.shrink.example import Inputs
from telescopic.shrink.flow import Flow, alive, free, spread, varies
from telescopic.wrappers import called

Rule = Callable[["Watch", "Call"], Flow | Sequence[Flow] | None]
"""What a function or a layer does to channels: from a call to what its outputs are, or None if it cannot tell."""


_ESCAPES = {"__setitem__", "numpy", "__array__", "tolist", "data_ptr", "untyped_storage", "storage", "__dlpack__"}
"""What gives no tensor, but changes one or lets others read it."""


_PLAIN = (type(None), bool, int, float, str)


class Counted(int):
    """A number of channels, as a network asks a tensor for it, or what it divides and multiplies that by."""

    def __floordiv__(self, other: Any) -> Any:
        return _counted(int(self) // other)

    def __mul__(self, other: Any) -> Any:
        return _counted(int(self) * other)

    __rmul__ = __mul__


def _counted(number: Any) -> Any:
    """The same, as a size if it is a whole number; it may be any other, or a tensor or a list as long."""
    return Counted(number) if type(number) is int else number


class Unfollowed(ValueError):
    """A network makes tensors in a way that cannot be seen; says where."""


@dataclass(eq=False)
class Call:
    """A call of a function of torch or of a layer.

    Attributes:
        name: of the function, without underscores that say that it works in place, or of the layer's class.
        func: the function, or the layer.
        args: positional arguments.
        kwargs: others.
        out: what it returned.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Watch(TorchFunctionMode):
    """While it is active, every function that a network calls is noted in `channels`.

    Args:
        network: the network, in the mode in which it is to run.
        channels: where to note.
        functions: rules by name of the function.
        layers: rules by class of the layer; what it calls inside is not looked at.

    Raises:
        ValueError: if it is a family, of which only the full member would be seen.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: Channels,
        functions: dict[str, Rule],
        layers: dict[type[nn.Module], Rule],
    ) -> None:
        super().__init__()
        if isinstance(network, Nested) and len(network.grid) > 1:
            raise ValueError(
                f"this network has {len(network.grid)} members, and called as it is it runs one: use "
                "shrink.add_filters_to_family and shrink.fold_family, and give other functions shrink.Every(net)"
            )
        self.network, self.channels = network, channels
        self.functions, self.layers = functions, layers
        self.names = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}
        self.known: dict[int, tuple[Tensor, Flow]] = {}
        self.reached: set[int] = set()
        """Ids of the tensors that functions and layers with rules were given."""
        self.users: dict[int, list[str]] = {}
        """Paths of the modules that read a tensor, once for each function."""
        self.made: list[tuple[str, Tensor, Tensor]] = []
        """Path of a module, its first input and its output, call by call."""
        self._outside = "a tensor that is neither a parameter nor a buffer"
        self._inside: list[str] = []
        self._within: list[str] = []

    # What rules ask ---------------------------------------------------------------------------------------------------

    def knows(self, *tensors: Tensor | None) -> bool:
        """Whether all that are there are parameters or buffers."""
        return all(tensor is None or id(tensor) in self.names for tensor in tensors)

    def flow(self, tensor: Tensor) -> Flow:
        """What is known of a tensor."""
        if id(tensor) in self.known:
            return self.known[id(tensor)][1]
        if tensor.grad_fn is not None:
            raise Unfollowed(
                f"{self.where()} reads a tensor made by something that torch does not announce, such as a function of "
                "its own with a gradient of its own: register a rule for this layer with shrink.register_rule"
            )
        name = self.names.get(id(tensor))
        if name is None:
            return free(tensor.shape)
        wide = [d for d, size in enumerate(tensor.shape) if size > 1]
        if len(wide) > 1:
            reason = f"{name}, which {self.where()} uses in a way that is not known"
            for dim in range(tensor.ndim):
                self.channels.hold(self.channels.axis(name, tensor, dim), reason)
            return alive(self.channels.fixed(tensor.shape, reason))
        if not wide:
            return free(tensor.shape)
        return alive(spread(self.channels.axis(name, tensor, wide[0]), tensor.shape, wide[0]))

    def axis(self, tensor: Tensor, dim: int, ids: Tensor | None = None, groups: int = 1) -> Tensor:
        """The channels of an axis of a parameter or buffer; given some, they are the same ones."""
        return self.channels.axis(self.names[id(tensor)], tensor, dim, ids, groups)

    def work(self, ids: Tensor, macs: float) -> None:
        """Multiply-adds of one example that are shared evenly by channels; counted in eval mode, once."""
        if not self.network.training:
            self.channels.work(ids, macs)

    @property
    def path(self) -> str:
        """That of the layer that is running."""
        return self._inside[-1] if self._inside else ""

    def where(self) -> str:
        """The same, as messages call it."""
        return called(self.path, self.network.get_submodule(self.path))

    # What torch tells -------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, and find out what became of channels."""
        kwargs = kwargs or {}
        if self._within:
            return func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.reached.update(map(id, inputs))
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = func.__self__.__name__
        if name in ("shape", "size") and id(inputs[0]) in self.known:
            ids = self.known[id(inputs[0])][1].ids
            return self._sizes(out, ids, *args[1:], *kwargs.values()) if ids.shape == inputs[0].shape else out
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)) or name in _ESCAPES:
            self._note(Call(name.strip("_"), func, args, kwargs, out), inputs)
        return out

    def _sizes(self, out: Any, ids: Tensor, dim: Any = None) -> Any:
        """The sizes, or that of one dimension; those along which channels lie are told from others."""
        if isinstance(out, int):
            return Counted(out) if isinstance(dim, int) and varies(ids, dim) else out
        return torch.Size(Counted(size) if varies(ids, d) else size for d, size in enumerate(out))

    def _note(self, call: Call, inputs: list[Tensor]) -> None:
        """Keep what is known of the outputs of a call, and of its inputs."""
        for tensor in inputs:
            self.users.setdefault(id(tensor), []).append(self.path)
            if id(tensor) not in self.known and id(tensor) not in self.names and tensor.is_leaf and tensor.numel() > 1:
                self.known[id(tensor)] = (tensor, alive(self.channels.fixed(tensor.shape, self._outside)))
        outs = [leaf for leaf in tree_leaves(call.out) if isinstance(leaf, Tensor)]
        concerned = [t for t in inputs if id(t) in self.known or id(t) in self.names or t.grad_fn is not None]
        if not concerned:
            flows: Sequence[Flow] = [free(out.shape) for out in outs]
        else:
            with on_cpu():
                flows = self._rule(call, concerned, outs)
        for out, flow in zip(outs, flows, strict=True):
            self.known[id(out)] = (out, flow)

    def _rule(self, call: Call, inputs: list[Tensor], outs: list[Tensor]) -> Sequence[Flow]:
        """What the rule says; or, if there is none or it cannot be applied, that everything stays."""
        rule = self.layers[type(call.func)] if isinstance(call.func, nn.Module) else self.functions.get(call.name)
        why = "not known to treat each channel alone"
        try:
            found = None if rule is None else rule(self, call)
            flows = (found,) if isinstance(found, Flow) else found
            if flows is not None:
                if (said := [flow.shape for flow in flows]) != [out.shape for out in outs]:
                    raise ValueError(f"its rule says {said}")
                return flows
        except Unfollowed:
            raise
        except Exception as error:  # a use of the function that the rule does not know, or a rule of a user's
            why = f"not known to treat each channel alone when used like this ({first_line(error)})"
        return self._unknown(call, inputs, outs, why)

    def _unknown(self, call: Call, inputs: list[Tensor], outs: list[Tensor], why: str) -> list[Flow]:
        reason = f"{call.name} in {self.where()}, which is {why}"
        results = [self.channels.fixed(out.shape, reason) for out in outs]
        for tensor in inputs:
            ids = self.flow(tensor).ids
            self.channels.hold(ids, reason)
            for result in results:
                if result.shape == ids.shape:  # such as log_softmax
                    self.channels.lead(ids, result)
        return [alive(ids) for ids in results]

    # Which layer is running -------------------------------------------------------------------------------------------

    def enter(self, path: str, module: nn.Module, _: Any) -> None:
        """A module starts."""
        self._inside.append(path)
        if type(module) in self.layers or self._within:
            self._within.append(path)
            self.reached.update(map(id, module.parameters()))

    def leave(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A module ends."""
        if len(self._within) == 1:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if isinstance(module, Filter):
                self.channels.filters.setdefault(path, module)
            if all(isinstance(out, Tensor) and out is not t for t in inputs):
                self._note(Call(type(module).__name__, module, args, kwargs, out), inputs)
        if self._within:
            self._within.pop()  # not before: the rule calls functions too
        self._inside.pop()
        if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
            self.made.append((path, args[0], out))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While it holds, modules tell when they start and end."""
        with ExitStack() as hooks:
            for path, part in self.network.named_modules():
                hooks.enter_context(part.register_forward_pre_hook(partial(self.enter, path)))
                # First of its hooks: a layer has ended when the filter that is another of them starts.
                leave = partial(self.leave, path)
                hooks.enter_context(part.register_forward_hook(leave, prepend=True, with_kwargs=True))
            yield

    def run(self, inputs: Inputs) -> Any:
        """Run the network once."""
        given = () if callable(inputs) else tuple(each(torch.clone, x) for x in inputs)
        if callable(inputs):
            self._outside = INPUT
        for x in leaves(given):
            self.known[id(x)] = (x, alive(self.channels.fixed(x.shape, INPUT)))
        with self.hooked(), torch.enable_grad(), self:
            out = inputs(self.network) if callable(inputs) else self.network(*given)
        # A function need not return all that a training loop would read.
        unread = [t for t, _ in self.known.values() if id(t) not in self.users] if callable(inputs) else []
        for result in (*tree_leaves(out), *unread):
            if isinstance(result, Tensor):
                self.channels.hold(self.flow(result).ids, OUTPUT)
            elif not isinstance(result, _PLAIN):
                raise Unfollowed(
                    f"the network returns {type(result).__name__}, in which tensors cannot be found: return them alone "
                    "or in tuples, lists and dicts, or register the class with torch.utils._pytree"
                )
        return out
