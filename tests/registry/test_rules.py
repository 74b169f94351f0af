"""Rules, their pages and their table in the documents; what a policy makes of them."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from ckptforensics.errors import UsageError
from ckptforensics.registry.policy import Policy, read_policy
from ckptforensics.registry.rules.table import BY_ID, RULES, rule_records

DOCS = Path(__file__).resolve().parents[2] / "docs" / "audit.md"
SECTIONS = ["What", "Why it matters", "Evidence", "How to resolve", "False positives"]


def policy(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "ckpt.toml"
    file.write_text(text)
    return read_policy(file, frozenset(BY_ID))


def test_rules_are_numbered_without_a_gap():
    assert [rule.id for rule in RULES] == [f"CKPT{i:03}" for i in range(1, len(RULES) + 1)]
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_every_rule_has_a_page_with_all_sections(rule):
    title, *_ = rule.page.splitlines()
    assert title == f"# {rule.id}: {rule.name}"
    assert re.findall(r"^## (.*)$", rule.page, re.MULTILINE) == SECTIONS


def test_the_document_lists_every_rule():
    rows = [f"| {r.id} {r.name} | {r.severity} | {r.summary} |" for r in RULES]
    text = DOCS.read_text("utf-8")
    table = text[text.index("<!-- rules: begin -->") : text.index("<!-- rules: end -->")]
    assert [row for row in table.splitlines() if row.startswith("| CKPT")] == rows


def test_policy_of_the_document_is_one(tmp_path):
    text = DOCS.read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    read = policy(tmp_path, example)
    assert read.suppressions[0].expires == date(2027, 3, 1)
    assert not read.applies("CKPT014")
    assert read.trusts("org/base-1@abc")
    assert {r.id: r.severity for r in rule_records(read)}["CKPT009"] == "error"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ignore = [", "not valid TOML"),
        ("ignored = ['CKPT001']", "ignored"),
        ("ignore = ['CKPT999']", "no rule CKPT999"),
        ("ignore = ['x']", "ignore"),
        ("[severity]\nCKPT001 = 'grave'", "severity.CKPT001"),
        ("[severity]\nCKPT001 = 'error'\nCKPT777 = 'error'", "no rule CKPT777"),
        ("[[suppressions]]\nrule = 'CKPT001'\nmodel = 'x'\nexpires = 2026-01-01", "reason"),
        (
            "[[suppressions]]\nrule = 'CKPT001'\nmodel = 'x'\nreason = ''\nexpires = 2026-01-01",
            "reason",
        ),
        ("[[suppressions]]\nrule = 'CKPT001'\nmodel = 'x'\nreason = 'y'", "expires"),
        ("allowed_formats = ['pickle']", "allowed_formats"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_one_line(tmp_path, text, said):
    with pytest.raises(UsageError) as problem:
        policy(tmp_path, text)
    assert said in str(problem.value)
    assert "ckpt.toml" in str(problem.value)
    assert "\n" not in str(problem.value)
