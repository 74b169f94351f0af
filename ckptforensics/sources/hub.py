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
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, UsageError
from ckptforensics.sources.local import Source, locate

_HUB_ID = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.\-/]+?))?(?:/(?P<file>[\w.-]+\.gguf))?"
)
_WEIGHTS = (".safetensors", ".gguf")
_SMALL_FILES = ("config.json", ".safetensors.index.json")
_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
# Ranges this close are asked for together: a request costs about as much as these bytes.
_GAP = 4096


def is_hub_id(model: str | Path) -> bool:
    """Whether `org/name[@revision]` may be meant: no local path of that name exists."""
    return _HUB_ID.fullmatch(str(model)) is not None and not Path(model).exists()


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
        """Make the byte ranges (begin, count) of a mirror present.

        Raises
        ------
        FormatError
            if the server cannot be reached, ignores ranges, or the file changed.
        """
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
        if the repository or revision does not exist or is not accessible, with the next step.
    NothingAnalysable
        if it holds no checkpoint that can be read in place, or is not in the cache when offline.
    """
    from huggingface_hub import constants

    match = _HUB_ID.fullmatch(model)
    assert match is not None
    repo, revision, file = match["repo"], match["revision"] or "main", match["file"]
    cached = _from_cache(repo, revision, file, config)
    if cached is not None:
        return replace(cached, path=Path(model))
    if offline or constants.HF_HUB_OFFLINE:
        raise NothingAnalysable(
            "the model is not in the local Hugging Face cache, and offline mode is on",
            path=model,
            hint=f"download it first: hf download {repo}",
        )
    return _from_hub(model, repo, revision, file, config)


def _from_cache(
    repo: str, revision: str, file: str | None, config: str | Path | None
) -> Source | None:
    """The checkpoint in huggingface_hub's cache, None if it is not there or not complete."""
    from huggingface_hub import try_to_load_from_cache

    for name in (file,) if file else ("config.json", "model.safetensors"):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            with contextlib.suppress(CkptError):
                return locate(Path(found) if file else Path(found).parent, config)
    return None


def _from_hub(
    model: str, repo: str, revision: str, file: str | None, config: str | Path | None
) -> Source:
    from huggingface_hub import HfApi, hf_hub_download, hf_hub_url

    with _explained(model, repo):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        commit = str(info.sha)
        siblings = {s.rfilename: s.size for s in info.siblings or [] if "/" not in s.rfilename}
        mirror = _mirror_directory(repo, commit)
        for name in siblings:
            if name.endswith(_SMALL_FILES):
                local = Path(hf_hub_download(repo, name, revision=commit))
                (mirror / name).write_bytes(local.read_bytes())
    files = {}
    for name, size in siblings.items():
        if name.endswith(_WEIGHTS) and size is not None:
            url = hf_hub_url(repo, name, revision=commit)
            files[mirror / name] = _RemoteFile(url, mirror / name, size)
    if not files:
        raise NothingAnalysable(
            "the repository holds no .safetensors or .gguf file that can be read in place",
            path=model,
            hint=f"download it first: hf download {repo}",
        )
    source = locate(mirror / file if file else mirror, config)
    remote = RemoteFiles({path: files[path] for path in source.files})
    return replace(source, path=Path(model), commit=commit, remote=remote)


def _mirror_directory(repo: str, commit: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "ckptforensics" / "hub" / repo.replace("/", "--") / commit
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
    except Exception as problem:  # the HTTP library's own errors have no common base we may name
        if type(problem).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
            raise
        raise _unreachable(model, str(problem)) from None


def _unreachable(model: str, why: str) -> UsageError:
    return UsageError(
        f"no such file or directory, and the Hub cannot be asked: {why}",
        path=model,
        hint="check the path, or the connection for a repository",
    )


class _RemoteFile:
    """One sparse mirror: which ranges are present, and how to fetch the others."""

    def __init__(self, url: str, path: Path, size: int) -> None:
        self.url, self.path, self.size = url, path, size
        self.fetched = 0
        self._record = path.with_name(path.name + ".ranges.json")
        self._etag: str | None = None
        self._present: list[tuple[int, int]] = []
        if not path.exists() or path.stat().st_size != size:
            with path.open("wb") as file:
                file.truncate(size)
            self._record.unlink(missing_ok=True)
        elif self._record.exists():
            self._load()

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the ranges (begin, count) present."""
        wanted = _merged(((b, b + c) for b, c in ranges if c > 0), _GAP)
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
        wait = _FIRST_WAIT_SECONDS
        at = begin
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(wait)
                wait = min(_LONGEST_WAIT_SECONDS, wait * 2)
            before = at
            try:
                at, retry_after, problem = self._attempt(at, end)
            except OSError as error:
                problem = str(error) or type(error).__name__
                retry_after = None
            except Exception as error:  # see `_explained`
                if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore"):
                    raise
                problem = str(error) or type(error).__name__
                retry_after = None
            at = max(at, self._end_of_present(before))
            if at >= end:
                return
            if retry_after is not None:
                wait = min(_LONGEST_WAIT_SECONDS, max(wait, retry_after))
        raise FormatError(
            f"the range up to byte {end:,} could not be read after {_ATTEMPTS} attempts: {problem}",
            path=self.path.name,
            offset=at,
            hint="try again: what was read is kept",
        )

    def _end_of_present(self, at: int) -> int:
        return next((high for low, high in self._present if low <= at < high), at)

    def _attempt(self, at: int, end: int) -> tuple[int, float | None, str]:
        """Read as far as the connection goes: the new position, Retry-After, what went wrong."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
        )

        headers = {**build_hf_headers(), "Range": f"bytes={at}-{end - 1}"}
        headers["Accept-Encoding"] = "identity"
        with get_session().stream(
            "GET", self.url, headers=headers, follow_redirects=True, timeout=30
        ) as response:
            status = response.status_code
            if status in _RETRIED:
                return at, _seconds(response.headers.get("Retry-After")), f"HTTP status {status}"
            if status == 200:
                raise FormatError(
                    "the server ignores byte ranges, and the whole file is not wanted",
                    path=self.path.name,
                    hint="download the repository with 'hf download'",
                )
            if status != 206:
                raise FormatError(
                    f"the server answers with HTTP status {status}", path=self.path.name, offset=at
                )
            self._check_unchanged(response.headers, at)
            with self.path.open("r+b") as file:
                file.seek(at)
                begun = at
                try:
                    for chunk in response.iter_bytes():
                        chunk = chunk[: end - at]
                        file.write(chunk)
                        at += len(chunk)
                        self.fetched += len(chunk)
                finally:
                    file.flush()
                    self._add(begun, at)
        return at, None, "the connection was cut"

    def _check_unchanged(self, headers: Any, at: int) -> None:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        etag = headers.get("ETag")
        if match is None or int(match[1]) != at:
            raise FormatError(
                "the server answers with another range than was asked for",
                path=self.path.name,
                offset=at,
            )
        changed = int(match[2]) != self.size or (
            self._etag is not None and etag is not None and etag != self._etag
        )
        if changed:
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


def _seconds(value: str | None) -> float | None:
    return float(value) if value and value.replace(".", "", 1).isdecimal() else None
