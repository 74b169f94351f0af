"""A registry with lying cards and hostile entries: exactly the findings of the table, no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptforensics.registry.audit import audit
from ckptforensics.registry.options import AuditOptions
from ckptforensics.results.audit import AuditDocument
from tests.support import registry
from tests.support.families import cases_dense, cases_encoders, cases_layernorm, cases_llama
from tests.support.families.harness import build_model, save_model


def rules_of(document: AuditDocument) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {model.name: set() for model in document.models}
    for finding in document.findings:
        found[finding.model].add(finding.rule)
    return {name: sorted(rules) for name, rules in found.items()}


def expected(rows: tuple[registry.Row, ...]) -> dict[str, list[str]]:
    return {row.name: row.rules.split() for row in rows}


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> AuditDocument:
    folder = tmp_path_factory.mktemp("related")
    registry.build(folder / "models", registry.RELATED)
    options = AuditOptions(catalog=folder / "catalog.db", workers=2, neighbours=2)
    return audit([str(folder / "models")], options)


def test_models_that_are_related_or_say_so(related):
    assert rules_of(related) == expected(registry.RELATED)


def test_claims_have_their_verdicts(related):
    claims = {(m.name, c.parent): c for m in related.models for c in m.claims}
    assert claims["zoo/finetune", "zoo/seed0"].verdict == "confirmed"
    assert claims["lies/wrong-parent", "zoo/seed0"].verdict == "contradicted"
    assert claims["lies/other-root", "zoo/seed2"].verdict == "contradicted"
    assert claims["adapters/fits", "zoo/seed0"].verdict == "unverifiable"
    assert claims["adapters/orphan", "org/elsewhere"].verdict == "unverifiable"
    assert claims["lies/brand-new", "zoo/seed2"].verdict == "undeclared relative"
    assert claims["zoo/finetune", "zoo/seed0"].line == 3


def test_hostile_entries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry.build(tmp_path / "models", registry.HOSTILE)
    registry.ollama(tmp_path / "ollama")
    registry.huggingface(tmp_path / "hub")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    options = AuditOptions(catalog=tmp_path / "cat" / "catalog.db", workers=2, neighbours=0)
    sources = ["models", "ollama:ollama", "huggingface:hub"]
    document = audit(sources, options)
    stored = {name: rules.split() for name, rules in registry.STORED.items()}
    assert rules_of(document) == expected(registry.HOSTILE) | stored
    after = sorted(str(path) for path in tmp_path.rglob("*") if "cat" not in path.parts)
    assert [p for p in after if not p.endswith("cat")] == before, "something was written or run"


def test_a_process_that_takes_too_long_or_too_much_is_a_finding(tmp_path):
    registry.build(tmp_path / "models", registry.HOSTILE[:1])
    document = audit(
        [str(tmp_path / "models")], AuditOptions(catalog=tmp_path / "a.db", seconds=0.05)
    )
    assert document.models[0].state == "unread"
    (told,) = [f for f in document.findings if f.rule == "CKPT017"]
    assert "0.05 seconds" in told.message
    assert document.coverage.unread == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path):
    registry.build(tmp_path / "models", registry.HOSTILE[:1])
    (tmp_path / "models" / "honest" / "model.safetensors").chmod(0)
    document = audit([str(tmp_path / "models")], AuditOptions(catalog=tmp_path / "a.db"))
    assert document.models[0].state == "unread"


def test_models_of_ten_families_have_no_findings(tmp_path):
    cases = {}
    for module in (cases_llama, cases_dense, cases_layernorm, cases_encoders):
        for case in module.CASES:
            cases.setdefault(case.family, case)
    chosen = list(cases.items())[:: len(cases) // 10][:10]
    assert len(chosen) == 10
    for family, case in chosen:
        save_model(build_model(case), tmp_path / "models" / family, case)
    options = AuditOptions(catalog=tmp_path / "a.db", workers=2, neighbours=0)
    document = audit([str(tmp_path / "models")], options)
    assert {model.name: model.family for model in document.models} == {f: f for f, _ in chosen}
    assert document.coverage.signed == 10
    # Untrained towers and heads are cut at the size of a test, and nothing of them is damaged.
    assert rules_of(document) == {family: [] for family, _ in chosen}
