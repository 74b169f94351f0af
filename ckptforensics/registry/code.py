"""Digests of the code that measures: what another version would find otherwise is read again."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from ckptforensics.findings.cache.key import code_sha256
from ckptforensics.results.comparison import Level

_PACKAGE = Path(__file__).parents[1]
_SUFFIXES = (".py", ".toml", ".txt")
# What decides what is read of a model, beside what decides its signature.
_READING = (
    "registry/claims",
    "registry/found.py",
    "registry/reading.py",
    "registry/stages.py",
    "registry/stores",
    "sources",
    "tokens.py",
)


@cache
def reading_code() -> str:
    """Digest of the code and data that decide what is read of a model."""
    return _together(code_sha256(), *map(_sha256_of_part, _READING))


@cache
def comparing_code(level: Level, *, by_signature: bool) -> str:
    """Digest of the code that compares two models, of the level, and of what is compared.

    Parameters
    ----------
    by_signature : one of the two is known by its signature only
    """
    what = "signature" if by_signature else "weights"
    return _together(code_sha256(), _sha256_of_part("lineage"), level, what)


def _sha256_of_part(part: str) -> str:
    """Digest of a file of this package, or of all code and data in a folder."""
    place = _PACKAGE / part
    digest = hashlib.sha256()
    for file in [place] if place.is_file() else sorted(place.rglob("*")):
        if file.suffix in _SUFFIXES:
            content = file.read_bytes()
            name = file.relative_to(_PACKAGE).as_posix()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _together(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
