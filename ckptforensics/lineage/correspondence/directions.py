"""Which layers have directions that their weights determine."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ckptforensics.arrays import Bools, Floats
from ckptforensics.lineage.pair import Pair
from ckptforensics.results import Signature

Vector = Literal["u", "v"]

# Bound on the error of a direction, as an angle in radians, above which it is left out.
_UNDETERMINED = 0.1
# |cos| of equal vectors, and of independent ones in standard deviations, 1 / sqrt(width).
_EQUAL, _INDEPENDENT = 1 - 1e-6, 4


def has_reliable_direction(pair: Pair, which: Vector) -> tuple[Bools, Bools]:
    """(layers of A,) and (layers of B,): whether the weights determine u1, or the trigger v1.

    Where s1 is hardly larger than s2, or L = I as in blocks added with zero weights, u1 is close
    to the random start vector of the iteration, which is the same for all models; so is the trigger
    of an FFN that does nothing, which is seen by triggers that are equal though u1 are not alike.
    Leaving these layers out keeps the tests exact: s1, s2 and the residual depend on no order of
    coordinates, and independent triggers are never equal.
    """
    a, b = (model.signature for model in pair.models)
    good_a, good_b = _separated(a), _separated(b)
    if which == "v":
        n = min(good_a.size, good_b.size)
        unlike = _cosines(a.u[:n], b.u[:n]) < _INDEPENDENT / math.sqrt(a.u.shape[1])
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
