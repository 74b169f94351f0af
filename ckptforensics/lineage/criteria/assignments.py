"""Exact tests by assignment: do units of one model find themselves at the same index of the other?

Units of A are matched with units of B by the Hungarian method, and the units that are matched with
the one of the same index, the fixed points, are counted. If the units of one model are exchangeable
and independent of the other model, the assignment is a uniformly random permutation whatever the
weights look like: its fixed points K have E[K (K - 1) ... (K - k + 1)] <= 1, so P(K >= k) <= 1/k!,
and for the sum over L layers, whose units are ordered independently, L^j / (j! C(k, j)) for every j
(docs/lineage.md). Units that are laid out are not exchangeable (`exchangeable`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Ffn
from ckptforensics.lineage.correspondence.directions import Vector, has_reliable_direction
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.criteria.criterion import EVERY_LEVEL, Criterion, Outcome
from ckptforensics.lineage.criteria.directions import (
    NO_DIRECTION,
    NULL,
    OF_L,
    UNFOLDED,
)
from ckptforensics.lineage.criteria.exchangeable import (
    NEIGHBOURS,
    OWN_INDEX,
    at_own_index,
    need_free_coordinates,
    need_free_order,
    need_free_rows,
    neighbours_alike,
    without_own_index,
)
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import (
    assign,
    log10_fixed_points,
    ranks,
    told_apart,
    unit_rows,
)
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream

NEURON_NULL = (
    "the models were initialised independently of each other, and nothing in how they were made "
    "tells one hidden unit of an FFN from another (sorting them would)"
)

# Tokens over which columns of embeddings are compared.
_TOKENS = 2_048
# Fewer units than this that are told apart are not assigned.
_LEAST_APART = 8
# Of a feature over layers.
_QUANTILES = np.linspace(0, 1, 9)


def fixed_points(similarity: NDArray[np.floating], generator: np.random.Generator) -> int:
    """Units that the best assignment matches with the one of the same index.

    Parameters
    ----------
    similarity : (units, units), row A, column B
    """
    partners = assign(similarity.T, generator)
    return int(np.sum(partners == np.arange(partners.size)))


def combined(outcomes: Sequence[Outcome]) -> float | None:
    """log10 p of all exact tests that ran, by Bonferroni, which is Holm's first step.

    The smallest p times the number of tests holds however they depend on each other. None if no
    test ran.
    """
    known = [outcome.log10_p for outcome in outcomes if outcome.log10_p is not None]
    return min(0.0, min(known) + math.log10(len(known))) if known else None


def _gate_rows(pair: Pair) -> Outcome:
    """Folded gate rows (input rows without a gate) by |cos|, layer by layer."""
    pair.need_same_width()
    # By their order where there are as many: finding the map costs more than this test.
    layers = (
        zip(pair.a.layers, pair.b.layers, strict=True) if pair.same_depth else matched_layers(pair)
    )
    dense = [(a, b) for a, b in layers if _dense(pair.a, a) and _dense(pair.b, b)]
    if not dense:
        raise NotApplicable("no corresponding layers have an FFN without experts")
    own_index = need_free_rows(pair)
    found, units = {}, 0
    for a, b in spread(dense, pair.effort.gate_row_layers):
        generator = pair.generator(Stream.GATE_ROWS, a)
        widths = pair.a.width(a), pair.b.width(b)
        count = min(*widths, pair.effort.gate_row_units)
        # One run of indices is exchangeable like all of them. If units were taken out, those at
        # the beginning are the least shifted.
        start = int(generator.integers(widths[0] - count + 1)) if widths[0] == widths[1] else 0
        rows = [
            model.rows(layer, start, start + count)[0]
            for model, layer in ((pair.a, a), (pair.b, b))
        ]
        if not own_index:
            at = np.arange(start, start + count)
            rows = [without_own_index(r, at, of) for r, of in zip(rows, widths, strict=True)]
        one, other = _measured(rows)
        if len(one) < _LEAST_APART:
            continue
        found[a] = fixed_points(np.abs(multiply(one, other.T)), generator)
        units += len(one)
    if not found:
        raise NotApplicable("too few neurons have a row that is not 0 or a copy of another's")
    profile = tuple(found.get(layer) for layer in pair.a.layers)
    note = None if own_index else "without the entries at a neuron's own index"
    return _outcome(sum(found.values()), units, len(found), profile, note)


def _measured(vectors: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Unit vectors of both models at the indices where neither is 0; none if most are copies."""
    one, other = (unit_rows(v) for v in vectors)
    there = one.any(axis=1) & other.any(axis=1)
    one, other = one[there], other[there]
    if min(int(told_apart(v).sum()) for v in (one, other)) < _LEAST_APART:
        one, other = one[:0], other[:0]
    return one, other


def _dense(model: Model, layer: int) -> bool:
    return not model.weights.architecture.layers[layer - 1].experts


def _embedding_columns(pair: Pair) -> Outcome:
    """Columns of the embedding matrices over shared tokens, by |correlation|."""
    tokens = pair.once(shared_tokens)
    some = np.linspace(0, tokens.a.size - 1, min(tokens.a.size, _TOKENS)).round().astype(int)
    a, b = pair.a.embedding(tokens.a[some]), pair.b.embedding(tokens.b[some])
    if a.shape[1] != b.shape[1]:
        raise NotApplicable(f"the embeddings have {a.shape[1]:,} and {b.shape[1]:,} coordinates")
    generator = pair.generator(Stream.EMBEDDING_COLUMNS)
    at = _coordinates(pair, a.shape[1], generator)
    columns = [np.ascontiguousarray((e[:, at] - e[:, at].mean(axis=0)).T) for e in (a, b)]
    ids = [tokens.a[some], tokens.b[some]]
    need_free_order(
        [_columns_layout(pair, of, columns[of], (a, b)[of], ids[of]) for of in (0, 1)],
        "residual coordinates",
    )
    one, other = _measured(columns)
    if len(one) < _LEAST_APART:
        raise NotApplicable("too few columns of the embeddings are not constant or copies")
    note = None if tokens.by_string else "tokens are taken to be the same by their ids"
    similarity = np.abs(multiply(one, other.T))
    return _outcome(fixed_points(similarity, generator), len(one), 1, note=note)


def _columns_layout(
    pair: Pair, of: int, columns: Floats, embeddings: Floats, ids: Ints
) -> str | None:
    """What ties a model's embedding columns to their index: sinusoids, bands, the identity."""
    if at_own_index(embeddings, ids, pair.models[of].vocabulary_size):
        return OWN_INDEX
    generator = pair.generator(Stream.LAYOUT, 2 + of)
    return NEIGHBOURS if neighbours_alike(columns, generator) else None


def _coordinate_features(pair: Pair) -> Outcome:
    """Sizes of a coordinate in directions, triggers and weights, by their normal scores."""
    pair.need_same_width()
    a, b = _features(pair)
    if not (a.any() and b.any()):
        raise NotApplicable("the coordinates of a model are all alike")
    need_free_coordinates(pair, (a.T, b.T))
    generator = pair.generator(Stream.COORDINATE_FEATURES)
    at = _coordinates(pair, pair.a.hidden_size, generator)
    similarity = multiply(a[:, at].T, b[:, at])
    return _outcome(fixed_points(similarity, generator), at.size, 1, note=f"{len(a)} features")


def _coordinates(pair: Pair, width: int, generator: np.random.Generator) -> Ints:
    """The coordinates that are compared, the same of both models."""
    most = pair.effort.coordinates
    if most is None or width <= most:
        return np.arange(width)
    return np.sort(generator.choice(width, most, replace=False))


def _features(pair: Pair) -> tuple[Floats, Floats]:
    """(features, hidden_size) normal scores of each model, the same features in the same order.

    Layers correspond by their order. Where the depths differ, quantiles over the layers take their
    place: layers matched by their directions would favour the stored order of coordinates.
    """
    a, b = _scores(pair, 0), _scores(pair, 1)
    found: tuple[list[Floats], list[Floats]] = ([], [])
    for name in sorted(a.keys() & b.keys()):
        shared = sorted(a[name].keys() & b[name].keys())
        for of, every in zip((a, b), found, strict=True):
            if not pair.same_depth:
                every += _pooled(np.stack(list(of[name].values())))
            else:
                every += [of[name][place] for place in shared]
    if not found[0]:
        raise NotApplicable(NO_DIRECTION)
    return np.stack(found[0]), np.stack(found[1])


def _scores(pair: Pair, at: int) -> dict[str, dict[int, Floats]]:
    """Normal scores of each feature's sizes over the coordinates, by the places of its layers.

    Of A with `at` = 0, of B with 1; features that no layer has are absent.
    """
    model = pair.models[at]
    found: dict[str, dict[int, Floats]] = {}
    vectors: tuple[tuple[Vector, Floats], ...] = (
        ("u", model.signature.u),
        ("v", model.signature.v),
    )
    for which, rows in vectors:
        for place in np.flatnonzero(has_reliable_direction(pair, which)[at]).tolist():
            found.setdefault(which, {})[place] = _normal_scores(np.abs(rows[place]))
    if pair.effort.weighed_features and pair.has_weights:
        for place, layer in enumerate(model.layers):
            for name, sizes in _sizes(model, layer).items():
                found.setdefault(name, {})[place] = _normal_scores(sizes)
    return found


def _pooled(scores: Floats) -> list[Floats]:
    """How a feature is distributed over the layers at each coordinate, by quantiles."""
    return [_normal_scores(row) for row in np.quantile(scores, _QUANTILES, axis=0)]


def _sizes(model: Model, layer: int) -> dict[str, Floats]:
    """How much each residual coordinate is written and read by the maps of one layer."""
    block = model.block(layer)
    found = {}
    if block.attention is not None:
        reader = block.attention.latent or block.attention.value
        found["value"] = _norms(fold_norm(reader.matrix, block.attention.norm).T)
        found["output"] = _norms(block.attention.output.weight)
    if isinstance(block.ffn, Ffn):
        units = model.units(layer)
        found["up"], found["down"] = _norms(units.up.T), _norms(units.down)
        if units.gate is not None:
            found["gate"] = _norms(units.gate.T)
    return found


def _normal_scores(values: Floats) -> Floats:
    """Ranks as quantiles of the normal distribution; 0 where all values are equal."""
    from scipy.special import ndtri

    scores: Floats = ndtri((ranks(values) - 0.5) / values.size).astype(np.float32)
    return scores


def _norms(rows: Floats) -> Floats:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def _outcome(
    count: int,
    units: int,
    layers: int,
    profile: tuple[float | None, ...] = (),
    note: str | None = None,
) -> Outcome:
    words = f"{count:,} of {units:,} at the same index, {layers} expected of independent models"
    return Outcome(
        float(count),
        log10_p=log10_fixed_points(count, layers),
        profile=profile,
        note=f"{words}; {note}" if note else words,
    )


CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "gate rows",
        "exact",
        tuple(kept for kept in UNFOLDED if kept != "neuron order"),
        _gate_rows,
        NEURON_NULL,
    ),
    Criterion(
        "embedding columns", "exact", ("residual signs", *UNFOLDED), _embedding_columns, NULL
    ),
    Criterion(
        "coordinate features",
        "exact",
        ("residual signs", *OF_L),
        _coordinate_features,
        NULL,
        "signatures",
        EVERY_LEVEL,
    ),
)
