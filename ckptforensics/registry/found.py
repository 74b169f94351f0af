"""What a listing of a store finds, before anything of a model is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ckptforensics.results.audit import FileRole

Store = Literal["directory", "huggingface", "ollama", "lmstudio", "hub", "url"]
ProblemKind = Literal[
    "link-out",  # a link that leads out of the store, or in a circle
    "broken-link",
    "special-file",  # a pipe, a socket or a device in place of a file
    "not-fetched",  # a pointer, a partial download, a blob or shard that is not there
    "digest",  # a content-addressed name that is no digest, or not that of the content
    "layout",  # an index or a manifest that cannot be followed
    "remote",  # a model that is served elsewhere
    "unreadable",  # permissions, and what else the system refuses
]


@dataclass(frozen=True)
class Problem:
    """Something of a model that could not be used, found by listing it.

    Attributes
    ----------
    kind : see above
    file : which, below the model's place
    message : what is wrong, as one sentence without the file's name
    """

    kind: ProblemKind
    file: str
    message: str


@dataclass(frozen=True)
class FoundFile:
    """One file of a model.

    Attributes
    ----------
    name : below the model's place, folders separated by `/`
    role : what it is for, by its name and by what the store says
    bytes : its size
    path : where it is read, links followed; None for a file that is elsewhere
    stated : the digest that the store states, `sha256:HEX` or `git:HEX` (SHA-1 of a git blob);
        a claim
    changed : what tells this state of it from others without reading it: device, inode, size and
        times of a local file, an ETag or a commit of a remote one
    url : where fsspec reads a file that is elsewhere
    """

    name: str
    role: FileRole
    bytes: int
    path: Path | None
    stated: str | None = None
    changed: str = ""
    url: str | None = None


@dataclass(frozen=True)
class Found:
    """One model of a store.

    Attributes
    ----------
    name : unique within a listing: the store's name for it, or its path below the source
    store : which kind of store
    path : the model's place as shown to people
    opens : what `open_checkpoint` (or `--base` with an adapter) takes for it; None where it has no
        weights that can be opened
    adapter : whether `opens` is an adapter that needs its base
    files : all that belong to it
    commit : that of a repository
    problems : what could not be used
    """

    name: str
    store: Store
    path: str
    opens: str | None
    adapter: bool = False
    files: tuple[FoundFile, ...] = ()
    commit: str | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Listing:
    """All models of the sources that were named.

    Attributes
    ----------
    models : in order of name
    not_read : what of the sources was not listed, and why, as (what, reason)
    requests : that the listing made of servers
    """

    models: tuple[Found, ...]
    not_read: tuple[tuple[str, str], ...] = ()
    requests: int = field(default=0, compare=False)
