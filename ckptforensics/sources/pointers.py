"""Small files that stand for one that was not fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ckptforensics.errors import NotFetched

# Pointers are some 130 bytes long; a page may be longer than what is read of it.
LONGEST_POINTER = 4096
_FETCH = "run 'git lfs pull' in its directory, or 'hf download' for its repository"
_PAGE = "download it again: a name or a permission may be wrong"
# How the file begins, to what it is and what to do.
_BEGINNINGS: Mapping[bytes, tuple[str, str]] = MappingProxyType(
    {
        b"version https://git-lfs": ("not fetched: this is a Git LFS pointer", _FETCH),
        b"version http://git-media": ("not fetched: this is a Git LFS pointer", _FETCH),
        b"version https://hawser": ("not fetched: this is a Git LFS pointer", _FETCH),
        b"# xet version": (
            "not fetched: this is a Git Xet pointer",
            "run 'git xet checkout' in its directory, or 'hf download' for its repository",
        ),
        b"<!doctype html": ("not fetched: this is a web page", _PAGE),
        b"<html": ("not fetched: this is a web page", _PAGE),
        b"entry not found": ("not fetched: this is a server's answer", _PAGE),
        b"repository not found": ("not fetched: this is a server's answer", _PAGE),
        b"access to model": ("not fetched: this is a server's answer", _PAGE),
        b"invalid username or password": ("not fetched: this is a server's answer", _PAGE),
    }
)


def stands_for(beginning: bytes) -> tuple[str, str] | None:
    """What a file that begins so is in place of its content, and what to do; None if it is not."""
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    return next((told for begin, told in _BEGINNINGS.items() if text.startswith(begin)), None)


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """NotFetched if a file that begins so is a pointer, or what a server said in its place."""
    told = stands_for(beginning)
    if told is not None:
        raise NotFetched(told[0], path=path, hint=told[1])
