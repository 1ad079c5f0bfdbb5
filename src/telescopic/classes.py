"""What can be known of a class from its own text, before there is a module of it."""

import ast
import inspect
import textwrap
from weakref import WeakKeyDictionary

from torch import nn

_PARSED: WeakKeyDictionary[type[nn.Module], ast.Module] = WeakKeyDictionary()  # keeps no class from being forgotten


def drops(cls: type[nn.Module], argument: str) -> bool:
    """Whether a class can be seen, from its own text, to keep no attribute of an argument's name.

    False where that cannot be known: the text is not at hand, or `self` is handed to something that might set it.
    """
    if hasattr(cls, argument) or (hasattr(cls, "__getattr__") and cls.__getattr__ is not nn.Module.__getattr__):
        return False
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        if argument in getattr(base, "__annotations__", {}):
            return False
        try:
            tree = _parsed(base)
        except (OSError, TypeError, SyntaxError):
            return False
        plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).endswith((".__init__", "super")):  # that of a base, which is looked at too
                plain |= {id(given) for given in call.args}
        for node in ast.walk(tree):
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == argument
            named = isinstance(node, ast.Constant) and node.value == argument  # register_buffer("size", ...)
            handed = isinstance(node, ast.Name) and node.id == "self" and id(node) not in plain
            if stored or named or handed or (isinstance(node, ast.Attribute) and node.attr == "__dict__"):
                return False
    return True


def _parsed(cls: type[nn.Module]) -> ast.Module:
    """A class's own text, for which Python reads all of its file."""
    if cls not in _PARSED:
        _PARSED[cls] = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return _PARSED[cls]
