"""Findings of the catalog by their identifiers."""

from __future__ import annotations

import re
from pathlib import Path

from ckptforensics.errors import UsageError
from ckptforensics.registry.catalog.database import reading, row_of, text_of
from ckptforensics.results.audit import FindingRecord

_IDENTIFIER = re.compile(r"[0-9a-f]{4,16}")


def find_finding(catalog: Path, identifier: str) -> tuple[FindingRecord, str]:
    """The finding, and whether it is open, fixed or not checked since.

    Parameters
    ----------
    identifier : its first digits suffice where no other finding has them

    Raises
    ------
    UsageError
        if there is no such finding, or several.
    FormatError
        if the catalog is damaged.
    """
    if _IDENTIFIER.fullmatch(identifier) is None:
        raise UsageError(
            f"{identifier!r} is neither a rule nor the identifier of a finding",
            hint="give CKPT001 to CKPT020, or four or more digits of an identifier",
        )
    with reading(catalog) as connection:
        rows = connection.execute(
            "SELECT id, finding_json, state FROM findings WHERE id >= ? AND id < ? LIMIT 2",
            (identifier, identifier + "g"),
        ).fetchall()
        if len(rows) == 1:
            with row_of("findings", repr(rows[0]["id"])):
                found = FindingRecord.model_validate_json(rows[0]["finding_json"])
                return found, text_of(rows[0]["state"])
    count = "no finding" if not rows else "more than one finding"
    raise UsageError(
        f"{count} begins with {identifier}", path=catalog, hint="'ckpt audit' shows them"
    )
