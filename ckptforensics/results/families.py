"""The result of `families`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Frozen


class FamilyRecord(Frozen):
    """A supported family; `verified_by` names the test cases, empty means not verified."""

    name: str
    description: str
    model_types: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    verified_by: tuple[str, ...]


class FamiliesDocument(Document):
    """The result of `families`; `oracle` is the implementation the test cases compared with."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["families"] = "families"
    oracle: str
    families: tuple[FamilyRecord, ...]
