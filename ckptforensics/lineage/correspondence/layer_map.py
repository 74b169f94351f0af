"""Which layers of two models correspond: by order, or by what the layers do to the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.correspondence.neurons import (
    agreeing,
    expert_count,
    has_gate,
    named_units,
    sample_units,
    token_states,
    unit_width,
)
from ckptforensics.lineage.effort import within
from ckptforensics.lineage.numeric import unit_rows
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

LayerMap = tuple[tuple[int | None, int | None], ...]

# What a layer without a partner costs in similarity, of which two equal directions have 1.
GAP = 0.4
# Mean similarity of matched layers from which a kind of similarity says anything.
CONVINCING = 0.6
# How much better than the plain order of layers another map must be.
CLEARLY = 0.2
_PROFILE_TOKENS = 1024
# Features by which neurons are looked for among those of every other layer, and neurons of each
# layer, where it is just to order the layers.
_PARTNER_STATES, _MAP_UNITS = 256, 16
# Neuron agreement from which a layer is the partner of another.
PARTNER = 0.3


def map_layers(pair: Pair) -> LayerMap:
    """Corresponding layers, by their numbers from 1, in order; None where one has no partner.

    Sequence alignment (Needleman-Wunsch) of the layers, by the first of these similarities that is
    convincing: leading directions in the stored basis, the same after the residual bases were
    aligned, what the directions do to shared tokens; of models of different depth also the
    agreement of neurons. If none is, layers of models as deep correspond by their order, those of
    others by their singular values. Models as deep as each other are taken in order, unless another
    map is clearly better.
    """
    a, b = (model.layers for model in pair.models)
    path = None
    for similar, convincing in _similarities(pair):
        found = align(similar, GAP)
        matched = [similar[i, j] for i, j in found if i is not None and j is not None]
        if matched and np.mean(matched) >= convincing:
            path = found if _clearly(similar, found) else None
            break
    else:
        if len(a) != len(b):
            path = align(_by_spectrum(pair), GAP)
    if path is None:
        return tuple(zip(a, b, strict=True))
    return tuple((None if i is None else a[i], None if j is None else b[j]) for i, j in path)


def matched_layers(pair: Pair) -> tuple[tuple[int, int], ...]:
    """The layers that have a partner, with it: (layer of A, layer of B), numbered from 1."""
    layers = pair.once(map_layers)
    return tuple((a, b) for a, b in layers if a is not None and b is not None)


def align(similar: Floats, gap: float) -> list[tuple[int | None, int | None]]:
    """The order-preserving map of rows to columns with the largest total (Needleman-Wunsch).

    Parameters
    ----------
    similar : (rows, columns)
    gap : cost of a row or a column without a partner

    Returns
    -------
    (row, column) in order, None where one has no partner
    """
    rows, columns = similar.shape
    total = np.empty((rows + 1, columns + 1))
    total[0], total[:, 0] = -gap * np.arange(columns + 1), -gap * np.arange(rows + 1)
    # How the best map of the first i rows and j columns ends: a pair, a row alone, a column alone.
    ends = np.empty(total.shape, np.int8)
    ends[0], ends[:, 0] = 2, 1
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            ways = (
                total[i - 1, j - 1] + similar[i - 1, j - 1],
                total[i - 1, j] - gap,
                total[i, j - 1] - gap,
            )
            ends[i, j] = np.argmax(ways)
            total[i, j] = ways[ends[i, j]]
    path: list[tuple[int | None, int | None]] = []
    i, j = rows, columns
    while i or j:
        end = ends[i, j]
        i, j = i - (end != 2), j - (end != 1)
        path.append((None if end == 2 else i, None if end == 1 else j))
    return path[::-1]


def _clearly(similar: Floats, path: list[tuple[int | None, int | None]]) -> bool:
    """Whether the map beats the plain order, if there is one."""
    if similar.shape[0] != similar.shape[1]:
        return True
    score = sum(-GAP if i is None or j is None else float(similar[i, j]) for i, j in path)
    return score > float(np.trace(similar)) + CLEARLY


def _similarities(pair: Pair) -> Iterator[tuple[Floats, float]]:
    """Similarities of layers, (layers of A, layers of B), and which is convincing; cheapest first.

    1 is the same.
    """
    if pair.same_width:
        yield _by_directions(pair), CONVINCING
    if not pair.reads_weights:
        return
    if pair.once(find_alignment).kind not in ("identity", "none"):
        yield _by_directions(pair, aligned=True), CONVINCING
    with contextlib.suppress(NotApplicable):  # no shared tokens
        yield _by_profiles(pair), CONVINCING
    widest = max(model.hidden_size for model in pair.models)
    narrow = within(widest, pair.effort.widest_layer_search)
    if not pair.same_depth and narrow and comparable(pair):
        yield nearest_layers(pair, common_states(pair), _MAP_UNITS).T, PARTNER


def _by_directions(pair: Pair, *, aligned: bool = False) -> Floats:
    """Mean |cos| of both leading directions, u1 of the block and v1 of its FFN."""
    total = np.zeros((len(pair.a.layers), len(pair.b.layers)), np.float32)
    for of_a, of_b in (
        (pair.a.signature.u, pair.b.signature.u),
        (pair.a.signature.v, pair.b.signature.v),
    ):
        mapped = unit_rows(pair.once(find_alignment).apply(of_a)) if aligned else of_a
        total += np.abs(mapped @ of_b.T) / 2
    return total


def _by_profiles(pair: Pair) -> Floats:
    """Mean |correlation| of what the directions make of shared tokens, in any basis and width."""
    states, _ = token_states(pair, _PROFILE_TOKENS)
    total = np.zeros((len(pair.a.layers), len(pair.b.layers)), np.float32)
    for which in ("u", "v"):
        of_a, of_b = (
            unit_rows(getattr(model.signature, which) @ n.T)
            for model, n in zip(pair.models, states, strict=True)
        )
        total += np.abs(of_a @ of_b.T) / 2
    return total


def _by_spectrum(pair: Pair) -> Floats:
    """1 for layers of equal singular values, 0 for those that are a factor e apart.

    Relative to the model's median, since a scale of the residual stream changes all of them.
    """
    a, b = (np.log(np.maximum(model.signature.sigma, 1e-30)) for model in pair.models)
    a, b = a - np.median(a, axis=0), b - np.median(b, axis=0)
    return np.maximum(0, 1 - np.abs(a[:, None] - b[None]).mean(axis=2)).astype(np.float32)


def comparable(pair: Pair) -> bool:
    """Whether all FFNs have gates, or none has."""
    return len({has_gate(model, layer) for model in pair.models for layer in model.layers}) == 1


def nearest_layers(pair: Pair, states: Iterable[tuple[Floats, Floats]], units: int) -> Floats:
    """Agreement of B's layers with A's, (layers of B, layers of A), by the first states that do."""
    nearest = np.zeros((len(pair.b.layers), len(pair.a.layers)), np.float32)
    for some in states:
        nearest = np.maximum(nearest, _all_agreements(pair, some, units))
        if nearest.max() >= PARTNER:
            break
    return nearest


def _all_agreements(pair: Pair, states: tuple[Floats, Floats], units: int) -> Floats:
    """Neuron agreement of every layer of B, sampled, with every one of A, (layers B, layers A)."""
    units = min(units, *(unit_width(pair.a, layer) for layer in pair.a.layers))
    samples = [sample_units(pair, pair.b, layer, states[1], units) for layer in pair.b.layers]
    shares = np.zeros((len(samples), len(pair.a.layers)), np.float32)
    generator = pair.generator(Stream.LAYER_TIES)
    for column, layer in enumerate(pair.a.layers):
        for expert in range(expert_count(pair.a, layer)):
            whole = named_units(pair.a, layer, states[0], expert=expert)
            for row, of_layer in enumerate(samples):
                found = (agreeing(sample, whole, generator) for _, sample in of_layer)
                shares[row, column] = max(shares[row, column], *found)
    return shares


def common_states(pair: Pair) -> Iterator[tuple[Floats, Floats]]:
    """Vectors that may mean the same in both models, in the order in which they are tried."""
    of_b = pair.generator(Stream.PARTNER_STATES).standard_normal(
        (_PARTNER_STATES, pair.b.hidden_size), dtype=np.float32
    )
    if pair.once(find_alignment).kind != "none":
        to_b = pair.once(find_alignment).apply(np.eye(pair.a.hidden_size, dtype=np.float32))
        yield multiply(of_b, np.ascontiguousarray(to_b.T)), of_b
    elif pair.same_width:
        yield of_b, of_b
    with contextlib.suppress(NotApplicable):  # no shared tokens
        yield token_states(pair, _PARTNER_STATES)[0]
