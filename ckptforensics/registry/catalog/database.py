"""The file of the catalog: opened to read by anybody, to write by one process at a time.

WAL lets readers go on while the writer commits. A file lock beside the database keeps a second
writer out; the system drops it when the process that holds it ends, however it ends.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

from ckptforensics.errors import CkptError, FormatError, OutputError, ResultError, UsageError

# 'ckpt' as SQLite's application id, which `file` and other tools show.
_APPLICATION = 0x636B7074
_BUSY_SECONDS = 30
# Steps of SQLite's machine that one reader may take, a few seconds: a million models take a tenth.
_STEPS_A_CALL, _MOST_CALLS = 1_000_000, 300
_NOT_MENDED = "take the last backup, or delete the file and audit again"
_WHEN_OPENED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
_LATER = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_TOO_LONG = "what is asked of the catalog takes too long"


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
        if it is no catalog, one of another version or a damaged one.
    """
    if not path.is_file():
        raise UsageError(
            "no such catalog", path=path, hint="'ckpt catalog add' or 'ckpt audit' makes one"
        )
    connection = _connect(path, "ro&immutable=1" if still else "ro")
    with closing(connection), _told(path):
        calls = iter(range(_MOST_CALLS))
        connection.set_progress_handler(lambda: next(calls, None) is None, _STEPS_A_CALL)
        # What is not UTF-8 is found where its row is known.
        connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
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
        if it is no catalog, one of a later version or a damaged one.
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
        with closing(connection), _told(path):
            _migrate(connection, path)
            yield connection


@contextmanager
def row_of(table: str, row: object) -> Iterator[None]:
    """What a row holds is read inside: FormatError, which names it, if that cannot be."""
    try:
        yield
    except (ValueError, TypeError, OverflowError, RecursionError, ResultError):
        raise FormatError(
            f"the catalog is damaged: table {table}, row {row}", hint=_NOT_MENDED
        ) from None


def text_of(value: object) -> str:
    """Text in a row, for `row_of`: ValueError if it is none, or not UTF-8."""
    if not isinstance(value, str):
        raise ValueError("no text")
    value.encode()
    return value


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


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of SQLite, and of rows, are told as those of the catalog at `path`."""
    try:
        yield
    except FormatError as problem:
        problem.path = problem.path or path
        raise
    except sqlite3.DatabaseError as problem:
        raise _error(problem, path) from None


def _error(problem: sqlite3.DatabaseError, path: Path) -> CkptError:
    """What SQLite says, with what helps."""
    # The lower byte is what went wrong, those above it are the circumstances.
    code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    line = f"the catalog cannot be read: {problem}"
    if code in _WHEN_OPENED:
        hint = "a run that was killed left it so: 'ckpt catalog vacuum' mends it"
        return FormatError(line, path=path, hint=hint)
    if code in _LATER:
        return FormatError(line, path=path, hint="try again")
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return OutputError(f"the disk of the catalog: {problem}", path=path)
    if code == sqlite3.SQLITE_INTERRUPT:
        return FormatError(_TOO_LONG, path=path, hint=_NOT_MENDED)
    return FormatError(f"the catalog is damaged: {problem}", path=path, hint=_NOT_MENDED)


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """The version of its schema; FormatError if it is not a catalog that this version knows."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        # Only what the statement says counts, not the type beside it: a view would be run.
        foreign = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE sql NOT LIKE 'CREATE TABLE %' "
            "AND sql NOT LIKE 'CREATE INDEX %' AND sql NOT LIKE 'CREATE UNIQUE INDEX %'"
        ).fetchone()
    except sqlite3.DatabaseError as problem:
        raise FormatError(f"this is no catalog: {problem}", path=path) from None
    if application != _APPLICATION and (tables or version):
        raise FormatError("this is a database and no catalog", path=path)
    if foreign is not None:
        raise FormatError(
            f"the catalog has a {foreign['type']}, {foreign['name']!r}: it is not as this program "
            "makes it",
            path=path,
            hint=_NOT_MENDED,
        )
    if tables and not version:
        raise FormatError(
            "the catalog is damaged: its version is gone", path=path, hint=_NOT_MENDED
        )
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
