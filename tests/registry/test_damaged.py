"""Catalogs that are damaged, or made to do something: told in one line that says what helps."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from ckptforensics.errors import FormatError
from ckptforensics.registry.catalog.snapshot import snapshot
from tests.support.catalogs import made_up
from tests.support.commands import ckpt
from tests.support.served import serving

SOON = 15.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "models.db"
    made_up(path, 24)
    return path


@pytest.fixture
def catalog(whole, tmp_path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "models.db"))


def changed(catalog: Path, script: str) -> None:
    with closing(sqlite3.connect(catalog)) as db:
        db.executescript(f"PRAGMA ignore_check_constraints = 1; {script}")
        db.commit()


def told(*words: object) -> str:
    """The one line with which a command ends."""
    done = ckpt(*words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("ckpt: error: "))
    return line


@pytest.mark.parametrize(
    ("table", "script"),
    [
        ("models", "UPDATE models SET reading_json = 'nan' WHERE id = 3"),
        ("models", "UPDATE models SET reading_json = x'ff00' WHERE id = 3"),
        ("models", "UPDATE models SET state = '<b>' WHERE id = 3"),
        ("models", "UPDATE models SET name = CAST(x'6fff' AS TEXT) WHERE id = 3"),
        ("models", "UPDATE models SET name = x'00' WHERE id = 3"),
        ("models", "UPDATE models SET path = CAST(x'6fff' AS TEXT) WHERE id = 3"),
        ("models", "UPDATE models SET sketch = 'x' WHERE id = 3"),
        ("relations", "UPDATE relations SET pair_json = '{'"),
        ("relations", "UPDATE relations SET pair_json = '[1]'"),
        ("findings", "UPDATE findings SET finding_json = '{}'"),
        ("runs", "UPDATE runs SET sources_json = '5'"),
        ("runs", "UPDATE runs SET sources_json = '[['"),
        ("runs", "UPDATE runs SET tool_version = x'ff'"),
        ("runs", "UPDATE runs SET seconds = 'x'"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(table, script, catalog):
    if table == "findings":  # which are read where this version's settings are not kept
        script += "; UPDATE runs SET settings_json = NULL"
    changed(catalog, script)
    with serving(catalog) as server:
        for path in ("/", "/models.json"):
            answer = server.ask(path)
            assert answer.status == 503
            assert f"the catalog is damaged: table {table}, row " in answer.text
        _, lines = server.end()
    assert "pydantic" not in lines
    assert all(f"table {table}, row" in line for line in lines.splitlines())
    assert len(lines.splitlines()) == 2
    assert "delete the file and audit again" in lines


@pytest.mark.parametrize("column", ["state = '<b>'", "state = x'ff'", "reading_json = 'nan'"])
def test_what_a_catalog_holds_is_told_or_its_damage(column, catalog):
    changed(catalog, f"UPDATE models SET {column} WHERE id = 3")
    assert "table models, row 3" in told("catalog", "list", "--catalog", catalog)


def test_a_finding_that_cannot_be_read_is_named(catalog):
    changed(catalog, "UPDATE findings SET finding_json = '{}'")
    with closing(sqlite3.connect(catalog)) as db:
        (identifier,) = db.execute("SELECT id FROM findings").fetchone()
    line = told("explain", identifier, "--catalog", catalog)
    assert f"table findings, row '{identifier}'" in line


@pytest.mark.parametrize("command", ["info", "vacuum"])
def test_a_table_that_is_gone_is_damage_which_no_vacuum_mends(command, catalog):
    changed(catalog, "DROP TABLE sketches")
    line = told("catalog", command, "--catalog", catalog)
    assert "the catalog is damaged: no such table" in line
    assert "delete the file" in line


@pytest.mark.parametrize("command", ["list", "vacuum"])
def test_damaged_pages_are_damage_which_no_vacuum_mends(command, catalog):
    with catalog.open("r+b") as file:
        size = catalog.stat().st_size
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))
    line = told("catalog", command, "--catalog", catalog)
    assert "damaged" in line
    assert "vacuum' mends" not in line
    assert "delete the file" in line


def test_tables_without_a_version_are_damage(catalog):
    changed(catalog, "PRAGMA user_version = 0")
    for command in ("info", "vacuum"):
        line = told("catalog", command, "--catalog", catalog)
        assert "its version is gone" in line


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT"


@pytest.mark.parametrize(
    "script",
    [
        f"DROP TABLE findings; CREATE VIEW findings AS {ENDLESS} x AS id, 1 AS model FROM c",
        "CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM models; END",
        "CREATE VIRTUAL TABLE t USING fts5(x)",
    ],
)
def test_what_would_be_run_is_refused(script, catalog):
    changed(catalog, script)
    for words in (("info",), ("vacuum",)):
        line = told("catalog", *words, "--catalog", catalog)
        assert "it is not as this program makes it" in line


def test_a_query_that_does_not_end_is_ended(catalog):
    """As an index whose expression takes long would make it."""
    began = time.monotonic()
    with pytest.raises(FormatError, match="takes too long"):
        snapshot(catalog, lambda db: db.execute(f"{ENDLESS} count(*) FROM c").fetchone())
    assert time.monotonic() - began < SOON
