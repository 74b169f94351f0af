"""Agreement that rests on no map, no order and no matching that a copy's maker could choose.

Three channels, each blind to something else: what all neurons behind one gate compute, the spectra
of heads, the space that the embeddings span. docs/lineage.md has what each sees and what it costs
to hide from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import embedding_name
from ckptforensics.lineage.correspondence.equal_parts import equal_parts
from ckptforensics.lineage.correspondence.layer_survey import survey
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.criteria.criterion import Criterion, Outcome
from ckptforensics.lineage.criteria.directions import INSIDE, UNFOLDED
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# A head of B is one of A's if it is closer to it than this share of the way to A's own next head.
_CLOSER = 0.3
# Layers with fewer heads say too little on their own.
_LEAST_HEADS = 4
# Values below this share of a head's largest were never there: dimensions of zeros.
_PADDING = 4e-3
_FAR = 100.0
# Heads that are all alike tell nothing: distance of log singular values to the next one.
_TOLD_APART = 1e-3
# Shared tokens for each residual coordinate, and random directions of the embeddings' space.
_TOKENS_A_COORDINATE = 4
_DIRECTIONS = 8
_STEPS = 60
# Share of a gradient's square at which what further steps add is rounding.
_CONVERGED = 1e-12
# Differences of a column's entries that are rounding, as a share of the largest entry.
_ROUNDING = 1e-5
# Width from which on the space is compared by random directions of it.
_WIDE = 1_024


def _functions(pair: Pair) -> Outcome:
    """The largest of all pairs of layers, each the median of its sampled gates."""
    found = pair.once(survey)
    if found.unmeasured is not None:
        raise NotApplicable(found.unmeasured)
    cosines = found.functions
    by_layer: dict[int, float] = {}
    for (a, _), value in cosines.items():
        by_layer[a] = max(value, by_layer.get(a, 0.0))
    (a, b), best = max(cosines.items(), key=lambda item: item[1])
    return Outcome(
        best,
        profile=tuple(by_layer.get(layer) for layer in pair.a.layers),
        note=f"largest for layers {a} and {b} of {len(cosines):,} pairs; "
        f"{pair.effort.function_neurons} gates a layer",
    )


def _heads(pair: Pair) -> Outcome:
    """Share of heads that are nearest to one of the other model, of all or of one layer's."""
    a, b = pair.once(survey).heads
    if not a or not b:
        raise NotApplicable("a model has no attention that is analysed")
    shares, notes = [], []
    for mine, theirs, name in ((a, b, pair.a.name), (b, a, pair.b.name)):
        near = _near(mine, theirs)
        shares.append(near)
        total = float(np.mean(np.concatenate(list(near.values()))))
        notes.append(f"{total:.0%} of {name}'s heads")
    layers = [
        float(found.mean())
        for near in shares
        for found in near.values()
        if found.size >= _LEAST_HEADS
    ]
    whole = [float(np.mean(np.concatenate(list(near.values())))) for near in shares]
    profile = tuple(
        None if layer not in shares[0] else float(shares[0][layer].mean())
        for layer in pair.a.layers
    )
    return Outcome(max([*whole, *layers]), profile=profile, note="; ".join(notes))


def _near(mine: Mapping[int, Doubles], theirs: Mapping[int, Doubles]) -> dict[int, Doubles]:
    """For each head of one model, by layer, whether one of the other is nearly it."""
    own, other = (np.concatenate(list(found.values())) for found in (mine, theirs))
    own, other = _of_one_length(own, other)
    if len(own) < _LEAST_HEADS or len(other) < _LEAST_HEADS:
        raise NotApplicable(f"a model has fewer than {_LEAST_HEADS} heads that write anything")
    between, within = _distances(own, other).min(axis=1), _distances(own, own)
    np.fill_diagonal(within, np.inf)
    apart = within.min(axis=1)
    # What a model's own heads share does not tell it from others.
    told = apart > _TOLD_APART
    if told.mean() < 0.5:
        raise NotApplicable("most heads of a model have the spectrum of another of its heads")
    near = ((between < _CLOSER * apart) & told).astype(np.float64)
    ends = np.cumsum([len(rows) for rows in mine.values()])[:-1]
    return dict(zip(mine, np.split(near, ends), strict=True))


def _of_one_length(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    """Both with the values of the smaller heads, if the larger ones were only padded.

    Else each with values that the other has not: a head of full rank is none of fewer dimensions.
    """
    short, long = sorted((a, b), key=lambda rows: rows.shape[1])
    few, many = short.shape[1], long.shape[1]
    if few == many:
        return a, b
    padded = long[:, few] - long[:, 0] <= math.log(_PADDING)
    cut = long[:, :few] - long[:, :few].mean(axis=1, keepdims=True)
    cut[~padded] += np.linspace(_FAR, 2 * _FAR, few)  # centred rows never come near
    return (a, cut) if short is a else (cut, b)


def _distances(a: Doubles, b: Doubles) -> Doubles:
    """Root mean square difference of all rows of a and of b."""
    squares = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1) - 2 * (a @ b.T) / a.shape[1]
    found: Doubles = np.sqrt(np.maximum(squares, 0))
    return found


def _token_space(pair: Pair) -> Outcome:
    """Mean squared cosine of the principal angles of both column spaces, less that of chance.

    Of the narrower space; of wide models of random directions in it.
    """
    tokens = pair.once(shared_tokens)
    widths = [
        model.weights.store.info(embedding_name(model.weights)).shape[-1] for model in pair.models
    ]
    count = min(len(tokens.a), _TOKENS_A_COORDINATE * max(widths))
    if count < 2 * max(widths):
        raise NotApplicable(
            f"{len(tokens.a):,} shared tokens are too few for embeddings of {max(widths):,} "
            "coordinates"
        )
    a, b = (
        _centred(model.embedding(ids[:count]))
        for model, ids in zip(pair.models, (tokens.a, tokens.b), strict=True)
    )
    narrow, wide = (a, b) if a.shape[1] <= b.shape[1] else (b, a)
    if not (narrow.any() and wide.any()):
        raise NotApplicable("the embeddings of a model are all the same")
    if wide.shape[1] <= _WIDE:
        found, rank = _principal(narrow, wide)
    else:
        generator = pair.generator(Stream.TOKEN_SPACE)
        at = generator.standard_normal((narrow.shape[1], _DIRECTIONS)).astype(np.float32)
        found, rank = _explained(wide, narrow @ at), wide.shape[1]
    chance = rank / count
    how = "by string" if tokens.by_string else "by id, since a vocabulary is missing"
    return Outcome(
        (found - chance) / (1 - chance),
        note=f"{count:,} tokens matched {how}; {chance:.2f} by chance is taken off",
    )


def _centred(rows: Floats) -> Floats:
    """Less the mean of each column; a column that only rounding makes differ is 0."""
    centred = rows - rows.mean(axis=0)
    sizes = np.abs(rows).max(axis=0)
    return np.where(np.abs(centred).max(axis=0) > _ROUNDING * sizes, centred, np.float32(0))


def _principal(narrow: Floats, wide: Floats) -> tuple[float, int]:
    """The mean squared cosine of the narrower space's principal angles, and the wider's rank."""
    bases = [_basis(rows) for rows in (narrow, wide)]
    few, many = sorted(basis.shape[1] for basis in bases)
    # The squares of the cosines are those of the singular values of this product.
    return float(np.sum(np.square(bases[0].T @ bases[1]))) / few, many


def _basis(rows: Floats) -> Doubles:
    """An orthonormal basis of the columns' space, without what is rounding."""
    exact = rows.astype(np.float64)
    squares, right = np.linalg.eigh(exact.T @ exact)
    there = squares > 1e-10 * squares[-1]
    found: Doubles = exact @ (right[:, there] / np.sqrt(squares[there]))
    return found


def _explained(space: Floats, vectors: Floats) -> float:
    """Mean share of the vectors' squares that lies in the space, by conjugate gradients.

    Ended early it is too small, never too large.
    """
    scale = np.maximum(np.sqrt(np.einsum("ij,ij->j", space, space)), 1e-30)[:, None]
    target = vectors.astype(np.float64)
    residual = target.copy()
    gradient = multiply_adjoint(space, residual.astype(np.float32)) / scale
    step, size = gradient.copy(), np.einsum("ij,ij->j", gradient, gradient)
    first = size
    for _ in range(_STEPS):
        image = multiply(space, (step / scale).astype(np.float32))
        length = size / np.maximum(np.einsum("ij,ij->j", image, image, dtype=np.float64), 1e-300)
        residual -= length * image
        gradient = multiply_adjoint(space, residual.astype(np.float32)) / scale
        new = np.einsum("ij,ij->j", gradient, gradient)
        if (new <= _CONVERGED * first).all():
            break
        step = gradient + (new / np.maximum(size, 1e-300)) * step
        size = new
    left = np.einsum("ij,ij->j", residual, residual) / np.einsum("ij,ij->j", target, target)
    return float(np.mean(1 - np.minimum(left, 1)))


def _equal(pair: Pair) -> Outcome:
    """Share of A's entries in rows or columns that B has bit by bit; whole matrices decide."""
    found = pair.once(equal_parts)
    whole = len(found.whole)
    note = f"{whole} of {found.compared} matrices whole, {len(found.tensors) - whole} in part"
    profile = []
    for layer in pair.a.layers:
        here = [t for t in found.tensors if t.layer == layer]
        profile.append(max((t.rows for t in here), default=0.0))
    best = max((t.rows for t in found.tensors), default=0.0)
    return Outcome(best, profile=tuple(profile), note=f"{note}; {found.share:.1%} of all entries")


_NO_LAYERS = ("residual basis", "residual signs", "order and number of layers")
_COPIES = ("copies, splits and decoys of neurons",)
CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "functions behind gates",
        "agreement",
        (*_NO_LAYERS, *UNFOLDED, *_COPIES, "which matrix is called gate"),
        _functions,
        scale="0 to 1: relatives have at least 0.3, independent models less than 0.15",
        limits=(0.15, 0.3),
    ),
    Criterion(
        "head spectra",
        "agreement",
        (*_NO_LAYERS, *UNFOLDED, *_COPIES, "embeddings", "tokenizer"),
        _heads,
        scale="0 to 1: copied heads have 0.6 or more, independent models less than 0.3",
        limits=(0.3, 0.6),
    ),
    Criterion(
        "space of embeddings",
        "agreement",
        (*_NO_LAYERS, *INSIDE, "any map of the residual stream"),
        _token_space,
        scale="0 to 1: copied embeddings have 0.9 or more, independent models less than 0.6",
        limits=(0.6, 0.9),
    ),
    Criterion(
        "equal parts",
        "agreement",
        ("names, order and files of tensors", "order of rows, or of columns", "number type"),
        _equal,
        scale="0 to 1, rows or columns of one matrix: 0 for independent models",
        limits=(0.02, 0.2),
    ),
)
