"""Writing the catalog: every method that changes something is one transaction."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptforensics.registry.catalog import database
from ckptforensics.registry.catalog.reader import CatalogReader
from ckptforensics.registry.catalog.sketches import near_pairs, open_vectors, put_sketch, rebuild
from ckptforensics.registry.found import Found
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.settings import Left, Settings
from ckptforensics.results import PairRecord
from ckptforensics.results.audit import FindingRecord, State
from ckptforensics.results.sketch import Sketched
from ckptforensics.version import __version__

# What stays when a model is read again.
_KEPT = ("place", "first_run")


@dataclass
class Work:
    """What one process did for a run: models and bytes read, pairs compared, and its time."""

    models: int = 0
    bytes: int = 0
    pairs: int = 0
    seconds: float = 0.0


class CatalogWriter(CatalogReader):
    """The catalog, open to write; made by `open_writer`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        super().__init__(connection)
        self.path = path
        # What a killed run left of signatures that it had not catalogued.
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir(parents=True)

    @property
    def incoming(self) -> Path:
        """Where processes put signatures that are not catalogued yet."""
        return database.arrays_folder(self.path) / "incoming"

    def begin_run(self, sources: Iterable[str], settings: Settings | None = None) -> int:
        """The number of a new run, or of the one over the same sources that did not end.

        Parameters
        ----------
        settings : what an audit goes by; None for a run that judges nothing
        """
        text = json.dumps(list(sources))
        kept = None if settings is None else settings.text()
        row = self._db.execute(
            "SELECT id FROM runs WHERE sources_json = ? AND tool_version = ? AND ended IS NULL "
            "ORDER BY id DESC LIMIT 1",
            (text, __version__),
        ).fetchone()
        with database.transaction(self._db):
            if row is not None:
                change = "UPDATE runs SET settings_json = ? WHERE id = ?"
                self._db.execute(change, (kept, row["id"]))
                return int(row["id"])
            cursor = self._db.execute(
                "INSERT INTO runs (started, tool_version, sources_json, settings_json) "
                "VALUES (?, ?, ?, ?)",
                (_now(), __version__, text, kept),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end_run(
        self,
        run: int,
        findings: Iterable[tuple[int | None, FindingRecord]],
        unchecked: Iterable[int],
        work: Work,
        left: Left | None = None,
    ) -> None:
        """Keep the findings of a run and end it.

        Parameters
        ----------
        findings : each with the number of its model, None for those of the policy
        unchecked : numbers of models of which less was read than the findings before rest on: what
            was found of them before and is not found now is not fixed
        work : what this process did
        left : what an audit leaves that is in no table
        """
        with database.transaction(self._db):
            unchecked = set(unchecked)
            kept = set()
            for model, finding in findings:
                if not finding.checked:
                    continue
                kept.add(finding.id)
                self._db.execute(
                    "INSERT INTO findings VALUES (?, ?, ?, ?, 'open', ?, ?, ?) ON CONFLICT (id) "
                    "DO UPDATE SET model = excluded.model, severity = excluded.severity, "
                    "state = 'open', finding_json = excluded.finding_json, "
                    "last_run = excluded.last_run",
                    (
                        finding.id,
                        model,
                        finding.rule,
                        finding.severity,
                        finding.model_dump_json(),
                        run,
                        run,
                    ),
                )
            listed = "SELECT id FROM models WHERE last_run = ?"
            for row in self._db.execute(
                f"SELECT id, model FROM findings WHERE state != 'fixed' AND model IN ({listed})",  # noqa: S608
                (run,),
            ).fetchall():
                if row["id"] not in kept:
                    state = "not checked" if row["model"] in unchecked else "fixed"
                    self._db.execute(
                        "UPDATE findings SET state = ? WHERE id = ?", (state, row["id"])
                    )
            self._db.execute(
                "UPDATE findings SET state = 'not checked' WHERE state = 'open' AND model IN "
                "(SELECT id FROM models WHERE state = 'vanished')"
            )
            self._db.execute(
                "UPDATE runs SET ended = ?, seconds = ?, read_models = ?, read_bytes = ?, "
                "compared = ?, left_json = ? WHERE id = ?",
                (
                    *(_now(), work.seconds, work.models, work.bytes, work.pairs),
                    *(None if left is None else left.text(), run),
                ),
            )
            self._db.execute(
                "UPDATE runs SET settings_json = NULL, left_json = NULL WHERE id < ? AND "
                "sources_json = (SELECT sources_json FROM runs WHERE id = ?)",
                (run, run),
            )

    def known_digests(self, found: Found) -> dict[str, str]:
        """`FoundFile.changed` to SHA-256, of files that are in a state they were read in."""
        known = {}
        for file in found.files:
            if not file.changed:
                continue
            row = self._db.execute(
                "SELECT sha256 FROM files WHERE changed = ? AND bytes = ? AND sha256 IS NOT NULL",
                (file.changed, file.bytes),
            ).fetchone()
            if row is not None:
                known[file.changed] = row["sha256"]
        return known

    def reuse(self, found: Found, listed: str, run: int) -> bool:
        """Take what was read of a model before, if its listing and the code are those of then."""
        row = self._db.execute(
            "SELECT id, state FROM models WHERE place = ? AND listed = ?", (place_of(found), listed)
        ).fetchone()
        if row is None:
            return False
        with database.transaction(self._db):
            reading = self.model(row["id"]).reading
            self._db.execute(
                "UPDATE models SET last_run = ?, name = ?, state = ? WHERE id = ?",
                (run, found.name, state_of(reading), row["id"]),
            )
        return True

    def put_model(
        self,
        found: Found,
        reading: Reading,
        files: tuple[Path, Path],
        *,
        listed: str,
        code: str,
        run: int,
    ) -> None:
        """Keep what was read of a model.

        Parameters
        ----------
        files : the signature and the sketch that its process wrote, if it did
        listed, code : digests of what decides what is read, and of the code that read it
        """
        signature, sketch = files
        if reading.signature is not None and signature.is_file():
            home = self.array(reading.signature.sha256)
            home.parent.mkdir(parents=True, exist_ok=True)
            signature.replace(home)
        row = {
            "place": place_of(found),
            "name": found.name,
            "store": found.store,
            "path": found.path,
            # File names need not be Unicode, and SQLite's texts are.
            "opens": None if found.opens is None else json.dumps(found.opens),
            "adapter": found.adapter,
            "commit": found.commit,
            "listed": listed,
            "code": code,
            "first_run": run,
            "last_run": run,
        }
        sketched = Sketched.model_validate_json(sketch.read_bytes()) if sketch.is_file() else None
        self._put(row, reading, sketched)

    def put_imported(
        self,
        name: str,
        commit: str | None,
        reading: Reading,
        code: str | None,
        adapter: bool,
        sketched: Sketched | None,
    ) -> None:
        """Keep a model of another catalog, whose signature's file, if any, is here already."""
        row = {
            "place": f"imported:{name}@{commit or reading.weights}",
            "name": name,
            "store": "imported",
            "path": name,
            "opens": None,
            "adapter": adapter,
            "commit": commit,
            "listed": reading.weights or commit or name,
            "code": code,
            "first_run": None,
            "last_run": None,
        }
        self._put(row, reading, sketched)

    def _put(self, row: dict[str, Any], reading: Reading, sketched: Sketched | None) -> None:
        """One model in one transaction: its row, files, claims, sketch and signature."""
        facts = reading.signature
        row |= {
            "state": state_of(reading),
            "weights": reading.weights,
            "signature": None if facts is None else facts.sha256,
            "reading_json": reading.model_dump_json(),
            "sketch": None,
        }
        names = ", ".join(f'"{key}"' for key in row)
        values = ", ".join(f":{key}" for key in row)
        updates = ", ".join(f'"{key}" = excluded."{key}"' for key in row if key not in _KEPT)
        with database.transaction(self._db):
            if facts is not None:
                assert reading.facts is not None
                nbytes = self.array(facts.sha256).stat().st_size
                self._db.execute(
                    "INSERT OR IGNORE INTO signatures VALUES (?, ?, ?, ?)",
                    (facts.sha256, facts.fingerprint, reading.facts.hidden_size, nbytes),
                )
            row["sketch"] = self._sketch(row, sketched)
            (number,) = self._db.execute(
                f"INSERT INTO models ({names}) VALUES ({values}) "  # noqa: S608 (names are ours)
                f"ON CONFLICT (place) DO UPDATE SET {updates} RETURNING id",
                row,
            ).fetchone()
            for table in ("files", "claims"):
                self._db.execute(f"DELETE FROM {table} WHERE model = ?", (number,))  # noqa: S608
            self._db.executemany(
                "INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, f.name, f.role, f.bytes, f.changed, f.stated, f.sha256)
                    for f in reading.files
                ],
            )
            self._db.executemany(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?)",
                [(number, c.parent, c.relation, c.source, c.line) for c in reading.claims],
            )

    def _sketch(self, row: dict[str, Any], sketched: Sketched | None) -> int | None:
        """Number of a model's sketch: that of its process, or of the same weights before."""
        if sketched is not None:
            return put_sketch(self._db, self.path, sketched)
        if row["weights"] is None or row["adapter"]:
            return None
        same = self._db.execute(
            "SELECT sketch FROM models WHERE weights = ? AND code = ? AND sketch IS NOT NULL",
            (row["weights"], row["code"]),
        ).fetchone()
        return None if same is None else int(same["sketch"])

    def mark_vanished(self, run: int) -> None:
        """Models that the last runs over the same sources found, and this one did not."""
        with database.transaction(self._db):
            self._db.execute(
                "UPDATE models SET state = 'vanished' WHERE last_run < ? AND last_run IN (SELECT "
                "id FROM runs WHERE sources_json = (SELECT sources_json FROM runs WHERE id = ?))",
                (run, run),
            )

    def put_relation(self, a: str, b: str, code: str, measured: PairRecord | str) -> None:
        """Keep what was measured, or why it failed, of two identities in their order."""
        assert a <= b
        pair = None if isinstance(measured, str) else measured
        with database.transaction(self._db):
            self._db.execute(
                "INSERT OR REPLACE INTO relations VALUES (?, ?, ?, ?, ?, ?)",
                (
                    a,
                    b,
                    code,
                    None if pair is None else pair.verdict,
                    None if pair is None else pair.model_dump_json(),
                    measured if isinstance(measured, str) else None,
                ),
            )

    def near_sketches(self, numbers: Sequence[int]) -> Iterator[tuple[int, int, float]]:
        """Pairs of these sketches that are near, by their places, 0 apart if they are the same."""
        rebuild(self._db, self.path)
        yield from near_pairs(self._db, open_vectors(self._db, self.path), numbers)

    def array(self, sha256: str) -> Path:
        """The file of a signature."""
        return database.array_path(self.path, sha256)


@contextmanager
def open_writer(path: Path) -> Iterator[CatalogWriter]:
    """The catalog at `path`, made where there is none; errors as `database.writing`."""
    with database.writing(path) as connection:
        yield CatalogWriter(connection, path)


def is_local(found: Found) -> bool:
    """Whether it is on this machine."""
    return found.store not in ("hub", "url")


def place_of(found: Found) -> str:
    """What identifies a model from run to run, wherever a run is started."""
    path = os.path.abspath(found.path) if is_local(found) else found.path
    return f"{found.store}:{path}" + (f"@{found.commit}" if found.commit else "")


def state_of(reading: Reading) -> State:
    """How much was read of a model."""
    if reading.signature is not None:
        return "signed"
    return "unread" if reading.facts is None else "headers"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
