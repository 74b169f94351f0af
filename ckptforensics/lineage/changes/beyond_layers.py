"""What changed outside the layers: the vocabulary, embeddings, head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.lineage.changes.changes import Change, sample_rows
from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.changes.tensor_pairs import Reader
from ckptforensics.lineage.correspondence.hashes import Hashes, row_hashes
from ckptforensics.results.comparison import Arrow

# Rows that are new and nothing but initialised: their columns' sizes vary less than this around
# their mean, or they are so much nearer to the mean row than the old rows are.
_ISOTROPIC, _NEAR_MEAN = 0.35, 0.5
# Embeddings that were drawn anew have no more than this cosine with the old ones.
_DRAWN_ANEW = 0.2
# Rows that are looked at.
_ROWS = 512
# Relative change from which on rows may have been put in another order.
_REORDERED = 0.5
# Rows before the new ones that are looked at at least.
_LEAST_LAST = 64


def only_outside(changed: Sequence[Change]) -> Finding:
    """Nothing but tensors outside the layers changed: embeddings, head or the last norm."""
    for change in changed:
        if change.tensors.part == "embedding" and change.relative > _REORDERED:
            a, b = map(_rows, change.tensors.read, change.tensors.rows)
            if np.array_equal(a, b):
                words = f"{change.tensors.tensor} has the same rows in another order"
                doubt = "either order may be the first"
                told = f"{words}: tokens were renumbered"
                return Finding(None, "unknown", told, 50, doubt=doubt)
    names = ", ".join(change.tensors.tensor for change in changed)
    most = max(change.relative for change in changed)
    reason = f"only {names} changed, by {most:.2g} of its norm"
    return Finding("finetune", "unknown", reason, 50)


def _rows(read: Reader, rows: int) -> Hashes:
    """Hashes of all rows, sorted."""
    step = range(0, rows, _ROWS)
    return np.sort(np.concatenate([row_hashes(read(i, min(i + _ROWS, rows))) for i in step]))


def drawn_anew(changed: Sequence[Change]) -> Finding | None:
    """Embeddings or a head that have nothing in common; the later ones are those not yet trained.

    The other way round, training would have made the same layers of other embeddings.
    """
    for change in changed:
        if change.tensors.part != "embedding" or change.cosine >= _DRAWN_ANEW:
            continue
        rows = sample_rows(min(change.tensors.rows), _ROWS)
        parts = [np.concatenate([read(i, i + 1) for i in rows]) for read in change.tensors.read]
        drawn = [_isotropic(part) for part in parts]
        direction: Arrow = "unknown"
        reason = f"{change.tensors.tensor} has nothing in common (cosine {change.cosine:.2f})"
        if drawn[0] != drawn[1]:
            direction = "a->b" if drawn[1] else "b->a"
            reason += f"; that of {'B' if drawn[1] else 'A'} is as random numbers are"
        return Finding(None, direction, reason, 60, "embeddings")
    return None


def appended_rows(changes: Sequence[Change]) -> Finding | None:
    """Rows that one model has more, and that are as they are initialised, were appended to it.

    Rows that a longer model lost would be trained ones, or not what is drawn around the others'
    mean.
    """
    for change in changes:
        rows = change.tensors.rows
        if change.tensors.part != "embedding" or rows[0] == rows[1]:
            continue
        longer = int(rows[1] > rows[0])
        read = change.tensors.read[longer]
        new = read(min(rows), min(max(rows), min(rows) + _ROWS))
        old = np.concatenate([read(i, i + 1) for i in sample_rows(min(rows), _ROWS)])
        how = _initialised(new, old)
        # Tokens that are hardly ever met stand at the end: those before the cut are then like them.
        last = read(max(0, min(rows) - max(len(new), _LEAST_LAST)), min(rows))
        before = _initialised(last, old)
        alike = how is not None and before is not None and how[:3] == before[:3]
        arrow: Arrow = "unknown" if how is None or alike else "a->b" if longer else "b->a"
        reason = (
            f"{'B' if longer else 'A'} has {max(rows) - min(rows):,} more rows in "
            f"{change.tensors.tensor}" + (f", {how}" if how else ", not as initialised ones are")
        )
        doubt = ""
        if alike:
            doubt = "the rows before them are alike, so that they may have been cut off as well"
            reason += f"; {doubt}"
        return Finding(None, arrow, reason, 70, "vocabulary", doubt)
    return None


def _initialised(new: Floats, old: Floats) -> str | None:
    """How new rows were made, in words, None where they look trained."""
    if not new.any():
        return "all 0"
    mean = old.mean(axis=0)
    spread = float(np.sqrt(np.mean((old - mean) ** 2)))
    around = float(np.sqrt(np.mean((new - mean) ** 2)))
    if around < _NEAR_MEAN * spread:
        return f"at {around / spread:.2g} of the others' distance from their mean"
    return "as random numbers are" if _isotropic(new) and not _isotropic(old) else None


def _isotropic(rows: Floats) -> bool:
    """Whether all coordinates are as large and have the mean 0, as drawn rows and no trained ones.

    With few rows the columns' standard deviations vary by chance, by 1 / sqrt(2 n).
    """
    if len(rows) < 4:
        return False
    size = np.sqrt(np.mean(rows**2, axis=0))
    chance = 3 / np.sqrt(2 * len(rows))
    return float(size.std() / max(float(size.mean()), 1e-30)) < min(_ISOTROPIC, chance)
