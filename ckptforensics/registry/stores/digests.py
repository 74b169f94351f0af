"""Digests of local files, computed once, beside what a store states."""

from __future__ import annotations

import hashlib
import os

from ckptforensics.errors import FormatError
from ckptforensics.registry.found import FoundFile
from ckptforensics.registry.stores.files import changed, open_regular

_BLOCK = 1 << 22


def verify_digest(file: FoundFile) -> tuple[str, bool | None]:
    """Hex SHA-256 of a file, and whether what its store states of it holds.

    Both digests are made in one read: the SHA-256 and, where the store states that, the SHA-1 of
    the git blob. The second is None where the store states nothing.

    Raises
    ------
    FormatError
        if the file is not on this machine, is no regular file or cannot be read, is not the one
        that was listed, or changed while it was read.
    """
    if file.path is None:
        raise FormatError("the file is not on this machine", path=file.name)
    descriptor = open_regular(file.path)
    with open(descriptor, "rb", buffering=0) as content:
        before = os.fstat(descriptor)
        if file.changed and changed(before) != file.changed:
            raise FormatError(
                "another file is there than was listed", path=file.path, hint="list it again"
            )
        sha256 = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % before.st_size, usedforsecurity=False)
        algorithm, _, stated = (file.stated or "").partition(":")
        try:
            while block := content.read(_BLOCK):
                sha256.update(block)
                if algorithm == "git":
                    blob.update(block)
        except OSError as problem:
            raise FormatError(f"cannot read: {problem.strerror}", path=file.path) from None
        if changed(os.fstat(descriptor)) != changed(before):
            raise FormatError(
                "the file changed while it was read", path=file.path, hint="read it again"
            )
    computed = blob if algorithm == "git" else sha256
    matches = None if file.stated is None else computed.hexdigest() == stated.lower()
    return sha256.hexdigest(), matches
