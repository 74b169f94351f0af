"""Audits whose processes were recorded and are played again, and what is in their catalogs."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptforensics.jobs.memory import default_memory
from ckptforensics.jobs.processes import Job, Processes
from ckptforensics.registry.catalog import database

# Of a run itself, and of the process that ended it.
TIMES = {"started", "ended", "seconds", "read_models", "read_bytes", "compared"}
TABLES = ("runs", "models", "files", "claims", "relations", "signatures", "findings")


class Recorder:
    """A runner, which remembers what every job printed and wrote."""

    def __init__(self) -> None:
        self.tapes: dict[str, tuple[int, str, str, bytes | None]] = {}

    def record(self, jobs: Any) -> Iterator[Any]:
        for job in Processes(2, default_memory()).run(jobs):
            file = Path(job.arguments[0]).with_suffix(".safetensors")
            data = file.read_bytes() if file.is_file() else None
            self.tapes[job.model] = (
                job.code,
                job.printed(),
                job.complaint() if job.code else "",
                data,
            )
            yield job

    def play(self, jobs: Any) -> Iterator[Any]:
        for job in jobs:
            code, text, last, data = self.tapes[job.model]
            if data is not None:
                Path(job.arguments[0]).with_suffix(".safetensors").write_bytes(data)
            yield Played(job.model, job.arguments, module=job.module, tape=(code, text, last))


@dataclass
class Played(Job):
    """A job that has ended as the recorded one did."""

    tape: tuple[int, str, str] = (0, "", "")

    @property
    def code(self) -> int:
        return self.tape[0]

    def printed(self) -> str:
        return self.tape[1]

    def complaint(self) -> str:
        return self.tape[2]


def contents(catalog: Path) -> dict[str, Any]:
    """All tables, and the names of the arrays."""
    arrays = database.arrays_folder(catalog)
    with closing(sqlite3.connect(catalog)) as db:
        db.row_factory = sqlite3.Row
        places = {row["id"]: row["place"] for row in db.execute("SELECT id, place FROM models")}
        sketches = dict(db.execute("SELECT id, sha256 FROM sketches").fetchall())
        tables = {
            table: sorted(
                json.dumps(plain(dict(row), places, sketches), sort_keys=True)
                for row in db.execute(f"SELECT * FROM {table}")
            )
            for table in TABLES
        }
    files = [file for file in arrays.rglob("*.safetensors") if "incoming" not in file.parts]
    return tables | {"arrays": sorted(file.name for file in files)}


def plain(row: dict[str, Any], places: dict[int, str], sketches: dict[int, str]) -> dict[str, Any]:
    """A row without times, in which models are named by places and sketches by their digests.

    Both are numbered as they come.
    """
    row = {key: value for key, value in row.items() if key not in TIMES}
    if row.get("left_json"):
        # A run that goes on reads less again than one that begins.
        row["left_json"] = json.loads(row["left_json"]) | {"reused": None}
    if "sketch" in row:
        row["sketch"] = sketches.get(row["sketch"])
    if "model" in row:
        row["model"] = places.get(row["model"])
    elif "place" in row:
        del row["id"]
    return row
