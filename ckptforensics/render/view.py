"""How a result is to be shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Fact(NamedTuple):
    """A name and what is known of it."""

    name: str
    value: str


class Sentence(NamedTuple):
    """Words on a line of their own; `item` where they belong to a list."""

    text: str
    item: bool


class Rows(NamedTuple):
    """A table: its headers, which of its columns are numbers, and its cells."""

    headers: tuple[str, ...]
    numbers: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


# What tables for people are made of, in their order.
Part = Fact | Sentence | Rows


@dataclass(frozen=True)
class View:
    """What a renderer may heed besides the document.

    Attributes
    ----------
    verbose : show every row instead of the noteworthy ones (tables only)
    width : of the terminal in columns; None where there is none
    color : use ANSI styles
    parts : collects what a table is made of, for a page, which shows it in its own way
    """

    verbose: bool = False
    width: int | None = None
    color: bool = False
    parts: list[Part] | None = None
