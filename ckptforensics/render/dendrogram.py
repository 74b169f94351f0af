"""A dendrogram laid out: the order of its leaves and the brackets that join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """Two groups joined at `height`: where each hangs across the leaves, and at what height.

    Leaves are one apart, the first at 0.
    """

    left: tuple[float, float]
    right: tuple[float, float]
    height: float


@dataclass(frozen=True)
class Dendrogram:
    """Models in the order in which no brackets cross, and the brackets, lowest joins first."""

    order: tuple[int, ...]
    brackets: tuple[Bracket, ...]

    @property
    def height(self) -> float:
        """Of the highest join."""
        return max(bracket.height for bracket in self.brackets)


def lay_out(linkage: Sequence[Sequence[float]], count: int) -> Dendrogram | None:
    """The dendrogram of a linkage in scipy's form, of which the first three columns are used.

    None where there is none: fewer than two models, or rows that do not join all of them once.

    Parameters
    ----------
    linkage : rows (group, group, height, size); group i is model i, and `count` + k that of row k
    count : number of models
    """
    if count < 2 or len(linkage) != count - 1:
        return None
    leaves: dict[int, tuple[int, ...]] = {i: (i,) for i in range(count)}
    joined = []
    for row, (one, other, height, _) in enumerate(linkage):
        first, second = int(one), int(other)
        if first == second or first not in leaves or second not in leaves:
            return None
        leaves[count + row] = leaves.pop(first) + leaves.pop(second)
        joined.append((first, second, float(height)))
    (order,) = leaves.values()
    places = {leaf: (float(i), 0.0) for i, leaf in enumerate(order)}
    brackets = []
    for row, (first, second, height) in enumerate(joined):
        left, right = places[first], places[second]
        brackets.append(Bracket(left, right, height))
        places[count + row] = ((left[0] + right[0]) / 2, height)
    return Dendrogram(order, tuple(brackets))
