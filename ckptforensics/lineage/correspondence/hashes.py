"""Hashes of the rows and columns of matrices, by entries at places that nobody knows before.

Names, order, files and stored types do not enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.threads import in_threads
from ckptforensics.lineage.correspondence.scores import score_refs
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream
from ckptforensics.tensors import matrix_shape

Hashes = NDArray[np.uint64]
# Name of a matrix, its layer, None outside the layers, and its role.
Key = tuple[str, int | None, str]
# Entries that are read at once.
_BLOCK = 1 << 20
# Places of a row or column that are hashed, about, or half as many, so many of them together.
_PLACES, _TOGETHER = 128, 8
# Runs of rows of one model that are looked for in the other, and rows of each: what share of a
# matrix is equal is then off by .04 at the most likely, where what was copied stands together.
_RUNS, _RUN = 128, 16


def row_hashes(rows: Floats) -> Hashes:
    """64 bits of each row; equal rows have the same, whatever number type they were stored as."""
    bits = np.ascontiguousarray(rows + np.float32(0)).view(np.uint32).astype(np.uint64)  # no -0
    factors = np.random.default_rng(0).integers(0, 1 << 63, bits.shape[1], dtype=np.uint64)
    return np.einsum("ij,j->i", bits, factors * np.uint64(2) + np.uint64(1))


@dataclass(frozen=True)
class Side:
    """Hashes of some rows, or of columns, of a matrix: of those that vary.

    Attributes
    ----------
    name : of the matrix
    by_rows : whether they are of rows
    hashes : (n,)
    at : (n,) numbers of the rows or columns
    looked_at : number of rows or columns that were looked at
    """

    name: str
    by_rows: bool
    hashes: Hashes
    at: Ints
    looked_at: int

    @classmethod
    def of(cls, name: str, vectors: Floats, at: Ints, *, by_rows: bool) -> Side:
        """`vectors` are (rows or columns, places)."""
        varied = vectors.min(axis=1) < vectors.max(axis=1)
        return cls(name, by_rows, row_hashes(vectors[varied]), at[varied], len(at))


def sides_of(pair: Pair, at: int, name: str) -> tuple[Side, Side]:
    """Rows and columns of a matrix of A (0), of one with many rows some runs, or of B (1), all.

    Raises
    ------
    CkptError
        if the tensor cannot be decoded.
    """
    return _whole(pair, pair.b, name) if at else _some(pair, name)


def _places(pair: Pair, length: int) -> Ints:
    """Where a row or column of a length is looked at; of a longer one at these too, mostly.

    So that rows with zeros behind them are found, a place is drawn by its number alone, and the
    share of the places depends on the power of two.
    """
    drawn = pair.generator(Stream.EQUAL_PARTS).random(-(-length // _TOGETHER)).repeat(_TOGETHER)
    share = _PLACES / (1 << (length - 1).bit_length())
    return np.flatnonzero(drawn[:length] <= max(share, drawn.min()))


def _whole(pair: Pair, model: Model, name: str) -> tuple[Side, Side]:
    """All rows and all columns of a matrix, in one pass."""
    columns, rows = matrix_shape(model.weights.store.info(name))
    across, down = _places(pair, columns), _places(pair, rows)
    step = max(1, _BLOCK // columns)
    kept = model.kept(name)

    def part(start: int) -> tuple[Floats, Floats]:
        stop = min(rows, start + step)
        some = model.stored_rows(name, start, stop) if kept is None else kept.rows(start, stop)
        return some[:, across], some[down[(down >= start) & (down < stop)] - start]

    parts = in_threads(part, range(0, rows, step))
    by_row, by_column = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    return (
        Side.of(name, by_row, np.arange(rows), by_rows=True),
        Side.of(name, by_column.T, np.arange(columns), by_rows=False),
    )


def _some(pair: Pair, name: str) -> tuple[Side, Side]:
    """Rows and columns of a matrix of A: of one with many rows some runs, which is faster."""
    columns, rows = matrix_shape(pair.a.weights.store.info(name))
    if rows <= _RUNS * _RUN or pair.level == "thorough":
        return _whole(pair, pair.a, name)
    generator = pair.generator(Stream.EQUAL_PARTS, rows)
    starts = np.sort(generator.permutation(rows // _RUN)[:_RUNS]) * _RUN
    at = (starts[:, None] + np.arange(_RUN)).reshape(-1)
    across, down = _places(pair, columns), _places(pair, rows)
    some = in_threads(lambda i: pair.a.stored_rows(name, i, i + _RUN)[:, across], starts.tolist())
    runs = np.split(down, np.flatnonzero(np.diff(down) > 1) + 1)
    whole = [pair.a.stored_rows(name, int(run[0]), int(run[-1]) + 1)[:] for run in runs if run.size]
    return (
        Side.of(name, np.concatenate(some), at, by_rows=True),
        Side.of(name, np.concatenate(whole).T, np.arange(columns), by_rows=False),
    )


def matrices_of(model: Model) -> list[Key]:
    """Name, layer and role of the matrices that can be hashed."""
    found = []
    for key in _matrices(model):
        info = model.weights.store.info(key[0])
        if not info.unreadable and len(info.shape) > 1 and min(matrix_shape(info)) > 1:
            found.append(key)
    return found


def _matrices(model: Model) -> Iterator[Key]:
    """Name, layer and role of the tensors that hold weights; positions are often a formula."""
    architecture = model.weights.architecture
    if architecture.embedding is not None:
        yield architecture.embedding.tokens, None, "embedding"
    seen: set[str] = set()
    for layer in model.layers:
        plan = architecture.layers[layer - 1]
        parts = (plan.refs, *plan.experts)
        refs: list[tuple[str, str]] = [
            (r.weight, role) for part in parts for role, r in part.items()
        ]
        scores = score_refs(model, layer)
        if scores is not None:
            refs += [(scores.query.weight, "query"), (scores.key.weight, "key")]
        for name, role in refs:
            short = role.removeprefix("expert_").removeprefix("shared_")
            if name not in seen:
                seen.add(name)
                yield name, layer, short


def roles_of(model: Model) -> dict[str, tuple[int | None, str]]:
    """Layer and role of every tensor that holds weights, by its name."""
    return {name: (layer, role) for name, layer, role in _matrices(model)}
