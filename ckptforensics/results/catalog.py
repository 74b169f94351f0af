"""The result of `catalog`: what a catalog of models holds."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.audit import State
from ckptforensics.results.records import Document, Frozen, Name, Sha256


class CataloguedRecord(Frozen):
    """One model of a catalog: where it was found, how much of it was read, when it was last seen.

    `weights` is the digest of its weight files together, `last_run` the number of the run that saw
    it last; null for an imported one.
    """

    name: Name
    source: str
    path: Name
    state: State
    family: str | None
    fingerprint: str | None
    weights: Sha256 | None
    last_run: int | None


class StateCounts(Frozen):
    """Models by how much of them was read."""

    signed: int = 0
    headers: int = 0
    unread: int = 0
    vanished: int = 0


class FindingCounts(Frozen):
    """Findings that are open, that are fixed, and whose models were not read since."""

    open: int = 0
    fixed: int = 0
    not_checked: int = 0


class CatalogDocument(Document):
    """The result of the commands of `catalog`; `models` is empty but for `list`.

    `version` is that of the database's schema, `bytes` its size, `array_bytes` that of the
    signatures (`arrays`) beside it, `sketches` the number of sketches that are searched (null in
    documents of 1.0), `relations` the number of pairs that were compared.
    """

    schema_version: Literal["1.1"] = "1.1"
    kind: Literal["catalog"] = "catalog"
    path: Name
    version: int
    bytes: int
    arrays: int
    array_bytes: int
    sketches: int | None = None
    runs: int
    states: StateCounts
    relations: int
    findings: FindingCounts
    models: tuple[CataloguedRecord, ...] = ()
