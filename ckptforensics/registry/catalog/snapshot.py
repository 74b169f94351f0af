"""One state of the catalog, read without making or changing any file beside it.

SQLite makes `-wal` and `-shm` beside a database of this kind even for a reader, and leaves them
there. While no writer has it open neither of them exists, and the file alone is the whole catalog:
it is then read as a file that does not change, and read again if it did. While a writer has it open
both are there already, and SQLite's own way of reading beside a writer is taken.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ckptforensics.errors import CkptError, FormatError
from ckptforensics.registry.catalog import database

Found = TypeVar("Found")
# What tells a state of the catalog from others.
State = tuple[object, ...]
_TRIES = 5
# The first copy of the header of SQLite's index of the log, in which every commit changes a counter
# and a checksum: https://sqlite.org/walformat.html#the_wal_index_header.
_INDEX_HEADER_BYTES = 48


def state_of(path: Path) -> State | None:
    """What stays the same exactly as long as the catalog's content; None where that is not known.

    While there is a log it is the head of the log's index, else what the system says of the file.
    """
    try:
        if _has_log(path):
            with _beside(path, "-shm").open("rb") as index:
                head = index.read(_INDEX_HEADER_BYTES)
            return ("log", path.stat().st_ino, head)
        said = path.stat()
    except OSError:
        return None
    return ("file", said.st_dev, said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns)


def snapshot(path: Path, read: Callable[[sqlite3.Connection], Found]) -> tuple[Found, State | None]:
    """What `read` makes of one state of the catalog, and which state that was or came before it.

    `read` may be called again where a writer came in between.

    Raises
    ------
    CkptError
        as `database.reading`, or if the catalog cannot be read here and now.
    """
    for _ in range(_TRIES):
        before, still = state_of(path), not _has_log(path)
        try:
            with database.reading(path, still=still) as db:
                db.execute("BEGIN")
                found = read(db)
        except CkptError:
            if still and state_of(path) != before:
                continue
            raise
        if not still or state_of(path) == before:
            return found, before
    raise FormatError("the catalog changes too often to be read", path=path, hint="try again")


def _has_log(path: Path) -> bool:
    return any(os.path.exists(_beside(path, end)) for end in ("-wal", "-journal"))


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
