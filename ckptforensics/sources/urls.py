"""Checkpoints behind URLs that fsspec reads, such as `s3://bucket/models/x`, by exact byte ranges.

A file is mirrored as one of the Hub is (`mirror`): sparse, filled by the ranges that are asked for,
resumed by the next run. Where it is mirrored depends on all that the server says of the files, so
that a changed one is mirrored anew; one that changes while it is read is an error. Credentials and
endpoints follow the rules of fsspec and of the package that it uses for the protocol.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ckptforensics.errors import CkptError, FormatError, MissingDependency, UsageError
from ckptforensics.sources.contents import LONGEST_BEGINNING
from ckptforensics.sources.hub import (
    CONFIGURATIONS,
    INDEXES,
    TOKENIZERS,
    WEIGHTS,
    is_plain_name,
)
from ckptforensics.sources.local import SeveralModels, Source, locate, locate_adapter
from ckptforensics.sources.mirror import Mirror, RemoteFiles, writing
from ckptforensics.sources.names import UrlPath, path_of_url

# What servers say that tells a state of a file from others, the surest first.
_STATES = (
    "ETag", "etag", "generation", "md5Hash", "content_md5", "version_aware",
    "LastModified", "last_modified", "updated", "mtime", "created",
)  # fmt: skip
# What fsspec needs for a protocol.
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp requests"),
}
_LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class RemoteFile:
    """What a server says of one file or folder.

    Attributes
    ----------
    path : as the file system of fsspec names it
    name : the last part of its name
    size : bytes, None where the server does not say
    states : what the server says that changes when the file does, the surest first
    is_folder : whether it is a folder
    """

    path: str
    name: str
    size: int | None
    states: Mapping[str, str]
    is_folder: bool

    @property
    def state(self) -> str:
        """The surest of the states; empty where the server says none."""
        return next(iter(self.states.values()), "")

    def is_as(self, other: RemoteFile) -> bool:
        """Whether it is still the same file, as far as both answers tell."""
        shared = next((key for key in self.states if key in other.states), None)
        same = shared is None or self.states[shared] == other.states[shared]
        return self.size == other.size and same


class Place:
    """A URL and the file system that reads it; counts the requests that it makes.

    Raises
    ------
    UsageError
        if there is no such kind of URL.
    MissingDependency
        if a package is needed for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests = 0
        with explained(url):
            from fsspec.core import url_to_fs

            self.fs, self.path = url_to_fs(url, use_listings_cache=False)

    def info(self, path: str | None = None) -> RemoteFile:
        """One file or folder; errors as `explained`."""
        self.requests += 1
        path = self.path if path is None else path
        with explained(self._url(path)):
            return _remote_file(self.fs.info(path), path)

    def list(self, path: str | None = None) -> list[RemoteFile]:
        """What is in a folder, in order of the names; errors as `explained`."""
        self.requests += 1
        path = self.path if path is None else path
        with explained(self._url(path)):
            said = self.fs.ls(path, detail=True)
        found = [_remote_file(item, str(item["name"])) for item in said]
        # A page over HTTP may lead anywhere.
        own = f"{path.rstrip('/')}/"
        kept = [file for file in found if file.path.rstrip("/") == f"{own}{file.name}"]
        return sorted(kept, key=lambda file: (file.name, file.path))

    def beginning(self, path: str, count: int) -> bytes:
        """The first bytes of a file; errors as `explained`."""
        self.requests += 1
        with explained(self._url(path)):
            return bytes(self.fs.cat_file(path, start=0, end=count))

    def _url(self, path: str) -> str:
        inner = path.removeprefix(self.path).strip("/")
        return f"{self.url.rstrip('/')}/{inner}" if inner and path != self.path else self.url


class UrlMirror(Mirror):
    """The mirror of a file behind a URL.

    Parameters
    ----------
    place, file : where it is, and what is known of it
    path : of the mirror
    """

    def __init__(self, place: Place, file: RemoteFile, path: Path) -> None:
        self._place, self._file = place, file
        # The state is a part of the address, which tells this file from what is there later.
        address = f"{place.url}#{file.name}@{file.state}"
        super().__init__(address, path, file.size or 0, place.url, place.url)

    def _attempt(self, at: int, end: int, stop: threading.Event) -> tuple[str | None, str]:
        try:
            self._place.requests += 1
            with explained(self._place.url):
                data = self._place.fs.cat_file(self._file.path, start=at, end=end)
        except _Unreachable as problem:  # asked again
            return None, problem.message
        if len(data) > end - at:
            raise FormatError(
                "the server ignores byte ranges, and the whole file is not wanted",
                path=self.path.name,
                hint="download the files first",
            )
        self._store(iter([data]), at, end, stop)
        return None, "the connection was cut"

    def settle(self) -> None:
        """FormatError if the file is not what it was when it was listed."""
        try:
            now = self._place.info(self._file.path)
            same = now.is_as(self._file)
        except _Unreachable:
            raise
        except UsageError:
            same = False
        if not same:
            self.forget()


class _Unreachable(UsageError):
    """The server does not answer."""


def locate_at_url(
    url: str, config: str | Path | None = None, *, offline: bool = False, adapter: bool = False
) -> Source:
    """Resolve a URL to sparse mirrors of its files, or to local files where it names these.

    Parameters
    ----------
    url : of a folder of the Hugging Face layout, of one file of weights or of an index
    config : a `config.json` to use in place of the one there
    offline : refuse all that is not on this machine
    adapter : an adapter is wanted, see `locate_adapter`

    Raises
    ------
    UsageError
        if it does not exist, is not accessible or holds several models.
    MissingDependency
        if a package is needed for URLs of its kind.
    CkptError
        else as `locate`.
    """
    if urlsplit(url).scheme == "file":
        local = path_of_url(url)
        return locate_adapter(local) if adapter else locate(local, config)
    if offline:
        raise UsageError(
            "a URL is not read in offline mode", path=UrlPath(url), hint="leave --offline out"
        )
    place = Place(url)
    listed, named = _listed(place)
    top = _mirror_folder(place, listed, named)
    mirrors = {
        top / name: UrlMirror(place, file, top / name)
        for name, file in listed.items()
        if name == named
        or name in (*CONFIGURATIONS, *TOKENIZERS)
        or name.endswith((*INDEXES, *WEIGHTS))
    }
    remote = RemoteFiles(mirrors)
    later = (*TOKENIZERS, *WEIGHTS)
    first = {p: [(0, m.size)] for p, m in mirrors.items() if not p.name.endswith(later)}
    if named is not None and not named.endswith((*WEIGHTS, *INDEXES)):
        first[top / named] = [(0, LONGEST_BEGINNING)]
    remote.fetch(first)
    path = top if named is None else top / named
    try:
        source = locate_adapter(path) if adapter else locate(path, config)
    except CkptError as problem:
        if problem.path is not None and problem.path.is_relative_to(top):
            inner = problem.path.relative_to(top)
            problem.path = UrlPath(url) if named is not None else UrlPath(url, inner)
        if isinstance(problem, SeveralModels):
            problem.hint = f"name one of these files, as {url.rstrip('/')}/{problem.names[0]}"
        raise
    used = {p: m for p, m in mirrors.items() if p in source.files or p.name in TOKENIZERS}
    return replace(source, path=UrlPath(url), remote=RemoteFiles(used))


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what fsspec and its packages raise into one clear line.

    Raises
    ------
    UsageError
        if there is no such file, bucket or kind of URL, access is refused, there are no
        credentials, or nobody answers.
    MissingDependency
        if a package is needed.
    """
    path = UrlPath(url)
    try:
        yield
    except CkptError:
        raise
    except ImportError as problem:
        raise MissingDependency(
            f"a package is needed to read such a URL: {_said(problem)}",
            path=path,
            hint=f"pip install {_PACKAGES.get(urlsplit(url).scheme, 'the package it names')}",
        ) from None
    except FileNotFoundError:
        raise UsageError(
            "there is no such file, folder or bucket", path=path, hint="check the URL"
        ) from None
    except PermissionError as problem:
        raise UsageError(
            f"access is refused: {_said(problem)}",
            path=path,
            hint="check the credentials, and who may read it",
        ) from None
    except Exception as problem:
        if type(problem).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            raise UsageError(
                "there are no credentials for it",
                path=path,
                hint="set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public "
                "bucket set FSSPEC_S3_ANON=true",
            ) from None
        if isinstance(problem, ValueError) and "Protocol not known" in str(problem):
            raise UsageError(
                "no such kind of URL is known", path=path, hint="give s3://, gs:// or https://"
            ) from None
        own = type(problem).__module__.startswith(("ckptforensics", "builtins"))
        if own and not isinstance(problem, OSError | ValueError | RuntimeError):
            raise
        raise _Unreachable(
            f"it cannot be read: {_said(problem)}",
            path=path,
            hint="check the URL and the connection",
        ) from None


def _said(problem: Exception) -> str:
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + " ..."


def _remote_file(said: Mapping[str, Any], path: str) -> RemoteFile:
    size = said.get("size")
    states = {key: _spelled(said[key]) for key in _STATES if said.get(key) is not None}
    return RemoteFile(
        path,
        path.rstrip("/").rpartition("/")[2],
        size if type(size) is int and size >= 0 else None,
        states,
        said.get("type") == "directory",
    )


def _spelled(value: Any) -> str:
    """A state as text; times are spelled in several ways by one and the same file system."""
    value = value.timestamp() if hasattr(value, "timestamp") else value
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _listed(place: Place) -> tuple[dict[str, RemoteFile], str | None]:
    """The files of the folder, and the name of the one that the URL means, if it means one."""
    own = place.info()
    page = place.url.startswith(("http://", "https://"))  # a folder is one, too
    if own.is_folder or (page and not own.name.endswith((*WEIGHTS, *INDEXES))):
        return _files(place, place.list()), None
    beside: dict[str, RemoteFile] = {}
    with contextlib.suppress(UsageError):  # a server may not list
        beside = _files(place, place.list(place.path.rstrip("/").rpartition("/")[0]))
    return {**beside, own.name: own}, own.name


def _files(place: Place, listed: list[RemoteFile]) -> dict[str, RemoteFile]:
    """Those of a folder that may matter, with sizes."""
    wanted = (*CONFIGURATIONS, *TOKENIZERS)
    found = {}
    for file in listed:
        named = file.name in wanted or file.name.endswith((*WEIGHTS, *INDEXES))
        if file.is_folder or not named or not is_plain_name(file.name):
            continue
        known = file if file.size is not None else place.info(file.path)
        if known.size is not None:
            found[file.name] = known
    return found


def _mirror_folder(place: Place, listed: Mapping[str, RemoteFile], named: str | None) -> Path:
    """Where the files are mirrored: elsewhere when any of them is another."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    url = place.url.rstrip("/")
    folder = url if named is None else url.rpartition("/")[0]
    facts = sorted((f.name, f.size, f.state) for f in listed.values())
    # Of a server that states nothing of its files, nothing is kept for the next run.
    once = "" if all(f.state for f in listed.values()) else os.urandom(16).hex()
    key = hashlib.sha256(json.dumps([folder, facts, once]).encode()).hexdigest()
    top = base / "ckptforensics" / "urls" / key[:40]
    with writing(top):
        top.mkdir(parents=True, exist_ok=True)
    return top
