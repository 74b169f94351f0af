"""Reading the catalog: models, relations, findings and runs, over any connection to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from ckptforensics.registry.catalog.database import row_of, text_of
from ckptforensics.registry.catalog.models import CataloguedModel
from ckptforensics.registry.reading import Reading
from ckptforensics.registry.relations import Measured, Relations
from ckptforensics.registry.settings import Left, Settings
from ckptforensics.results import PairRecord
from ckptforensics.results.audit import AuditRun, FindingRecord, State

_RUNS_SHOWN = 10


class Audited(NamedTuple):
    """The runs over the same sources.

    Attributes
    ----------
    number : of the first of them, which stays
    run : the last of them
    sources : as they were given
    ended : when the last one ended; None while it has not
    tool_version : of the program that ran it
    settings : what it goes by; None where it judges nothing, or another version kept it
    left : what the last that ended left; None where that was not kept
    """

    number: int
    run: int
    sources: tuple[str, ...]
    ended: str | None
    tool_version: str
    settings: Settings | None
    left: Left | None


class CatalogReader:
    """The catalog, to read over a connection to it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def audits(self) -> list[Audited]:
        """All that was audited, the last first, and behind it what was added without an audit."""
        rows = self._db.execute(
            "SELECT min(id) AS number, max(id) AS run, "
            "max(CASE WHEN ended IS NOT NULL THEN id END) AS last_ended "
            "FROM runs GROUP BY sources_json ORDER BY max(settings_json) IS NULL, run DESC"
        ).fetchall()
        return [self._audited(row) for row in rows]

    def last_audit(self) -> int | None:
        """The number of the first of `audits`."""
        last = "SELECT id FROM runs ORDER BY settings_json IS NULL, id DESC LIMIT 1"
        return self._number_of(last, ())

    def audit_of_model(self, number: int) -> int | None:
        """The number of the audit that has a model; None for one that was imported."""
        return self._number_of("SELECT last_run FROM models WHERE id = ?", (number,))

    def audit_of_finding(self, identifier: str) -> int | None:
        """The number of the audit that has a finding."""
        return self._number_of(
            "SELECT coalesce(models.last_run, findings.last_run) FROM findings "
            "LEFT JOIN models ON models.id = findings.model WHERE findings.id = ?",
            (identifier,),
        )

    def _number_of(self, query: str, values: tuple[int | str, ...]) -> int | None:
        """The first run over the sources of the run that a query finds."""
        run = self._db.execute(query, values).fetchone()
        (found,) = self._db.execute(
            "SELECT min(id) FROM runs WHERE sources_json = "
            "(SELECT sources_json FROM runs WHERE id = ?)",
            (None if run is None else run[0],),
        ).fetchone()
        return None if found is None else int(found)

    def _audited(self, row: sqlite3.Row) -> Audited:
        of_run = "SELECT * FROM runs WHERE id = ?"
        run = self._db.execute(of_run, (row["run"],)).fetchone()
        ended = self._db.execute(of_run, (row["last_ended"],)).fetchone()
        with row_of("runs", run["id"]):
            return Audited(
                number=row["number"],
                run=run["id"],
                sources=_sources(run["sources_json"]),
                ended=None if run["ended"] is None else text_of(run["ended"]),
                tool_version=text_of(run["tool_version"]),
                settings=Settings.read(run["settings_json"]),
                left=Left.read(None if ended is None else ended["left_json"]),
            )

    def models(self, run: int | None = None) -> list[CataloguedModel]:
        """The models of a run and what vanished since the runs before, or all; in order of name."""
        if run is None:
            rows = self._db.execute("SELECT * FROM models ORDER BY name, place")
        else:
            rows = self._db.execute(
                "SELECT * FROM models WHERE last_run IN (SELECT id FROM runs WHERE sources_json = "
                "(SELECT sources_json FROM runs WHERE id = ?)) ORDER BY name, place",
                (run,),
            )
        return [_model(row) for row in rows]

    def model(self, number: int) -> CataloguedModel:
        """One model by its number."""
        row = self._db.execute("SELECT * FROM models WHERE id = ?", (number,)).fetchone()
        return _model(row)

    def relations(self, codes: Mapping[str, bool]) -> Relations:
        """All that was measured of pairs.

        Parameters
        ----------
        codes : digests of the code that measured, each with whether that was by signature
        """
        rows = []
        for code, by_signature in codes.items():
            for row in self._db.execute(
                "SELECT a, b, pair_json, failure FROM relations WHERE code = ? ORDER BY a, b",
                (code,),
            ):
                with row_of("relations", f"{row['a']!r}, {row['b']!r}"):
                    found = (
                        text_of(row["failure"])
                        if row["pair_json"] is None
                        else PairRecord.model_validate_json(row["pair_json"])
                    )
                    pair = text_of(row["a"]), text_of(row["b"])
                    rows.append((*pair, Measured(found, by_signature)))
        return Relations(rows)

    def findings_of(self, models: Iterable[int]) -> list[tuple[int, FindingRecord]]:
        """What runs before found of models and is not fixed, each with its model's number."""
        wanted = set(models)
        rows = self._db.execute(
            "SELECT id, model, finding_json FROM findings WHERE state != 'fixed' ORDER BY id"
        )
        found = []
        for row in rows:
            if row["model"] in wanted:
                with row_of("findings", repr(row["id"])):
                    finding = FindingRecord.model_validate_json(row["finding_json"])
                found.append((row["model"], finding))
        return found

    def runs(self, run: int) -> tuple[AuditRun, ...]:
        """The last runs over the sources of this one, this one first."""
        rows = self._db.execute(
            "SELECT * FROM runs WHERE sources_json = "
            "(SELECT sources_json FROM runs WHERE id = ?) AND id <= ? ORDER BY id DESC LIMIT ?",
            (run, run, _RUNS_SHOWN),
        )
        return tuple(map(_run, rows))


def _sources(text: str) -> tuple[str, ...]:
    """As they were given: of a path that is not UTF-8 the text has escapes."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError("no list of names")
    return tuple(found)


def _run(row: sqlite3.Row) -> AuditRun:
    with row_of("runs", row["id"]):
        return AuditRun(
            number=row["id"],
            started=row["started"],
            ended=row["ended"],
            tool_version=row["tool_version"],
            sources=_sources(row["sources_json"]),
            seconds=row["seconds"],
        )


def _model(row: sqlite3.Row) -> CataloguedModel:
    with row_of("models", row["id"]):
        if row["state"] not in get_args(State):
            raise ValueError("no state")
        return CataloguedModel(
            number=row["id"],
            place=text_of(row["place"]),
            name=text_of(row["name"]),
            store=text_of(row["store"]),
            path=text_of(row["path"]),
            opens=None if row["opens"] is None else json.loads(row["opens"]),
            adapter=bool(row["adapter"]),
            commit=None if row["commit"] is None else text_of(row["commit"]),
            state=row["state"],
            identity=text_of(row["weights"] or f"listing-{row['listed']}"),
            reading=Reading.model_validate_json(row["reading_json"]),
            sketch=None if row["sketch"] is None else int(row["sketch"]),
            first_run=int(row["first_run"] or 0),
        )
