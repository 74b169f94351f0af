"""One model as a mixture of others: weights that sum to one, and the traces of TIES and DARE.

With the differences d_i = parent_i - model and their inner products G, the mixture w that sums to
one and comes nearest to the model is G^-1 1 / (1' G^-1 1), and w' G w is the squared distance left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.lineage.changes.lattices import grid, spacing
from ckptforensics.lineage.changes.tensor_pairs import (
    layer_names,
)
from ckptforensics.lineage.effort import Effort, within
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import spread
from ckptforensics.lineage.randomness import Stream, generator
from ckptforensics.progress import Progress, running
from ckptforensics.results import MergeRecord
from ckptforensics.tensors import matrix_shape

Method = Literal["average", "ties", "dare", "unknown"]

# Share of the distance to the best single parent that a mixture must take away. An average of
# models leaves rounding alone (zoo: gain .98); over 200 sets of the zoo's other relatives, the
# middle of a chain and what lies next to a sparse merge among them, the gain is at most .4.
_GAIN = 0.8
# A parent takes part with this weight or more, and the interval of its weight excludes 0.
_LEAST_WEIGHT = 0.05
# Entries read at once of each model, and blocks of a tensor at the most.
_BLOCK, _BLOCKS = 1 << 18, 4
_BOOTSTRAPS = 400
# Share of the row blocks that equal one candidate's: a mixture has next to none, but what was put
# together of whole layers has.
_COPIED = 0.1
# Of the traces of TIES and DARE: entries whose possible values lie this many units in the last
# place apart are looked at, and at least so many of them.
_APART, _LEAST_ENTRIES = 6.0, 2_000
_TRACED_ENTRIES = 1 << 18
# Share of the ratios of change and parent's change in three bins of log ratio, of a parent: with
# half dropped of two parents a third have it, of fine-tunes of one base a few in a hundred.
_BIN, _PEAK = 0.02, 0.12
# A method that keeps the large entries leaves less of them as they were, in this proportion.
_LARGE_KEPT = 0.6
# Share of the changed ones that must have one of the possible values, beyond what chance gives.
_TRACED = 0.8
# Share of all entries that must have one of the possible values or the base's: a parent that is
# missing leaves a quarter without.
_EXPLAINED = 0.95
# Share of the entries that both methods leave as they are in the base, and that they change.
_UNTOUCHED = 0.05

# Share of the moved entries that are a mixture of the others' rounded, where a model is one.
_IS_ROUNDED = 0.995
FORGED = (
    "one model is the rounded mixture of the others; to forge it, a parent is extrapolated from "
    "the mixture and the errors of rounding are drawn anew"
)
EXTRAPOLATION = (
    "the models lie on one line or plane, and any of them may be the mixture of the others, with "
    "weights outside 0 to 1"
)


@dataclass(frozen=True)
class _Block:
    """The same rows of all models: (models, entries), the merged one first."""

    layer: int | None
    values: Floats


def find_merge(
    model: Model,
    candidates: Sequence[Model],
    effort: Effort,
    progress: Progress | None = None,
) -> MergeRecord | None:
    """Whether a model is a mixture of two or more candidates, in the basis they are stored in.

    An ordinary fine-tune, a sibling or a model in the middle of a chain is none: a mixture has
    weights between 0 and 1 and comes much nearer to the model than each candidate alone.

    Parameters
    ----------
    candidates : two to five relatives of the model
    effort : of how many layers entries are read
    progress : told of each tensor that is read

    Raises
    ------
    CkptError
        if a tensor cannot be decoded.
    """
    if any(model.checkpoint is None for model in (model, *candidates)) or len(candidates) < 2:
        return None
    grams, layers = _inner_products(model, candidates, effort, progress)
    copied = np.diagonal(grams, axis1=1, axis2=2).min(axis=1) == 0 if len(grams) else np.ones(1)
    if copied.mean() > _COPIED:
        return None
    chosen = _parents(grams)
    if chosen is not None:
        found = _mixture(grams, layers, chosen)
        if found is not None:
            record = _record(model, candidates, chosen, found, "average")
            members = [model, *(candidates[i] for i in chosen)]
            only = _rounded_last(members, found.weights, effort)
            return record.model_copy(update={"only": only})
    return _sparse_merge(model, candidates, grams, layers, effort)


def _blocks(models: Sequence[Model], effort: Effort, progress: Progress | None) -> Iterator[_Block]:
    """The same rows of the same matrices of layers, of all models."""
    first = models[0]
    whole = within(max(model.stored_bytes for model in models), effort.entry_bytes)
    layers = spread(first.layers, None if whole else effort.entry_layers)
    names = [
        (layer, name) for layer in layers for name in sorted(layer_names(first, layer).values())
    ]
    with running(progress, "mixture", len(names)) as done:
        for layer, name in names:
            done(name)
            yield from _blocks_of(models, layer, name)


def _blocks_of(models: Sequence[Model], layer: int, name: str) -> Iterator[_Block]:
    """Rows of one matrix; nothing where a model has none of this name and shape."""
    stores = [model.weights.store for model in models]
    infos = [store.tensors.get(name) for store in stores]
    shapes = {info.shape for info in infos if info is not None and not info.unreadable}
    if len(shapes) != 1 or None in infos or len(infos[0].shape) < 2:  # type: ignore[union-attr]
        return
    columns, rows = matrix_shape(infos[0])  # type: ignore[arg-type]
    step = max(1, min(_BLOCK // columns, -(-rows // _BLOCKS)))
    for start in range(0, rows, max(step, rows // _BLOCKS)):
        stop = min(start + step, rows)
        values = [store.read_rows(name, start, stop).reshape(-1) for store in stores]
        for model, info in zip(models, infos, strict=True):
            model.count(info.nbytes * (stop - start) // rows)  # type: ignore[union-attr]
        yield _Block(layer, np.stack(values))


def _inner_products(
    model: Model, candidates: Sequence[Model], effort: Effort, progress: Progress | None
) -> tuple[Doubles, list[int | None]]:
    """(blocks, candidates, candidates) products of the differences to the model, and the layers."""
    grams, layers = [], []
    for block in _blocks((model, *candidates), effort, progress):
        difference = block.values[1:] - block.values[0]
        grams.append(difference @ difference.T)
        layers.append(block.layer)
    return np.asarray(grams, np.float64), layers


def _weights(gram: Doubles) -> Doubles:
    """The mixture nearest to the model, with a sum of one."""
    ridge = 1e-9 * max(float(np.trace(gram)), 1e-300) / len(gram)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), np.ones(len(gram)))
    mixture: Doubles = solved / solved.sum()
    return mixture


def _parents(grams: Doubles) -> tuple[int, ...] | None:
    """The candidates that take part: those left without negligible and negative weights."""
    chosen = tuple(range(grams.shape[1]))
    total = grams.sum(axis=0)
    while len(chosen) > 1:
        weights = _weights(total[np.ix_(chosen, chosen)])
        if weights.min() >= _LEAST_WEIGHT:
            return chosen
        lightest = chosen[int(weights.argmin())]
        chosen = tuple(c for c in chosen if c != lightest)
    return None


@dataclass(frozen=True)
class _Mixture:
    """As in `MergeRecord`."""

    weights: Doubles
    interval: Doubles
    by_layer: Doubles
    gain: float


def _mixture(
    grams: Doubles, layers: Sequence[int | None], chosen: tuple[int, ...], least: float = _GAIN
) -> _Mixture | None:
    """The mixture of the chosen candidates, None where it is none of two or more."""
    some = grams[np.ix_(range(len(grams)), chosen, chosen)]
    mixture = _fit(some, layers)
    if mixture.gain < least:
        return None
    if mixture.interval[:, 0].min() <= 0 or mixture.interval[:, 1].max() >= 1:
        return None
    return mixture


def _fit(grams: Doubles, layers: Sequence[int | None]) -> _Mixture:
    """Weights overall with their bootstrap interval over blocks, those of each layer, and the gain.

    The gain is that of weights which may differ from layer to layer.
    """
    total = grams.sum(axis=0)
    numbers = np.array([-1 if layer is None else layer for layer in layers])
    by_layer, left = [], 0.0
    for layer in np.unique(numbers):
        gram = grams[numbers == layer].sum(axis=0)
        by_layer.append(_weights(gram))
        left += max(float(by_layer[-1] @ gram @ by_layer[-1]), 0.0)
    best = float(np.diag(total).min())
    draws = generator(0, Stream.MERGE_BOOTSTRAP)
    again = [
        _weights(grams[draws.integers(0, len(grams), len(grams))].sum(axis=0))
        for _ in range(_BOOTSTRAPS)
    ]
    return _Mixture(
        weights=_weights(total),
        interval=np.quantile(again, [0.025, 0.975], axis=0).T,
        by_layer=np.asarray(by_layer),
        gain=1 - (left / best) ** 0.5 if best > 0 else 0.0,
    )


def _rounded_last(members: Sequence[Model], weights: Doubles, effort: Effort) -> bool:
    """Whether rounding shows that the first member is the mixture, and that no other one is.

    With m = sum of w p, each p is a mixture of the rest too, if with weights outside 0 to 1. Only
    the one that was made last is that to half a unit in its last place.
    """
    values = np.concatenate(
        [b.values[:, :: max(1, b.values.shape[1] // 512)] for b in _blocks(members, effort, None)],
        axis=1,
    )
    values = values[:, np.ptp(values, axis=0) > 0].astype(np.float64)
    units = [spacing(x, grid(x)) for x in values.astype(np.float32)]
    rounded = np.zeros(len(members), bool)
    for nearly in (weights, np.round(weights, 2), np.round(12 * weights) / 12):
        factors = np.array([-1.0, *nearly])
        if (factors == 0).any() or abs(factors.sum()) > 1e-6:
            continue
        left = np.abs(factors @ values)
        for i, unit in enumerate(units):
            within_half = left <= abs(factors[i]) * 0.501 * unit
            rounded[i] |= bool(np.mean(within_half) >= _IS_ROUNDED)
    return bool(rounded[0] and not rounded[1:].any())


def _record(
    model: Model,
    candidates: Sequence[Model],
    chosen: tuple[int, ...],
    found: _Mixture,
    method: Method,
) -> MergeRecord:
    return MergeRecord(
        model=model.name,
        parents=tuple(candidates[i].name for i in chosen),
        weights=tuple(float(w) for w in found.weights),
        interval=tuple((float(low), float(high)) for low, high in found.interval),
        by_layer=tuple(tuple(float(w) for w in row) for row in found.by_layer),
        gain=found.gain,
        method=method,
    )


# TIES and DARE: entries of the base, or of the base and one parent's scaled change, or of several


def _sparse_merge(
    model: Model,
    candidates: Sequence[Model],
    grams: Doubles,
    layers: Sequence[int | None],
    effort: Effort,
) -> MergeRecord | None:
    """A merge whose entries are the base's, or the base's and a multiple of some changes'."""
    most = max(1, _TRACED_ENTRIES // len(grams))
    thinned = [_thinned(b.values, most) for b in _blocks((model, *candidates), effort, None)]
    values = np.concatenate(thinned, axis=1).astype(np.float64)
    unit = spacing(values[0], grid(thinned[0][0]))
    found = []
    for base in range(len(candidates)):
        traces = _traces(values[0] - values[1 + base], values[1:] - values[1 + base], unit)
        if traces is not None:
            found.append((traces.explained, base, traces))
    if not found:
        return None
    # With a factor of 1, parents can take the base's place, but for entries that have their mean.
    _, base, traces = max(found, key=lambda f: f[0])
    chosen = (base, *traces.parents)
    some = grams[np.ix_(range(len(grams)), chosen, chosen)]
    return _record(model, candidates, chosen, _fit(some, layers), traces.method)


@dataclass(frozen=True)
class _Traces:
    """Parents of a sparse merge (their places among the candidates), and what shows them.

    Attributes
    ----------
    explained : share of all entries that have the value of the base, or one that the method gives
    """

    parents: tuple[int, ...]
    method: Method
    explained: float


def _thinned(values: Floats, most: int) -> Floats:
    return values[:, :: max(1, values.shape[1] // most)]


def _traces(change: Doubles, tasks: Doubles, unit: Doubles) -> _Traces | None:
    """Whether entries have the values that TIES or DARE give.

    Parameters
    ----------
    change : (entries,) of the model to what may be the base
    tasks : (candidates, entries) of each candidate to it
    unit : (entries,) in the last place
    """
    peaks = [_factor(change, task, unit) for task in tasks]
    parents = tuple(i for i, peak in enumerate(peaks) if peak is not None)
    if len(parents) < 2:
        return None
    tasks = tasks[list(parents)] * np.array([[peaks[i]] for i in parents], np.float64)
    possible = _possible(tasks)
    near = np.abs(possible - change).min(axis=0) <= 1.1 * unit
    untouched = np.abs(change) <= unit / 2
    explained = float(np.mean(near | untouched))
    if explained < _EXPLAINED or not _beyond_chance(change, possible, unit):
        return None
    # TIES keeps the largest entries of each change, DARE any.
    size = np.abs(tasks).max(axis=0)
    large = size > np.median(size)
    ties = untouched[large].mean() < _LARGE_KEPT * untouched[~large].mean()
    return _Traces(parents, "ties" if ties else "dare", explained)


def _factor(change: Doubles, task: Doubles, unit: Doubles) -> float | None:
    """The factor by which many entries of a change are those of one parent's, None if few are."""
    clear = (np.abs(task) > _APART * unit) & (np.abs(change) > _APART * unit)
    ratio = np.divide(change, task, out=np.zeros_like(change), where=clear)
    ratio = np.log(ratio[(ratio > 0.1) & (ratio < 20)])
    if ratio.size < _LEAST_ENTRIES:
        return None
    counts, edges = np.histogram(ratio, bins=np.arange(np.log(0.1), np.log(20), _BIN))
    at = int(counts.argmax())
    inside = np.abs(ratio - (edges[at] + _BIN / 2)) < 1.5 * _BIN
    if inside.mean() < _PEAK:
        return None
    return float(np.exp(np.median(ratio[inside])))


def _possible(tasks: Doubles) -> Doubles:
    """(values, entries): the sum and the mean of any of the scaled changes."""
    count = len(tasks)
    subsets = [list(s) for n in range(1, count + 1) for s in combinations(range(count), n)]
    sums = [tasks[s].sum(axis=0) for s in subsets]
    return np.stack([*sums, *(tasks[s].mean(axis=0) for s in subsets if len(s) > 1)])


def _beyond_chance(change: Doubles, possible: Doubles, unit: Doubles) -> bool:
    """Whether changed entries have possible values far more often than other entries' values do.

    Only entries at which these values are far apart, and far from 0, are asked.
    """
    ordered = np.sort(np.concatenate([possible, np.zeros_like(change)[None]]), axis=0)
    apart = np.diff(ordered, axis=0).min(axis=0) > _APART * unit
    moved = apart & (np.abs(change) > unit)
    count = int(np.count_nonzero(moved))
    if count < _LEAST_ENTRIES:
        return False
    zero = 1 - count / int(np.count_nonzero(apart))

    def share(values: Doubles) -> float:
        return float(np.mean(np.abs(possible[:, moved] - values).min(axis=0) <= 1.1 * unit[moved]))

    traced, chance = share(change[moved]), share(np.roll(change[moved], 1))
    some_left = _UNTOUCHED < zero < 1 - _UNTOUCHED
    return some_left and traced >= _TRACED and traced - chance >= (1 - chance) / 2
