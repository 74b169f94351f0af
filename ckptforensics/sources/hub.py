"""Checkpoints on the Hugging Face Hub: the local cache first, else exact byte ranges.

A remote file is mirrored as a sparse local file of its full size, into which only the ranges that
the analysis asks for are written; everything that reads local files then reads it unchanged. The
ranges already present are recorded beside it, so that an interrupted analysis resumes. The commit
is resolved once, and a file whose ETag or size changes between two ranges is an error.
Tokens, endpoints and offline mode follow huggingface_hub's own rules.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, OutputError, UsageError
from ckptforensics.sources.local import Source, locate

# A path such as ./x or ../x is never a repository.
_HUB_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*?)(?:@(?P<revision>\w[\w.\-/]*?))?(?:/(?P<file>\w[\w.-]*\.gguf))?"
)
# Nor is a misspelt name of a file.
_FILE_NAME = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|json)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = (".safetensors", ".gguf")
_INDEX = ".safetensors.index.json"
_CONFIGURATIONS = ("config.json", "adapter_config.json")
# Attempts without progress before a transfer is given up.
_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
# A server that names a time to wait is believed up to this one.
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# Ranges this close are asked for together: a request costs about as much as these bytes.
_GAP = 4096


def is_hub_id(model: str | Path) -> bool:
    """Whether `org/name[@revision]` may be meant: no local path of that name exists."""
    match = _HUB_ID.fullmatch(str(model))
    return (
        match is not None
        and _FILE_NAME.fullmatch(match["repo"]) is None
        and not os.path.lexists(model)
    )


@dataclass(frozen=True)
class Transfer:
    """Bytes fetched so far and bytes of all weight files of the checkpoint."""

    fetched: int
    total: int


class RemoteFiles:
    """The sparse mirrors of a checkpoint's weight files."""

    def __init__(self, files: dict[Path, _RemoteFile]) -> None:
        self._files = files

    def fetch(self, path: Path, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the byte ranges (begin, count) of a mirror present; other files are left alone.

        Raises
        ------
        CkptError
            `FormatError` if the server cannot be reached, ignores ranges, or the file changed,
            `UsageError` if it refuses access, `OutputError` if the mirror cannot be written.
        """
        if path in self._files:
            self._files[path].fetch(ranges)

    @property
    def transfer(self) -> Transfer:
        """What was transferred by this process."""
        files = self._files.values()
        return Transfer(sum(f.fetched for f in files), sum(f.size for f in files))


def locate_on_hub(model: str, config: str | Path | None = None, *, offline: bool = False) -> Source:
    """Resolve `org/name[@revision]` to files of the local cache, or to sparse mirrors.

    Parameters
    ----------
    model : repository, optionally a revision and the name of one GGUF file
    config : a `config.json` to use in place of the repository's
    offline : use the local cache only

    Raises
    ------
    UsageError
        if the repository or revision does not exist or is not accessible, with the next step, or
        it holds several models.
    NothingAnalysable
        if it holds no checkpoint that can be read in place, or is not in the cache when offline.
    FormatError
        if what it holds is broken, or the server is.
    """
    from huggingface_hub import constants

    match = _HUB_ID.fullmatch(model)
    assert match is not None
    repo, revision, file = match["repo"], match["revision"] or "main", match["file"]
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        cached = _from_cache(repo, revision, file, config)
    except CkptError as problem:
        # The Hub may hold what the cache lacks.
        if offline and not isinstance(problem, NothingAnalysable):
            raise
        cached = None
    if cached is not None:
        return replace(cached, path=Path(model))
    if offline:
        raise NothingAnalysable(
            "the model is not in the local Hugging Face cache, and offline mode is on",
            path=model,
            hint=f"download it first: hf download {repo}",
        )
    return _from_hub(model, repo, revision, file, config)


def _from_cache(
    repo: str, revision: str, file: str | None, config: str | Path | None
) -> Source | None:
    """The checkpoint in huggingface_hub's cache, None if it is not there.

    Raises
    ------
    CkptError
        if it is not complete, or there are several.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    commit = revision
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / revision).read_text("utf-8").strip()
    snapshot = folder / "snapshots" / commit
    if _COMMIT.fullmatch(commit) is None or not snapshot.is_dir():
        return None
    path = snapshot / file if file else snapshot
    if not path.exists():
        return None
    source = locate(path, config)
    return replace(source, commit=commit) if all(f.exists() for f in source.files) else None


def _from_hub(
    model: str, repo: str, revision: str, file: str | None, config: str | Path | None
) -> Source:
    from huggingface_hub import hf_hub_url

    info = _model_info(model, repo, revision)
    commit = str(info.sha)
    if _COMMIT.fullmatch(commit) is None:
        raise FormatError("the server names no commit", path=model)
    siblings = {s.rfilename: s for s in info.siblings or [] if _is_plain(s.rfilename)}
    if file is not None and file not in siblings:
        raise UsageError(f"the repository has no file '{file}'", path=model)
    mirror = _mirror_directory(repo, commit)
    small, weights = {}, {}
    for name, sibling in siblings.items():
        if sibling.size is None:
            continue
        path = mirror / name
        if name in _CONFIGURATIONS or name.endswith(_INDEX):
            url = hf_hub_url(repo, name, revision=commit)
            small[path] = _RemoteFile(url, path, sibling.size, model)
        elif name.endswith(_WEIGHTS):
            url = hf_hub_url(repo, name, revision=commit)
            weights[path] = _RemoteFile(url, path, sibling.size, model)
    if not weights:
        raise NothingAnalysable(
            "the repository holds no .safetensors or .gguf file that can be read in place",
            path=model,
            hint=f"download it first: hf download {repo}",
        )
    for remote in small.values():
        remote.fetch([(0, remote.size)])
    try:
        source = locate(mirror / file if file else mirror, config)
    except CkptError as problem:
        # The user knows the repository and not the mirror.
        if problem.path is not None and problem.path.is_relative_to(mirror):
            inner = problem.path.relative_to(mirror)
            problem.path = Path(model) if file else Path(model, inner)
        raise
    return replace(
        source,
        path=Path(model),
        commit=commit,
        remote=RemoteFiles({path: weights[path] for path in source.files}),
        sha256={
            mirror / name: sibling.lfs.sha256
            for name, sibling in siblings.items()
            if sibling.lfs is not None
        },
    )


def _model_info(model: str, repo: str, revision: str) -> Any:
    """What the Hub says of a repository, asked again where it is only busy."""
    import huggingface_hub.errors as hub
    from huggingface_hub import HfApi

    patience = _Patience()
    while True:
        with _explained(model, repo):
            try:
                return HfApi().model_info(repo, revision=revision, files_metadata=True)
            except hub.HfHubHTTPError as problem:
                response = problem.response
                if response is None or response.status_code not in _RETRIED:
                    raise
                if not patience.wait(response.headers.get("Retry-After")):
                    raise


def _is_plain(name: str) -> bool:
    """Whether a name from the server is that of a file of the top directory, on any system."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _mirror_directory(repo: str, commit: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "ckptforensics" / "hub" / repo.replace("/", "--") / commit
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise OutputError(
            f"cannot write: {problem.strerror}",
            path=path,
            hint="set XDG_CACHE_HOME to a directory with space, or download the model first",
        ) from None


class _Patience:
    """Growing waits between attempts, and an end to them."""

    def __init__(self) -> None:
        self._failures = 0

    def restore(self) -> None:
        """Count from the beginning: there was progress."""
        self._failures = 0

    def wait(self, retry_after: str | None = None) -> bool:
        """Wait before the next attempt; False if there is to be none."""
        self._failures += 1
        if self._failures >= _ATTEMPTS:
            return False
        seconds = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** (self._failures - 1))
        if retry_after is not None and retry_after.isdecimal():
            seconds = max(seconds, min(int(retry_after), _LONGEST_RETRY_AFTER_SECONDS))
        time.sleep(seconds)
        return True


@contextlib.contextmanager
def _explained(model: str, repo: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, each with the next step."""
    import huggingface_hub.errors as hub

    page = f"the page of '{repo}' on the Hub"
    try:
        yield
    except hub.GatedRepoError:
        raise UsageError(
            "access to the repository is restricted",
            path=model,
            hint=f"accept its terms on {page}, then log in with 'hf auth login'",
        ) from None
    except hub.RepositoryNotFoundError:
        raise UsageError(
            "there is no such file, directory or repository",
            path=model,
            hint="check the name; for a private repository log in with 'hf auth login'",
        ) from None
    except hub.RevisionNotFoundError:
        raise UsageError(
            "the repository has no such revision", path=model, hint=f"see {page}"
        ) from None
    except hub.HFValidationError as problem:
        raise UsageError(f"not a repository name: {problem}", path=model) from None
    except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError) as problem:
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else "no connection"
        raise _unreachable(model, first) from None
    except Exception as problem:
        if not _is_transport_error(problem):
            raise
        raise _unreachable(model, str(problem) or type(problem).__name__) from None


def _is_transport_error(problem: Exception) -> bool:
    """Whether it is of the HTTP library, which differs between versions of huggingface_hub."""
    return type(problem).__module__.partition(".")[0] in ("httpx", "httpx2")


def _unreachable(model: str, why: str) -> UsageError:
    return UsageError(
        f"no such file or directory, and the Hub cannot be asked: {why}",
        path=model,
        hint="check the path, or the connection for a repository",
    )


class _RemoteFile:
    """One sparse mirror: which ranges are present, and how to fetch the others.

    Any number of threads may fetch; so may several processes, which then fetch some ranges twice.
    """

    def __init__(self, url: str, path: Path, size: int, model: str) -> None:
        self.url, self.path, self.size, self.model = url, path, size, model
        self.fetched = 0
        self._lock = threading.Lock()
        self._record = path.with_name(path.name + ".ranges.json")
        self._etag: str | None = None
        self._present: list[tuple[int, int]] = []
        with _writing(path):
            if not path.exists() or path.stat().st_size != size:
                self._record.unlink(missing_ok=True)
                with path.open("ab") as file:  # never emptied: another process may be filling it
                    file.truncate(size)
        self._load()

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the ranges (begin, count) present."""
        wanted = _merged(((b, b + c) for b, c in ranges if c > 0), _GAP)
        with self._lock:
            for begin, end in wanted:
                for low, high in self._missing(begin, min(end, self.size)):
                    self._download(low, high)

    def _missing(self, begin: int, end: int) -> list[tuple[int, int]]:
        gaps = []
        at = begin
        for low, high in self._present:
            if high <= at:
                continue
            if low >= end:
                break
            if low > at:
                gaps.append((at, low))
            at = high
        if at < end:
            gaps.append((at, end))
        return gaps

    def _download(self, begin: int, end: int) -> None:
        """One range, retried with growing waits and resumed where a connection was cut."""
        patience = _Patience()
        at = begin
        while True:
            retry_after = None
            try:
                retry_after, problem = self._attempt(at, end)
            except Exception as error:
                if not _is_transport_error(error):
                    raise
                problem = str(error) or type(error).__name__
            before, at = at, self._end_of_present(at)
            if at >= end:
                return
            if at > before:
                patience.restore()
            if not patience.wait(retry_after):
                raise FormatError(
                    f"the bytes up to {end:,} could not be read in {_ATTEMPTS} attempts: {problem}",
                    path=self.path.name,
                    offset=at,
                    hint="try again: what was read is kept",
                )

    def _end_of_present(self, at: int) -> int:
        return next((high for low, high in self._present if low <= at < high), at)

    def _attempt(self, at: int, end: int) -> tuple[str | None, str]:
        """Read as far as the connection goes; Retry-After and what went wrong if it was short."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(), "Range": f"bytes={at}-{end - 1}"}
        headers["Accept-Encoding"] = "identity"
        with get_session().stream(
            "GET", self.url, headers=headers, follow_redirects=True, timeout=30
        ) as response:
            status = response.status_code
            if status in _RETRIED:
                return response.headers.get("Retry-After"), f"HTTP status {status}"
            if status >= 400:
                response.read()
                with _explained(self.model, self.model.partition("@")[0]):
                    hf_raise_for_status(response)
            whole = status == 200 and (at, end) == (0, self.size)
            if status == 200 and not whole:
                raise FormatError(
                    "the server ignores byte ranges, and the whole file is not wanted",
                    path=self.path.name,
                    hint="download the repository with 'hf download'",
                )
            if status not in (200, 206):
                raise FormatError(
                    f"the server answers with HTTP status {status}", path=self.path.name, offset=at
                )
            self._check_unchanged(response.headers, at, end, whole)
            self._store(response.iter_bytes(), at, end)
        return None, "the connection was cut"

    def _store(self, chunks: Iterator[bytes], begin: int, end: int) -> None:
        """Write what arrives; also what arrived before a failure is recorded as present."""
        at = begin
        with self.path.open("r+b") as file:
            file.seek(begin)
            try:
                while at < end and (chunk := next(chunks, b"")):
                    with _writing(self.path):
                        file.write(chunk[: end - at])
                    at = min(end, at + len(chunk))
            finally:
                with _writing(self.path):
                    file.flush()
                    os.fsync(file.fileno())  # the record must not survive what it records
                    self.fetched += at - begin
                    self._add(begin, at)

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
        changed = None not in (etag, self._etag) and etag != self._etag
        if changed or size != self.size:
            self._present, self._etag = [], None
            self._record.unlink(missing_ok=True)
            raise FormatError(
                "the file changed on the server while it was read",
                path=self.path.name,
                hint="run the command again",
            )
        self._etag = etag or self._etag

    def _add(self, begin: int, end: int) -> None:
        self._present = _merged([*self._present, (begin, end)], 0)
        record = {"size": self.size, "etag": self._etag, "present": self._present}
        temporary = self._record.with_name(f"{self._record.name}.{os.getpid()}")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._record)

    def _load(self) -> None:
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            record = json.loads(self._record.read_text())
            if record["size"] == self.size:
                present = [(int(a), int(b)) for a, b in record["present"]]
                self._present, self._etag = _merged(present, 0), record["etag"]


def _merged(ranges: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Disjoint ranges in order; those at most `gap` bytes apart become one."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if begin >= end:
            continue
        if merged and begin <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
