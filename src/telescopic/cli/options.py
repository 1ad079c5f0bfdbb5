"""Commands made of a paper: the parameters of its functions are their options."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from telescopic import papers
from telescopic.quantities import numbers

if TYPE_CHECKING:
    from telescopic.papers import Listed, Paper


def group(
    name_of: "Callable[[Listed], str]",
    command: "Callable[[Paper], Any]",
    other: Callable[[str], Any] = lambda name: None,
) -> type[TyperGroup]:
    """Commands of the papers, each made when it is called: a list of them needs no torch.

    Args:
        name_of: what a paper's command is called.
        command: makes it.
        other: makes the command of a name that is no paper's, or None.
    """

    class Papers(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [name_of(listed) for listed in papers.LISTED]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if (found := other(cmd_name)) is not None:
                return found
            return next((_Late(listed) for listed in papers.LISTED if name_of(listed) == cmd_name), None)

    class _Late(TyperCommand):
        def __init__(self, listed: "Listed") -> None:
            super().__init__(name_of(listed), help=listed.about)
            self.listed = listed

        def make_context(self, *args: Any, **extra: Any) -> Any:
            return command(self.listed.paper()).make_context(*args, **extra)

    return Papers


def command(
    name: str, function: Callable[..., Any], run: Callable[..., None], *, first: tuple[str, ...], help: str, epilog: str
) -> Any:
    """A command that takes what a function does, and options of its own.

    Args:
        name: of the command.
        function: its parameters are keywords, each annotated with an `Option`.
        run: called with a dictionary for the function, and the command's own options, which its signature declares.
        first: which of these stand before the function's.
        help: what it does.
        epilog: what is said below.
    """
    theirs = inspect.signature(function).parameters
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    declared = [parameter for parameter in own if parameter.name in first]
    declared += [_declared(parameter) for parameter in theirs.values()]
    declared += [parameter for parameter in own if parameter.name not in first]

    def body(**given: Any) -> None:
        options = {name: _read(parameter, given.pop(name)) for name, parameter in theirs.items()}
        run(options, **given)

    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in declared])
    body.__signature__ = signature  # type: ignore[attr-defined]
    body.__annotations__ = {parameter.name: parameter.annotation for parameter in declared}
    app = typer.Typer(add_completion=False)
    app.command(name, help=help, epilog=epilog)(body)
    return typer.main.get_command(app)


def first_words(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring."""
    return inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0]


def _declared(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter as typer takes it; of a tuple, its text."""
    kind, option = get_args(parameter.annotation)
    default = parameter.default
    if _of_numbers(kind) is not None:
        kind, default = str | None, None if default is None else ",".join(map(str, default))
    told = typer.Option(help=option.help, min=option.least, max=option.most)
    return parameter.replace(annotation=Annotated[kind, told], default=default)


def _read(parameter: inspect.Parameter, value: Any) -> Any:
    kind, option = get_args(parameter.annotation)
    number = _of_numbers(kind)
    if number is None or value is None:
        return value
    wanted = f"{'whole ' * (number is int)}numbers such as {option.such_as}"
    return numbers(f"--{parameter.name.replace('_', '-')}", value, number, wanted)


def _of_numbers(kind: Any) -> Any:
    """The type of the numbers of a tuple, which may be optional; None for what is no tuple."""
    tuples = [one for one in (kind, *get_args(kind)) if get_origin(one) is tuple]
    return get_args(tuples[0])[0] if tuples else None
