"""The kind a document names to its class."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ckptforensics.results.comparison import ComparisonDocument
from ckptforensics.results.documents import (
    CacheDocument,
    Document,
    FamiliesDocument,
    InspectDocument,
    LayersDocument,
    NormsDocument,
    SignatureDocument,
)

DOCUMENTS: Mapping[str, type[Document]] = MappingProxyType(
    {
        "signature": SignatureDocument,
        "layers": LayersDocument,
        "norms": NormsDocument,
        "inspect": InspectDocument,
        "families": FamiliesDocument,
        "cache": CacheDocument,
        "comparison": ComparisonDocument,
    }
)
