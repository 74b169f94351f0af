"""What all tables for people share: a console that writes text, facts, columns that never cut."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ckptforensics.errors import one_line
from ckptforensics.render.view import Fact, Part, Rows, Sentence, View

# Width of tables written to a file or pipe, where nothing says how wide the reader's screen is.
_PIPE_WIDTH = 100
_LEAST_COLUMNS = 2
# Of the column of names of facts.
_NAME_WIDTH = 14
_UNBOUNDED = 10_000


class _TableConsole(Console):
    """A console that knows whether somebody said how wide its reader's screen is.

    With `parts` it also collects what is printed, as its parts.
    """

    def __init__(self, *, fits: bool, parts: list[Part] | None, **how: Any) -> None:
        super().__init__(**how)
        self.fits = fits
        self.parts = parts


def make_console(view: View) -> Console:
    """A console that collects its text for `text_of`."""
    return _TableConsole(
        fits=view.width is not None,
        parts=view.parts,
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
    """Print a name and a value, in several lines where the screen needs them."""
    _keep(console, Fact(name.strip(), value))
    first, *more = _lines(console, one_line(value), _NAME_WIDTH) or [""]
    console.print(Text(f"{name:<{_NAME_WIDTH}}").append(first, style=style), soft_wrap=True)
    for line in more:
        console.print(Text(" " * _NAME_WIDTH).append(line, style=style), soft_wrap=True)


def say(console: Console, text: str, *, begin: str = "", style: str = "") -> None:
    """Print a sentence, in several lines where the screen needs them.

    Parameters
    ----------
    begin : stands before the first line; the others are indented by it
    """
    text = one_line(text)
    _keep(console, Sentence(text, bool(begin)))
    for line in _lines(console, text, len(begin)):
        console.print(Text(f"{begin}{line}", style=style), soft_wrap=True)
        begin = " " * len(begin)


def _keep(console: Console, part: Part) -> None:
    parts = getattr(console, "parts", None)
    if parts is not None:
        parts.append(part)


def _rows(table: Table) -> Rows:
    headers = tuple(str(column.header).strip(" :") for column in table.columns)
    numbers = tuple(column.justify == "right" for column in table.columns)
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return Rows(headers, numbers, tuple(zip(*cells, strict=True)))


def _lines(console: Console, text: str, indent: int) -> list[str]:
    """The text in lines that fit behind an indent; a word that is longer stays whole."""
    if not getattr(console, "fits", False):
        return [text]
    from textwrap import wrap

    width = max(1, console.width - indent)
    return wrap(text, width, break_long_words=False, break_on_hyphens=False)


def make_table(*columns: str) -> Table:
    """A table with these headers; columns of names may fold, those of numbers may not."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    words = {
        *("family", "model_type", "GGUF", "prefix", "tensor", "use", "file"),
        *("fingerprint", "explosion", "decay", "model", "test", "rounding"),
        *("dtype", "dtypes", "shape", "shapes", "checkpoint", "header digest", "findings", "state"),
    }
    for name in columns:
        # Names fold rather than vanish in a narrow terminal; numbers must not.
        if name in words or name.startswith("verified"):
            table.add_column(name, overflow="fold")
        else:
            justify: JustifyMethod = "left" if ":" in name else "right"
            table.add_column(name, justify=justify, no_wrap=True)
    return table


def print_table(console: Console, table: Table, least: Sequence[str] = ()) -> None:
    """Print a table in which no name and no number is broken.

    Words fold at blanks. A screen that is too narrow for that loses columns, those of the headers
    `least` and then from the right, all but two, and is told which.
    """
    for column in table.columns:
        # Names come from the input.
        column.header = one_line(str(column.header))
        column._cells = [one_line(c) if isinstance(c, str) else c for c in column._cells]
    _keep(console, _rows(table))
    for column in table.columns:
        longest = max(len(str(cell)) for cell in (column.header, *column.cells))
        words = [len(word) for cell in (column.header, *column.cells) for word in str(cell).split()]
        column.min_width = longest if column.no_wrap else max(words, default=0)
    lost = _drop_columns(table, console.width, least) if getattr(console, "fits", False) else []
    natural = Measurement.get(console, console.options.update(max_width=_UNBOUNDED), table)
    terminal, needed = console.width, _needed(table)
    console.width = max(min(needed, natural.maximum), min(natural.maximum, terminal))
    console.print(table)
    console.width = terminal
    if lost:
        told = f"(too narrow for: {'; '.join(lost)}; JSON has all)"
        console.print(Text(told), soft_wrap=True)


def _drop_columns(table: Table, width: int, least: Sequence[str]) -> list[str]:
    """Take columns away until the others fit; the names of those taken."""
    headers = [str(column.header) for column in table.columns]
    order = [*least, *(name for name in reversed(headers) if name not in least)]
    lost: set[str] = set()
    while len(table.columns) > _LEAST_COLUMNS and _needed(table) > width:
        lost.add(order.pop(0))
        table.columns = [column for column in table.columns if str(column.header) not in lost]
    for place, column in enumerate(table.columns):
        column._index = place  # by which rich finds its width
    return [name for name in headers if name in lost]


def _needed(table: Table) -> int:
    """Width of the table at the least width of its columns."""
    _, right, _, left = table.padding
    return sum((column.min_width or 0) + left + right + 1 for column in table.columns) - 1
