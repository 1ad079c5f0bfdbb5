"""A table of rich's as text and as HTML: what a catalogue or a history shows of itself. No torch."""

from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from telescopic.documents import printable

if TYPE_CHECKING:
    from rich.table import Table


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
