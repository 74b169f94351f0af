"""What changed between two models in one basis, tensor by tensor.

Tensors are read in blocks of rows, both models' at once, and nothing larger is kept.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np

from ckptforensics.arrays import Doubles, Floats, Ints
from ckptforensics.compute.threads import in_threads
from ckptforensics.lineage.changes.lattices import (
    Lattice,
    find_lattice,
    grid,
    is_rounding,
    round_to,
    spacing,
)
from ckptforensics.lineage.changes.low_rank import RoundedSum, look_for_rank
from ckptforensics.lineage.changes.masks import LEAST_MASK, Mask, find_mask, square
from ckptforensics.lineage.changes.tensor_pairs import (
    TensorPair,
    is_sampled,
    put_in_order,
    tensor_pairs,
)
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.results.comparison import Arrow, ChangeRecord

# Entries read at once, and of one tensor of a sampled model.
_BLOCK = 1 << 18
_SAMPLED_ENTRIES = 1 << 24
# Entries of a small tensor, and how many of these are looked at together.
_SMALL, _MOST_TOGETHER = 16 * _BLOCK, 8
# Runs of rows in which a quantizer's grid is looked for, evenly spread, and rows of each.
_LATTICE_RUNS, _LATTICE_RUN = 4, 8
# Types that a wider one is rounded to when a model is stored anew.
_NARROW = ("BF16", "F16")
# Cosine below which tensors in one basis, and units matched after a map, have nothing in common.
_ALIKE, _ALIKE_MATCHED = 0.05, 0.3
# Largest relative error that rounding to so many bits leaves, with scales of any size of group: of
# Gaussian values 4 bits leave .08 to .13, and each bit less doubles it.
_QUANTIZER_ERROR = {8: 0.05, 7: 0.05, 6: 0.06, 5: 0.1, 4: 0.2, 3: 0.35, 2: 0.6, 1: 0.8}
# Relative change of a matrix from which on its layer is looked at after what may be undone.
_UNLIKE = 0.5
# What was undone explains the difference where it leaves less than this share of it.
_EXPLAINED = 0.5
# Share of entries that must be within half a step of the other model's, to be its rounding.
ROUNDED = 0.9
# Entries of a block, and of a tensor at the least, whose lost digits are looked at.
_DIGITS, _LEAST_DIGITS = 1 << 14, 500
_COUNTING = threading.Lock()
# See `is_rounding`.
Rounded = tuple[float, float]
_NOT: Rounded = (0.0, 0.0)
# What is as near as its encoding's bits leave it, where the steps themselves are not known.
NEAR: Rounded = (1.0, 1.0)
# Encodings of GGUF whose groups have one step each, which a found grid is.
_ONE_WIDTH = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@dataclass(frozen=True)
class Change:
    """How one tensor of B differs from A's.

    Attributes
    ----------
    piece : the tensor
    entries : compared
    equal : share of them that are equal
    relative : |B - A| / |A|
    cosine : of A and B
    zeros : share of zeros in A and in B
    masks : entries that are 0 in A alone, and in B alone; None below 1 % of them
    lattices : quantizer's grid found in A's and in B's values
    rounded : share of entries of A, and of B, within half a step of the other model's, and their
        distance relative to what rounding gives; 0 without a lattice
    digits : mean square distance of entries that a cast changed, relative to what rounding leaves
    cast : `a->b` where B is A rounded to B's type, entry by entry, `b->a` the other way round
    looked : whether a low rank of the difference was looked for
    rank : of the difference, None where it is full or was not looked for
    order : which of the two is the rounded sum of the other and a difference of low rank
    """

    tensors: TensorPair
    entries: int
    equal: float
    relative: float
    cosine: float
    zeros: tuple[float, float]
    masks: tuple[Mask | None, Mask | None]
    lattices: tuple[str | None, str | None]
    rounded: tuple[Rounded, Rounded]
    cast: Arrow | None
    digits: float = 1.0
    looked: bool = False
    rank: int | None = None
    order: RoundedSum | None = None

    @property
    def respelled(self) -> bool:
        """Whether nothing changed but, at most, the type that the values are rounded to."""
        return self.equal == 1 or self.cast is not None

    def beyond_zeros(self, later: int) -> float:
        """What is left of the change beside entries that were set to 0 in A (0) or B (1).

        A model with some entries at 0 is orthogonal to the rest. Relative to the other model.
        """
        square = self.relative**2
        removed = square if later else square / (1 + square)
        return max(0.0, abs(removed - (1 - self.cosine**2))) ** 0.5

    @property
    def foreign(self) -> bool:
        """Whether tensors of layers have nothing in common.

        Independent ones have a cosine of about 1 / sqrt(entries); units that were matched are a
        little alike anyway.
        """
        least = _ALIKE_MATCHED if self.tensors.mapped else _ALIKE
        return self.tensors.part == "layer" and self.cosine < least

    @property
    def record(self) -> ChangeRecord:
        """As it stands in the document."""
        return ChangeRecord(
            tensor=self.tensors.tensor,
            layer=self.tensors.layer,
            equal=self.equal,
            relative=self.relative,
            rank=self.rank,
            zeros=self.zeros,
            lattice=self.lattices,
        )


def measure_changes(pair: Pair) -> tuple[Change, ...]:
    """Compare all tensors that correspond; of large models some layers at the default level.

    Raises
    ------
    NotApplicable
        if a model has no weights.
    CkptError
        if a tensor cannot be decoded.
    """
    sampled = is_sampled(pair)
    found = [
        change
        for some in _together(tensor_pairs(pair))
        for change in in_threads(partial(_measure, sampled=sampled), some)
    ]
    found = _in_order(pair, found, sampled)
    changed = [
        i
        for i, c in enumerate(found)
        if c.equal < 1 and c.tensors.matrix and c.tensors.part == "layer"
    ]
    # Where more than rounding changed, that is what a rank is looked for in.
    changed = [i for i in changed if not found[i].respelled] or changed
    ranked = spread(changed, pair.effort.ranked_matrices)
    look = partial(look_for_rank, rows=pair.effort.rank_rows)
    told = in_threads(look, [found[i].tensors for i in ranked])
    for i, (rank, order) in zip(ranked, told, strict=True):
        found[i] = replace(found[i], looked=True, rank=rank, order=order)
    return tuple(found)


def _in_order(pair: Pair, found: Sequence[Change], sampled: bool) -> list[Change]:
    """Layers that are not alike as they are stored after what explains it was undone."""
    partners = dict(matched_layers(pair))
    told: list[Change] = []
    for layer, some in groupby(found, key=lambda change: change.tensors.layer):
        here = list(some)
        unlike = any(
            c.tensors.matrix and not c.tensors.mapped and (c.foreign or c.relative > _UNLIKE)
            for c in here
        )
        if layer in partners and unlike:
            stand_ins, gone = put_in_order(pair, layer, partners[layer])
            before = [c for c in here if c.tensors.tensor in gone]
            after = in_threads(partial(_measure, sampled=sampled), stand_ins)
            if after and _median(after) < _EXPLAINED * _median(before):
                here = [*(c for c in here if c.tensors.tensor not in gone), *after]
        told += here
    return told


def _median(changes: Sequence[Change]) -> float:
    return float(np.median([change.relative for change in changes])) if changes else np.inf


def _together(tensors: Iterable[TensorPair]) -> Iterator[list[TensorPair]]:
    """Small tensors several together, which cores share; a large one, whose blocks they share."""
    some: list[TensorPair] = []
    for one in tensors:
        large = min(one.rows) * one.columns > _SMALL
        if large or len(some) == _MOST_TOGETHER:
            yield some
            some = []
        if large:
            yield [one]
        else:
            some.append(one)
    yield some


@dataclass
class _Tally:
    """Sums over blocks of a tensor."""

    entries: int
    equal: int
    squares: Doubles  # of A, B and B - A
    zeros: Ints
    largest: Doubles

    @classmethod
    def of(cls, a: Floats, b: Floats) -> _Tally:
        difference = b - a
        return cls(
            entries=a.size,
            equal=a.size - int(np.count_nonzero(difference)),
            squares=np.array([square(a), square(b), square(difference)]),
            zeros=np.array([x.size - np.count_nonzero(x) for x in (a, b)]),
            largest=np.array([max(float(x.max()), -float(x.min())) for x in (a, b)]),
        )

    @classmethod
    def together(cls, parts: Sequence[_Tally]) -> _Tally:
        return cls(
            entries=sum(part.entries for part in parts),
            equal=sum(part.equal for part in parts),
            squares=np.sum([part.squares for part in parts], axis=0),
            zeros=np.sum([part.zeros for part in parts], axis=0),
            largest=np.max([part.largest for part in parts], axis=0),
        )


def _known(tensors: TensorPair, error: float) -> Change:
    """A change of which nothing but the size is known."""
    same = float(error == 0)
    near = max(0.0, 1 - error**2 / 2)
    return Change(
        tensors, 1, same, error, near, (0.0, 0.0), (None, None), (None, None), (_NOT, _NOT), None
    )


def _measure(tensors: TensorPair, sampled: bool) -> Change:
    if tensors.error is not None:
        return _known(tensors, tensors.error)
    blocks = _blocks(tensors, sampled)
    casts = _Casts(tensors.dtypes)

    def tally_of(block: tuple[int, int]) -> _Tally:
        a, b = (read(*block) for read in tensors.read)
        casts.look(a, b)
        return _Tally.of(a, b)

    tally = _Tally.together(in_threads(tally_of, blocks))
    size_a, size_b, size_d = np.sqrt(tally.squares)
    inner = (tally.squares[0] + tally.squares[1] - tally.squares[2]) / 2
    zeros = tally.zeros / tally.entries
    changed = tally.equal < tally.entries
    lattices, rounded = _lattices(tensors, tally.largest, changed)
    masks = [
        find_mask(tensors, blocks, model) if changed and zeros[model] >= LEAST_MASK else None
        for model in (0, 1)
    ]
    return Change(
        tensors=tensors,
        entries=tally.entries,
        equal=tally.equal / tally.entries,
        relative=float(size_d / size_a) if size_a > 0 else float(size_d > 0),
        cosine=float(inner / (size_a * size_b)) if size_a * size_b > 0 else 0.0,
        zeros=(float(zeros[0]), float(zeros[1])),
        masks=(masks[0], masks[1]),
        lattices=lattices,
        rounded=rounded,
        cast=casts.arrow,
        digits=casts.digits,
    )


class _Casts:
    """Whether one model's entries are the other's rounded to its type, in all blocks so far."""

    def __init__(self, dtypes: tuple[str, str]) -> None:
        self.arrows: dict[Arrow, str] = {}
        self.lost = (0.0, 0)
        for arrow, kind, other in (("a->b", dtypes[1], dtypes[0]), ("b->a", *dtypes)):
            if kind in _NARROW and other != kind:
                self.arrows[arrow] = kind  # type: ignore[index]

    def look(self, a: Floats, b: Floats) -> None:
        for arrow, kind in list(self.arrows.items()):
            wide, narrow = (a, b) if arrow == "a->b" else (b, a)
            if not np.array_equal(round_to(wide, kind), narrow):
                self.arrows.pop(arrow, None)
                continue
            moved = np.flatnonzero(wide != narrow)
            moved = moved[:: max(1, moved.size // _DIGITS)]
            units = spacing(narrow.reshape(-1)[moved], kind)
            gone = (wide.reshape(-1)[moved] - narrow.reshape(-1)[moved]) / units
            with _COUNTING:
                squares, count = self.lost
                self.lost = squares + 12 * float(np.sum(gone**2)), count + moved.size

    @property
    def digits(self) -> float:
        """Mean square of the digits that were lost, relative to that of digits drawn uniformly."""
        squares, count = self.lost
        return squares / count if count >= _LEAST_DIGITS else 1.0

    @property
    def arrow(self) -> Arrow | None:
        return next(iter(self.arrows), None)


def _blocks(tensors: TensorPair, sampled: bool) -> list[tuple[int, int]]:
    rows = min(tensors.rows)
    step = max(1, _BLOCK // tensors.columns)
    starts = list(range(0, rows, step))
    most = max(1, _SAMPLED_ENTRIES // (step * tensors.columns))
    if sampled and len(starts) > most:
        at = np.linspace(0, len(starts) - 1, most).round().astype(int)
        starts = [starts[i] for i in at]
    return [(start, min(start + step, rows)) for start in starts]


def _lattices(
    tensors: TensorPair, largest: Doubles, changed: bool
) -> tuple[tuple[str | None, str | None], tuple[Rounded, Rounded]]:
    """Names of the quantizers' grids of A and B, and how well each is the other's rounding."""
    if not tensors.matrix:
        return (None, None), (_NOT, _NOT)
    rows = min(tensors.rows)
    run = min(_LATTICE_RUN, rows)
    starts = sample_rows(rows - run + 1, _LATTICE_RUNS)
    samples = [np.concatenate([read(i, i + run) for i in starts]) for read in tensors.read]
    names: list[str | None] = []
    rounded: list[Rounded] = []
    grids: list[Lattice | None] = [None, None]
    if changed:
        grids = in_threads(lambda i: find_lattice(samples[i], float(largest[i])), (0, 1))
    for i, (sample, other) in enumerate(((samples[0], samples[1]), (samples[1], samples[0]))):
        found = grids[i]
        stored = tensors.dtypes[i]
        plain = stored in ("BF16", "F16", "F32", "F64")
        names.append(_name(found, stored if not plain else None, grid(sample)))
        if not changed:
            rounded.append(_NOT)
            continue
        told = _NOT if found is None else is_rounding(found, sample, other, grids[1 - i])
        steps_known = found is not None and stored in _ONE_WIDTH
        if not (plain or steps_known) and told[0] < ROUNDED:
            # The container says how it is quantized, and the steps are not all of one width, or
            # finer than is looked for.
            told = NEAR if _as_near_as_rounding(stored, sample, other) else told
        rounded.append(told)
    return (names[0], names[1]), (rounded[0], rounded[1])


def _as_near_as_rounding(stored: str, sample: Floats, other: Floats) -> bool:
    """Whether a quantized sample is no farther from the other than its encoding brings it."""
    digits = re.search(r"[1-8]", stored)
    limit = _QUANTIZER_ERROR[int(digits[0]) if digits else 8]
    return bool(np.linalg.norm(sample - other) <= limit * np.linalg.norm(other))


def _name(found: Lattice | None, stored: str | None, plain: str) -> str | None:
    if stored is not None:
        return stored if found is None else f"{stored} ({found.name})"
    return plain if found is None else found.name


def sample_rows(rows: int, most: int) -> list[int]:
    """Numbers of at most so many rows, evenly spread."""
    if rows <= most:
        return list(range(rows))
    return [int(i) for i in np.linspace(0, rows - 1, most).round()]
