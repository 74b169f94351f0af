"""A comparison as CSV: read back by the csv module, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest

from ckptforensics.render import render
from ckptforensics.render.comparison_csv import COLUMNS
from tests.support.comparisons import ODD_NAMES, TESTS, empty, several, two

HEADER = (
    "a,b,verdict,relation,direction,strength,distance_deg,layer,group,test,statistic,log10_p,floor,"
    "invariant_to,null,seconds,bytes_read,skipped,note\r\n"
)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_one_row_a_pair_and_test_with_the_values_of_the_document():
    document = several()
    found = rows(render(document, "csv"))
    expected = [(pair, test) for pair in document.pairs for test in pair.tests]
    assert len(found) == len(expected) == 6 * len(TESTS)
    for row, (pair, test) in zip(found, expected, strict=True):
        assert tuple(row) == COLUMNS
        assert (row["a"], row["b"], row["verdict"]) == (pair.a, pair.b, pair.verdict)
        assert row["relation"] == (pair.relation or "")
        assert row["direction"] == pair.direction.arrow
        assert row["strength"] == pair.direction.strength
        assert (row["group"], row["test"]) == (test.group, test.name)
        for name, value in (
            ("distance_deg", pair.distance_deg),
            ("statistic", test.statistic),
            ("log10_p", test.log10_p),
            ("seconds", test.seconds),
        ):
            assert (float(row[name]) if row[name] else None) == value
        assert row["floor"] == ("true" if test.floor else "false")
        assert row["invariant_to"].split("; ") == list(test.invariant_to)
        assert row["skipped"] == (test.skipped or "")


def test_lines_and_header_are_stable():
    text = render(two(), "csv")
    assert text.startswith(HEADER)
    assert text.count("\r\n") == text.count("\n") == 1 + len(TESTS)
    assert render(empty(), "csv") == HEADER


def test_a_pair_without_tests_has_a_row():
    (row,) = rows(render(two("not comparable", tests=()), "csv"))
    assert row["verdict"] == "not comparable"
    assert row["test"] == row["floor"] == row["seconds"] == ""


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1dcmd", "\t=cmd", "\r=cmd", "=cmd|' /C calc'!A0"],
)
def test_no_text_is_a_formula(name):
    (first, *_) = rows(render(two(a=name), "csv"))
    shown = name.replace("\t", "\\t").replace("\r", "\\r")
    formula = not name.startswith(("\t", "\r"))  # spelled out, these begin with a backslash
    assert first["a"] == ("'" + shown if formula else shown)


def test_negative_numbers_stay_numbers():
    found = {row["test"]: row["log10_p"] for row in rows(render(two(), "csv"))}
    assert found["gate rows"] == "-4229.6"


def test_odd_names_come_back_as_one_printable_line():
    text = render(several(ODD_NAMES), "csv")
    assert text.replace("\r\n", "").isprintable()
    assert {row["b"] for row in rows(text)} == {"'=cmd", '"quoted", twice', "\\x1b[31mred\\n"}
