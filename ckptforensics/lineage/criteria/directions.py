"""Exact tests of directions and gains: is one order of residual coordinates better than chance?

Independently initialised models have exchangeable residual coordinates: any order of one model's
is as likely as the stored one. So a statistic of the stored order is compared with that of random
orders, one for all layers at once, and p = (1 + #{as good}) / (1 + #orders) is exact. While none is
as good more are drawn, up to `_MORE` times as many, unless another exact test shows what they could
not: with or without, p is valid (docs/lineage.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.directions import Vector, has_reliable_direction
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.criteria.criterion import EVERY_LEVEL, Criterion, Outcome
from ckptforensics.lineage.criteria.exchangeable import need_free_coordinates
from ckptforensics.lineage.effort import Effort
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import ranks
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream
from ckptforensics.linear import Fit, block_map
from ckptforensics.spectra import singular_triplets

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

# Multiplications of all random orders together, beyond which fewer are drawn: layer by layer they
# are bound by memory, all pairs of layers are a matrix product.
_BUDGET, _PRODUCT_BUDGET = 200_000_000, 4_000_000_000
NO_DIRECTION = "no layer has a direction that its weights determine"
# Elements of B that are reordered at once: what a processor's cache holds.
_AT_ONCE = 1 << 18
# Random orders of a test whose stored order stays the best, for each one that it has otherwise.
_MORE = 4
# Size and number of the subspaces that are compared.
_SUBSPACE, _SUBSPACE_LAYERS = 8, 12
# Rounding must not make a random order worse than the stored one.
_ROUNDING = 1e-6


def angles(pair: Pair) -> tuple[float | None, ...]:
    """The acute angle between u1 of corresponding layers, in degrees, for each layer of A.

    None where a layer has no partner, and everywhere if the widths differ.
    """
    mine, theirs = _by_layer(pair.a), _by_layer(pair.b)
    partners = dict(matched_layers(pair)) if pair.same_width else {}
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

    def overlaps(self, orders: Ints) -> Floats:
        """Inner products, B's coordinates reordered, for orders (n, hidden_size).

        (n, layers, ...), or (n, all of A, all of B).
        """
        b = np.take(self.b, orders, axis=0)
        width, _, vectors = self.a.shape
        if self.layers is None:
            return self.a.reshape(width, -1).T @ b.reshape(len(orders), width, -1)
        if vectors == 1:
            return np.einsum("dl,ndl->nl", self.a[:, :, 0], b[:, :, :, 0])
        return self.a.transpose(1, 2, 0) @ b.transpose(0, 2, 1, 3)

    def orders(self, effort: Effort) -> int:
        """How many random orders can be afforded."""
        pairs = self.a.size
        most, least = effort.orders
        if self.layers is None:
            pairs *= self.b.shape[1] * self.b.shape[2]
            return max(least, min(most, _PRODUCT_BUDGET // pairs))
        return max(least, min(most, _BUDGET // (pairs * self.b.shape[2])))


def _frames(pair: Pair, which: Vector) -> _Frames:
    """u1 or the triggers of the layers that have one.

    Layers correspond by their order, or not at all: a correspondence that was read off the
    directions would favour the stored order.
    """
    pair.need_same_width()
    good_a, good_b = has_reliable_direction(pair, which)
    one_by_one = good_a.size == good_b.size
    if one_by_one:
        good_a = good_b = good_a & good_b
    if not (good_a.any() and good_b.any()):
        raise NotApplicable(NO_DIRECTION)
    a, b = (
        np.ascontiguousarray(getattr(model.signature, which)[good].T)[:, :, None]
        for model, good in ((pair.a, good_a), (pair.b, good_b))
    )
    numbers = np.array(list(_by_layer(pair.a)))[good_a]
    return _Frames(a, b, tuple(numbers.tolist()) if one_by_one else None)


def _directions(pair: Pair) -> _Frames:
    return _frames(pair, "u")


def _triggers(pair: Pair) -> _Frames:
    return _frames(pair, "v")


def _subspaces(pair: Pair) -> _Frames:
    """The leading left singular vectors of L of layers spread over both models."""
    pair.need_same_width()
    one_by_one = pair.same_depth
    layers = [spread(model.layers, _SUBSPACE_LAYERS) for model in pair.models]
    found: list[list[Doubles]] = [[], []]
    for at, model in enumerate(pair.models):
        for layer in layers[at]:
            # The start vectors of A and B must differ: what is left of a shared one in vectors
            # that are not determined well would make independent models alike.
            generator = pair.generator(Stream.SUBSPACE_STARTS, layer, at)
            with np.errstate(over="ignore", invalid="ignore"):  # is reported as an error
                operator = block_map(model.block(layer), Fit())
                triplets = singular_triplets(operator, _SUBSPACE, generator=generator)
            found[at].append(triplets.left)
    a, b = (np.stack(left, axis=1).astype(np.float32) for left in found)
    return _Frames(a, b, layers[0] if one_by_one else None)


def _largest(overlaps: Floats) -> Doubles:
    """Of each row."""
    return np.abs(overlaps).reshape(len(overlaps), -1).max(axis=1).astype(np.float64)


def _squares(overlaps: Floats) -> Doubles:
    """Their sum in each row."""
    return np.square(overlaps).reshape(len(overlaps), -1).sum(axis=1, dtype=np.float64)


class _Orders:
    """Statistics of random orders of B's coordinates, of each order when it is first asked for."""

    def __init__(self, frames: _Frames, generator: np.random.Generator) -> None:
        self.frames = frames
        self._generator = generator
        self._found: dict[_Statistic, Doubles] = {
            which: np.empty(0) for which in (_largest, _squares)
        }

    @classmethod
    def of(cls, pair: Pair, find: Callable[[Pair], _Frames]) -> _Orders:
        return cls(find(pair), pair.generator(Stream.COORDINATE_ORDERS))

    def drawing(self, statistic: _Statistic) -> Callable[[int], Doubles]:
        """A function that gives the statistic of the next orders; the same for every statistic."""
        used = 0

        def draw(count: int) -> Doubles:
            nonlocal used
            used += count
            while (missing := used - len(self._found[statistic])) > 0:
                self._draw(min(missing, max(1, _AT_ONCE // self.frames.b.size)))
            return self._found[statistic][used - count : used]

        return draw

    def _draw(self, count: int) -> None:
        width = len(self.frames.b)
        orders = np.stack([self._generator.permutation(width) for _ in range(count)])
        overlaps = self.frames.overlaps(orders)
        for which, found in self._found.items():
            self._found[which] = np.concatenate([found, which(overlaps)])


_Statistic = Callable[[Floats], Doubles]


def _permutation_test(
    pair: Pair, find: Callable[[Pair], _Frames], statistic: _Statistic
) -> Outcome:
    """The statistic of the stored order among those of random orders of B's coordinates."""
    orders = pair.once(_Orders.of, find)
    frames = orders.frames
    need_free_coordinates(pair, (_by_coordinate(frames.a), _by_coordinate(frames.b)))
    stored = frames.overlaps(np.arange(len(frames.b))[None])
    observed = float(statistic(stored)[0])
    drawn = random_orders(
        observed, frames.orders(pair.effort), orders.drawing(statistic), go_on=not pair.shown
    )
    profile: tuple[float | None, ...] = ()
    note = "all pairs of layers, as the depths differ"
    if frames.layers is not None:
        by_layer = dict(zip(frames.layers, statistic(stored[0]).tolist(), strict=True))
        profile = tuple(by_layer.get(layer) for layer in pair.a.layers)
        note = f"{len(by_layer)} layers"
    return among(observed, drawn, profile, note)


def _by_coordinate(vectors: Floats) -> Floats:
    """(hidden_size, vectors of all layers)"""
    return vectors.reshape(len(vectors), -1)


def random_orders(
    observed: float, count: int, draw: Callable[[int], Doubles], *, go_on: bool = True
) -> Doubles:
    """The statistic of `count` random orders, of more while none is as good as the stored one.

    `draw` gives it for so many further orders.

    Not with `go_on` False, where another test shows more than they could. Whether more are drawn is
    decided where none was as good. So p <= alpha, for an alpha that only more orders can give,
    needs that of all that were drawn at most a share of alpha is as good, and for a larger alpha
    that of the first ones is: p stays valid.
    """
    drawn = draw(count)
    if go_on and drawn.max() < _as_good_as(observed):
        drawn = np.concatenate([drawn, draw((_MORE - 1) * count)])
    return drawn


def _as_good_as(observed: float) -> float:
    return observed - _ROUNDING * abs(observed)


def among(
    observed: float, drawn: Doubles, profile: tuple[float | None, ...] = (), note: str = ""
) -> Outcome:
    """A statistic among those of random orders, (orders,): large ones count.

    p is exact: the stored order is one more draw under the null.
    """
    as_good = int(np.sum(drawn >= _as_good_as(observed)))
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
    a, b = (_mean_ranks(model) for model in pair.models)
    need_free_coordinates(pair, (a[:, None].astype(np.float32), b[:, None].astype(np.float32)))
    generator = pair.generator(Stream.COORDINATE_ORDERS)
    observed = float(a @ b)
    drawn = random_orders(
        observed,
        pair.effort.orders[0],
        lambda count: np.array([a @ generator.permutation(b) for _ in range(count)]),
        go_on=not pair.shown,
    )
    return among(observed, drawn)


def _mean_ranks(model: Model) -> Doubles:
    """(hidden_size,) mean over the norms that have different gains, as a unit vector of mean 0."""
    gains = model.gains()
    if gains is None:
        raise NotApplicable(f"{model.name} has layers whose norms have no gains")
    varied = [row for row in gains if np.ptp(row) > 0]
    if not varied:
        raise NotApplicable(f"the gains of {model.name} are all the same: folded, or not used")
    every = np.stack([ranks(row) for row in varied])
    every -= every.mean(axis=1, keepdims=True)
    mean: Doubles = (every / every.std(axis=1, keepdims=True)).mean(axis=0)
    size = float(np.linalg.norm(mean))
    return mean / size if size > 0 else mean


def _by_layer(model: Model) -> dict[int, Floats]:
    """u1 by the number of its layer, in their order."""
    signature = model.signature
    numbers = (row.layer for row in signature.document.layers)
    return dict(zip(numbers, signature.u, strict=True))


def _acute(u: Floats, v: Floats) -> float:
    """The acute angle in degrees, also where the cosine has no digits left."""
    u, v = u.astype(np.float64), v.astype(np.float64)
    near, far = sorted((float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))))
    return math.degrees(2 * math.atan2(near, far))


CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "direction max",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _directions, _largest),
        NULL,
        "signatures",
        EVERY_LEVEL,
    ),
    Criterion(
        "direction sum",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _directions, _squares),
        NULL,
        "signatures",
        EVERY_LEVEL,
    ),
    Criterion(
        "trigger sum",
        "exact",
        UNFOLDED,
        lambda pair: _permutation_test(pair, _triggers, _squares),
        NULL,
        "signatures",
        EVERY_LEVEL,
    ),
    Criterion(
        "top-8 subspaces",
        "exact",
        OF_L,
        lambda pair: _permutation_test(pair, _subspaces, _squares),
        NULL,
        levels=("thorough",),
    ),
    Criterion("gain rank", "exact", ("residual signs", *INSIDE), _gain_rank, NULL),
)
