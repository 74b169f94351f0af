"""Entries that are 0 in one model alone: what pruning leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.lineage.changes.lost import gap_below
from ckptforensics.lineage.changes.tensor_pairs import TensorPair

# Share of the entries that must be 0 in one model alone to be a mask.
LEAST_MASK = 0.01
# N of M neighbours are 0, for which hardware is made.
# Entries of a block whose sizes are looked at.
_SAMPLE = 1 << 15
_PATTERNS = ((2, 4), (4, 8), (1, 4))


@dataclass(frozen=True)
class Mask:
    """Entries that are 0 in one model and not in the other.

    Attributes
    ----------
    share : of all entries
    kept_equal : share of the other entries that are equal in both models
    kept_change : root mean square of the change of the other entries
    removed : root mean square of the entries, in the model that has them
    gap : whether the entries that the other model has do not look as if they had been removed
    pattern : `2:4` and the like: so many zeros in each group along the input; None without
    """

    share: float
    kept_equal: float
    kept_change: float
    removed: float
    pattern: str | None = None
    gap: bool = False


def find_mask(tensors: TensorPair, blocks: Sequence[tuple[int, int]], model: int) -> Mask | None:
    """The entries that are 0 in A (side 0) or B (1) and not in the other; None if hardly any are.

    Parameters
    ----------
    blocks : rows from start to stop that are read
    """
    tally = _Tally()
    for block in blocks:
        tally.add(tensors.read[model](*block), tensors.read[1 - model](*block))
    if tally.masked < LEAST_MASK * tally.entries:
        return None
    return Mask(
        share=tally.masked / tally.entries,
        kept_equal=tally.kept_equal / max(tally.kept, 1),
        kept_change=(tally.kept_squares / max(tally.kept, 1)) ** 0.5,
        removed=(tally.removed / tally.masked) ** 0.5,
        gap=gap_below(*tally.sizes),
        pattern=next((f"{n}:{m}" for (n, m), full in tally.full.items() if full), None),
    )


@dataclass
class _Tally:
    """Sums over entries that are 0 in one model (x) and those that are not."""

    entries: int = 0
    masked: int = 0
    removed: float = 0.0
    kept: int = 0
    kept_equal: int = 0
    kept_squares: float = 0.0
    full: dict[tuple[int, int], bool] = field(
        default_factory=lambda: dict.fromkeys(_PATTERNS, True)
    )

    samples: list[tuple[Floats, Floats]] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[Floats, Floats]:
        """|y| of a sample of the entries that are 0 in x, and of the others."""
        removed, kept = (np.concatenate(parts) for parts in zip(*self.samples, strict=True))
        return removed, kept

    def add(self, x: Floats, y: Floats) -> None:
        zero = x == 0
        difference = (y - x)[~zero]
        self.entries += x.size
        some = slice(None, None, max(1, x.size // _SAMPLE))
        few, none = np.abs(y.reshape(-1)[some]), zero.reshape(-1)[some]
        self.samples.append((few[none & (few > 0)], few[~none & (few > 0)]))
        self.masked += int(np.count_nonzero(y[zero]))
        self.removed += square(y[zero])
        self.kept += difference.size
        self.kept_equal += difference.size - int(np.count_nonzero(difference))
        self.kept_squares += square(difference)
        for (n, m), full in self.full.items():
            if full:
                groups = x.shape[1] % m == 0 and zero.reshape(-1, m).sum(axis=1).min() >= n
                self.full[n, m] = bool(groups)


def square(x: Floats) -> float:
    """Sum of squares."""
    flat = x.reshape(-1)
    return float(np.dot(flat, flat))
