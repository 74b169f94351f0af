"""Signatures made before, in the user's cache directory.

An entry is `KEY-DIGEST.safetensors`, what `Signature.save` writes, DIGEST the beginning of its own
SHA-256; `KEY.partial` is a signing, or another long computation, under way. Files appear whole or
not at all, so any number of processes may use the directory at once; whatever one of them removes
is only measured again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptforensics.errors import CkptError, OutputError, one_line
from ckptforensics.findings.cache.journal import JournalFile
from ckptforensics.results import (
    CacheDocument,
    Signature,
    load_result,
    signature_bytes,
    write_bytes_atomically,
)
from ckptforensics.version import __version__

MOST_BYTES = 256_000_000
MOST_ENTRIES = 1000
_DIGEST_DIGITS = 16
_ENTRY = re.compile(r"(?P<key>[0-9a-f]{64})-(?P<digest>[0-9a-f]{16})\.safetensors")
_PARTIAL = re.compile(r"[0-9a-f]{64}\.partial")
# What a killed process leaves of a file it was writing.
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}(-[0-9a-f]{16}\.safetensors|\.partial)\..*")
_TEMPORARY_SECONDS = 3600


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache: what it takes and when it was used last."""

    path: Path
    nbytes: int
    used: float


class SignatureCache:
    """Signatures by all that decides them (`signature_keys`), the least recently used removed.

    Nothing about the cache is an error: what cannot be read is measured, what cannot be written is
    told in a sentence.

    Parameters
    ----------
    folder : of the files, made when the first is written; other files in it are left alone
    tell : told in a sentence of a signature taken from the cache, of a resumed run, and of a file
        that cannot be written
    most_bytes, most_entries : what the files may take
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tell: Callable[[str], None] | None = None,
        most_bytes: int = MOST_BYTES,
        most_entries: int = MOST_ENTRIES,
    ) -> None:
        self.folder = Path(folder)
        self._listener = tell
        self.most_bytes, self.most_entries = most_bytes, most_entries

    def tell(self, text: str) -> None:
        """Tell a sentence, in which names from outside cannot do harm."""
        if self._listener is not None:
            self._listener(one_line(text))

    @classmethod
    def of_user(cls, tell: Callable[[str], None] | None = None) -> SignatureCache | None:
        """That of the command line; None if `CKPT_CACHE` is empty or there is no home directory.

        It is in `$CKPT_CACHE`, or in `ckptforensics/signatures` below `$XDG_CACHE_HOME` (by default
        `~/.cache`).
        """
        named = os.environ.get("CKPT_CACHE")
        if named is not None:
            return cls(named, tell=tell) if named else None
        try:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # no home directory
            return None
        return cls(base / "ckptforensics" / "signatures", tell=tell)

    def get(self, keys: tuple[str, ...]) -> Signature | None:
        """The signature under one of the keys, None if there is none.

        A damaged file is removed.
        """
        for file in self.files():
            match = _ENTRY.fullmatch(file.path.name)
            if match is None or match["key"] not in keys:
                continue
            found = self._read(file, match["digest"])
            if found is not None:
                with contextlib.suppress(OSError):
                    os.utime(file.path)
                self.tell(f"from the cache: {file.path}; --no-cache measures again")
                return found
            with contextlib.suppress(OSError):
                file.path.unlink(missing_ok=True)
        return None

    def put(self, keys: tuple[str, ...], signature: Signature) -> None:
        """Keep the signature under all keys."""
        data = signature_bytes(signature)
        digest = hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]
        try:
            self._make_folder()
            for key in keys:
                path = self.folder / f"{key}-{digest}.safetensors"
                write_bytes_atomically(path, data)
        except OutputError as problem:
            self.tell(
                f"the signature is not cached: {problem.path}: {problem.message}; "
                "CKPT_CACHE names another directory"
            )
        self._prune()

    def journal(self, key: str, layers: int) -> JournalFile:
        """The journal of a signing of so many layers."""
        return JournalFile(self.partial(key), layers, self.tell)

    def partial(self, key: str) -> Path:
        """The file in which unfinished work is kept under a key, its folder made where it can be.

        It is removed as the cache's other files are.
        """
        with contextlib.suppress(OutputError):  # told when the signature is put
            self._make_folder()
        self._prune()
        return self.folder / f"{key}.partial"

    def files(self) -> list[CachedFile]:
        """The cache's files, the one used last first."""
        with contextlib.suppress(OSError):
            return sorted(self._scan(), key=lambda file: -file.used)
        return []

    def clear(self) -> None:
        """Remove every file of the cache and no other.

        Raises
        ------
        OutputError
            if one cannot be removed.
        """
        for file in self.files():
            try:
                file.path.unlink(missing_ok=True)
            except OSError as problem:
                raise OutputError(
                    f"cannot remove the file: {problem.strerror}", path=file.path
                ) from None

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise OutputError(
                f"cannot make the directory: {problem.strerror}", path=self.folder
            ) from None

    def _read(self, file: CachedFile, digest: str) -> Signature | None:
        """The entry, None if it is not what was written or has gone."""
        if file.nbytes > self.most_bytes:
            return None
        try:
            content = hashlib.sha256(file.path.read_bytes()).hexdigest()
            found = load_result(file.path) if content.startswith(digest) else None
        except (OSError, CkptError):
            return None
        return found if isinstance(found, Signature) else None

    def _scan(self) -> Iterator[CachedFile]:
        with os.scandir(self.folder) as found:
            for entry in found:
                if not any(p.fullmatch(entry.name) for p in (_ENTRY, _PARTIAL, _TEMPORARY)):
                    continue
                with contextlib.suppress(OSError):  # another process has just removed it
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield CachedFile(self.folder / entry.name, status.st_size, status.st_mtime)

    def _prune(self) -> None:
        """Remove what was used longest ago until the rest is within the bounds."""
        count, nbytes = 0, 0
        for file in self.files():
            count, nbytes = count + 1, nbytes + file.nbytes
            left_over = (
                _TEMPORARY.fullmatch(file.path.name)
                and time.time() - file.used > _TEMPORARY_SECONDS
            )
            if left_over or count > self.most_entries or nbytes > self.most_bytes:
                with contextlib.suppress(OSError):
                    file.path.unlink(missing_ok=True)


def cache_info(cache: SignatureCache | None) -> CacheDocument:
    """Where a cache is, what is in it and what it may take; None for no cache."""
    files = [] if cache is None else cache.files()
    return CacheDocument(
        tool_version=__version__,
        path=None if cache is None else str(cache.folder),
        entries=sum(_ENTRY.fullmatch(f.path.name) is not None for f in files),
        unfinished=sum(_PARTIAL.fullmatch(f.path.name) is not None for f in files),
        bytes=sum(f.nbytes for f in files),
        most_entries=MOST_ENTRIES if cache is None else cache.most_entries,
        most_bytes=MOST_BYTES if cache is None else cache.most_bytes,
    )
