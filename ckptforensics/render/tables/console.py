"""What all tables for people share: a console that writes text, facts, columns that never cut."""

from __future__ import annotations

from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ckptforensics.errors import one_line
from ckptforensics.render.view import View

# Width of tables written to a file or pipe, where nothing says how wide the reader's screen is.
_PIPE_WIDTH = 100
_NARROWEST_NAMES = 12
_UNBOUNDED = 10_000


def make_console(view: View) -> Console:
    """A console that collects its text for `text_of`."""
    return Console(
        file=StringIO(),
        width=view.width or _PIPE_WIDTH,
        force_terminal=view.color,
        no_color=not view.color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def text_of(console: Console) -> str:
    """All that was printed, without blanks at the ends of lines, ending in a newline."""
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def fact(console: Console, name: str, value: str, style: str = "") -> None:
    """Print a line of a name and a value."""
    console.print(Text(f"{name:<14}").append(one_line(value), style=style), soft_wrap=True)


def make_table(*columns: str) -> Table:
    """A table with these headers; columns of names may fold, those of numbers may not."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    words = {
        *("family", "model_type", "GGUF", "prefix", "tensor", "use", "file"),
        *("fingerprint", "explosion", "decay", "model", "test", "rounding"),
        *("dtype", "dtypes", "shape", "shapes", "header digest"),
    }
    for name in columns:
        # Names fold rather than vanish in a narrow terminal; numbers must not.
        if name in words or name.startswith("verified"):
            table.add_column(name, overflow="fold")
        else:
            justify: JustifyMethod = "left" if ":" in name else "right"
            table.add_column(name, justify=justify, no_wrap=True)
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table at least so wide that no number is cut; a narrow terminal wraps its lines."""
    for column in table.columns:
        longest = max(len(str(cell)) for cell in (column.header, *column.cells))
        column.min_width = longest if column.no_wrap else min(longest, _NARROWEST_NAMES)
    natural = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table)
    _, right, _, left = table.padding
    needed = sum((column.min_width or 0) + left + right + 1 for column in table.columns) - 1
    terminal = console.width
    console.width = max(min(needed, natural.maximum), min(natural.maximum, terminal))
    console.print(table)
    console.width = terminal
