"""Hidden units and heads of corresponding layers, matched after the residual map is undone.

A unit is named by its gate's folded row (by its input row without a gate), which no rewriting
changes but for the residual basis: order and factors of units are then read off. Heads are compared
by their products W_O W_V, which no basis of the values changes; the products are never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Bools, Doubles, Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.compute.threads import in_threads, shares
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Attention, Ffn, Moe
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.effort import Effort
from ckptforensics.lineage.models import Units
from ckptforensics.lineage.numeric import assign, relative_error, unit_rows
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Median cosine of units with those at the same index of an order that was kept, the share of it
# that leaves a unit there (in SmolLM2 different units reach .62), and the cosine that leaves all
# heads where they are: those that share values resemble each other.
_SAME, _LIKE_MOST, _SAME_HEADS = 0.5, 0.8, 0.9
# A factor is believed where it takes away this share of a unit's difference.
_EXPLAINED = 0.5
# Difference of two heads' value maps, beyond three times that of the products, of another basis.
_OTHER_BASIS = 1e-2
# Factors this near to 1 are rounding: the distances they are judged by are sums in float32.
_ROUNDING = 1e-3
_TINY = 1e-30


@dataclass(frozen=True)
class UnitMatch:
    """Units of A for units of B.

    Attributes
    ----------
    order : (units of B,) unit of A, -1 where none
    kept : whether the order is the identity
    cosines : (units of B,) of the rows that name them, 0 where none
    """

    order: Ints
    kept: bool
    cosines: Floats


@dataclass(frozen=True)
class HeadMatch:
    """Heads of A matched to those of B by their products W_O W_V.

    Attributes
    ----------
    order : (heads of B,) head of A, -1 where none
    kept : whether the order is the identity
    errors : (heads of B,) |P_b - P_a| / |P_b| of the products in B's coordinates, NaN where none
    basis_kept : whether the value maps themselves agree as the products do
    """

    order: Ints
    kept: bool
    errors: Doubles
    basis_kept: bool


@dataclass(frozen=True)
class LayerMatch:
    """Two layers, unit by unit and head by head.

    Attributes
    ----------
    a, b : numbers of the layers, from 1
    units_a : A's units in B's coordinates, in the order of B's, `up` and `down` brought to B's
        scale; zeros where a unit of B has no partner
    units_b : B's units
    order : (units of B,) unit of A, -1 where none
    kept : whether the order is the identity
    cosines : (units of B,) of the rows that name the units, 0 where none
    scales : (units of B,) factor on A's `up`, its inverse is on `down`; 1 where nothing was scaled
    heads : None where one of the layers has no attention whose values are linear in its input
    """

    a: int
    b: int
    units_a: Units
    units_b: Units
    order: Ints
    kept: bool
    cosines: Floats
    scales: Floats
    heads: HeadMatch | None


def match_units(
    units_a: Units, units_b: Units, generator: np.random.Generator, effort: Effort
) -> UnitMatch:
    """Match units whose rows are in the same residual coordinates, by the rows that name them.

    Where most units resemble the one at their own index, those that do so as much as most stay
    where they are. The signed cosines of the others are assigned: activations are not odd, so that
    a unit's row keeps its sign.

    Raises
    ------
    NotApplicable
        if only one of the FFNs has a gate.
    """
    if (units_a.gate is None) != (units_b.gate is None):
        raise NotApplicable("the FFN of one model has a gate, that of the other has none")
    a, b = unit_rows(units_a.rows), unit_rows(units_b.rows)
    same = min(len(a), len(b))
    order = np.full(len(b), -1, np.int64)
    own = np.einsum("ij,ij->i", a[:same], b[:same])
    usual = float(np.median(own))
    if usual > _SAME:
        order[:same] = np.where(own > _LIKE_MOST * usual, np.arange(same), -1)
    rest_b = np.flatnonzero(order < 0)
    rest_a = np.setdiff1d(np.arange(len(a)), order)
    if rest_a.size and rest_b.size:
        found = assign(_products(a[rest_a], b[rest_b], generator, effort), generator)
        order[rest_b] = np.where(found < 0, -1, rest_a[found])
    kept = bool((order[:same] == np.arange(same)).all())
    cosines = own if kept and same == len(b) else np.einsum("ij,ij->i", a[order], b) * (order >= 0)
    return UnitMatch(order, kept, cosines)


def _products(a: Floats, b: Floats, generator: np.random.Generator, effort: Effort) -> Floats:
    """Inner products of all rows; of large matrices in a random subspace, to some hundredths."""
    dimensions = effort.unit_sketch
    if a.size * len(b) > effort.unit_products and a.shape[1] > dimensions:
        sketch = generator.standard_normal((a.shape[1], dimensions)).astype(np.float32)
        a, b = (unit_rows(multiply(rows, sketch)) for rows in (a, b))
    return multiply(a, np.ascontiguousarray(b.T))


def match_layer(pair: Pair, layer_a: int, layer_b: int) -> LayerMatch:
    """Match the units of one dense FFN and the heads of one attention.

    Raises
    ------
    NotApplicable
        if no map between the residual streams was found, a layer has experts, or only one of the
        FFNs has a gate.
    """
    block_a, block_b = pair.a.block(layer_a), pair.b.block(layer_b)
    mapped = in_coordinates_of_b(pair, pair.a.units(layer_a), block_a.ffn)
    units_b = _as_written(pair.b.units(layer_b), block_b.ffn)
    ties = pair.generator(Stream.UNIT_TIES, layer_a, layer_b)
    match = match_units(mapped, units_b, ties, pair.effort)
    units_a, scales = _rescale_to(_picked(mapped, match), units_b, match.order >= 0)
    return LayerMatch(
        a=layer_a,
        b=layer_b,
        units_a=units_a,
        units_b=units_b,
        order=match.order,
        kept=match.kept,
        cosines=match.cosines,
        scales=scales,
        heads=match_heads(pair, block_a.attention, block_b.attention),
    )


def in_coordinates_of_b(pair: Pair, units: Units, ffn: Ffn | Moe) -> Units:
    """A's units (of a whole FFN or of one expert) as B's residual coordinates show them.

    Raises
    ------
    NotApplicable
        if no map between the residual streams was found.
    """
    units = _as_written(units, ffn)
    alignment = pair.once(find_alignment)
    # A norm behind the branch takes a factor of its result out again.
    factor = 1.0 if ffn.post_norm is not None else alignment.scale
    down = alignment.apply(np.ascontiguousarray(units.down.T)).T
    return Units(
        None if units.gate is None else alignment.apply(units.gate),
        alignment.apply(units.up),
        down if factor == 1 else down * np.float32(factor),
    )


def match_heads(pair: Pair, a: Attention | None, b: Attention | None) -> HeadMatch | None:
    """Match the heads of two attentions; None where one's values are not linear in its input."""
    if a is None or b is None or a.latent is not None or b.latent is not None:
        return None
    alignment = pair.once(find_alignment)
    factor = 1.0 if a.post_norm is not None else alignment.scale
    values_a, outputs_a = _heads(a)
    heads, size, width = outputs_a.shape
    outputs_a = alignment.apply(outputs_a.reshape(-1, width)).reshape(heads, size, -1)
    values_a = alignment.apply(values_a.reshape(-1, width)).reshape(len(values_a), size, -1)
    heads_a = (values_a.repeat(a.repeats, axis=0), outputs_a * np.float32(factor))
    values_b, outputs_b = _heads(b)
    if alignment.order is not None:  # coordinates that A has not are compared with nothing
        shared = (alignment.order >= 0).astype(np.float32)
        values_b, outputs_b = values_b * shared, outputs_b * shared
    heads_b = (values_b.repeat(b.repeats, axis=0), outputs_b)
    order = _head_order(heads_a, heads_b, pair.generator(Stream.HEAD_TIES))
    same = min(heads, len(outputs_b))

    def compared(head: int) -> tuple[float, bool]:
        one = (heads_a[0][order[head]], heads_a[1][order[head]])
        other = (heads_b[0][head], heads_b[1][head])
        error = _product_error(one, other)
        if one[0].shape != other[0].shape:
            return error, True
        return error, relative_error(one[0], other[0]) <= 3 * error + _OTHER_BASIS

    known = np.flatnonzero(order >= 0)
    told = in_threads(compared, known.tolist())
    errors = np.full(order.size, np.nan)
    errors[known] = [error for error, _ in told]
    kept = bool((order[:same] == np.arange(same)).all())
    return HeadMatch(order, kept, errors, all(basis for _, basis in told))


def _heads(attention: Attention) -> tuple[Floats, Floats]:
    """(value heads, head_dim, hidden_size) folded value maps, (heads, head_dim, hidden_size) W_O'.

    The output maps are what is added to the stream, as `_as_written`.
    """
    value = fold_norm(attention.value.matrix, attention.norm)
    output = _added(attention.output.weight, attention)
    size, width = attention.head_dim, value.shape[1]
    columns = np.ascontiguousarray(output.T).reshape(-1, size, output.shape[0])
    return value.reshape(-1, size, width), columns


def _head_order(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], generator: np.random.Generator
) -> Ints:
    """The head of A for each one of B, by the cosines of the products W_O W_V as matrices."""
    size_a = np.sqrt(np.maximum(_inner(a, a), _TINY))
    size_b = np.sqrt(np.maximum(_inner(b, b), _TINY))
    count_a, count_b = len(a[0]), len(b[0])
    same = min(count_a, count_b)
    order = np.full(count_b, -1, np.int64)
    own = _inner((a[0][:same], a[1][:same]), (b[0][:same], b[1][:same]))
    if (own > _SAME_HEADS * size_a[:same] * size_b[:same]).all():
        order[:same] = np.arange(same)
        return order
    score = np.empty((count_a, count_b), np.float32)
    for head in range(count_a):
        one = tuple(np.broadcast_to(part[head], (count_b, *part.shape[1:])) for part in a)
        score[head] = _inner((one[0], one[1]), b) / (size_a[head] * size_b)
    return assign(score, generator)


def _inner(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Doubles:
    """Inner products of W_O W_V of heads: tr(V_a' O_a' O_b V_b) = sum of (O_a'O_b)(V_a V_b')."""

    def some(heads: range) -> Doubles:
        at = slice(heads.start, heads.stop)
        values = a[0][at] @ b[0][at].swapaxes(1, 2)
        outputs = a[1][at] @ b[1][at].swapaxes(1, 2)
        return np.einsum("hij,hij->h", values, outputs, dtype=np.float64)

    return np.concatenate(in_threads(some, shares(len(a[0]))))


def _product_error(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> float:
    """|P_b - P_a| / |P_b| of one head's products, in float64 since the difference may be small."""
    values = np.concatenate([b[0], a[0]]).astype(np.float64)
    outputs = np.concatenate([b[1], -a[1]]).astype(np.float64)
    both = (values @ values.T) * (outputs @ outputs.T)
    size = len(b[0])
    whole = max(float(both[:size, :size].sum()), _TINY)
    return float(np.sqrt(max(float(both.sum()), 0.0) / whole))


def _as_written(units: Units, ffn: Ffn | Moe) -> Units:
    """With `down` as it adds to the stream."""
    return Units(units.gate, units.up, _added(units.down, ffn))


def _added(output: Floats, branch: Attention | Ffn | Moe) -> Floats:
    """An output map with the branch's factor, and without the mean that LayerNorms take out."""
    if branch.scale is not None:
        scale = np.asarray(branch.scale, np.float32)
        output = output * (scale[:, None] if scale.ndim else scale)
    if branch.norm is not None and branch.norm.kind == "layer":
        output = output - output.mean(axis=0)
    return output


def _picked(units: Units, match: UnitMatch) -> Units:
    """Units in another order, zeros where there is none."""
    order = match.order
    if match.kept and order.size == len(units.up) and (order >= 0).all():
        return units
    there = (order >= 0).astype(np.float32)
    return Units(
        None if units.gate is None else units.gate[order] * there[:, None],
        units.up[order] * there[:, None],
        units.down[:, order] * there,
    )


def _rescale_to(a: Units, b: Units, there: Bools) -> tuple[Units, Floats]:
    """A's units with a factor on `up`, and its inverse on `down`, where that explains a difference.

    The factor is the geometric mean of what `up` and `down` say, so that pruning or noise, which
    change both alike, do not look like one. Without a gate only ReLU lets a factor through, a
    positive one.
    """
    up, down = np.linalg.norm(a.up, axis=1), np.linalg.norm(a.down, axis=0)
    like_up, like_down = np.linalg.norm(b.up, axis=1), np.linalg.norm(b.down, axis=0)
    # A neuron that reads or writes nothing has the factor that the other says.
    reads, writes = (up > 0) & (like_up > 0), (down > 0) & (like_down > 0)
    logs = np.log(np.where(reads, like_up, 1) / np.where(reads, up, 1))
    logs += np.log(np.where(writes, down, 1) / np.where(writes, like_down, 1))
    factor = np.exp(logs / np.maximum(reads.astype(int) + writes, 1))
    inner_up = np.einsum("ij,ij->i", a.up, b.up)
    inner_down = np.einsum("ij,ij->j", a.down, b.down)
    if a.gate is not None:
        factor = np.where(np.where(reads, inner_up, inner_down) < 0, -factor, factor)

    def distance(c: Floats) -> Floats:
        """Squared differences of `up` and of `down`, each as a share of B's."""
        ups = c**2 * up**2 - 2 * c * inner_up + like_up**2
        downs = down**2 / c**2 - 2 / c * inner_down + like_down**2
        return ups / np.maximum(like_up**2, _TINY) + downs / np.maximum(like_down**2, _TINY)

    ones = np.ones_like(factor)
    explained = distance(factor) < _EXPLAINED * distance(ones)
    factors = there & explained & (np.abs(factor - 1) >= _ROUNDING)
    scales = np.where(factors, factor, ones).astype(np.float32)
    if (scales == 1).all():
        return a, scales
    return Units(a.gate, a.up * scales[:, None], a.down / scales), scales
