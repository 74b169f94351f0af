"""Sparse local files of the size of remote ones, filled by exact byte ranges.

Everything that reads local files reads a mirror unchanged, once the ranges it needs are fetched.
The ranges already present are recorded beside it, so that an interrupted analysis resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ckptforensics.errors import FormatError, OutputError
from ckptforensics.sources.parallel import Cancelled, Crew
from ckptforensics.sources.ranges import Range, merged, requests, without
from ckptforensics.sources.retry import (
    ATTEMPTS,
    RETRIED,
    TIMEOUT_SECONDS,
    Patience,
    explained,
    is_transport_error,
)

# Requests under way at the same time.
_MOST_REQUESTS = 16
# What was read is recorded no more often than this while reading goes on.
_RECORD_EVERY_SECONDS = 1.0
# Answers of a storage server to an address that is no longer valid.
_EXPIRED = frozenset({400, 401, 403, 404, 410})


@dataclass(frozen=True)
class Transfer:
    """Bytes fetched so far, and of all files of the checkpoint that are read by ranges."""

    fetched: int
    total: int


class RemoteFiles:
    """Mirrors by their paths.

    Attributes
    ----------
    files : see above
    listener : called with the state of the transfer whenever a request is done; by any thread
    """

    def __init__(self, files: Mapping[Path, Mirror]) -> None:
        self.files = dict(files)
        self.listener: Callable[[Transfer], None] | None = None
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        self._crews: set[Crew] = set()

    def fetch(self, wanted: Mapping[Path, Iterable[tuple[int, int]]]) -> None:
        """Make byte ranges (begin, count) present, several at a time.

        Files that are no mirrors are left alone.

        Raises
        ------
        CkptError
            `FormatError` if the server cannot be reached, ignores ranges, or the file changed,
            `UsageError` if it refuses access, `OutputError` if the mirror cannot be written.
        Cancelled
            if `cancel` was called.
        """
        mirrors = {
            self.files[path]: ranges for path, ranges in wanted.items() if path in self.files
        }
        tasks = [
            partial(self._download, mirror, begin, end)
            for mirror, ranges in mirrors.items()
            for begin, end in mirror.lacking(ranges)
        ]
        if not tasks:
            return
        crew = Crew()
        self._crews.add(crew)
        try:
            crew.run(tasks, _MOST_REQUESTS, self._report)
            for mirror in mirrors:
                mirror.settle()
        finally:
            self._crews.discard(crew)
            for mirror in mirrors:
                mirror.save()

    def cancel(self) -> None:
        """Make every `fetch` under way raise Cancelled soon."""
        for crew in tuple(self._crews):
            crew.cancel()

    @property
    def transfer(self) -> Transfer:
        """What was transferred by this process."""
        files = self.files.values()
        return Transfer(sum(f.fetched for f in files), sum(f.size for f in files))

    @property
    def requests(self) -> int:
        """How often byte ranges of the files were asked for by this process."""
        return sum(mirror.requests for mirror in self.files.values())

    def _download(self, mirror: Mirror, begin: int, end: int, stop: threading.Event) -> None:
        with self._room:
            mirror.download(begin, end, stop)

    def _report(self) -> None:
        if self.listener is not None:
            self.listener(self.transfer)


class Mirror:
    """One sparse file: which ranges are present, and how to fetch the others.

    Any number of threads may fetch; so may several processes, which then fetch some ranges twice.

    Parameters
    ----------
    url : of the file in its repository at one commit
    path : of the mirror, made if it does not exist
    size : bytes of the file
    model : what the user named, for messages
    repo : the repository, for messages
    """

    def __init__(self, url: str, path: Path, size: int, model: str, repo: str) -> None:
        self.url, self.path, self.size, self.model, self.repo = url, path, size, model, repo
        self.fetched = self.requests = 0
        self._lock = threading.Lock()
        self._record = path.with_name(path.name + ".ranges.json")
        self._location: str | None = None  # where the repository redirects to
        self._etag: str | None = None
        self._present: list[Range] = []
        self._changed = False
        self._unsaved = False
        self._saved_at = time.monotonic()
        with writing(path):
            if not path.exists() or path.stat().st_size != size:
                self._record.unlink(missing_ok=True)
                with path.open("ab") as file:  # never emptied: another process may be filling it
                    file.truncate(size)
        self._load()

    def lacking(self, ranges: Iterable[tuple[int, int]]) -> list[Range]:
        """What to ask for so that the ranges (begin, count) are present, as (begin, end)."""
        wanted = merged((b, min(b + c, self.size)) for b, c in ranges)
        with self._lock:
            return requests(without(wanted, self._present))

    def download(self, begin: int, end: int, stop: threading.Event) -> None:
        """One range, retried with growing waits and resumed where a connection was cut.

        Raises
        ------
        CkptError
            see `RemoteFiles.fetch`.
        Cancelled
            if `stop` was set.
        """
        patience = Patience(stop)
        at = begin
        while not stop.is_set():
            retry_after = None
            expired = self._location
            with self._lock:
                self.requests += 1
            try:
                retry_after, problem = self._attempt(at, end, stop)
            except Exception as error:
                if not is_transport_error(error):
                    raise
                problem = str(error) or type(error).__name__
            before, at = at, self._end_of_present(at)
            if at >= end:
                return
            if at > before:
                patience.restore()
            if expired is not None and self._location is None:
                continue  # the repository says where the file is now
            if not patience.wait(retry_after):
                raise FormatError(
                    f"the bytes up to {end:,} could not be read in {ATTEMPTS} attempts: {problem}",
                    path=self.path.name,
                    offset=at,
                    hint="try again: what was read is kept",
                )
        raise Cancelled

    def settle(self) -> None:
        """Called when ranges were fetched, before anybody uses them.

        Raises
        ------
        CkptError
            if the file changed; each answer of the Hub says whether it did.
        """

    def forget(self) -> NoReturn:
        """FormatError saying that the file changed; what was fetched of it is fetched again."""
        with self._lock:
            # Nothing is added any more: other threads may still read the former file.
            self._changed = True
            self._present = []
            self._record.unlink(missing_ok=True)
        raise FormatError(
            "the file changed on the server while it was read",
            path=self.path.name,
            hint="run the command again",
        )

    def save(self) -> None:
        """Record what is present, where that is not yet done."""
        with self._lock:
            self._save()

    def _end_of_present(self, at: int) -> int:
        with self._lock:
            return next((high for low, high in self._present if low <= at < high), at)

    def _attempt(self, at: int, end: int, stop: threading.Event) -> tuple[str | None, str]:
        """Read as far as the connection goes; Retry-After and what went wrong if it was short."""
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        location = self._location
        headers = {**self._headers(location), "Range": f"bytes={at}-{end - 1}"}
        with get_session().stream(
            "GET",
            location or self.url,
            headers=headers,
            follow_redirects=True,
            timeout=TIMEOUT_SECONDS,
        ) as response:
            status = response.status_code
            if location is not None and status in _EXPIRED:
                self._location = None
                return None, f"HTTP status {status}"
            if status in RETRIED:
                return response.headers.get("Retry-After"), f"HTTP status {status}"
            self._check(response, at, end)
            if _host(str(response.url)) != _host(self.url):
                self._location = str(response.url)
            self._store(response.iter_bytes(), at, end, stop)
        return None, "the connection was cut"

    def _headers(self, location: str | None) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if location is not None:
            # The token is for the Hub alone, as in the redirect itself.
            headers.pop("authorization", None)
        return headers

    def _check(self, response: Any, at: int, end: int) -> None:
        """Raise unless the answer holds the bytes from `at` on, of the file as it was."""
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        status = response.status_code
        if status >= 400:
            response.read()
            with explained(self.model, self.repo):
                hf_raise_for_status(response)
        whole = status == 200 and (at, end) == (0, self.size)
        if status == 200 and not whole:
            raise FormatError(
                "the server ignores byte ranges, and the whole file is not wanted",
                path=self.path.name,
                hint=f"download the repository with 'hf download {self.repo}'",
            )
        if status not in (200, 206):
            raise FormatError(
                f"the server answers with HTTP status {status}", path=self.path.name, offset=at
            )
        self._check_unchanged(response.headers, at, end, whole)

    def _check_unchanged(self, headers: Any, at: int, end: int, whole: bool) -> None:
        if whole:
            size = int(headers.get("Content-Length", self.size))
        else:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
            if match is None or int(match[1]) != at or int(match[2]) >= end:
                raise FormatError(
                    "the server answers with another range than was asked for",
                    path=self.path.name,
                    offset=at,
                )
            size = int(match[3])
        etag = headers.get("ETag")
        with self._lock:
            other = None not in (etag, self._etag) and etag != self._etag
            changed = self._changed or other or size != self.size
            if not changed:
                self._etag = etag or self._etag
        if changed:
            self.forget()

    def _store(self, chunks: Iterator[bytes], begin: int, end: int, stop: threading.Event) -> None:
        """Write what arrives; also what arrived before a failure counts as present."""
        at = begin
        with self.path.open("r+b") as file:
            file.seek(begin)
            try:
                while at < end and not stop.is_set() and (chunk := next(chunks, b"")):
                    with writing(self.path):
                        file.write(chunk[: end - at])
                    at = min(end, at + len(chunk))
            finally:
                with writing(self.path):
                    file.flush()
                self._add(begin, at, at_once=stop.is_set())

    def _add(self, begin: int, end: int, *, at_once: bool) -> None:
        with self._lock:
            self.fetched += end - begin
            if self._changed:
                return
            self._present = merged([*self._present, (begin, end)])
            self._unsaved = True
            if at_once or time.monotonic() - self._saved_at > _RECORD_EVERY_SECONDS:
                self._save()

    def _save(self) -> None:
        if not self._unsaved or self._changed:
            return
        with writing(self.path):
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())  # the record must not survive what it records
            record = {"size": self.size, "etag": self._etag, "present": self._present}
            temporary = self._record.with_name(f"{self._record.name}.{os.getpid()}")
            temporary.write_text(json.dumps(record))
            temporary.replace(self._record)
        self._unsaved = False
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            record = json.loads(self._record.read_text())
            if record["size"] == self.size:
                present = [(int(a), int(b)) for a, b in record["present"]]
                self._present, self._etag = merged(present), record["etag"]


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write the mirror into OutputError with the next step."""
    try:
        yield
    except OSError as problem:
        raise OutputError(
            f"cannot write: {problem.strerror}",
            path=path,
            hint="set XDG_CACHE_HOME to a directory with space, or download the model first",
        ) from None
