"""Which layers of two models correspond: by order, or by what the layers do to the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NothingAnalysable
from ckptforensics.lineage.criteria.neurons import (
    agreeing,
    expert_count,
    has_gate,
    named_units,
    pseudo_tokens,
    sample_units,
    token_states,
    unit_width,
)
from ckptforensics.lineage.numeric import unit_rows

if TYPE_CHECKING:
    from ckptforensics.lineage.pair import Pair

LayerMap = tuple[tuple[int | None, int | None], ...]

# What a layer without a partner costs in similarity, of which two equal directions have 1.
GAP = 0.4
# Mean similarity of matched layers from which a kind of similarity says anything.
CONVINCING = 0.6
# How much better than the plain order of layers another map must be.
CLEARLY = 0.2
_PROFILE_TOKENS = 1024
# Neurons of each layer that are looked for among those of every other, by so many features; to find
# partners, and just to order the layers.
_PARTNER_STATES, _PARTNER_UNITS, _MAP_UNITS = 256, 32, 16
_KEY = 2_201
# Widths up to which every layer is compared with every other one unless all is looked at.
_WIDEST = 1536
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
    a, b = (side.layers for side in pair.sides)
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
    if pair.level == "fast" or any(side.checkpoint is None for side in pair.sides):
        return
    if pair.alignment.kind not in ("identity", "none"):
        yield _by_directions(pair, aligned=True), CONVINCING
    with contextlib.suppress(NothingAnalysable):  # no shared tokens
        yield _by_profiles(pair), CONVINCING
    narrow = max(side.hidden_size for side in pair.sides) <= _WIDEST
    if not pair.same_depth and (narrow or pair.thorough) and _comparable(pair):
        yield _nearest(pair, _common_states(pair), _MAP_UNITS).T, PARTNER


def _by_directions(pair: Pair, *, aligned: bool = False) -> Floats:
    """Mean |cos| of both leading directions, u1 of the block and v1 of its FFN."""
    total = np.zeros((len(pair.a.layers), len(pair.b.layers)), np.float32)
    for of_a, of_b in (
        (pair.a.signature.u, pair.b.signature.u),
        (pair.a.signature.v, pair.b.signature.v),
    ):
        mapped = unit_rows(pair.alignment.apply(of_a)) if aligned else of_a
        total += np.abs(mapped @ of_b.T) / 2
    return total


def _by_profiles(pair: Pair) -> Floats:
    """Mean |correlation| of what the directions make of shared tokens, in any basis and width."""
    states, _ = token_states(pair, _PROFILE_TOKENS)
    total = np.zeros((len(pair.a.layers), len(pair.b.layers)), np.float32)
    for which in ("u", "v"):
        of_a, of_b = (
            unit_rows(getattr(side.signature, which) @ n.T)
            for side, n in zip(pair.sides, states, strict=True)
        )
        total += np.abs(of_a @ of_b.T) / 2
    return total


def _by_spectrum(pair: Pair) -> Floats:
    """1 for layers of equal singular values, 0 for those that are a factor e apart.

    Relative to the model's median, since a scale of the residual stream changes all of them.
    """
    a, b = (np.log(np.maximum(side.signature.sigma, 1e-30)) for side in pair.sides)
    a, b = a - np.median(a, axis=0), b - np.median(b, axis=0)
    return np.maximum(0, 1 - np.abs(a[:, None] - b[None]).mean(axis=2)).astype(np.float32)


def free_partners(pair: Pair) -> tuple[tuple[int, int | None, float], ...]:
    """For each layer of B the layer of A whose neurons it has, whatever their order.

    One layer of A may be the partner of several of B. Neurons are told by their rows in the basis
    that was found or the stored one, else by how they respond to shared tokens or to
    pseudo-tokens: the first of these by which any layer has a partner.

    Returns
    -------
    (layer of B, layer of A or None, neuron agreement f of the two or of the nearest) for each layer

    Raises
    ------
    NothingAnalysable
        if only one model's neurons have gates.
    """
    if not _comparable(pair):
        raise NothingAnalysable("the neurons of only one of the models have gates")
    nearest = _nearest(pair, _every_state(pair), _PARTNER_UNITS)
    best = nearest.argmax(axis=1)
    return tuple(
        (layer, pair.a.layers[i] if row[i] >= PARTNER else None, float(row[i]))
        for layer, i, row in zip(pair.b.layers, best, nearest, strict=True)
    )


def _comparable(pair: Pair) -> bool:
    """Whether all FFNs have gates, or none has."""
    return len({has_gate(side, layer) for side in pair.sides for layer in side.layers}) == 1


def _nearest(pair: Pair, states: Iterable[tuple[Floats, Floats]], units: int) -> Floats:
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
    generator = pair.generator(_KEY)
    for column, layer in enumerate(pair.a.layers):
        for expert in range(expert_count(pair.a, layer)):
            whole = named_units(pair.a, layer, states[0], expert=expert)
            for row, of_layer in enumerate(samples):
                found = (agreeing(sample, whole, generator) for _, sample in of_layer)
                shares[row, column] = max(shares[row, column], *found)
    return shares


def _common_states(pair: Pair) -> Iterator[tuple[Floats, Floats]]:
    """Vectors that may mean the same in both models, in the order in which they are tried."""
    of_b = pair.generator(_KEY, 1).standard_normal(
        (_PARTNER_STATES, pair.b.hidden_size), dtype=np.float32
    )
    if pair.alignment.kind != "none":
        to_b = pair.alignment.apply(np.eye(pair.a.hidden_size, dtype=np.float32))
        yield multiply(of_b, np.ascontiguousarray(to_b.T)), of_b
    elif pair.same_width:
        yield of_b, of_b
    with contextlib.suppress(NothingAnalysable):  # no shared tokens
        yield token_states(pair, _PARTNER_STATES)[0]


def _every_state(pair: Pair) -> Iterator[tuple[Floats, Floats]]:
    """The same, and pseudo-tokens, which need to know which layers correspond."""
    yield from _common_states(pair)
    with contextlib.suppress(NothingAnalysable):  # no layers do
        yield pseudo_tokens(pair)
