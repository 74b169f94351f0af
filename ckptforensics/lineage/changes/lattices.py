"""On which grid the stored values of a tensor lie: a floating type's, or that of a quantizer.

A quantizer leaves its trace in the values after they were written back as floating numbers: in each
group that shares a scale they are whole multiples of one step, or have few levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles, Floats

# Sizes of groups that share a scale, besides a row and the whole tensor. The coarsest that fits is
# named: what fits a group fits its parts too if levels are counted.
_GROUPS = (128, 64, 32)
# Bits of a quantizer by how many steps the largest entry, or the range from smallest to largest,
# is wide. Few bits go first: their levels are among those of more bits.
_OF_LARGEST = {7: 4, 8: 4, 15: 5, 16: 5, 31: 6, 32: 6, 127: 8, 128: 8}
_OF_RANGE = {15: 4, 255: 8}
# Multiples above this are not looked at: rounding to BF16 moves them by too large a part of a step.
_LARGEST_MULTIPLE = 32
# Share of the entries that must be whole multiples, and how many of them are needed to say so.
_ON_LATTICE = 0.995
_LEAST_ENTRIES = 256
# Entries of the groups that are looked at first.
_FEW_ENTRIES = 1 << 11
# One group in so many is enough to refute a grid of FP8 for nearly all matrices.
_EVERY = 16
# Levels of 4 bits, looked for where a group has enough entries other than 0 to have more.
_LEVELS = 16
_LEAST_NONZERO = 24
# Integers of so many bits are numbers of FP8, too.
_FEW_BITS = 4
# Largest number, bits behind the point and least exponent of FP8's types E5M2 and E4M3; the one of
# fewer bits goes first.
_FLOAT8 = ((57344.0, 2, -14.0), (448.0, 3, -6.0))
# Relative rounding error of the types: half a unit in the last place.
_EPS = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24}


@dataclass(frozen=True)
class Lattice:
    """A quantizer's grid that was found in the values.

    Attributes
    ----------
    name : in words
    steps : (rows, columns) distance of neighbouring levels where each sampled entry lies
    """

    name: str
    steps: Doubles


def grid(sample: Floats) -> str:
    """The narrowest floating type that has all the values: `BF16`, `F16` or `F32`."""
    if not (np.ascontiguousarray(sample).view(np.uint32) & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        return "F16" if np.array_equal(sample.astype(np.float16), sample) else "F32"


def spacing(values: Floats, kind: str) -> Doubles:
    """Distance of a value to the next one that the type has, above it in size."""
    exponent = np.frexp(values.astype(np.float64))[1] - 1.0
    bits = {"BF16": 7, "F16": 10, "F32": 23}[kind]
    least = {"BF16": -133.0, "F16": -24.0, "F32": -149.0}[kind]
    return np.exp2(np.maximum(np.where(values == 0, least, exponent - bits), least))


def round_to(values: Floats, kind: str) -> Floats:
    """The values rounded to nearest even in `BF16` or `F16`, as float32."""
    if kind == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def find_lattice(sample: Floats, largest: float) -> Lattice | None:
    """The quantizer's grid of a matrix, None where its values are as those of a floating type.

    Parameters
    ----------
    sample : (rows, columns) some whole rows, the last axis as it is stored
    largest : |entry| of the whole matrix
    """
    if sample.size < _LEAST_ENTRIES:
        return None
    eps = _EPS[grid(sample)]
    x = sample.astype(np.float64)
    columns = x.shape[1]
    by_tensor = _of_scale(x, np.full((len(x), 1), largest), eps, _OF_LARGEST)
    if by_tensor is not None:
        bits, steps = by_tensor
        return Lattice(f"{bits} bits, one scale", np.broadcast_to(steps, x.shape))
    float8 = _of_float8(x, np.full((len(x), 1), largest), eps)
    if float8 is not None:
        return Lattice("FP8, one scale", float8)
    for size in (columns, *(g for g in _GROUPS if columns % g == 0 and g < columns)):
        groups = x.reshape(-1, size)
        of = "a scale a row" if size == columns else f"groups of {size}"
        # Few bits before FP8, whose numbers hold theirs; eight bits behind it, by the same reason.
        found = _of_largest(groups, eps) or _of_levels(groups)
        float8 = None
        if found is None or found[0] > _FEW_BITS:
            float8 = _of_float8(groups, np.abs(groups).max(axis=1, keepdims=True), eps)
        if float8 is not None:
            return Lattice(f"FP8, {of}", float8.reshape(x.shape))
        if found is not None:
            bits, steps = found
            every = np.broadcast_to(steps, groups.shape).reshape(x.shape)
            return Lattice(f"{bits} bits, {of}", every)
    return None


def _of_largest(groups: Doubles, eps: float) -> tuple[int, Doubles] | None:
    """Bits and step, (groups, 1), where scales are made from the largest entries or the range."""
    largest = np.abs(groups).max(axis=1, keepdims=True)
    span = groups.max(axis=1, keepdims=True) - groups.min(axis=1, keepdims=True)
    return _of_scale(groups, largest, eps, _OF_LARGEST) or _of_scale(groups, span, eps, _OF_RANGE)


def _of_scale(
    groups: Doubles, scale: Doubles, eps: float, kinds: dict[int, int]
) -> tuple[int, Doubles] | None:
    # A few groups rule out most kinds.
    every = max(1, groups.size // _FEW_ENTRIES)
    for count, bits in kinds.items():
        steps = scale / count
        if len(groups) > 1 and not _is_whole(groups[::every], steps[::every], eps, count, 1):
            continue
        if _is_whole(groups, steps, eps, count, _LEAST_ENTRIES):
            return bits, steps
    return None


def _is_whole(groups: Doubles, steps: Doubles, eps: float, count: int, least: int) -> bool:
    """Whether the entries are whole multiples of the step, as far as rounding lets it be told."""
    k = np.divide(groups, steps, out=np.zeros_like(groups), where=steps > 0)
    size = np.abs(k)
    # The largest entry is a whole multiple whatever the values are.
    asked = (size > 0.25) & (size <= min(_LARGEST_MULTIPLE, count - 0.5))
    number = np.count_nonzero(asked)
    if number < least:
        return False
    # Entry and scale are rounded both. A quantizer leaves nothing between 0 and its first step.
    off = np.abs(k - np.rint(k)) > 2 * eps * size + 1e-3
    whole = 1 - np.count_nonzero(off & asked) / number
    between = np.count_nonzero((size > 0.01) & (size <= 0.25))
    return bool(whole >= _ON_LATTICE and between <= (1 - _ON_LATTICE) * size.size)


def _of_float8(groups: Doubles, largest: Doubles, eps: float) -> Doubles | None:
    """Steps of each entry where values times a scale are those of an FP8 type, else None.

    The scale is 1, or makes the largest entry the largest number of the type.
    """
    for most, bits, least in _FLOAT8:
        for scale in (np.ones_like(largest), largest / most):
            # More entries are off in some groups than may be in all: the others need no look.
            few = groups[::_EVERY], scale[::_EVERY]
            if _float8_steps(*few, bits, least, eps)[1] > (1 - _ON_LATTICE) * groups.size:
                continue
            steps, off, number = _float8_steps(groups, scale, bits, least, eps)
            if number >= _LEAST_ENTRIES and off / number <= 1 - _ON_LATTICE:
                return np.asarray(steps * scale, np.float64)
    return None


def _float8_steps(
    groups: Doubles, scale: Doubles, bits: int, least: float, eps: float
) -> tuple[Doubles, int, int]:
    """Steps of an FP8 type at each entry, how many entries are off them, and of how many."""
    values = np.divide(groups, scale, out=np.zeros_like(groups), where=scale > 0)
    exponent = np.maximum(np.frexp(values)[1] - 1.0, least)
    steps = np.exp2(exponent - bits)
    k = np.abs(values) / steps
    asked = k > 0.25
    off = np.abs(k - np.rint(k)) > 2 * eps * k + 1e-3
    return steps, int(np.count_nonzero(off & asked)), int(np.count_nonzero(asked))


def _of_levels(groups: Doubles) -> tuple[int, Doubles] | None:
    """Bits and step, (groups, 1), where groups have no more levels than 4 bits have."""
    ordered = np.sort(groups, axis=1)
    gaps = np.diff(ordered, axis=1)
    levels = 1 + np.count_nonzero(gaps, axis=1)
    full = np.count_nonzero(groups, axis=1) >= _LEAST_NONZERO
    if full.mean() < 0.5 or np.mean(levels[full] <= _LEVELS) < _ON_LATTICE:
        return None
    bits = max(1, int(np.ceil(np.log2(np.quantile(levels[full], _ON_LATTICE)))))
    steps = np.where(gaps > 0, gaps, np.inf).min(axis=1, keepdims=True)
    return bits, np.where(np.isfinite(steps), steps, 0.0)


def is_rounding(
    lattice: Lattice, sample: Floats, other: Floats, beside: Lattice | None = None
) -> tuple[float, float]:
    """Whether a model on a lattice is the other one rounded to it.

    Zeros are left out: they may have been pruned before.

    Parameters
    ----------
    sample, other : (rows, columns) of the model on the lattice, and of the other one
    beside : the other model's own lattice; both may then be half a step from a third

    Returns
    -------
    Share of entries within half a step of the other's, and the root mean square distance relative
    to that of values anywhere between the steps: about 1 for what was rounded
    """
    there = (sample != 0) & (lattice.steps > 0)
    if not there.any():
        return 0.0, 0.0
    steps, values = lattice.steps[there], sample[there]
    slack = _EPS[grid(sample)] * np.abs(values) * 2
    distance = np.abs(values.astype(np.float64) - other[there])
    fill = np.sqrt(12 * np.mean(distance**2) / np.mean(steps**2))
    if beside is not None:
        steps = steps + beside.steps[there]
    return float(np.mean(distance <= 0.51 * steps + slack)), float(fill)
