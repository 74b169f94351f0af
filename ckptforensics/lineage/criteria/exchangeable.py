"""Does the index of a unit say anything about it? Of one model alone, which no copy can change.

The exact tests suppose that nothing prefers one order of a model's units to another. That is wrong
of units that were laid out: blocks and bands of zeros, an initialisation by the identity or by a
fixed transform, sinusoids over the coordinates. Two strangers of one layout then have their units
at the same index. If one model's order is free the tests hold whatever the other's is, so that a
test is left out only where both models' units are laid out (docs/lineage.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.numeric import assign, unit_rows
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream

# Mean correlation of units with their neighbours from which on they are laid out, and how many
# deviations of random orders it must be away. Blocks and bands have .5 to 1.
_ALIKE, _DEVIATIONS = 0.2, 6.0
# Share of units whose largest entry is at their own index, and the fewest of them: identity.
_OWN, _LEAST_OWN = 0.1, 5
# Units at the same index in two layers of one model: random orders have so many once in 1,400.
_SAME_INDEX = 6
_ORDERS, _UNITS, _LAYERS = 200, 512, 4

NEIGHBOURS = "units that are neighbours are alike"
OWN_INDEX = "a unit's largest entry is at its own index"
ACROSS = "units of one index are alike in all layers"
DIAGONAL = "entries are alike along diagonals"


def neighbours_alike(units: Floats, generator: np.random.Generator) -> bool:
    """Whether units a few indices, or half of all, apart are more alike than others.

    Features are standardised over the units, so that what all share does not count; their values
    and their sizes are looked at.
    """
    units = units[:_UNITS]
    count = len(units)
    if count < 8:
        return False
    orders = [generator.permutation(count) for _ in range(_ORDERS)]
    for values in (units, np.abs(units)):
        standard = _standardised(values)
        if not standard.shape[1]:
            continue
        alike = standard @ standard.T / standard.shape[1]
        for lag in {1, 2, count // 2}:
            found = _at_lag(alike, np.arange(count), lag)
            if found < _ALIKE:
                continue
            random = np.array([_at_lag(alike, order, lag) for order in orders])
            if found > random.mean() + _DEVIATIONS * random.std():
                return True
    return False


def at_own_index(rows: Floats, indices: Ints, of: int) -> bool:
    """Whether rows have their largest entry where an identity matrix has it.

    Parameters
    ----------
    rows : (rows, columns)
    indices : of the rows among `of`
    """
    largest, columns = np.abs(rows).argmax(axis=1), rows.shape[1]
    places = (indices % columns, indices * columns // of)
    there = max(int(np.sum(largest == place)) for place in places)
    return there >= max(_LEAST_OWN, _OWN * len(rows))


def without_own_index(rows: Floats, indices: Ints, of: int) -> Floats:
    """Rows without the entries at which an identity matrix has its ones; see `at_own_index`."""
    kept, columns = rows.copy(), rows.shape[1]
    for place in (indices % columns, indices * columns // of):
        kept[np.arange(len(rows)), place] = 0
    return kept


def rows_layout(pair: Pair, at: int, *, own_index: bool = True) -> str | None:
    """What ties the neurons of a model's dense FFNs to their index, of some layers.

    Of A with `at` = 0, of B with 1. With `own_index` False what an identity matrix adds is taken
    off before.

    Raises
    ------
    NotApplicable
        if rows cannot be read.
    """
    model = pair.models[at]
    plans = model.weights.architecture.layers
    dense = [layer for layer in model.layers if not plans[layer - 1].experts]
    generator = pair.generator(Stream.LAYOUT, at)
    every = []
    for layer in spread(dense, _LAYERS):
        width = model.width(layer)
        indices = np.arange(min(width, _UNITS))
        rows = model.rows(layer, 0, indices.size)[0]
        if not own_index:
            rows = without_own_index(rows, indices, width)
        elif at_own_index(rows, indices, width):
            return OWN_INDEX
        if neighbours_alike(rows, generator):
            return NEIGHBOURS
        if _along_diagonals(rows):
            return DIAGONAL
        every.append(unit_rows(rows))
    return ACROSS if _alike_across(every, generator) else None


def need_free_rows(pair: Pair) -> bool:
    """Whether rows are compared whole: else without what an identity matrix added to both.

    Raises
    ------
    NotApplicable
        if the neurons of both models are laid out in another way.
    """
    layouts = [pair.once(rows_layout, at) for at in (0, 1)]
    if OWN_INDEX not in layouts or None in layouts:
        need_free_order(layouts, "neurons")
        return True
    need_free_order([pair.once(rows_layout, at, own_index=False) for at in (0, 1)], "neurons")
    return False


def need_free_order(words: Sequence[str | None], of: str) -> None:
    """NotApplicable where the units of both models are laid out."""
    if all(word is not None for word in words):
        raise NotApplicable(
            f"the order of {of} is not free in either model, so that strangers have theirs at the "
            f"same index: {' and '.join(dict.fromkeys(w for w in words if w))}"
        )


def need_free_coordinates(pair: Pair, features: tuple[Floats, Floats]) -> None:
    """NotApplicable where neighbouring coordinates are alike in both models.

    Parameters
    ----------
    features : (coordinates, features) of each
    """
    need_free_order(
        [
            NEIGHBOURS if neighbours_alike(of, pair.generator(Stream.LAYOUT, 4 + at)) else None
            for at, of in enumerate(features)
        ],
        "residual coordinates",
    )


def _standardised(values: Floats) -> Doubles:
    """Columns of mean 0 and deviation 1; those without any are left out."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    size = centred.std(axis=0)
    varied = size > 1e-6 * max(float(np.abs(values).max(initial=0.0)), 1e-30)
    found: Doubles = centred[:, varied] / size[varied]
    return found


def _at_lag(alike: Doubles, order: Ints, lag: int) -> float:
    return float(alike[order[:-lag], order[lag:]].mean())


def _along_diagonals(units: Floats) -> bool:
    """Toeplitz and Hankel matrices: entries that are those of the neighbouring unit, shifted."""
    values = units - units.mean(axis=0)
    for one, other in (
        (values[1:, 1:], values[:-1, :-1]),
        (values[1:, :-1], values[:-1, 1:]),
    ):
        size = float(np.linalg.norm(one) * np.linalg.norm(other))
        if size > 0 and abs(float(np.vdot(one, other))) > _ALIKE * size:
            return True
    return False


def _alike_across(layers: Sequence[Floats], generator: np.random.Generator) -> bool:
    """Whether units of different layers have their best partner at their own index.

    In most pairs of layers: a layer that was copied within the model is another matter.
    """
    counts = []
    for i, one in enumerate(layers):
        for other in layers[:i]:
            few = min(len(one), len(other), _UNITS // 2)
            score = np.abs(multiply(one[:few], np.ascontiguousarray(other[:few].T)))
            partners = assign(score.T, generator)
            counts.append(int(np.sum(partners == np.arange(few))))
    return bool(counts) and float(np.quantile(counts, 0.25)) >= _SAME_INDEX
