"""The one registry of kinds of documents: what a document calls itself, and its class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType

from ckptforensics.results.records import Document


class Registry(Mapping[str, type[Document]]):
    """Kinds to classes, each of which is imported when it is asked for.

    The version of a kind is its class's `current_version`.

    Parameters
    ----------
    homes : kind to the module of this package that has the class, and the class's name
    """

    def __init__(self, homes: Mapping[str, tuple[str, str]]) -> None:
        self._homes = MappingProxyType(dict(homes))

    def __getitem__(self, kind: str) -> type[Document]:
        module, name = self._homes[kind]
        found: type[Document] = getattr(import_module(f"ckptforensics.results.{module}"), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


DOCUMENTS = Registry(
    {
        "signature": ("signature", "SignatureDocument"),
        "layers": ("layers", "LayersDocument"),
        "norms": ("norms", "NormsDocument"),
        "inspect": ("inspection", "InspectDocument"),
        "families": ("families", "FamiliesDocument"),
        "cache": ("cache", "CacheDocument"),
        "comparison": ("comparison", "ComparisonDocument"),
        "evolution": ("evolution", "EvolutionDocument"),
        "trace": ("trace", "TraceDocument"),
        "empirical": ("empirical", "EmpiricalDocument"),
        "sinks": ("sinks", "SinksDocument"),
        "ablation": ("ablation", "AblationDocument"),
        "paths": ("paths", "PathsDocument"),
        "replication": ("replication", "ReplicationDocument"),
        "report": ("report", "ReportDocument"),
        "quantization": ("quantization", "QuantizationDocument"),
        "quantization-plan": ("quantization_plan", "QuantizationPlanDocument"),
        "quantization-diff": ("quantization_diff", "QuantizationDiffDocument"),
        "audit": ("audit", "AuditDocument"),
        "catalog": ("catalog", "CatalogDocument"),
        "sketch": ("sketch", "SketchDocument"),
        "find": ("find", "FindDocument"),
        "toy": ("toy", "ToyDocument"),
    }
)
