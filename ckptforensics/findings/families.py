"""The list of supported families and how each was verified."""

from __future__ import annotations

import json
from importlib import resources

from ckptforensics.architectures import families
from ckptforensics.results import FamiliesDocument, FamilyRecord
from ckptforensics.version import __version__


def list_families() -> FamiliesDocument:
    """All families, with the test cases that verified them against transformers."""
    file = resources.files("ckptforensics.architectures") / "verified.json"
    verified = json.loads(file.read_text(encoding="utf-8"))
    return FamiliesDocument(
        tool_version=__version__,
        oracle=f"transformers {verified['transformers']}",
        families=tuple(
            FamilyRecord(
                name=name,
                description=family.description,
                model_types=family.model_types,
                gguf_architectures=family.gguf_architectures,
                verified_by=tuple(verified["families"].get(name, ())),
            )
            for name, family in families().items()
        ),
    )
