"""Result documents: all that renderers, files and other programs ever see of an analysis."""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.results.documents import (
    AccumulatedRecord,
    BeginTokenRecord,
    CacheDocument,
    Direction,
    Document,
    Eigenvalue,
    ExpertRecord,
    FamiliesDocument,
    FamilyRecord,
    FileRecord,
    FitOptions,
    InspectDocument,
    LayerEvidence,
    LayersDocument,
    LayerSignature,
    ModelRecord,
    NormsDocument,
    ResponseRecord,
    SignatureDocument,
    Skipped,
    SuperWeightRecord,
    TensorRecord,
)
from ckptforensics.results.files import (
    Signature,
    holds_signature,
    load_document,
    load_result,
    save_document,
    save_signature,
    signature_bytes,
    write_atomically,
    write_bytes_atomically,
)

if TYPE_CHECKING:
    from ckptforensics.results.comparison import (
        AlignmentRecord,
        ChangeRecord,
        ComparisonDocument,
        CriterionRecord,
        MergeRecord,
        PairRecord,
        TreeEdge,
    )
    from ckptforensics.results.kinds import DOCUMENTS

__all__ = [
    "DOCUMENTS",
    "AccumulatedRecord",
    "AlignmentRecord",
    "BeginTokenRecord",
    "CacheDocument",
    "ChangeRecord",
    "ComparisonDocument",
    "CriterionRecord",
    "Direction",
    "Document",
    "Eigenvalue",
    "ExpertRecord",
    "FamiliesDocument",
    "FamilyRecord",
    "FileRecord",
    "FitOptions",
    "InspectDocument",
    "LayerEvidence",
    "LayerSignature",
    "LayersDocument",
    "MergeRecord",
    "ModelRecord",
    "NormsDocument",
    "PairRecord",
    "ResponseRecord",
    "Signature",
    "SignatureDocument",
    "Skipped",
    "SuperWeightRecord",
    "TensorRecord",
    "TreeEdge",
    "holds_signature",
    "load_document",
    "load_result",
    "save_document",
    "save_signature",
    "signature_bytes",
    "write_atomically",
    "write_bytes_atomically",
]

__getattr__ = on_first_use(
    __name__,
    {
        "DOCUMENTS": "kinds",
        "AlignmentRecord": "comparison",
        "ChangeRecord": "comparison",
        "ComparisonDocument": "comparison",
        "MergeRecord": "comparison",
        "PairRecord": "comparison",
        "CriterionRecord": "comparison",
        "TreeEdge": "comparison",
    },
)
