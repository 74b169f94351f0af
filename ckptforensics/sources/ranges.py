"""Arithmetic of byte ranges (begin, end): what is present, what is asked for and how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

Range = tuple[int, int]

# A gap up to this is fetched along with its neighbours, as a request of its own costs more,
_WIDEST_GAP = 1 << 16
# as long as all gaps together stay below this share of what is wanted.
_SHARE_OF_GAPS = 100
# A longer range is divided: several connections are faster than one.
_LONGEST = 1 << 23


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Disjoint ranges in order, those that touch made one."""
    result: list[Range] = []
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def without(wanted: Iterable[Range], present: Sequence[Range]) -> list[Range]:
    """What of `wanted` is not in `present`; both disjoint and in order."""
    gaps: list[Range] = []
    for begin, end in wanted:
        at = begin
        for low, high in present:
            if high <= at:
                continue
            if low >= end:
                break
            if low > at:
                gaps.append((at, low))
            at = high
        if at < end:
            gaps.append((at, end))
    return gaps


def requests(wanted: Sequence[Range]) -> list[Range]:
    """The ranges to ask for: narrow gaps are closed and long ranges divided.

    Parameters
    ----------
    wanted : disjoint and in order

    Returns
    -------
    Disjoint ranges in order that cover `wanted` and at most a hundredth more
    """
    budget = sum(end - begin for begin, end in wanted) // _SHARE_OF_GAPS
    widths = sorted((b[0] - a[1], i) for i, (a, b) in enumerate(pairwise(wanted)))
    closed = set()
    for width, i in widths:
        if width > min(budget, _WIDEST_GAP):
            break
        budget -= width
        closed.add(i)
    joined: list[Range] = []
    for i, (begin, end) in enumerate(wanted):
        if i - 1 in closed:
            begin = joined.pop()[0]
        joined.append((begin, end))
    return [
        (at, min(at + _LONGEST, end)) for begin, end in joined for at in range(begin, end, _LONGEST)
    ]
