"""The file of the catalog: opened to read by anybody, to write by one process at a time.

WAL lets readers go on while the writer commits. A file lock beside the database keeps a second
writer out; the system drops it when the process that holds it ends, however it ends.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path

from ckptforensics.errors import FormatError, OutputError, UsageError

# 'ckpt' as SQLite's application id, which `file` and other tools show.
_APPLICATION = 0x636B7074
_BUSY_SECONDS = 30


@cache
def migrations() -> tuple[str, ...]:
    """The schema's steps in order; a database's `user_version` counts those it has."""
    folder = files("ckptforensics.registry.catalog")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".sql"))
    return tuple((folder / name).read_text("utf-8") for name in names)


@contextmanager
def reading(path: Path, *, still: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that writes nothing, at any time.

    Parameters
    ----------
    still : the file does not change meanwhile, so that no lock and no file beside it is needed

    Raises
    ------
    UsageError
        if there is no such file.
    FormatError
        if it is no catalog, or one of another version.
    """
    if not path.is_file():
        raise UsageError(
            "no such catalog", path=path, hint="'ckpt catalog add' or 'ckpt audit' makes one"
        )
    connection = _connect(path, "ro&immutable=1" if still else "ro")
    with closing(connection):
        version = _check(connection, path)
        if version == 0:
            raise FormatError("this is no catalog: the file is empty", path=path)
        if version < len(migrations()):
            raise FormatError(
                f"the catalog has version {version}, and this program reads {len(migrations())}",
                path=path,
                hint="'ckpt catalog vacuum --catalog FILE' brings it up to date",
            )
        yield connection


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """The one connection that writes, to a catalog that is made where there is none.

    Raises
    ------
    UsageError
        if another process writes to it.
    FormatError
        if it is no catalog, or one of a later version.
    OutputError
        if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f"{path.name}.lock").open("a")
    except OSError as problem:
        raise OutputError(
            f"cannot write the catalog: {problem.strerror}", path=path, hint="change --catalog"
        ) from None
    with lock:
        _only_writer(lock.fileno(), path)
        connection = _connect(path, "rwc")
        with closing(connection):
            _migrate(connection, path)
            yield connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything or nothing: one commit point."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    commit(connection)


def commit(connection: sqlite3.Connection) -> None:
    """End a transaction; tests stop the process before and after it."""
    connection.execute("COMMIT")


def arrays_folder(path: Path) -> Path:
    """The folder of the catalog's arrays, each in a file named by its SHA-256."""
    return path.with_name(f"{path.name}.arrays")


def array_path(path: Path, sha256: str) -> Path:
    """The file of that digest beside the catalog at `path`."""
    return arrays_folder(path) / sha256[:2] / f"{sha256}.safetensors"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        connection = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rwc":
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError as problem:
        raise OutputError(f"cannot open the catalog: {problem}", path=path) from None
    except sqlite3.DatabaseError as problem:
        raise FormatError(f"this is no catalog: {problem}", path=path) from None
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """The version of its schema; FormatError if it is not a catalog that this version knows."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as problem:
        raise FormatError(f"this is no catalog: {problem}", path=path) from None
    if application != _APPLICATION and (tables or version):
        raise FormatError("this is a database and no catalog", path=path)
    if version > len(migrations()):
        raise FormatError(
            f"the catalog has version {version}, this program knows {len(migrations())}",
            path=path,
            hint="update ckptforensics",
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    version = _check(connection, path)
    for number, step in enumerate(migrations()[version:], version + 1):
        # One script is one transaction, with its number in it.
        connection.executescript(
            f"BEGIN;\n{step}\nPRAGMA application_id = {_APPLICATION};\n"
            f"PRAGMA user_version = {number};"
        )
        commit(connection)


def _only_writer(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this operating system: SQLite's own lock must do
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError(
            "another process writes to the catalog",
            path=path,
            hint="wait until it ends, or name another with --catalog",
        ) from None
    os.ftruncate(handle, 0)
