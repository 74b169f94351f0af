"""Rows and columns that two models have in common bit by bit, wherever they stand.

Every matrix is hashed by rows and by columns in one pass; names, order, files and stored types do
not enter. A row that any model may have (constant, nearly all zeros) is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.scores import score_refs
from ckptforensics.lineage.effort import within
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.tensors import matrix_shape

Hashes = NDArray[np.uint64]
# Entries that are hashed at once.
_BLOCK = 1 << 20
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
    """Hash every matrix of both models and look for A's rows and columns in B.

    Raises
    ------
    NotApplicable
        if the models are larger than what the level reads whole, or have no matrix.
    CkptError
        if a tensor cannot be decoded.
    """
    if not within(max(model.stored_bytes for model in pair.models), pair.effort.entry_bytes):
        raise NotApplicable("the models are large: every row is hashed with --thorough")
    tables = [_table(model) for model in pair.models]
    if not all(tables):
        raise NotApplicable("a model has no matrix that is analysed")
    known = _all(tables[1])
    found, entries = [], 0
    for (name, layer, role), sides in tables[0].items():
        rows, columns = sides
        size = rows.hashes.size * columns.hashes.size
        entries += size
        shares = [
            _common(pair.a, name, side, known, by_rows=which == 0)
            for which, side in enumerate(sides)
        ]
        if max(shares) > 0:
            found.append(EqualTensor(name, layer, role, max(shares), size))
    return EqualParts(tuple(found), len(tables[0]), entries)


@dataclass(frozen=True)
class _Side:
    """Hashes of the rows, or of the columns, of a matrix, and which of them are not constant."""

    hashes: Hashes
    varied: NDArray[np.bool_]


_Key = tuple[str, int | None, str]


def _table(model: Model) -> dict[_Key, tuple[_Side, _Side]]:
    found = {}
    for key in _matrices(model):
        info = model.weights.store.info(key[0])
        if not info.unreadable and len(info.shape) > 1 and min(matrix_shape(info)) > 1:
            found[key] = _hashed(model, key[0])
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


def _hashed(model: Model, name: str) -> tuple[_Side, _Side]:
    store = model.weights.store
    info = store.info(name)
    columns, rows = matrix_shape(info)
    # Any odd numbers, the same for rows and columns: one model may store what the other transposes.
    factors = np.random.default_rng(0).integers(0, 1 << 63, max(rows, columns), dtype=np.uint64)
    factors = factors * np.uint64(2) + np.uint64(1)
    step = max(1, _BLOCK // columns)

    def part(start: int) -> tuple[Hashes, Hashes, Floats, Floats, Floats, Floats]:
        values = store.read_rows(name, start, min(rows, start + step)) + np.float32(0)  # -0 is 0
        bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        return (
            np.einsum("ij,j->i", bits, factors[:columns]),
            np.einsum("ij,i->j", bits, factors[start : start + len(bits)]),
            *(values.min(axis=1), values.max(axis=1)),
            *(values.min(axis=0), values.max(axis=0)),
        )

    parts = in_threads(part, range(0, rows, step))
    model.bytes_read += info.nbytes
    by_row = np.concatenate([p[0] for p in parts])
    by_column = np.stack([p[1] for p in parts]).sum(axis=0, dtype=np.uint64)
    varied_rows = np.concatenate([p[2] < p[3] for p in parts])
    varied_columns = np.min([p[4] for p in parts], axis=0) < np.max([p[5] for p in parts], axis=0)
    return _Side(by_row, varied_rows), _Side(by_column, varied_columns)


def _all(table: dict[_Key, tuple[_Side, _Side]]) -> Hashes:
    hashes = [side.hashes[side.varied] for sides in table.values() for side in sides]
    return np.unique(np.concatenate(hashes))  # sorted, for a binary search


def _common(model: Model, name: str, side: _Side, known: Hashes, *, by_rows: bool) -> float:
    """Share of the rows (or columns) that are among the known ones; 0 where they say nothing."""
    if not known.size:
        return 0.0
    at = np.minimum(np.searchsorted(known, side.hashes), known.size - 1)
    hits = np.flatnonzero((known[at] == side.hashes) & side.varied)
    different = np.unique(side.hashes[hits]).size
    if different < _LEAST:
        return 0.0
    some = hits[np.linspace(0, hits.size - 1, _LOOKED_AT).round().astype(int)]
    if min(_bits(row) for row in _read(model, name, some, by_rows=by_rows)) < _LEAST_BITS:
        return 0.0
    return hits.size / side.hashes.size


def _read(model: Model, name: str, places: Ints, *, by_rows: bool) -> Iterator[Floats]:
    store = model.weights.store
    if by_rows:
        yield from (store.read_rows(name, int(i), int(i) + 1)[0] for i in places)
    else:
        columns, _ = matrix_shape(store.info(name))
        yield from np.ascontiguousarray(store.read(name).reshape(-1, columns)[:, places].T)


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
