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


class CatalogDocument(Document):
    """The result of `catalog info`, `list` and `import`; `models` is empty but for `list`.

    `bytes` is the size of the database, `array_bytes` that of the signatures beside it. Findings
    count those that are `open`, `fixed` and `not checked` since.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["catalog"] = "catalog"
    path: Name
    version: int
    bytes: int
    arrays: int
    array_bytes: int
    runs: int
    models_by_state: dict[State, int]
    relations: int
    findings: dict[Literal["open", "fixed", "not checked"], int]
    models: tuple[CataloguedRecord, ...] = ()
