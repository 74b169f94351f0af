"""The result of `replicate`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.ablation import AblationDocument
from ckptforensics.results.empirical import EmpiricalDocument
from ckptforensics.results.layers import LayersDocument
from ckptforensics.results.paths import PathsDocument
from ckptforensics.results.records import Document, Finite, Frozen, ModelRecord, Skipped
from ckptforensics.results.running import RunningRecord, TextRecord
from ckptforensics.results.sinks import SinksDocument
from ckptforensics.results.trace import TraceDocument


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
    published any. `layers`, `trace`, `empirical`, `paths`, `ablation` and `sinks` are the documents
    behind the figures and the paper's pictures, null where they were not asked for or failed;
    `skipped` says why.
    """

    schema_version: Literal["1.1"] = "1.1"
    kind: Literal["replication"] = "replication"
    model: ModelRecord
    name: str
    own: bool
    running: RunningRecord | None
    text: TextRecord | None
    figures: tuple[ReplicatedFigure, ...]
    trace: TraceDocument | None = None
    layers: LayersDocument | None = None
    empirical: EmpiricalDocument | None = None
    paths: PathsDocument | None = None
    ablation: AblationDocument | None = None
    sinks: SinksDocument | None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def parts(self) -> tuple[Document, ...]:
        """The documents that it holds, in the order in which they are shown."""
        held = (
            *(self.trace, self.empirical, self.layers),
            *(self.paths, self.ablation, self.sinks),
        )
        return tuple(document for document in held if document is not None)
