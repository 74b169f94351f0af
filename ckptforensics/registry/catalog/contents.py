"""What a catalog holds, and the removal of what nothing in it needs any more."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TypeVar

from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.sketches import rebuild
from ckptforensics.registry.catalog.snapshot import snapshot
from ckptforensics.results.catalog import (
    CatalogDocument,
    CataloguedRecord,
    FindingCounts,
    StateCounts,
)
from ckptforensics.version import __version__

_Counts = TypeVar("_Counts", StateCounts, FindingCounts)


def catalog_document(path: Path, *, models: bool = False) -> CatalogDocument:
    """What the catalog at `path` holds; with `models` each of them. Errors as `reading`."""

    def read(db: sqlite3.Connection) -> CatalogDocument:
        arrays = db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM signatures").fetchone()
        return CatalogDocument(
            tool_version=__version__,
            path=str(path),
            version=db.execute("PRAGMA user_version").fetchone()[0],
            bytes=path.stat().st_size,
            arrays=arrays[0],
            array_bytes=arrays[1],
            runs=db.execute("SELECT count(*) FROM runs").fetchone()[0],
            states=_counts(db, "models", StateCounts),
            sketches=db.execute("SELECT count(*) FROM sketches").fetchone()[0],
            relations=db.execute("SELECT count(*) FROM relations").fetchone()[0],
            findings=_counts(db, "findings", FindingCounts),
            models=tuple(_records(db)) if models else (),
        )

    return snapshot(path, read)[0]


def vacuum(path: Path) -> int:
    """Give the room of what was removed back, and remove what no model has; mend the arrays.

    Returns
    -------
    bytes that were given back
    """
    with database.writing(path) as db:
        before = _taken(path)
        with database.transaction(db):
            db.execute(
                "DELETE FROM signatures WHERE sha256 NOT IN "
                "(SELECT signature FROM models WHERE signature IS NOT NULL)"
            )
            db.execute(
                "DELETE FROM sketches WHERE id NOT IN "
                "(SELECT sketch FROM models WHERE sketch IS NOT NULL)"
            )
            rebuild(db, path)
        kept = {row[0] for row in db.execute("SELECT sha256 FROM signatures")}
        for file in database.arrays_folder(path).rglob("*.safetensors"):
            if file.stem not in kept:
                file.unlink()
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before - _taken(path)


def _taken(path: Path) -> int:
    files = [path, path.with_name(path.name + "-wal"), *database.arrays_folder(path).rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _counts(db: sqlite3.Connection, table: str, counts: type[_Counts]) -> _Counts:
    """Rows of a table by their state, whose name is a field of a record."""
    rows = db.execute(f"SELECT state, count(*), min(id) FROM {table} GROUP BY state")  # noqa: S608
    found = {}
    for state, count, first in rows:
        with database.row_of(table, repr(first)):
            name = database.text_of(state).replace(" ", "_")
            counts.model_validate({name: count})
        found[name] = count
    return counts.model_validate(found)


def _records(db: sqlite3.Connection) -> list[CataloguedRecord]:
    rows = db.execute(
        "SELECT models.*, fingerprint, json_valid(reading_json) AS valid, CASE WHEN "
        "json_valid(reading_json) THEN json_extract(reading_json, '$.facts.family') END AS family "
        "FROM models LEFT JOIN signatures ON signatures.sha256 = models.signature "
        "ORDER BY name, place"
    )
    return list(map(_record, rows))


def _record(row: sqlite3.Row) -> CataloguedRecord:
    with database.row_of("models", row["id"]):
        if not row["valid"]:
            raise ValueError("no JSON")
        return CataloguedRecord(
            name=row["name"],
            source=row["store"],
            path=row["path"],
            state=row["state"],
            family=row["family"],
            fingerprint=row["fingerprint"],
            weights=row["weights"],
            last_run=row["last_run"],
        )
