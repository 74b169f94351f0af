"""The document that is made again from the catalog: the one that the audit wrote, every time."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from ckptforensics.registry.audit import add_models
from ckptforensics.registry.catalog.portable import export_catalog, import_catalog
from ckptforensics.registry.catalog.reader import CatalogReader
from ckptforensics.registry.catalog.snapshot import snapshot
from ckptforensics.registry.catalog.writer import open_writer
from ckptforensics.registry.live import LiveAudit, live_audit
from ckptforensics.registry.options import AuditOptions
from ckptforensics.results.audit import AuditDocument
from tests.support.catalogs import made_up, policy

ZOO = Path(__file__).resolve().parents[2] / "fixtures" / "zoo"
COUNT = 60


def live(catalog: Path, place: int = 0) -> LiveAudit:
    def read(db) -> LiveAudit:
        reader = CatalogReader(db)
        return live_audit(reader, reader.audits()[place])

    return snapshot(catalog, read)[0]


@pytest.fixture
def catalog(tmp_path) -> Path:
    return tmp_path / "models.db"


def odd(path: Path) -> dict[str, object]:
    """A policy in a folder whose name is not Unicode, of a day on which it had not expired."""
    given = policy().model_copy(update={"path": path / "caf\udce9" / "ckpt.toml"})
    return {"policy": given, "today": date(1999, 1, 1)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"neighbours": 0},
        {"neighbours": 1, "level": "thorough"},
        {"policy": policy()},
        {"weights": False},
    ],
)
def test_it_is_that_of_an_audit_with_these_options(options, catalog):
    written = made_up(catalog, COUNT, **options)
    assert written.coverage.pairs_left > 0
    assert live(catalog).document == written


def test_it_has_the_policy_of_its_day_wherever_that_lies(catalog, tmp_path):
    written = made_up(catalog, COUNT, **odd(tmp_path))
    assert any("suppresses nothing" in f.message for f in written.findings)
    assert not any("expired" in f.message for f in written.findings)
    assert live(catalog).document == written


def test_it_is_that_of_the_last_night(catalog):
    first = made_up(catalog, COUNT)
    known = frozenset(f.id for f in first.findings[::2])
    # What is gone, what is read again, and what a baseline knows.
    second = made_up(catalog, COUNT - 15, known=known)
    assert second.coverage.vanished == 15
    assert 0 < second.coverage.reused < COUNT
    assert any(f.known for f in second.findings)
    assert any(not f.checked for f in second.findings)
    assert live(catalog).document == second
    assert len(live(catalog).runs) == 2
    third = made_up(catalog, COUNT)
    assert live(catalog).document == third
    # Nothing is kept of the nights before.
    query = "SELECT count(settings_json), count(left_json) FROM runs"
    assert tuple(snapshot(catalog, lambda db: db.execute(query).fetchone())[0]) == (1, 1)


def test_what_is_added_or_imported_leaves_it_as_it_is(catalog, tmp_path):
    written = made_up(catalog, COUNT)
    add_models([str(ZOO / "seed0")], AuditOptions(catalog, weights=False))
    other = tmp_path / "other.db"
    add_models([str(ZOO / "seed1")], AuditOptions(other, weights=False))
    export_catalog(other, tmp_path / "roots.zip", names=())
    with open_writer(catalog) as writer:
        assert import_catalog(writer, tmp_path / "roots.zip") == 1
    assert live(catalog).document == written
    added = live(catalog, 1).document
    assert [model.state for model in added.models] == ["headers"]
    assert (added.findings, added.rules) == ((), ())
    assert "'ckpt audit' judges them" in added.coverage.not_read[0].reason


@pytest.mark.parametrize("kept", ["NULL", "'{}'", "'[]'", "'{\"policy\": 1}'", "'no JSON'"])
def test_what_an_audit_of_other_settings_found_is_shown_as_it_was_kept(kept, catalog):
    written = made_up(catalog, COUNT)
    with open_writer(catalog) as writer:
        writer._db.execute(f"UPDATE runs SET settings_json = {kept}, left_json = NULL")
    found = live(catalog).document
    assert set(found.findings) == set(written.findings)
    assert [m.name for m in found.models] == [m.name for m in written.models]
    assert found.rules == ()
    assert "another version" in found.coverage.not_read[0].reason


def test_a_part_has_the_coverage_of_its_models(catalog):
    whole = made_up(catalog, COUNT)
    seen = live(catalog)
    middle = len(seen.numbers) // 3
    parts = [seen.part(numbers) for numbers in (seen.numbers[:middle], seen.numbers[middle:])]
    for name in ("models", "signed", "unread", "files", "bytes", "reused"):
        assert sum(getattr(p.coverage, name) for p in parts) == getattr(whole.coverage, name)
    assert sum((p.models for p in parts), ()) == whole.models
    assert sum(len(p.findings) for p in parts) == len(whole.findings)
    assert all(p.rules == whole.rules and p.runs == whole.runs for p in parts)
    one = seen.part([seen.numbers[0]], findings=[])
    assert (len(one.models), one.findings) == (1, ())
    assert AuditDocument.model_validate(json.loads(one.model_dump_json())) == one
