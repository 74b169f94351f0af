"""Architectures as data: one TOML file a family, matched with names and sizes."""

from ckptforensics.architectures.resolve import Architecture, Sizes, WeightRef, resolve
from ckptforensics.architectures.schema import Family, families

__all__ = ["Architecture", "Family", "Sizes", "WeightRef", "families", "resolve"]
