"""Digests of the code that measures: what another version would find otherwise is read again."""

from __future__ import annotations

import hashlib
from functools import cache

from ckptforensics.findings.cache.key import code_sha256, sha256_of_parts
from ckptforensics.results.comparison import Level

_SUFFIXES = (".py", ".toml", ".txt")
# What decides what is read of a model, beside what decides its signature.
_READING = (
    "registry/claims",
    "registry/found.py",
    "registry/reading.py",
    "registry/sketch",
    "registry/stages.py",
    "registry/stores",
    "sources",
    "tokens.py",
)


@cache
def reading_code() -> str:
    """Digest of the code and data that decide what is read of a model."""
    return _together(code_sha256(), sha256_of_parts(_READING, suffixes=_SUFFIXES))


@cache
def comparing_code(level: Level, *, by_signature: bool) -> str:
    """Digest of the code that compares two models, of the level, and of what is compared.

    Parameters
    ----------
    by_signature : one of the two is known by its signature only
    """
    what = "signature" if by_signature else "weights"
    return _together(code_sha256(), sha256_of_parts(("lineage",), suffixes=_SUFFIXES), level, what)


def _together(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
