"""Architectures as data: one TOML file a family, matched with names and sizes."""

from ckptforensics.architectures.plan import (
    Architecture,
    EmbeddingRefs,
    LayerPlan,
    RoutingPlan,
    Sizes,
    WeightRef,
)
from ckptforensics.architectures.resolve import resolve
from ckptforensics.architectures.schema import UNUSED_REASONS, Family, Role, families
from ckptforensics.architectures.wrappers import unwrapped

__all__ = [
    "UNUSED_REASONS",
    "Architecture",
    "EmbeddingRefs",
    "Family",
    "LayerPlan",
    "Role",
    "RoutingPlan",
    "Sizes",
    "WeightRef",
    "families",
    "resolve",
    "unwrapped",
]
