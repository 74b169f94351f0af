"""SHA-256 of whole files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ckptforensics.errors import FormatError

_BLOCK = 1 << 22


def sha256_of_file(path: Path, on_block: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of the whole file; `on_block` is told the number of bytes of each block read.

    Raises
    ------
    FormatError
        if the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                if on_block is not None:
                    on_block(len(block))
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None
    return digest.hexdigest()
