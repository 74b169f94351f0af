"""Correspondence: what two models look like side by side once the map between them is undone.

Independent models that learned from the same text resemble each other after any map that was
fitted, so nothing here has a p-value (docs/lineage.md), with three exceptions. A map that is
found from embeddings does not know in which order a layer's neurons are stored, nor with which sign
of their input rows; and a match of coordinates by absolute correlations does not know their signs.
Where a laundering left one of these alone, that is a witness whose probability under independent
training is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.lineage.correspondence.alignment import (
    find_alignment,
    signed_columns,
    token_stream,
)
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.matched_layers import sampled_facts, undone
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.criteria.criterion import EVERY_LEVEL, Criterion, Outcome, skip
from ckptforensics.lineage.criteria.directions import INSIDE
from ckptforensics.lineage.criteria.exchangeable import need_free_rows
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import effective, log10_binomial, log10_fixed_points
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream, generator
from ckptforensics.linear import Fit, block_map
from ckptforensics.spectra import singular_triplets

_TOKENS = 1_024
_VALUES = 20
_TINY = 1e-30
# Signs are not free where this share of them agrees of independent models; fewer tosses than this
# are not counted.
_NOT_FREE, _LEAST_TOSSES = 0.9, 8
_NONE = "the map between the models is estimated, so no hypothesis has a known distribution"
_INDEPENDENT = "the models were initialised independently of each other, and "


def _singular_values(pair: Pair) -> Outcome:
    """Differences of log s1 and log s2 of L, from the signatures."""
    a, b = (dict(zip(s.layers, s.signature.sigma, strict=True)) for s in pair.models)
    return _spectra({x: _log_difference(a[x], b[y]) for x, y in matched_layers(pair)}, pair)


def _singular_values_20(pair: Pair) -> Outcome:
    """The same of the 20 leading singular values, measured now."""
    found = {}
    for x, y in matched_layers(pair):
        a, b = _leading(pair.a, x, pair.seed), _leading(pair.b, y, pair.seed)
        found[x] = _log_difference(a, b)
    return _spectra(found, pair)


def _leading(model: Model, layer: int, seed: int) -> Doubles | Floats:
    operator = block_map(model.block(layer), Fit())
    start = generator(seed, Stream.SINGULAR_VALUES, layer)
    # Values are off by the square of this residual.
    return singular_triplets(
        operator, _VALUES, tolerance=1e-2, max_steps=4 * _VALUES, generator=start
    ).values


def _log_difference(a: Doubles | Floats, b: Doubles | Floats) -> float:
    count = min(len(a), len(b))
    one, other = (np.log(np.maximum(x[:count].astype(np.float64), _TINY)) for x in (a, b))
    return float(np.abs(one - other).mean())


def _spectra(found: Mapping[int, float], pair: Pair) -> Outcome:
    if not found:
        return skip("no layers correspond")
    values = list(found.values())
    note = f"largest at one layer: {max(values):.2g}; below 1e-4 one function, spelled differently"
    return Outcome(float(np.mean(values)), profile=_profile(pair, found), note=note)


def _gram(pair: Pair) -> Outcome:
    """Correlation of |u_i . u_j| over pairs of layers."""
    if len(matched_layers(pair)) < 4:
        return skip("fewer than four layers correspond")
    a, b = (_directions(model, "u") for model in pair.models)
    one = np.abs(_stacked(a, 0, pair) @ _stacked(a, 0, pair).T)
    other = np.abs(_stacked(b, 1, pair) @ _stacked(b, 1, pair).T)
    upper = np.triu_indices(len(one), 1)
    return Outcome(_correlation(one[upper], other[upper]))


def _vocabulary_profile(pair: Pair) -> Outcome:
    return _token_profile(pair, "u")


def _trigger_profile(pair: Pair) -> Outcome:
    return _token_profile(pair, "v")


def _token_profile(pair: Pair, kind: str) -> Outcome:
    """|correlation| of what each layer's direction does to shared tokens, freed of the usual.

    What depends on the size of an embedding and on how common a token is (by its id, which grows
    in the order of merging), unrelated models have in common too.
    """
    shared = pair.once(shared_tokens)
    profiles = []
    for model, ids, n in ((pair.a, shared.a, 0), (pair.b, shared.b, 1)):
        chosen = ids[:_TOKENS]
        x = token_stream(model, chosen)
        size = np.linalg.norm(x, axis=1)
        unit = x / np.maximum(size, _TINY)[:, None]
        profile = unit @ _stacked(_directions(model, kind), n, pair).T
        profiles.append(_residual(profile, np.log(np.maximum(size, _TINY)), np.log1p(chosen)))
    found = {
        layer: abs(_correlation(profiles[0][:, i], profiles[1][:, i]))
        for i, (layer, _) in enumerate(matched_layers(pair))
    }
    return _median(found, pair)


def _residual(values: Floats, *covariates: Doubles | Floats) -> Doubles:
    """Columns of values without their least-squares fit by a constant and the covariates."""
    known = np.column_stack([np.ones(len(values)), *covariates]).astype(np.float64)
    if not (np.isfinite(known).all() and np.isfinite(values).all()):
        raise np.linalg.LinAlgError("the tokens overflow")  # LAPACK would write to the terminal
    fit, *_ = np.linalg.lstsq(known, values.astype(np.float64), rcond=None)
    rest: Doubles = values.astype(np.float64) - known @ fit
    return rest


def _aligned_angles(pair: Pair) -> Outcome:
    """Median angle between u1 of corresponding layers after the map; u1 of others beside it."""
    alignment = pair.once(find_alignment)
    a = alignment.apply(_stacked(_directions(pair.a, "u"), 0, pair))
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), _TINY)
    cosines = np.clip(np.abs(a @ _stacked(_directions(pair.b, "u"), 1, pair).T), 0, 1)
    degrees = np.degrees(np.arccos(cosines))
    found = {layer: float(degrees[i, i]) for i, (layer, _) in enumerate(matched_layers(pair))}
    others = degrees[~np.eye(len(degrees), dtype=bool)]
    note = f"median of other layers: {np.median(others):.1f} degrees" if others.size else None
    return _median(found, pair, note)


def _embedding_fit(pair: Pair) -> Outcome:
    alignment = pair.once(find_alignment)
    if alignment.held_out_fit is None:
        return skip(alignment.reason or "the embeddings were not compared")
    note = f"of {alignment.kind}" if alignment.kind != "none" else "of the best rotation"
    return Outcome(alignment.held_out_fit, note=f"{note}; copied embeddings have at least 0.95")


def _unit_agreement(pair: Pair) -> Outcome:
    """Neurons whose nearest one is the same by gate, up and down, in B's coordinates."""
    return _median({facts.a: facts.agreeing for facts in sampled_facts(pair)}, pair)


def _recovered(pair: Pair) -> Outcome:
    facts = sampled_facts(pair)
    found = {f.a: f.error for f in facts}
    words = undone(pair)
    note = f"undone: {'; '.join(words)}" if words else "nothing had to be undone"
    return Outcome(max(found.values()), profile=_profile(pair, found), note=note)


# Witnesses


def _neuron_order(pair: Pair) -> Outcome:
    """Sampled neurons whose nearest neuron, after the map, has their own index.

    Of m sampled units, each with one nearest among n, the expected number of sets of k that are at
    their own index is C(m, k) (n - k)! / n! <= (m / n)^k / k! in a random order; over layers, whose
    orders are independent, the terms m / n add up (docs/lineage.md).
    """
    facts = sampled_facts(pair)
    need_free_rows(pair)
    fixed, sampled = sum(f.fixed for f in facts), sum(f.units for f in facts)
    expected = sum(f.units / f.of for f in facts)
    found = {f.a: f.fixed / f.units for f in facts}
    return Outcome(
        fixed / sampled,
        log10_p=log10_fixed_points(fixed, expected),
        profile=_profile(pair, found),
        note=f"{fixed:,} of {sampled:,} sampled neurons, {expected:.1f} expected by chance",
    )


def _row_signs(pair: Pair) -> Outcome:
    facts = sampled_facts(pair)
    positive, count = sum(f.positive for f in facts), sum(f.ups for f in facts)
    if not count:
        return skip("without a gate, the input rows name the neurons and have no free sign")
    expected = max(f.expected for f in facts)
    if expected >= _NOT_FREE:
        return skip("the sign of an input row is that of its neuron's gate in both models")
    return _signs(positive, count, "sampled neurons", sum(f.tosses for f in facts), expected)


def _column_signs(pair: Pair) -> Outcome:
    if any(model.weights.architecture.family.norm.kind != "rms" for model in pair.models):
        return skip("LayerNorm's mean ties the signs of all coordinates together")
    signs, columns = signed_columns(pair)
    tosses = min(effective(of) for of in columns)
    return _signs(int((signs > 0).sum()), signs.size, "residual coordinates", tosses)


def _signs(positive: int, count: int, of: str, tosses: float, expected: float = 0.5) -> Outcome:
    """Signs that depend on each other are counted as often as independent ones say as much."""
    if tosses < _LEAST_TOSSES:
        return skip(f"the signs of {count:,} {of} are {tosses:.0f} independent tosses")
    share = positive / count
    note = f"{positive:,} of {count:,} {of} have the same sign"
    if round(tosses) < count:
        note += f"; as many as {tosses:,.0f} independent tosses"
    heads = positive if round(tosses) >= count else math.floor(share * tosses)
    return Outcome(
        share, log10_p=log10_binomial(heads, min(count, round(tosses)), expected), note=note
    )


# Helpers


def _directions(model: Model, kind: str) -> dict[int, Floats]:
    rows = model.signature.u if kind == "u" else model.signature.v
    return dict(zip(model.layers, rows, strict=True))


def _stacked(by_layer: Mapping[int, Floats], at: int, pair: Pair) -> Floats:
    """(matched layers, hidden_size) of A with `at` = 0, of B with 1."""
    return np.stack([by_layer[layers[at]] for layers in matched_layers(pair)])


def _correlation(a: Floats | Doubles, b: Floats | Doubles) -> float:
    x, y = (v.astype(np.float64) - v.mean(dtype=np.float64) for v in (a, b))
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0 else 0.0


def _profile(pair: Pair, found: Mapping[int, float]) -> tuple[float | None, ...]:
    return tuple(found.get(layer) for layer in pair.a.layers)


def _median(found: Mapping[int, float], pair: Pair, note: str | None = None) -> Outcome:
    if not found:
        return skip("no layers correspond")
    return Outcome(float(np.median(list(found.values()))), profile=_profile(pair, found), note=note)


_BASIS = ("residual basis", "residual signs", "gains moved into matrices")
_NO_SCALE = tuple(what for what in INSIDE if what != "residual scale")
_SPECTRA = "from 0 up: below 1e-4 one function; relatives mostly below 0.02, others 0.01 to 0.3"
_PROFILE = "0 to 1: relatives are near 1; independent models of the same text reach 0.9"
_SIGNS = "0 to 1: 1 where all signs were kept, 0.5 by chance"

CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "singular values",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _singular_values,
        _NONE,
        needs="signatures",
        levels=EVERY_LEVEL,
        scale=_SPECTRA,
    ),
    Criterion(
        "20 singular values",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _singular_values_20,
        _NONE,
        levels=("thorough",),
        scale=_SPECTRA,
    ),
    Criterion(
        "angles between layers",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _gram,
        _NONE,
        needs="signatures",
        levels=EVERY_LEVEL,
        scale="-1 to 1: relatives are near 1, models of unlike origin mostly below 0.3",
    ),
    Criterion(
        "vocabulary profile",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _vocabulary_profile,
        _NONE,
        scale=_PROFILE,
    ),
    Criterion(
        "trigger profile",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _trigger_profile,
        _NONE,
        scale=_PROFILE,
    ),
    Criterion(
        "aligned angles",
        "correspondence",
        (*_BASIS, *_NO_SCALE),
        _aligned_angles,
        _NONE,
        scale="degrees, 0 to 90: relatives are near 0, unrelated directions near 90",
    ),
    Criterion(
        "embedding fit",
        "correspondence",
        (*_BASIS, *INSIDE),
        _embedding_fit,
        _NONE,
        scale="at most 1: copied embeddings have 0.95 or more, independent models up to 0.6",
    ),
    Criterion(
        "gate-up-down agreement",
        "correspondence",
        (*_BASIS, *INSIDE),
        _unit_agreement,
        _NONE,
        scale="0 to 1: relatives are near 1, independent models near 0",
    ),
    Criterion(
        "recovered layers",
        "correspondence",
        (*_BASIS, *INSIDE),
        _recovered,
        _NONE,
        scale="from 0 up, relative error: 0 is one function in other weights, 1 nothing in common",
    ),
    Criterion(
        "neuron order",
        "correspondence",
        (*_BASIS, *(what for what in INSIDE if what != "neuron order")),
        _neuron_order,
        f"{_INDEPENDENT}nothing in how they were made tells one neuron of a layer from another; "
        "the map does not depend on the order of neurons",
        scale="0 to 1: 1 where the order was kept; by chance one in as many as a layer has",
    ),
    Criterion(
        "signs of input rows",
        "correspondence",
        (*_BASIS, *(what for what in INSIDE if what != "neuron scale and sign")),
        _row_signs,
        f"{_INDEPENDENT}a neuron's input row and what it writes are as likely with the other sign; "
        "neurons are matched by their gates",
        scale=_SIGNS,
    ),
    Criterion(
        "signs of embedding columns",
        "correspondence",
        ("coordinate order", "gains moved into matrices", *INSIDE),
        _column_signs,
        f"{_INDEPENDENT}a residual coordinate is as likely with the other sign; coordinates are "
        "matched by absolute correlations",
        scale=_SIGNS,
    ),
)
