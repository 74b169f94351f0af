"""Small files of a model, read so that nothing in their place can do harm."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ckptforensics.errors import FormatError

MOST_TEXT_BYTES = 64_000_000


def read_small(path: Path, most: int = MOST_TEXT_BYTES) -> bytes:
    """The bytes of a regular file that is no larger than `most`.

    Raises
    ------
    FormatError
        if it is larger, is a link, a pipe or a device, or cannot be read.
    """
    try:
        # A pipe that nobody writes to would otherwise wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("this is not a regular file", path=path)
        if status.st_size > most:
            raise FormatError(f"the file is larger than {most:,} bytes", path=path)
        try:
            data = file.read(most + 1)
        except OSError as problem:
            raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None
    if len(data) > most:
        raise FormatError("the file grew while it was read", path=path)
    return data
