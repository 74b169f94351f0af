"""The map from one model's residual coordinates to another's.

A model's residual stream can be permuted, flipped, rotated and scaled without changing what it
computes. The map is recovered from the embeddings of shared tokens alone, so that what is seen
afterwards in the layers was not used to find it. Where the embeddings say nothing (drawn anew, or
no shared tokens), the layers themselves are asked: the directions, the neurons of one layer, or at
large widths the second moments of what reads the stream, which recognise an unchanged basis only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ckptforensics.arrays import Floats, Ints
from ckptforensics.compute.products import multiply, multiply_adjoint
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import finish_embedding
from ckptforensics.lineage.correspondence.directions import has_reliable_direction
from ckptforensics.lineage.correspondence.neuron_map import confirmed, map_from_neurons
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.effort import within
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import assign
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream
from ckptforensics.results.comparison import AlignmentKind

# Tokens that a map is fitted on (three for every two coordinates of a rotation), and held out.
_FIT_TOKENS, _HELD_OUT = 1_000, 500
# Mean held-out cosine of a rotation: copied embeddings reach .985, independent
# models of one tokenizer .6.
# Those in between (.89 for two stages of one training run) are believed if neurons confirm them.
_ROTATION, _PLAUSIBLE = 0.95, 0.75
# The same of a signed permutation, which fits independent models less: .38, and .87 of two stages.
_PERMUTATION = 0.6
# Share of embedding columns that resemble their own index most, of an unchanged basis.
_IDENTITY = 0.5
# Columns of A that are compared with all of B's to recognise an unchanged basis.
_COLUMNS = 256
# Median |cosine| of the same layer's directions, u1 and v1, of an unchanged basis.
_DIRECTIONS = 0.8
# Correlation of the coordinates' second moments within the same layers, of an unchanged basis.
_MOMENTS = 0.5
# Layers of which these are compared.
_MOMENT_LAYERS = 2
# Largest entry of most columns of a rotation that is a signed permutation.
_ONE_COORDINATE = 0.9
# Correlation of an embedding column with its own index that shows a flipped sign.
_FLIPPED = -0.3
# A scale this near to 1 is rounding.
_SCALE_SLACK = 1e-3
# Share of the squared difference that a scale may leave.
_EXPLAINED = 0.25
_TINY = 1e-30
_VECTORS: tuple[Literal["u"], Literal["v"]] = ("u", "v")


@dataclass(frozen=True)
class Alignment:
    """Vectors of A's residual stream in B's coordinates: x_b = scale x_a Q.

    Attributes
    ----------
    kind : what Q is; with `none`, nothing was found
    held_out_fit : mean cosine between mapped and actual embeddings that Q was not fitted on
    error : relative error of those mapped embeddings, |x_b - scale x_a Q| / |x_b|
    scale : factor between the residual streams
    found : what was found besides, in words
    source : what Q was found from: `embeddings` of shared tokens, `directions` of the signatures,
        `neurons` of one layer, or `matrices` of some
    reason : why nothing was found, or what the answer is limited to
    order : (d_b,) the coordinate of A that is each one of B's, -1 where none is; None for others
        than a signed permutation
    signs : (d_b,) factor, +1 or -1, of each
    rotation : (d_a, d_b) Q itself, None for others than a rotation
    """

    kind: AlignmentKind
    held_out_fit: float | None = None
    error: float | None = None
    scale: float = 1.0
    found: tuple[str, ...] = ()
    source: Literal["embeddings", "directions", "neurons", "matrices"] | None = None
    reason: str | None = None
    order: Ints | None = None
    signs: Floats | None = None
    rotation: Floats | None = None

    def apply(self, rows: Floats) -> Floats:
        """Rows Q: directions of A, or folded input rows of its maps, in B's coordinates.

        What A writes to the stream is `scale` times that.

        Parameters
        ----------
        rows : (n, d_a)

        Returns
        -------
        (n, d_b)

        Raises
        ------
        NotApplicable
            if no map was found.
        """
        if self.kind == "none":
            raise NotApplicable("no map between the residual streams was found")
        if self.rotation is not None:
            return multiply(np.ascontiguousarray(rows), self.rotation)
        if self.order is not None and self.signs is not None:
            picked: Floats = rows[:, self.order] * np.where(self.order < 0, 0, self.signs)
            return picked
        return rows


def find_alignment(pair: Pair) -> Alignment:
    """The map between two models' residual streams, as far as the level allows.

    Fast comparisons and saved signatures know an unchanged basis from the directions alone.
    """
    if not pair.reads_weights:
        return _from_directions(pair, "only signatures were compared")
    try:
        found = _from_embeddings(pair)
    except NotApplicable as problem:
        found = Alignment("none", reason=problem.message)
    if found.kind != "none":
        return found
    known = _from_directions(pair, found.reason or "")
    if known.kind == "none" and pair.same_width and pair.same_depth:
        try:
            if _rotatable(pair):
                known = _from_neurons(pair, found.reason or "")
            if known.kind == "none":
                known = _from_matrices(pair, found.reason or "")
        except NotApplicable:
            return found
    return known if known.kind != "none" else found


# Embeddings of shared tokens


@dataclass(frozen=True)
class _Tokens:
    """Embeddings of shared tokens, (n, d_a) and (n, d_b) each, centred by those of the fit."""

    fit_a: Floats
    fit_b: Floats
    held_a: Floats
    held_b: Floats


def _from_embeddings(pair: Pair) -> Alignment:
    rotatable = _rotatable(pair)
    tokens = _tokens(pair, rotatable)
    found = _same_columns(pair, tokens) if pair.same_width else None
    found = found or _permuted_columns(pair, tokens)
    if found is None and not rotatable:
        return Alignment(
            "none",
            reason="the embeddings are in another basis, and a rotation is looked for at widths "
            f"up to {pair.effort.widest_rotation:,} only, or by --thorough",
        )
    found = found or _rotated(pair, tokens)
    return found if found.kind == "none" else replace(found, source="embeddings")


def _rotatable(pair: Pair) -> bool:
    return within(min(s.hidden_size for s in pair.models), pair.effort.widest_rotation)


def _tokens(pair: Pair, rotatable: bool) -> _Tokens:
    shared = pair.once(shared_tokens)
    widest = max(model.hidden_size for model in pair.models)
    fit = max(_FIT_TOKENS, 3 * widest // 2) if rotatable else _FIT_TOKENS
    count = min(fit + _HELD_OUT, shared.a.size)
    if count < 4:
        raise NotApplicable(f"only {count} tokens are shared")
    cut = max(count - _HELD_OUT, count // 2)
    a, b = token_stream(pair.a, shared.a[:count]), token_stream(pair.b, shared.b[:count])
    mean_a, mean_b = a[:cut].mean(axis=0), b[:cut].mean(axis=0)
    return _Tokens(a[:cut] - mean_a, b[:cut] - mean_b, a[cut:] - mean_a, b[cut:] - mean_b)


def token_stream(model: Model, tokens: Ints) -> Floats:
    """(tokens, hidden_size) residual stream before the first block, as the norms behind see it.

    Raises
    ------
    NotApplicable
        if the files hold no token embeddings.
    """
    x = finish_embedding(model.weights, model.embedding(tokens))
    if model.weights.architecture.family.norm.kind == "layer":
        x = x - x.mean(axis=1, keepdims=True)
    return x


def _same_columns(pair: Pair, tokens: _Tokens) -> Alignment | None:
    """The unchanged basis, but for signs; None where columns resemble others than their own."""
    a, b = _unit_columns(tokens.fit_a), _unit_columns(tokens.fit_b)
    width = a.shape[1]
    some = np.sort(pair.generator(Stream.UNCHANGED_COLUMNS).permutation(width)[:_COLUMNS])
    nearest = np.abs(multiply_adjoint(b, np.ascontiguousarray(a[:, some]))).argmax(axis=0)
    if np.mean(nearest == some) < _IDENTITY:
        return None
    own = np.einsum("ij,ij->j", a, b)
    signs = np.where(own < _FLIPPED, -1, 1).astype(np.float32)
    if not (signs < 0).any():
        return _scaled(Alignment("identity"), tokens)
    words = (f"{int((signs < 0).sum()):,} of {width:,} coordinates have the other sign",)
    found = _scaled(Alignment("signed-permutation", order=np.arange(width), signs=signs), tokens)
    return replace(found, found=(*words, *found.found))


def _permuted_columns(pair: Pair, tokens: _Tokens) -> Alignment | None:
    """Other order and signs of the coordinates, of which some may be missing; None if no such."""
    correlation = multiply_adjoint(_unit_columns(tokens.fit_a), _unit_columns(tokens.fit_b))
    order = assign(np.abs(correlation), pair.generator(Stream.PERMUTED_COLUMNS))
    own = np.where(order < 0, 0, correlation[order, np.arange(order.size)])
    signs = np.where(own < 0, -1, 1).astype(np.float32)
    found = _scaled(Alignment("signed-permutation", order=order, signs=signs), tokens)
    assert found.held_out_fit is not None
    if found.held_out_fit < _PERMUTATION:
        return None
    words = [f"coordinates in another order, {int((signs < 0).sum()):,} with the other sign"]
    width_a, width_b = (model.hidden_size for model in pair.models)
    if width_a != width_b:
        kept, of = sorted((width_a, width_b))
        words = [f"{kept:,} of {of:,} coordinates are in both"]
    return replace(found, found=(*words, *found.found))


def _rotated(pair: Pair, tokens: _Tokens) -> Alignment:
    """Orthogonal Procrustes: Q = U V' of A'B = U S V' (Schoenemann 1966)."""
    product = multiply_adjoint(tokens.fit_a, tokens.fit_b)
    u, _, vt = np.linalg.svd(product, full_matrices=False)
    found = _scaled(Alignment("rotation", rotation=multiply(u, vt)), tokens)
    fit = found.held_out_fit
    assert fit is not None
    assert found.rotation is not None
    if fit < _PLAUSIBLE or (fit < _ROTATION and not _confirmed(pair, found.rotation)):
        return Alignment(
            "none",
            held_out_fit=fit,
            reason="after the best rotation, the embeddings of held-out tokens have cosine "
            f"{fit:.2f}; copies have {_ROTATION}",
        )
    return replace(found, found=("another basis, rotated", *found.found))


def _confirmed(pair: Pair, rotation: Floats) -> bool:
    try:
        return confirmed(pair, rotation)
    except NotApplicable:
        return False


def _scaled(found: Alignment, tokens: _Tokens) -> Alignment:
    """With its held-out fit, and the factor between the streams.

    The ratio of sizes is a factor if it takes away most of the squared difference: training and
    noise make embeddings larger, too.
    """
    a, b = found.apply(tokens.fit_a), tokens.fit_b
    if found.order is not None:
        b = np.where(found.order < 0, 0, b)
    own, both, theirs = (float(np.vdot(x, y)) for x, y in ((a, a), (a, b), (b, b)))
    scale = float(np.sqrt(theirs / max(own, _TINY)))
    left = theirs - 2 * scale * both + scale**2 * own
    if abs(scale - 1) < _SCALE_SLACK or left > _EXPLAINED * (theirs - 2 * both + own):
        scale = 1.0
    words = () if scale == 1 else (f"the residual stream is {scale:.4g} times as large",)
    mapped, held = found.apply(tokens.held_a), tokens.held_b
    lengths = np.linalg.norm(mapped, axis=1) * np.linalg.norm(held, axis=1)
    cosines = np.einsum("ij,ij->i", mapped, held) / np.maximum(lengths, _TINY)
    error = np.linalg.norm(held - np.float32(scale) * mapped) / max(
        float(np.linalg.norm(held)), _TINY
    )
    return replace(
        found, scale=scale, held_out_fit=float(cosines.mean()), error=float(error), found=words
    )


def column_signs(pair: Pair) -> Floats:
    """Signs with which embedding columns of corresponding coordinates go together, zeros left out.

    Errors as `signed_columns`.
    """
    return signed_columns(pair)[0]


def signed_columns(pair: Pair) -> tuple[Floats, tuple[Floats, Floats]]:
    """Signs as `column_signs`, and the columns of A and of B that have them: (columns, tokens).

    Raises
    ------
    NotApplicable
        if coordinates do not correspond one by one, or no tokens are shared.
    """
    alignment = pair.once(find_alignment)
    if alignment.kind not in ("identity", "signed-permutation"):
        raise NotApplicable("the residual coordinates do not correspond one by one")
    tokens = _tokens(pair, rotatable=False)
    order = alignment.order
    a, b = tokens.fit_a, tokens.fit_b
    if order is not None:
        a, b = a[:, order[order >= 0]], b[:, order >= 0]
    signs = np.sign(np.einsum("ij,ij->j", a, b))
    there = signs != 0
    return signs[there], (a[:, there].T.copy(), b[:, there].T.copy())


def _unit_columns(x: Floats) -> Floats:
    columns: Floats = x / np.maximum(np.linalg.norm(x, axis=0), _TINY)
    return columns


# Layers, where the embeddings say nothing


def _from_directions(pair: Pair, reason: str) -> Alignment:
    """The unchanged basis, where the directions of the same layers agree; reads signatures."""
    if not pair.same_width or not pair.same_depth:
        return Alignment("none", reason=reason)
    a, b = pair.a.signature, pair.b.signature
    both_u, both_v = (np.logical_and(*has_reliable_direction(pair, which)) for which in _VECTORS)
    cosines = [
        np.abs(np.einsum("ij,ij->i", a.u, b.u))[both_u],
        np.abs(np.einsum("ij,ij->i", a.v, b.v))[both_v],
    ]
    known = np.concatenate(cosines)
    if not known.size or np.median(known) < _DIRECTIONS:
        return Alignment("none", reason=reason)
    return Alignment("identity", source="directions", reason=reason)


def _from_neurons(pair: Pair, reason: str) -> Alignment:
    """The map that neurons of one layer show, and those of another confirm."""
    found = map_from_neurons(pair)
    if found is None:
        return Alignment("none", reason=reason)
    rotation, scale = found
    words = () if scale == 1 else (f"the residual stream is {scale:.4g} times as large",)
    known = Alignment("rotation", None, None, scale, words, "neurons", reason)
    order = np.abs(rotation).argmax(axis=0)
    own = rotation[order, np.arange(order.size)]
    if np.median(np.abs(own)) < _ONE_COORDINATE or np.unique(order).size < order.size:
        return replace(known, rotation=rotation, found=("another basis, rotated", *words))
    signs = np.where(own < 0, -1, 1).astype(np.float32)
    if (order == np.arange(order.size)).all() and (signs > 0).all():
        return replace(known, kind="identity")
    told = f"coordinates in another order, {int((signs < 0).sum()):,} with the other sign"
    return replace(known, kind="signed-permutation", order=order, signs=signs, found=(told, *words))


def _from_matrices(pair: Pair, reason: str) -> Alignment:
    """The unchanged basis, where the same layers read pairs of coordinates alike.

    The second moments of the rows that read the stream do not depend on the neurons' order.
    """
    width = pair.a.hidden_size
    some = np.sort(pair.generator(Stream.MOMENT_COORDINATES).permutation(width)[:_COLUMNS])
    off = ~np.eye(some.size, dtype=bool)
    found = []
    layers = list(zip(pair.a.layers, pair.b.layers, strict=True))
    for a, b in layers[len(layers) // 4 :: max(1, len(layers) // _MOMENT_LAYERS)]:
        one, other = (_moments(s, n, some)[off] for s, n in zip(pair.models, (a, b), strict=True))
        found.append(np.corrcoef(one, other)[0, 1])
    if np.median(found) < _MOMENTS:
        return Alignment("none", reason=reason)
    return Alignment("identity", source="matrices", reason=reason)


def _moments(model: Model, layer: int, coordinates: Ints) -> Floats:
    """Correlations of coordinates over the rows that read them, of all experts of a layer."""
    rows = np.concatenate([units.rows[:, coordinates] for units in model.ffns(layer)])
    columns = _unit_columns(rows - rows.mean(axis=0))
    return multiply_adjoint(columns, columns)
