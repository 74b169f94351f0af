"""Exact tests of directions and gains: is one order of residual coordinates better than chance?

Independently initialised models have exchangeable residual coordinates: any order of one model's
is as likely as the stored one. So a statistic of the stored order is compared with that of random
orders, one for all layers at once, and p = (1 + #{as good}) / (1 + #orders) is exact (DESIGN 2.9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ckptforensics.arrays import Bools, Doubles, Floats, Ints
from ckptforensics.errors import NothingAnalysable
from ckptforensics.lineage.criteria.criterion import Criterion, Outcome
from ckptforensics.lineage.models import Side
from ckptforensics.lineage.pair import Level, Pair
from ckptforensics.linear import Fit, block_map
from ckptforensics.results import Signature
from ckptforensics.spectra import singular_triplets

Vector = Literal["u", "v"]

NULL = (
    "the models were initialised independently of each other, and nothing in how they were made "
    "tells one residual coordinate from another (fixed sinusoidal positions would)"
)
# What changes weights without the function and leaves the residual coordinates where they are.
INSIDE = (
    "neuron order",
    "neuron scale and sign",
    "head order",
    "value basis",
    "residual scale",
    "number type",
    "tensor names",
)
UNFOLDED = ("gains moved into matrices", *INSIDE)
# u1 is that of L = I + ..., in which a scale of the residual stream changes the weight of I.
OF_L = tuple(what for what in UNFOLDED if what != "residual scale")

# Random orders; fewer where one costs more than a share of these multiplications: layer by layer
# they are bound by memory, all pairs of layers are a matrix product.
_MOST_ORDERS, _LEAST_ORDERS = 4_999, 999
_BUDGET, _PRODUCT_BUDGET = 200_000_000, 4_000_000_000
# Bound on the error of a direction, as an angle in radians, above which it is left out.
_UNDETERMINED = 0.1
# |cos| of equal vectors, and of strangers in standard deviations of random ones, 1 / sqrt(width).
_EQUAL, _STRANGERS = 1 - 1e-6, 4
NO_DIRECTION = "no layer has a direction that its weights determine"
# Size and number of the subspaces that are compared.
_SUBSPACE, _SUBSPACE_LAYERS = 8, 12
# Rounding must not make a random order worse than the stored one.
_ROUNDING = 1e-6
# Keys of the random numbers.
_ORDERS, _START = 1, 2


def angles(pair: Pair) -> tuple[float | None, ...]:
    """The acute angle between u1 of corresponding layers, in degrees, for each layer of A.

    None where a layer has no partner, and everywhere if the widths differ.
    """
    mine, theirs = _by_layer(pair.a), _by_layer(pair.b)
    partners = dict(pair.matched) if pair.same_width else {}
    found: list[float | None] = []
    for layer, u in mine.items():
        v = theirs.get(partners.get(layer, 0))
        found.append(None if v is None else _acute(u, v))
    return tuple(found)


def distance(pair: Pair) -> tuple[float, int] | None:
    """The smallest of `angles` and its layer of A: the paper's distance. None without any."""
    known = [
        (angle, layer)
        for angle, layer in zip(angles(pair), _by_layer(pair.a), strict=True)
        if angle is not None
    ]
    return min(known) if known else None


def determined(pair: Pair, which: Vector) -> tuple[Bools, Bools]:
    """(layers of A,) and (layers of B,): whether the weights determine u1, or the trigger v1.

    Where s1 is hardly larger than s2, or L = I as in blocks added with zero weights, u1 is close
    to the random start vector of the iteration, which is the same for all models; so is the trigger
    of an FFN that does nothing, which is seen by triggers that are equal though u1 are strangers.
    Leaving these layers out keeps the tests exact: s1, s2 and the residual depend on no order of
    coordinates, and independent triggers are never equal.
    """
    a, b = (side.signature for side in pair.sides)
    good_a, good_b = _separated(a), _separated(b)
    if which == "v":
        n = min(good_a.size, good_b.size)
        unlike = _cosines(a.u[:n], b.u[:n]) < _STRANGERS / math.sqrt(a.u.shape[1])
        shared = unlike & (_cosines(a.v[:n], b.v[:n]) > _EQUAL)
        good_a[:n] &= ~shared
        good_b[:n] &= ~shared
    return good_a, good_b


def _separated(signature: Signature) -> Bools:
    s1, s2 = signature.sigma.T.astype(np.float64)
    separation = 1 - s2 / np.maximum(s1, np.finfo(np.float64).tiny)
    return np.asarray(signature.residual < _UNDETERMINED * separation)


def _cosines(u: Floats, v: Floats) -> Floats:
    return np.abs(np.einsum("ij,ij->i", u, v))


@dataclass(frozen=True)
class _Frames:
    """Vectors of both models, some of each layer.

    Attributes
    ----------
    a, b : (hidden_size, layers, vectors)
    layers : numbers of A's layers if they are compared with B's one by one, else None: all pairs
    """

    a: Floats
    b: Floats
    layers: tuple[int, ...] | None

    def overlaps(self, order: Ints | None = None) -> Floats:
        """Inner products, B's coordinates reordered: (layers, ...), or (all of A, all of B)."""
        b = self.b if order is None else np.take(self.b, order, axis=0)
        width, _, vectors = self.a.shape
        if self.layers is None:
            return self.a.reshape(width, -1).T @ b.reshape(width, -1)
        if vectors == 1:
            return np.einsum("dl,dl->l", self.a[:, :, 0], b[:, :, 0])
        return self.a.transpose(1, 2, 0) @ b.transpose(1, 0, 2)

    @property
    def orders(self) -> int:
        """How many random orders can be afforded."""
        pairs = self.a.size
        if self.layers is None:
            pairs *= self.b.shape[1] * self.b.shape[2]
            return _within(_PRODUCT_BUDGET // pairs)
        return _within(_BUDGET // (pairs * self.b.shape[2]))


def _within(orders: int) -> int:
    return max(_LEAST_ORDERS, min(_MOST_ORDERS, orders))


def _frames(pair: Pair, which: Vector) -> _Frames:
    """u1 or the triggers of the layers that have one.

    Layers correspond by their order, or not at all: a correspondence that was read off the
    directions would favour the stored order.
    """
    pair.need_same_width()
    good_a, good_b = determined(pair, which)
    one_by_one = good_a.size == good_b.size
    if one_by_one:
        good_a = good_b = good_a & good_b
    if not (good_a.any() and good_b.any()):
        raise NothingAnalysable(NO_DIRECTION)
    a, b = (
        np.ascontiguousarray(getattr(side.signature, which)[good].T)[:, :, None]
        for side, good in ((pair.a, good_a), (pair.b, good_b))
    )
    numbers = np.array(list(_by_layer(pair.a)))[good_a]
    return _Frames(a, b, tuple(numbers.tolist()) if one_by_one else None)


def _subspaces(pair: Pair) -> _Frames:
    """The leading left singular vectors of L of layers spread over both models."""
    pair.need_same_width()
    one_by_one = pair.same_depth
    layers = [_spread(side.layers) for side in pair.sides]
    found: list[list[Doubles]] = [[], []]
    for at, side in enumerate(pair.sides):
        for layer in layers[at]:
            # The start vectors of A and B must differ: what is left of a shared one in vectors
            # that are not determined well would make strangers alike.
            generator = pair.generator(_START, layer, at)
            with np.errstate(over="ignore", invalid="ignore"):  # is reported as an error
                operator = block_map(side.block(layer), Fit())
                triplets = singular_triplets(operator, _SUBSPACE, generator=generator)
            found[at].append(triplets.left)
    a, b = (np.stack(left, axis=1).astype(np.float32) for left in found)
    return _Frames(a, b, layers[0] if one_by_one else None)


def _spread(layers: tuple[int, ...]) -> tuple[int, ...]:
    at = np.linspace(0, len(layers) - 1, min(len(layers), _SUBSPACE_LAYERS)).round().astype(int)
    return tuple(layers[i] for i in at)


def _largest(overlaps: Floats) -> float:
    return float(np.max(np.abs(overlaps)))


def _squares(overlaps: Floats) -> float:
    return float(np.sum(np.square(overlaps), dtype=np.float64))


def _permutation_test(pair: Pair, frames: _Frames, statistic: Callable[[Floats], float]) -> Outcome:
    """The statistic of the stored order among those of random orders of B's coordinates."""
    generator = pair.generator(_ORDERS)
    stored = frames.overlaps()
    observed = statistic(stored)
    width = frames.a.shape[0]
    drawn = np.array(
        [statistic(frames.overlaps(generator.permutation(width))) for _ in range(frames.orders)]
    )
    profile: tuple[float | None, ...] = ()
    note = "all pairs of layers, as the depths differ"
    if frames.layers is not None:
        by_layer = dict(zip(frames.layers, map(statistic, stored), strict=True))
        profile = tuple(by_layer.get(layer) for layer in pair.a.layers)
        note = f"{len(by_layer)} layers"
    return among(observed, drawn, profile, note)


def among(
    observed: float, drawn: Doubles, profile: tuple[float | None, ...] = (), note: str = ""
) -> Outcome:
    """A statistic among those of random orders, (orders,): large ones count.

    p is exact: the stored order is one more draw under the null.
    """
    as_good = int(np.sum(drawn >= observed - _ROUNDING * abs(observed)))
    spread = float(drawn.std())
    z = (observed - float(drawn.mean())) / spread if spread > 0 else 0.0
    words = [f"z = {z:.1f} of {drawn.size:,} orders", *([note] if note else [])]
    return Outcome(
        observed,
        log10_p=math.log10((1 + as_good) / (1 + drawn.size)),
        floor=as_good == 0,
        profile=profile,
        note="; ".join(words),
    )


def _gain_rank(pair: Pair) -> Outcome:
    """Correlation of the mean standardised rank of each coordinate's gains."""
    pair.need_same_width()
    a, b = (_mean_ranks(side) for side in pair.sides)
    generator = pair.generator(_ORDERS)
    drawn = np.array([a @ generator.permutation(b) for _ in range(_MOST_ORDERS)])
    return among(float(a @ b), drawn)


def _mean_ranks(side: Side) -> Doubles:
    """(hidden_size,) mean over the norms that have different gains, as a unit vector of mean 0."""
    gains = side.gains()
    if gains is None:
        raise NothingAnalysable(f"{side.name} has layers whose norms have no gains")
    varied = [row for row in gains if np.ptp(row) > 0]
    if not varied:
        raise NothingAnalysable(f"the gains of {side.name} are all the same: folded, or not used")
    ranks = np.stack([average_ranks(row) for row in varied])
    ranks -= ranks.mean(axis=1, keepdims=True)
    mean: Doubles = (ranks / ranks.std(axis=1, keepdims=True)).mean(axis=0)
    size = float(np.linalg.norm(mean))
    return mean / size if size > 0 else mean


def average_ranks(values: Floats) -> Doubles:
    """Ranks from 1 of a vector's entries; equal ones share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _by_layer(side: Side) -> dict[int, Floats]:
    """u1 by the number of its layer, in their order."""
    signature = side.signature
    numbers = (row.layer for row in signature.document.layers)
    return dict(zip(numbers, signature.u, strict=True))


def _acute(u: Floats, v: Floats) -> float:
    """The acute angle in degrees, also where the cosine has no digits left."""
    u, v = u.astype(np.float64), v.astype(np.float64)
    near, far = sorted((float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))))
    return math.degrees(2 * math.atan2(near, far))


_ALL_LEVELS: tuple[Level, ...] = ("fast", "default", "thorough")

CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "direction max",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _frames(pair, "u"), _largest),
        NULL,
        "signatures",
        _ALL_LEVELS,
    ),
    Criterion(
        "direction sum",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _frames(pair, "u"), _squares),
        NULL,
        "signatures",
        _ALL_LEVELS,
    ),
    Criterion(
        "trigger sum",
        "exact",
        UNFOLDED,
        lambda pair: _permutation_test(pair, _frames(pair, "v"), _squares),
        NULL,
        "signatures",
        _ALL_LEVELS,
    ),
    Criterion(
        "top-8 subspaces",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _subspaces(pair), _squares),
        NULL,
        levels=("thorough",),
    ),
    Criterion("gain rank", "exact", ("residual signs", *INSIDE), _gain_rank, NULL),
)
