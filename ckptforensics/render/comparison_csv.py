"""A comparison as comma-separated values (RFC 4180), one row a pair and test."""

from __future__ import annotations

import csv
from io import StringIO

from ckptforensics.errors import one_line
from ckptforensics.render.view import View
from ckptforensics.results import ComparisonDocument, CriterionRecord, PairRecord

COLUMNS = (
    *("a", "b", "verdict", "relation", "direction", "distance_deg", "layer"),
    *("group", "test", "statistic", "log10_p", "floor", "invariant_to", "null"),
    *("seconds", "bytes_read", "skipped", "note"),
)
# A spreadsheet takes a cell that begins so as a formula; the last four are their full-width forms.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def comparison_csv(document: ComparisonDocument, view: View) -> str:
    """The pairs and their tests with the columns `COLUMNS`, lines ending in CR LF.

    A pair without tests has one row, whose columns of a test are empty, as is a value that is not
    known. Text is one line, unprintable characters spelled as escapes; text that a spreadsheet
    would run as a formula begins with an apostrophe. Texts of a list are separated by '; '.
    """
    out = StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for pair in document.pairs:
        for test in pair.tests or (None,):
            writer.writerow([*map(_cell, (*_pair(pair), *_test(test)))])
    return out.getvalue()


def _pair(pair: PairRecord) -> tuple[object, ...]:
    return (
        *(pair.a, pair.b, pair.verdict, pair.relation, pair.direction),
        *(pair.distance_deg, pair.layer),
    )


def _test(test: CriterionRecord | None) -> tuple[object, ...]:
    if test is None:
        return (None,) * 11
    return (
        *(test.group, test.name, test.statistic, test.log10_p, test.floor),
        *("; ".join(test.invariant_to), test.null),
        *(test.seconds, test.bytes_read, test.skipped, test.note),
    )


def _cell(value: object) -> object:
    """Numbers as they are, truth as in JSON, and text that is safe in a spreadsheet."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return "" if value is None else value
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
