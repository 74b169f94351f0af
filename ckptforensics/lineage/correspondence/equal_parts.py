"""Rows and columns that two models have in common bit by bit, wherever they stand.

Every matrix is hashed by rows and by columns in one pass, by entries at places that nobody knows
before; names, order, files and stored types do not enter. A row that any model may have (constant,
nearly all zeros) is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.scores import score_refs
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream
from ckptforensics.tensors import matrix_shape

Hashes = NDArray[np.uint64]
Found = TypeVar("Found")
# Entries that are read at once.
_BLOCK = 1 << 20
# Places of a row or column that are hashed, about, or half as many, so many of them together; and
# runs of rows of one model that are looked for in the other.
_PLACES, _TOGETHER, _RUNS, _RUN = 128, 8, 16, 128
# Stored bytes of a model from which on the compiled loops are worth loading.
_LARGE = 2 << 30
# A tensor is equal if so many of its rows, or of its columns, are.
EQUAL = 0.9
# Bits that a common row must have to be no coincidence, and rows whose bits are counted.
_LEAST_BITS, _LOOKED_AT = 96.0, 8
# Fewer common rows or columns than this are not told.
_LEAST = 8
_PARTS = {
    "attention": ("query", "key", "value", "output"),
    "FFNs": ("gate", "up", "down"),
}
_ROLES = {
    "query": "queries",
    "key": "keys",
    "value": "values",
    "output": "attention outputs",
    "gate": "gates",
    "up": "input rows",
    "down": "down projections",
}


@dataclass(frozen=True)
class EqualTensor:
    """A matrix of A of which B has rows or columns.

    Attributes
    ----------
    name, layer, role : of A; the role `embedding` or `head` outside the layers
    rows : share of its rows, or of its columns, that B has, whichever is larger
    entries : of the matrix
    """

    name: str
    layer: int | None
    role: str
    rows: float
    entries: int


@dataclass(frozen=True)
class EqualParts:
    """What of A is in B bit by bit.

    Attributes
    ----------
    tensors : those of which anything is
    compared : number of A's matrices
    entries : of these, together
    """

    tensors: tuple[EqualTensor, ...]
    compared: int
    entries: int

    @property
    def share(self) -> float:
        """Of A's entries, how many stand in equal rows or columns."""
        return sum(t.rows * t.entries for t in self.tensors) / max(self.entries, 1)

    @property
    def whole(self) -> tuple[EqualTensor, ...]:
        """The matrices that are equal."""
        return tuple(t for t in self.tensors if t.rows >= EQUAL)


def equal_parts(pair: Pair) -> EqualParts:
    """Look for A's rows and columns in B, by entries at places that are drawn for the pair.

    Of A's matrices with many rows runs of rows are looked for. What is found is read whole.

    Raises
    ------
    NotApplicable
        if a model has no matrix.
    CkptError
        if a tensor cannot be decoded.
    """
    keys = [_readable(model) for model in pair.models]
    if not all(keys):
        raise NotApplicable("a model has no matrix that is analysed")
    known = _Known.of(pair, keys[1])
    shares = _each(pair, lambda key: _share(pair, key[0], known), keys[0])
    sizes = [math.prod(matrix_shape(pair.a.weights.store.info(key[0]))) for key in keys[0]]
    found = [
        EqualTensor(*key, share, entries)
        for key, share, entries in zip(keys[0], shares, sizes, strict=True)
        if share > 0
    ]
    return EqualParts(tuple(found), len(keys[0]), sum(sizes))


def row_hashes(rows: Floats) -> Hashes:
    """64 bits of each row; equal rows have the same, whatever number type they were stored as."""
    bits = np.ascontiguousarray(rows + np.float32(0)).view(np.uint32).astype(np.uint64)  # no -0
    factors = np.random.default_rng(0).integers(0, 1 << 63, bits.shape[1], dtype=np.uint64)
    return np.einsum("ij,j->i", bits, factors * np.uint64(2) + np.uint64(1))


_Key = tuple[str, int | None, str]


def _each(pair: Pair, work: Callable[[_Key], Found], keys: Sequence[_Key]) -> list[Found]:
    """`work` of each matrix; small ones on all cores at once."""
    return in_threads(work, keys) if pair.at_once > 1 else [work(key) for key in keys]


@dataclass(frozen=True)
class _Side:
    """Hashes of some rows, or of columns, of a matrix that vary, and which these are."""

    name: str
    by_rows: bool
    hashes: Hashes
    at: Ints
    looked_at: int

    @classmethod
    def of(cls, name: str, vectors: Floats, at: Ints, *, by_rows: bool) -> _Side:
        """`vectors` are (rows or columns, places)."""
        varied = vectors.min(axis=1) < vectors.max(axis=1)
        return cls(name, by_rows, row_hashes(vectors[varied]), at[varied], len(at))


@dataclass(frozen=True)
class _Known:
    """The hashes of all of B's rows and columns, sorted, and where each stands."""

    hashes: Hashes
    sides: Ints
    at: Ints
    every: tuple[_Side, ...]

    @classmethod
    def of(cls, pair: Pair, keys: Sequence[_Key]) -> _Known:
        sides = _each(pair, lambda key: _whole(pair, pair.b, key[0]), keys)
        every = tuple(chain.from_iterable(sides))
        hashes, first = np.unique(np.concatenate([s.hashes for s in every]), return_index=True)
        owners = np.repeat(np.arange(len(every)), [s.hashes.size for s in every])
        return cls(hashes, owners[first], np.concatenate([s.at for s in every])[first], every)


def _places(pair: Pair, length: int) -> Ints:
    """Where a row or column of a length is looked at; of a longer one at these too, mostly.

    So that rows with zeros behind them are found, a place is drawn by its number alone, and the
    share of the places depends on the power of two.
    """
    drawn = pair.generator(Stream.EQUAL_PARTS).random(-(-length // _TOGETHER)).repeat(_TOGETHER)
    share = _PLACES / (1 << (length - 1).bit_length())
    return np.flatnonzero(drawn[:length] <= max(share, drawn.min()))


def _whole(pair: Pair, model: Model, name: str) -> tuple[_Side, _Side]:
    """All rows and all columns of a matrix, in one pass."""
    store = model.weights.store
    info = store.info(name)
    columns, rows = matrix_shape(info)
    across, down = _places(pair, columns), _places(pair, rows)
    step = max(1, _BLOCK // columns)

    def part(start: int) -> tuple[Floats, Floats]:
        stop = min(rows, start + step)
        values = _rows(model, name, start, stop)
        return values[:, across], values[down[(down >= start) & (down < stop)] - start]

    parts = in_threads(part, range(0, rows, step))
    model.count(info.nbytes)
    by_row, by_column = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    return (
        _Side.of(name, by_row, np.arange(rows), by_rows=True),
        _Side.of(name, by_column.T, np.arange(columns), by_rows=False),
    )


def _rows(model: Model, name: str, start: int, stop: int) -> Floats | Bf16Matrix:
    """Rows that are checked to be finite, of a large model as they are stored where that can be.

    Only the places that are hashed are then decoded. For a small one the compiled loops take longer
    to load.
    """
    store = model.weights.store
    kept = store.kept_rows(name, start, stop) if model.stored_bytes >= _LARGE else None
    return store.read_rows(name, start, stop) if kept is None else kept


def _some(pair: Pair, name: str) -> tuple[_Side, _Side]:
    """Rows and columns of a matrix of A: of one with many rows some runs, which is faster."""
    store = pair.a.weights.store
    info = store.info(name)
    columns, rows = matrix_shape(info)
    if rows <= _RUNS * _RUN:
        return _whole(pair, pair.a, name)
    generator = pair.generator(Stream.EQUAL_PARTS, rows)
    starts = np.sort(generator.permutation(rows // _RUN)[:_RUNS]) * _RUN
    at = (starts[:, None] + np.arange(_RUN)).reshape(-1)
    across, down = _places(pair, columns), _places(pair, rows)
    some = in_threads(lambda i: _rows(pair.a, name, i, i + _RUN)[:, across], starts.tolist())
    runs = np.split(down, np.flatnonzero(np.diff(down) > 1) + 1)
    whole = [store.read_rows(name, int(run[0]), int(run[-1]) + 1) for run in runs if run.size]
    pair.a.count(info.nbytes * min(rows, at.size + down.size) // rows)
    return (
        _Side.of(name, np.concatenate(some), at, by_rows=True),
        _Side.of(name, np.concatenate(whole).T, np.arange(columns), by_rows=False),
    )


def _share(pair: Pair, name: str, known: _Known) -> float:
    """Share of a matrix' rows, or of its columns, that B has; 0 where they say nothing."""
    best = 0.0
    for side in _some(pair, name):
        best = max(best, _common(pair, side, known))
        if best >= EQUAL:
            break
    return best


def _common(pair: Pair, side: _Side, known: _Known) -> float:
    if not known.hashes.size or not side.hashes.size:
        return 0.0
    at = np.minimum(np.searchsorted(known.hashes, side.hashes), known.hashes.size - 1)
    hits = np.flatnonzero(known.hashes[at] == side.hashes)
    if np.unique(side.hashes[hits]).size < _LEAST:
        return 0.0
    some = hits[np.linspace(0, hits.size - 1, _LOOKED_AT).round().astype(int)]
    mine = _read(pair.a, side, side.at[some])
    if min(_bits(row) for row in mine) < _LEAST_BITS:
        return 0.0
    equal = 0
    for row, place in zip(mine, at[some].tolist(), strict=True):
        other = known.every[known.sides[place]]
        theirs = _read(pair.b, other, known.at[place : place + 1])[0]
        shared = min(row.size, theirs.size)
        equal += bool(
            np.array_equal(row[:shared], theirs[:shared])
            and not row[shared:].any()
            and not theirs[shared:].any()
        )
    return hits.size / side.looked_at * equal / _LOOKED_AT


def _read(model: Model, side: _Side, places: Ints) -> list[Floats]:
    """Rows, or columns, of a matrix as they are."""
    store = model.weights.store
    if side.by_rows:
        return [store.read_rows(side.name, i, i + 1)[0] for i in places.tolist()]
    columns, _ = matrix_shape(store.info(side.name))
    return list(np.ascontiguousarray(store.read(side.name).reshape(-1, columns)[:, places].T))


def _readable(model: Model) -> list[_Key]:
    found = []
    for key in _matrices(model):
        info = model.weights.store.info(key[0])
        if not info.unreadable and len(info.shape) > 1 and min(matrix_shape(info)) > 1:
            found.append(key)
    return found


def _matrices(model: Model) -> Iterator[_Key]:
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


def _bits(row: Floats) -> float:
    """Bits that an entry's place and value take at most: zeros and few levels take few."""
    return float(np.count_nonzero(row) * math.log2(max(1, np.unique(row).size)))


def named_parts(tensors: Sequence[EqualTensor], layers: Sequence[int]) -> tuple[str, ...]:
    """Equal matrices in words: `embeddings`, `layers 3-7`, `attention`, `down projections of ...`.

    Parameters
    ----------
    layers : all of the model's
    """
    told = ["embeddings"] if any(t.role == "embedding" for t in tensors) else []
    roles: dict[int, set[str]] = {}
    for tensor in tensors:
        if tensor.layer is not None:
            roles.setdefault(tensor.layer, set()).add(tensor.role)
    parts = {name: set(members) for name, members in _PARTS.items()}
    whole = [n for n, have in roles.items() if all(_covers(have, p) for p in parts.values())]
    if whole:
        told.append(_runs(whole) if len(whole) < len(layers) else "all layers")
    rest = {n: have for n, have in roles.items() if n not in whole}
    for name, members in parts.items():
        full = [n for n, have in rest.items() if _covers(have, members)]
        told += [name + _of_layers(full, layers)] if full else []
        for role in _ROLES:
            if role in members:
                some = [n for n, have in rest.items() if role in have and n not in full]
                told += [_ROLES[role] + _of_layers(some, layers)] if some else []
    return tuple(told)


def _covers(have: set[str], members: set[str]) -> bool:
    """Whether what a layer shares of a part is all of it, as far as it has tensors of its own."""
    mine = have & members
    return "output" in mine and "value" in mine if "value" in members else {"up", "down"} <= mine


def _of_layers(some: Sequence[int], layers: Sequence[int]) -> str:
    return "" if len(some) == len(layers) else f" of {_runs(some)}"


def _runs(numbers: Sequence[int]) -> str:
    """`layer 2`, or `layers 1-3, 7`: consecutive numbers as a range."""
    told: list[list[int]] = []
    for n in sorted(numbers):
        if told and n == told[-1][1] + 1:
            told[-1][1] = n
        else:
            told.append([n, n])
    words = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in told)
    return f"layers {words}" if len(numbers) > 1 else f"layer {words}"
