"""Rows and columns that two models have in common bit by bit, wherever they stand.

Every matrix is hashed by rows and by columns (see `hashes`), those of layers while a survey has
them at hand. A row that any model may have (constant, nearly all zeros) is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.hashes import Hashes, Key, Side, matrices_of, sides_of
from ckptforensics.lineage.correspondence.layer_survey import survey
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.tensors import matrix_shape

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
    keys = [matrices_of(model) for model in pair.models]
    if not all(keys):
        raise NotApplicable("a model has no matrix that is analysed")
    known = _Known.of(list(chain.from_iterable(_every(pair, 1, keys[1]))))
    shares = [_share(pair, sides, known) for sides in _every(pair, 0, keys[0])]
    sizes = [math.prod(matrix_shape(pair.a.weights.store.info(key[0]))) for key in keys[0]]
    found = [
        EqualTensor(*key, share, entries)
        for key, share, entries in zip(keys[0], shares, sizes, strict=True)
        if share > 0
    ]
    return EqualParts(tuple(found), len(keys[0]), sum(sizes))


@dataclass(frozen=True)
class _Known:
    """The hashes of all of B's rows and columns, sorted, and where each stands."""

    hashes: Hashes
    sides: Ints
    at: Ints
    every: Sequence[Side]

    @classmethod
    def of(cls, every: Sequence[Side]) -> _Known:
        hashes, first = np.unique(np.concatenate([s.hashes for s in every]), return_index=True)
        owners = np.repeat(np.arange(len(every)), [s.hashes.size for s in every])
        return cls(hashes, owners[first], np.concatenate([s.at for s in every])[first], every)


def _every(pair: Pair, at: int, keys: Sequence[Key]) -> Iterator[tuple[Side, Side]]:
    """The sides of all matrices of A (0) or of B (1)."""
    known = pair.once(survey).sides[at]
    for name, _, _ in keys:
        yield known[name] if name in known else sides_of(pair, at, name)


def _share(pair: Pair, sides: tuple[Side, Side], known: _Known) -> float:
    """Share of a matrix' rows, or of its columns, that B has; 0 where they say nothing."""
    best = 0.0
    for side in sides:
        best = max(best, _common(pair, side, known))
        if best >= EQUAL:
            break
    return best


def _common(pair: Pair, side: Side, known: _Known) -> float:
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


def _read(model: Model, side: Side, places: Ints) -> list[Floats]:
    """Rows, or columns, of a matrix as they are."""
    store = model.weights.store
    if side.by_rows:
        return [store.read_rows(side.name, i, i + 1)[0] for i in places.tolist()]
    columns, _ = matrix_shape(store.info(side.name))
    return list(np.ascontiguousarray(store.read(side.name).reshape(-1, columns)[:, places].T))


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
