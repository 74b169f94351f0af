"""What a criterion is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ckptforensics.lineage.pair import Pair
from ckptforensics.results.comparison import Group, Level

EVERY_LEVEL: tuple[Level, ...] = ("fast", "default", "thorough")


@dataclass(frozen=True)
class Outcome:
    """What a criterion found.

    Attributes
    ----------
    statistic : None where the criterion did not apply
    log10_p : None where it has no p-value
    floor : p is the smallest that the criterion's permutations can give
    profile : the statistic layer by layer of A, None where there is none
    skipped : why it was not applied
    note : limits of what was found
    """

    statistic: float | None
    log10_p: float | None = None
    floor: bool = False
    profile: tuple[float | None, ...] = ()
    skipped: str | None = None
    note: str | None = None


def skip(reason: str) -> Outcome:
    """The outcome of a criterion that was not applied."""
    return Outcome(None, skipped=reason)


@dataclass(frozen=True)
class Criterion:
    """One criterion by which a pair is judged.

    Attributes
    ----------
    name, group, invariant_to, null, scale, limits : as in `CriterionRecord`
    run : what it does; a NotApplicable that it raises is the reason why it was skipped
    needs : `signatures`, or `weights` of both
    levels : of the comparisons that apply it
    """

    name: str
    group: Group
    invariant_to: tuple[str, ...]
    run: Callable[[Pair], Outcome]
    null: str | None = None
    needs: Literal["signatures", "weights"] = "weights"
    levels: tuple[Level, ...] = ("default", "thorough")
    scale: str | None = None
    limits: tuple[float, float] | None = None
