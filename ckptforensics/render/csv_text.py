"""Comma-separated values (RFC 4180) that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from io import StringIO

from ckptforensics.errors import one_line

# A spreadsheet takes a cell that begins so as a formula; the last four are their full-width forms.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows under their columns, lines ending in CR LF.

    A value that is not known (None) is empty. Text is one line, unprintable characters spelled as
    escapes; text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    """Numbers as they are, truth as in JSON, and text that is safe in a spreadsheet."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return "" if value is None else value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
