"""All pairs that were measured, by the identities of their weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ckptforensics.results import PairRecord

_CHANGES_KEPT = 8


class Relations:
    """Pairs by identity: what `compare` says of them, or why it failed.

    Parameters
    ----------
    rows : (identity of A, identity of B, the pair or why it failed)
    """

    def __init__(self, rows: Iterable[tuple[str, str, PairRecord | str]] = ()) -> None:
        self._of: dict[str, dict[str, PairRecord | str]] = defaultdict(dict)
        for a, b, measured in rows:
            self.add(a, b, measured)

    def add(self, a: str, b: str, measured: PairRecord | str) -> None:
        """Add a pair."""
        self._of[a][b] = measured
        self._of[b][a] = measured

    def between(self, a: str, b: str) -> PairRecord | str | None:
        """What was measured of two identities, None if nothing was."""
        return self._of.get(a, {}).get(b)

    def of(self, identity: str) -> Iterator[tuple[str, PairRecord | str]]:
        """All that was measured of one, in order of the other's identity."""
        yield from sorted(self._of.get(identity, {}).items())


def trimmed(pair: PairRecord, a: str, b: str) -> PairRecord:
    """The pair as it is kept: by identities, with its largest changes only."""
    kept = tuple(pair.largest_changes[:_CHANGES_KEPT])
    return pair.model_copy(update={"a": a, "b": b, "changes": kept})
