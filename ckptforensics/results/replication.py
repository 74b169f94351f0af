"""The result of `replicate`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord


class ReplicatedFigure(Frozen):
    """A published figure beside the measured one.

    Both are lists of numbers: one value, layers, coordinates, or `[layer, row, column]` one after
    another. `tolerance` is the largest difference that passes, null where `published` must be the
    same set (layers) or among the measured ones (coordinates, super weights).
    """

    what: str
    published: tuple[Finite, ...]
    measured: tuple[Finite, ...]
    tolerance: Finite | None
    passed: bool


class ReplicationDocument(Document):
    """The result of `replicate`: the published figures of a model beside measured ones.

    `name` is whose figures they are; `own` says that this program recorded them and nobody
    published any.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["replication"] = "replication"
    model: ModelRecord
    name: str
    own: bool
    running: RunningRecord | None
    text: TextRecord | None
    figures: tuple[ReplicatedFigure, ...]
    skipped: tuple[Skipped, ...] = ()
