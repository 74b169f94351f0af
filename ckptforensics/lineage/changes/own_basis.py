"""What a model's stored values show in its own basis, where a map lies between two models.

A copy that was rotated and then quantized or pruned lies on a grid, or has its zeros, in its own
basis alone: after the map is undone both look like training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ckptforensics.lineage.changes.changes import Change
from ckptforensics.lineage.changes.finding import Finding
from ckptforensics.lineage.changes.lattices import find_lattice
from ckptforensics.lineage.changes.tensor_pairs import layer_names
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.tensors import matrix_shape

# Layers that are looked at, rows of each matrix, and the share of matrices that must show it.
_LAYERS, _ROWS, _MOST = 4, 32, 0.5
# Rows read at once where the largest entry is looked for.
_BLOCK = 1024
# Share of zeros of a pruned matrix, and of one that is not.
_PRUNED, _NONE = 0.1, 0.01
# How much farther from the other model than rounding brings it a copy that was only quantized is,
# and by how much of its norm what pruning left may differ.
_SLACK, _LEFT = 1.5, 0.03


@dataclass(frozen=True)
class _Stored:
    """Of some matrices: their grids' names, relative rounding errors, and shares of zeros."""

    grids: list[str | None]
    errors: list[float]
    zeros: list[float]

    @property
    def on_grid(self) -> bool:
        return sum(g is not None for g in self.grids) > _MOST * len(self.grids)

    def share_of_zeros(self) -> float:
        return float(np.median(self.zeros)) if self.zeros else 0.0


def own_findings(pair: Pair, matrices: Sequence[Change]) -> Iterator[Finding]:
    """What grids and zeros in the models' own bases say; `matrices` are those after the map."""
    stored = [_look(model) for model in pair.models]
    for later in (1, 0):
        first, second, arrow = ("A", "B", "a->b") if later else ("B", "A", "b->a")
        own, other = stored[later], stored[1 - later]
        changed = float(np.median([c.relative for c in matrices])) if matrices else 0.0
        if own.on_grid and not other.on_grid:
            rounding = float(np.median([e for e in own.errors if e > 0]))
            names = sorted({g for g in own.grids if g is not None})
            where = f"in its own basis {second} lies on a quantizer's grid ({', '.join(names)})"
            only = changed <= _SLACK * rounding
            yield _told(
                "quantized",
                arrow if only else "unknown",
                f"{where}, which leaves {rounding:.2g} of the norm; after the map {first} and "
                f"{second} differ by {changed:.2g}",
                30,
            )
            return
        zeros = own.share_of_zeros()
        if zeros >= _PRUNED and other.share_of_zeros() < _NONE:
            left = float(np.median([c.beyond_zeros(later) for c in matrices])) if matrices else 1.0
            yield _told(
                "pruned",
                arrow if left <= _LEFT else "unknown",
                f"in its own basis {zeros:.0%} of {second}'s entries are 0 and none of {first}'s; "
                f"after the map the rest differs by {left:.2g} of the norm",
                35,
            )
            return


def _told(relation: str, arrow: str, reason: str, order: int) -> Finding:
    return Finding(relation, arrow, reason, order)  # type: ignore[arg-type]


def _look(model: Model) -> _Stored:
    """Some rows of the matrices of some layers, as they are stored."""
    found = _Stored([], [], [])
    store = model.weights.store
    for layer in spread(model.layers, _LAYERS):
        for name in sorted(layer_names(model, layer).values()):
            info = store.info(name)
            if info.unreadable or len(info.shape) < 2 or 0 in info.shape:
                continue
            rows = matrix_shape(info)[1]
            start = max(0, (rows - _ROWS) // 2)
            sample = store.read_rows(name, start, min(rows, start + _ROWS))
            model.count(info.nbytes)
            largest = max(
                float(np.abs(store.read_rows(name, i, min(i + _BLOCK, rows))).max())
                for i in range(0, rows, _BLOCK)
            )
            grid = find_lattice(sample, largest)
            size = float(np.sqrt(np.mean(sample.astype(np.float64) ** 2)))
            found.grids.append(None if grid is None else grid.name)
            found.zeros.append(float(np.mean(sample == 0)))
            step = 0.0 if grid is None else float(np.sqrt(np.mean(grid.steps**2) / 12))
            found.errors.append(step / size if size else 0.0)
    return found
