"""The result of `report`: other documents of one model, together."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.empirical import EmpiricalDocument
from ckptforensics.results.layers import LayersDocument
from ckptforensics.results.norms import NormsDocument
from ckptforensics.results.records import Document, ModelRecord, Skipped
from ckptforensics.results.signature import SignatureDocument
from ckptforensics.results.trace import TraceDocument


class ReportDocument(Document):
    """The result of `report`: what the commands on one model found, each as its own document.

    `trace` and `empirical` are null where the model did not run; `skipped` says why.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["report"] = "report"
    model: ModelRecord
    signature: SignatureDocument
    layers: LayersDocument
    norms: NormsDocument
    trace: TraceDocument | None
    empirical: EmpiricalDocument | None
    skipped: tuple[Skipped, ...] = ()

    @property
    def parts(self) -> tuple[Document, ...]:
        """The documents that it holds, in the order in which they are shown."""
        held = (self.signature, self.layers, self.norms, self.trace, self.empirical)
        return tuple(document for document in held if document is not None)
