"""All pairs that were measured, by the identities of their weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ckptforensics.results import PairRecord

CHANGES_KEPT = 8


@dataclass(frozen=True)
class Measured:
    """A pair as it was measured.

    Attributes
    ----------
    found : what `compare` says, or why it failed
    by_signature : whether one of the two was known by its signature only
    """

    found: PairRecord | str
    by_signature: bool


class Relations:
    """Pairs by identity: what `compare` says of them, or why it failed.

    Parameters
    ----------
    rows : (identity of A, identity of B, what was measured)
    """

    def __init__(self, rows: Iterable[tuple[str, str, Measured]] = ()) -> None:
        self._of: dict[str, dict[str, Measured]] = defaultdict(dict)
        for a, b, measured in rows:
            self.add(a, b, measured)

    def add(self, a: str, b: str, measured: Measured) -> None:
        """Add a pair; what was measured on weights stays."""
        before = self._of[a].get(b)
        if before is None or before.by_signature or not measured.by_signature:
            self._of[a][b] = measured
            self._of[b][a] = measured

    def lacks(self, a: str, b: str, *, by_signature: bool) -> bool:
        """Whether measuring the two, by signature or on weights, would say more than is known."""
        before = self._of.get(a, {}).get(b)
        return before is None or (before.by_signature and not by_signature)

    def between(self, a: str, b: str) -> PairRecord | str | None:
        """What was measured of two identities, None if nothing was."""
        measured = self._of.get(a, {}).get(b)
        return None if measured is None else measured.found

    def of(self, identity: str) -> Iterator[tuple[str, PairRecord | str]]:
        """All that was measured of one, in order of the other's identity."""
        for other, measured in sorted(self._of.get(identity, {}).items(), key=lambda row: row[0]):
            yield other, measured.found

    def failed(self) -> Iterator[tuple[str, str, bool, str]]:
        """Pairs whose comparison ended in an error: A, B, whether it was by signature, and why."""
        for a, others in sorted(self._of.items()):
            for b, measured in sorted(others.items(), key=lambda row: row[0]):
                if a < b and isinstance(measured.found, str):
                    yield a, b, measured.by_signature, measured.found


def trimmed(pair: PairRecord, a: str, b: str) -> PairRecord:
    """The pair as it is kept: by identities, with its largest changes only."""
    kept = tuple(pair.largest_changes[:CHANGES_KEPT])
    return pair.model_copy(update={"a": a, "b": b, "changes": kept})
