"""Tables of rich's: one without lines, and any as text and as HTML. No torch."""

from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from telescopic.documents import printable

if TYPE_CHECKING:
    from rich.table import Table


_WORDS = ("", "experiment", "family", "member", "model", "policy", "what answers")  # columns of words, not of numbers


def plain(*columns: str, no_wrap: bool = False, **options: Any) -> "Table":
    """A table without lines, for a narrow terminal.

    Args:
        columns: their heads.
        no_wrap: whether a cell is one line, whatever room there is.
        options: further ones of rich's `Table`.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, **options)
    table.title_justify = table.caption_justify = "left"
    for column in columns:
        justify: Any = "left" if column in _WORDS else "right"
        table.add_column(column, justify=justify, vertical="bottom", no_wrap=no_wrap)
    return table


def text(table: "Table") -> str:
    """As `print` shows it: no colours, no control characters that come from files."""
    from rich.console import Console

    console = Console(file=StringIO(), width=200, color_system=None, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(printable(line).rstrip() for line in captured.get().splitlines())


def html(table: "Table") -> str:
    """As a notebook shows it."""
    heads = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption>{escape(printable(str(table.caption)))}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
