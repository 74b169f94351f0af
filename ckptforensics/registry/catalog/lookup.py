"""What a process that reads one model looks up in the catalog."""

from __future__ import annotations

from pathlib import Path

from ckptforensics.errors import CkptError
from ckptforensics.registry.catalog.database import array_path, reading, row_of
from ckptforensics.registry.reading import Reading, SignatureFacts
from ckptforensics.results.records import DamageRecord


def is_sketched(catalog: Path, weights: str, code: str) -> bool:
    """Whether weights were sketched before by the same code."""
    try:
        with reading(catalog) as connection:
            row = connection.execute(
                "SELECT id FROM models WHERE weights = ? AND code = ? AND sketch IS NOT NULL",
                (weights, code),
            ).fetchone()
    except CkptError:  # nothing was catalogued yet
        return False
    return row is not None


def signature_of_weights(
    catalog: Path, weights: str, code: str
) -> tuple[SignatureFacts, tuple[DamageRecord, ...]] | None:
    """The signature and damage of weights that were read before by the same code, if they were."""
    try:
        with reading(catalog) as connection:
            row = connection.execute(
                "SELECT id, reading_json FROM models WHERE weights = ? AND code = ? "
                "AND signature IS NOT NULL ORDER BY id LIMIT 1",
                (weights, code),
            ).fetchone()
            if row is None:
                return None
            with row_of("models", row["id"]):
                found = Reading.model_validate_json(row["reading_json"])
    except CkptError:  # nothing was catalogued yet, or nothing that can be read
        return None
    if found.signature is None or not array_path(catalog, found.signature.sha256).is_file():
        return None
    return found.signature, found.damage
