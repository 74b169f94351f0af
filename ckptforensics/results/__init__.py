"""Result documents: all that renderers, files and other programs ever see of an analysis."""

from typing import TYPE_CHECKING

from ckptforensics.deferred import on_first_use
from ckptforensics.results.files import (
    Empirical,
    Signature,
    document_text,
    holds_signature,
    load_document,
    load_result,
    parse_document,
    save_document,
    save_signature,
    saved_kind,
    signature_bytes,
    write_atomically,
    write_bytes_atomically,
)
from ckptforensics.results.kinds import DOCUMENTS
from ckptforensics.results.records import (
    DamageRecord,
    Direction,
    Document,
    Examined,
    FileRecord,
    FitOptions,
    ModelRecord,
    Skipped,
)
from ckptforensics.results.signature import LayerSignature, SignatureDocument

if TYPE_CHECKING:
    from ckptforensics.results.cache import CacheDocument
    from ckptforensics.results.comparison import (
        AlignmentRecord,
        ChangeRecord,
        ComparisonDocument,
        CriterionRecord,
        MergeRecord,
        PairRecord,
        TreeEdge,
    )
    from ckptforensics.results.families import FamiliesDocument, FamilyRecord
    from ckptforensics.results.inspection import InspectDocument, TensorRecord
    from ckptforensics.results.layers import (
        AccumulatedRecord,
        BeginTokenRecord,
        Eigenvalue,
        EmpiricalAngles,
        ExpertRecord,
        LayerEvidence,
        LayersDocument,
        ResponseRecord,
        SuperWeightRecord,
        TriggerToken,
    )
    from ckptforensics.results.norms import NormsDocument

__all__ = [
    "DOCUMENTS",
    "AccumulatedRecord",
    "AlignmentRecord",
    "BeginTokenRecord",
    "CacheDocument",
    "ChangeRecord",
    "ComparisonDocument",
    "CriterionRecord",
    "DamageRecord",
    "Direction",
    "Document",
    "Eigenvalue",
    "Empirical",
    "EmpiricalAngles",
    "Examined",
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
    "TriggerToken",
    "document_text",
    "holds_signature",
    "load_document",
    "load_result",
    "parse_document",
    "save_document",
    "save_signature",
    "saved_kind",
    "signature_bytes",
    "write_atomically",
    "write_bytes_atomically",
]

# A command needs the classes of one kind.
__getattr__ = on_first_use(
    __name__,
    {
        "AccumulatedRecord": "layers",
        "BeginTokenRecord": "layers",
        "Eigenvalue": "layers",
        "EmpiricalAngles": "layers",
        "ExpertRecord": "layers",
        "LayerEvidence": "layers",
        "LayersDocument": "layers",
        "ResponseRecord": "layers",
        "SuperWeightRecord": "layers",
        "TriggerToken": "layers",
        "NormsDocument": "norms",
        "InspectDocument": "inspection",
        "TensorRecord": "inspection",
        "FamiliesDocument": "families",
        "FamilyRecord": "families",
        "CacheDocument": "cache",
        "AlignmentRecord": "comparison",
        "ChangeRecord": "comparison",
        "ComparisonDocument": "comparison",
        "CriterionRecord": "comparison",
        "MergeRecord": "comparison",
        "PairRecord": "comparison",
        "TreeEdge": "comparison",
    },
)
