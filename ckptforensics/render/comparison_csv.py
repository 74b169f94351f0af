"""A comparison as comma-separated values (RFC 4180), one row a pair and test."""

from __future__ import annotations

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results import ComparisonDocument, CriterionRecord, PairRecord

COLUMNS = (
    *("a", "b", "verdict", "relation", "direction", "strength", "distance_deg", "layer"),
    *("group", "test", "statistic", "log10_p", "floor", "invariant_to", "null"),
    *("seconds", "bytes_read", "skipped", "note"),
)


def comparison_csv(document: ComparisonDocument, view: View) -> str:
    """The pairs and their tests with the columns `COLUMNS`; see `csv_text`.

    A pair without tests has one row, whose columns of a test are empty. Texts of a list are
    separated by '; '.
    """
    rows = ((*_pair(pair), *_test(t)) for pair in document.pairs for t in pair.tests or (None,))
    return csv_text(COLUMNS, rows)


def _pair(pair: PairRecord) -> tuple[object, ...]:
    return (
        *(pair.a, pair.b, pair.verdict, pair.relation),
        *(pair.direction.arrow, pair.direction.strength),
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
