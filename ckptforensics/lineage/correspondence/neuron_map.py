"""The map between residual streams, found from neurons where embeddings say nothing.

Whatever the residual basis, a neuron's rows have the same lengths, angles, and sizes w'Mw under
second moments M of other rows. That is enough to recognise most neurons of a copy, in any order and
with any signs of their input rows; orthogonal Procrustes on them gives the map. It is believed if
the neurons of another layer, on which it was not fitted, then agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.models import Units
from ckptforensics.lineage.numeric import unit_rows
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Share of neurons recognised by both sides from which a map is tried: copies with 5% noise 99%,
# independent models 8%.
_RECOGNISED = 0.25
# Share of neurons of the other layer that agree by gate, up and down: copies 1.0,
# independent models 0.0.
_AGREEING = 0.5
_ROUNDS = 4
_UNITS = 256
# A scale this near to 1, beyond the neurons' spread, is rounding.
_SLACK = 1e-3
_TINY = 1e-30


def map_from_neurons(pair: Pair) -> tuple[Floats, float] | None:
    """Q (hidden_size, hidden_size) and the scale of x_b = scale x_a Q, or None if none is found.

    Two layers are read, of models of one width and depth: one to find Q, one to check it.

    Raises
    ------
    NotApplicable
        if a layer has experts or cannot be read.
    """
    depth = len(pair.a.layers)
    if depth < 2:
        raise NotApplicable("one layer is not enough to find a map and to check it")
    at = (depth // 3, 2 * depth // 3)
    layers = [[model.units(model.layers[n]) for model in pair.models] for n in at]
    (one, other), (check_one, check_other) = layers
    if one.gate is None or other.gate is None:
        raise NotApplicable("neurons without a gate are not recognised in another basis")
    features = [_features(x, (x, y)) for x, y in ((one, check_one), (other, check_other))]
    mine, theirs = _mutual(_nearness(*features))
    if mine.size < _RECOGNISED * min(len(one.up), len(other.up)):
        return None
    a, b = unit_rows(one.gate), unit_rows(other.gate)
    for _ in range(_ROUNDS):
        q = _procrustes(multiply_adjoint(a[mine], b[theirs]))
        before = mine
        mine, theirs = _mutual(multiply(multiply(a, q), np.ascontiguousarray(b.T)))
        if np.array_equal(before, mine):
            break
    if _agreement(check_one, check_other, q, pair.generator(Stream.MAP_CHECK)) < _AGREEING:
        return None
    q = _procrustes(_moment(one, other, q) + _moment(check_one, check_other, q))
    return q, _scale(one, other, mine, theirs)


def confirmed(pair: Pair, q: Floats) -> bool:
    """Whether neurons in the middle of models of one depth agree under the map x_b = x_a Q.

    Raises
    ------
    NotApplicable
        if the depths differ, or a layer has experts.
    """
    if not pair.same_depth:
        raise NotApplicable("the depths differ")
    a, b = (model.units(model.layers[len(model.layers) // 2]) for model in pair.models)
    return _agreement(a, b, q, pair.generator(Stream.MAP_CONFIRMATION)) >= _AGREEING


def _features(units: Units, layers: Sequence[Units]) -> Floats:
    """(units, features) of each neuron that no residual basis, order or scaling changes."""
    assert units.gate is not None
    parts = (units.gate, units.up, units.down.T)
    unit = [unit_rows(part) for part in parts]
    gate, up, down = (np.linalg.norm(part, axis=1) for part in parts)
    found = [np.log(gate + _TINY), np.log(up * down + _TINY)]
    found += [np.abs(np.einsum("ij,ij->i", unit[i], unit[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    for layer in layers:
        for rows in (layer.rows, layer.up, layer.down.T):
            normed = unit_rows(rows)
            moment = multiply_adjoint(normed, normed)
            found += [
                np.log(np.einsum("ij,ij->i", multiply(part, moment), part) + _TINY) for part in unit
            ]
    table = np.column_stack(found)
    table = (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), _TINY)
    return table.astype(np.float32)


def _procrustes(moment: Floats) -> Floats:
    """The orthogonal Q nearest to A'B: U V' of its decomposition (Schoenemann 1966)."""
    u, _, vt = np.linalg.svd(moment)
    return multiply(u, vt)


def _moment(a: Units, b: Units, q: Floats) -> Floats:
    """A'B of unit rows of gate, up and down of the neurons that recognise each other under Q.

    The gates alone hardly read some directions, which other rows do and `down` writes to.
    """
    mine, theirs = _mutual(multiply(multiply(unit_rows(a.rows), q), unit_rows(b.rows).T.copy()))
    whole = np.zeros_like(q)
    for x, y in ((a.rows, b.rows), (a.up, b.up), (a.down.T, b.down.T)):
        one, other = unit_rows(x[mine]), unit_rows(y[theirs])
        sign = np.sign(np.einsum("ij,ij->i", multiply(one, q), other))
        whole += multiply_adjoint(one * sign[:, None], other)
    return whole


def _nearness(a: Floats, b: Floats) -> Floats:
    """(rows of a, rows of b) minus half the squared distance, but for what is common to a row."""
    nearness: Floats = multiply(a, np.ascontiguousarray(b.T)) - np.einsum("ij,ij->i", b, b) / 2
    return nearness - np.einsum("ij,ij->i", a, a)[:, None] / 2


def _mutual(score: Floats) -> tuple[Ints, Ints]:
    """Rows and columns that have their largest score with each other."""
    row, column = score.argmax(axis=1), score.argmax(axis=0)
    mine = np.flatnonzero(column[row] == np.arange(len(row)))
    return mine, row[mine]


def _agreement(a: Units, b: Units, q: Floats, generator: np.random.Generator) -> float:
    """Share of sampled neurons of B whose nearest of A's is the same by gate, up and down."""
    chosen = generator.permutation(len(b.up))[:_UNITS]
    nearest = []
    for x, y in ((a.rows, b.rows), (a.up, b.up), (a.down.T, b.down.T)):
        theirs = unit_rows(y[chosen])
        score = multiply(unit_rows(x), np.ascontiguousarray(multiply(theirs, q.T).T))
        nearest.append(np.abs(score).argmax(axis=0))
    return float(np.mean((nearest[0] == nearest[1]) & (nearest[0] == nearest[2])))


def _scale(a: Units, b: Units, mine: Ints, theirs: Ints) -> float:
    """Factor between the streams: of what neurons write, up's size taken into account."""
    sizes = [np.linalg.norm(u.up, axis=1) * np.linalg.norm(u.down, axis=0) for u in (a, b)]
    ratio = np.log(np.maximum(sizes[1][theirs], _TINY) / np.maximum(sizes[0][mine], _TINY))
    middle = float(np.median(ratio))
    spread = float(np.median(np.abs(ratio - middle)))
    return 1.0 if abs(middle) < spread + _SLACK else float(np.exp(middle))
