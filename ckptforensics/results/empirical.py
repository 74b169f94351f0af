"""The result of `empirical`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import (
    Document,
    Finite,
    Frozen,
    IndexedValue,
    ModelRecord,
    Skipped,
)
from ckptforensics.results.running import RunningRecord, TextRecord

Pattern = Literal["initial", "first of its kind", "every time", "sometimes"]


class HighNormToken(Frozen):
    """A token that has a high norm at a position, `count` times.

    `pattern` says when the token has one, wherever it stands: only as the `initial` token of a
    window, only as the `first of its kind` in each, `every time` it occurs, or `sometimes`.
    """

    token: int
    text: str | None
    position: int
    count: int
    pattern: Pattern


class MassiveCoordinate(Frozen):
    """A coordinate that is massive in `count` states of a plateau, with its mean there."""

    coordinate: int
    mean: Finite
    count: int


class PopulationRecord(Frozen):
    """The two populations of norms after one layer.

    `ordinary` is the largest norm of the lower one, `high` the smallest of the higher one, the
    `threshold` between them their geometric mean (or the one given); `count` tokens lie above it;
    `ratio` is that of the populations' medians. All are null but `median`, the median of all norms,
    where there is one population only.
    """

    layer: int
    median: Finite
    ordinary: Finite | None
    high: Finite | None
    threshold: Finite | None
    count: int
    ratio: Finite | None


class Plateau(Frozen):
    """Consecutive layers after which the same few tokens have a high norm.

    `layers` are the first and the last; `threshold` is the median of those of the layers; `count`
    the occurrences of tokens above it after at least half of the layers, and `states` all of theirs
    there. `direction_top` are the largest coordinates of the mean direction (the unit mean of the
    states' unit vectors), `pairwise_angle_deg` the mean angle between two states (null for one),
    `initial_share` the share of occurrences that are a window's first token and
    `initial_found` the share of windows whose first token is among them.
    """

    layers: tuple[int, int]
    threshold: Finite
    count: int
    states: int
    median_norm: Finite
    direction_top: tuple[IndexedValue, ...]
    pairwise_angle_deg: Finite | None
    initial_share: Finite
    initial_found: Finite
    tokens: tuple[HighNormToken, ...]
    massive: tuple[MassiveCoordinate, ...]


class EmpiricalDocument(Document):
    """The result of `empirical`: tokens of high norm in running text, and their direction.

    `threshold` is the one that was given, null where the populations decide layer by layer.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["empirical"] = "empirical"
    model: ModelRecord
    running: RunningRecord
    text: TextRecord
    threshold: Finite | None
    plateaus: tuple[Plateau, ...]
    layers: tuple[PopulationRecord, ...]
    skipped: tuple[Skipped, ...] = ()
