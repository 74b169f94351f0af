"""Checkpoints on the Hugging Face Hub: the local cache first, else exact byte ranges.

A remote file is mirrored as a sparse local file of its full size (`mirror`), into which only the
ranges that the analysis asks for are written. The commit is resolved once, and a file whose ETag
or size changes between two ranges is an error. Tokens, endpoints and offline mode follow
huggingface_hub's own rules.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ckptforensics.errors import CkptError, FormatError, NothingAnalysable, UsageError
from ckptforensics.sources.local import SeveralModels, Source, locate, locate_adapter
from ckptforensics.sources.mirror import Mirror, RemoteFiles, writing
from ckptforensics.sources.retry import TIMEOUT_SECONDS, Patience, busy, explained, was_cut

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
INDEXES = (".safetensors.index.json", ".bin.index.json")
CONFIGURATIONS = (
    "config.json", "adapter_config.json", "quantize_config.json", "hf_quant_config.json",
)  # fmt: skip
# Read only by whoever asks for token strings, see `file_beside`.
TOKENIZERS = ("tokenizer.json", "vocab.json")
# A path such as ./x or ../x is never a repository.
HUB_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*?)"
    r"(?:@(?P<revision>refs/\w+/\w[\w.-]*|\w[\w.-]*|\w[\w.\-/]*))?"
    r"(?:/(?P<folder>(?:\w[\w.-]*/)*)"
    r"(?P<file>\w[\w.-]*\.(?:safetensors|bin|pt|pth|gguf)(?:\.index\.json)?))?"
)
# Nor is a misspelt name of a file.
_FILE_NAME = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|json)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_NAMED = 4
_T = TypeVar("_T")


def is_hub_id(model: str | Path) -> bool:
    """Whether `org/name[@revision][/file]` may be meant: no local path of that name exists."""
    match = HUB_ID.fullmatch(str(model))
    return (
        match is not None
        and _FILE_NAME.fullmatch(match["repo"]) is None
        and not os.path.lexists(model)
    )


def model_info(model: str, repo: str, revision: str | None = None) -> Any:
    """What the Hub says of a repository and its files, sizes and digests among it.

    Parameters
    ----------
    model : what the user named, for messages

    Raises
    ------
    UsageError
        as `explained` says.
    """
    from huggingface_hub import HfApi

    return _asked(
        model,
        repo,
        lambda: HfApi().model_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        ),
    )


def fetch_file(repo: str, commit: str, name: str, size: int) -> Path:
    """A whole file of a repository, in the mirror of its commit.

    Parameters
    ----------
    name : below the top of the repository
    size : bytes of the file

    Raises
    ------
    CkptError
        as `RemoteFiles.fetch`.
    """
    folder, _, last = name.rpartition("/")
    if not all(is_plain_name(part) for part in name.split("/")):
        raise FormatError("no file can have this name", path=name)
    wanted = _Wanted(f"{repo}@{commit}", repo, commit, folder, last, None, adapter=False)
    path = _mirror_directory(wanted, commit) / name
    RemoteFiles({path: _mirror(wanted, commit, path, name, size)}).fetch({path: [(0, size)]})
    return path


def repositories_of(owner: str) -> list[str]:
    """The models of a user or an organisation, in order; errors as `model_info`."""
    from huggingface_hub import HfApi

    named = f"hub:{owner}/*"
    return _asked(
        named, owner, lambda: sorted(str(info.id) for info in HfApi().list_models(author=owner))
    )


def _asked(model: str, repo: str, ask: Callable[[], _T]) -> _T:
    """The Hub's answer, asked for again where it is only busy."""
    patience = Patience(threading.Event())
    while True:
        with explained(model, repo):
            try:
                return ask()
            except Exception as problem:
                is_busy, retry_after = busy(problem)
                if not (is_busy or was_cut(problem)) or not patience.wait(retry_after):
                    raise


@dataclass(frozen=True)
class _Wanted:
    """What the user named, and its parts; `file` and its `folder` are empty for a repository."""

    model: str
    repo: str
    revision: str
    folder: str
    file: str
    config: str | Path | None
    adapter: bool

    def locate(self, top: Path) -> Source:
        """The files below a local copy of the repository."""
        path = top / self.folder / self.file
        return locate_adapter(path) if self.adapter else locate(path, self.config)


def locate_on_hub(
    model: str,
    config: str | Path | None = None,
    *,
    offline: bool = False,
    adapter: bool = False,
) -> Source:
    """Resolve `org/name[@revision]` to files of the local cache, or to sparse mirrors.

    Parameters
    ----------
    model : repository, optionally a revision and the name of one file in it
    config : a `config.json` to use in place of the repository's
    offline : use the local cache only
    adapter : an adapter is wanted, see `locate_adapter`

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

    match = HUB_ID.fullmatch(model)
    assert match is not None
    wanted = _Wanted(
        model,
        match["repo"],
        match["revision"] or "main",
        (match["folder"] or "").rstrip("/"),
        match["file"] or "",
        config,
        adapter,
    )
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        cached = _from_cache(wanted)
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
            hint=f"download it first: hf download {wanted.repo}",
        )
    return _from_hub(wanted)


def _from_cache(wanted: _Wanted) -> Source | None:
    """The checkpoint in huggingface_hub's cache, None if it is not there.

    Raises
    ------
    CkptError
        if it is not complete, or there are several.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}"
    commit = wanted.revision
    with contextlib.suppress(OSError, ValueError):
        commit = (folder / "refs" / wanted.revision).read_text("utf-8").strip()
    snapshot = folder / "snapshots" / commit
    if _COMMIT.fullmatch(commit) is None or not snapshot.is_dir():
        return None
    if not (snapshot / wanted.folder / wanted.file).exists():
        return None
    source = wanted.locate(snapshot)
    return replace(source, commit=commit) if all(f.exists() for f in source.files) else None


def _from_hub(wanted: _Wanted) -> Source:
    info = model_info(wanted.model, wanted.repo, wanted.revision)
    commit = str(info.sha)
    if _COMMIT.fullmatch(commit) is None:
        raise FormatError("the server names no commit", path=wanted.model)
    siblings = {s.rfilename: s for s in info.siblings or [] if s.size is not None}
    beside = f"{wanted.folder}/" if wanted.folder else ""
    listed = {
        name.removeprefix(beside): sibling
        for name, sibling in siblings.items()
        if name.startswith(beside) and is_plain_name(name.removeprefix(beside))
    }
    if wanted.file and wanted.file not in listed:
        raise UsageError(f"the repository has no file '{beside}{wanted.file}'", path=wanted.model)
    top = _mirror_directory(wanted, commit)
    mirrors = {
        path: _mirror(wanted, commit, path, beside + name, sibling.size)
        for name, sibling in listed.items()
        if name in (*CONFIGURATIONS, *TOKENIZERS) or name.endswith((*INDEXES, *WEIGHTS))
        for path in [top / wanted.folder / name]
    }
    if not any(path.name.endswith(WEIGHTS) for path in mirrors):
        raise _nothing_readable(wanted, sorted(siblings))
    remote = RemoteFiles(mirrors)
    later = (*TOKENIZERS, *WEIGHTS)
    remote.fetch({p: [(0, m.size)] for p, m in mirrors.items() if not p.name.endswith(later)})
    try:
        source = wanted.locate(top)
    except CkptError as problem:
        _name_the_repository(problem, wanted, top)
        raise
    return replace(
        source,
        path=Path(wanted.model),
        commit=commit,
        remote=RemoteFiles(
            {p: m for p, m in mirrors.items() if p in source.files or p.name in TOKENIZERS}
        ),
        sha256={
            top / wanted.folder / name: sibling.lfs.sha256
            for name, sibling in listed.items()
            if sibling.lfs is not None
        },
    )


def _mirror(wanted: _Wanted, commit: str, path: Path, name: str, size: int) -> Mirror:
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(wanted.repo, name, revision=commit)
    return Mirror(url, path, size, wanted.model, wanted.repo)


def _nothing_readable(wanted: _Wanted, names: list[str]) -> NothingAnalysable:
    inner = [n for n in names if n.endswith(WEIGHTS) and "/" in n]
    if inner:
        shown = ", ".join(inner[:_MOST_NAMED]) + (", ..." if len(inner) > _MOST_NAMED else "")
        return NothingAnalysable(
            f"the repository holds weights in folders only: {shown}",
            path=wanted.model,
            hint=f"name one of these files, such as {wanted.model}/{inner[0]}",
        )
    return NothingAnalysable(
        "the repository holds no .safetensors, .bin, .pt, .pth or .gguf file",
        path=wanted.model,
        hint="name a repository with the weights of a language model",
    )


def _name_the_repository(problem: CkptError, wanted: _Wanted, top: Path) -> None:
    """The user knows the repository and not its mirror."""
    if problem.path is not None and problem.path.is_relative_to(top):
        inner = problem.path.relative_to(top)
        problem.path = Path(wanted.model) if wanted.file else Path(wanted.model, inner)
    if isinstance(problem, SeveralModels):
        problem.hint = f"name one of these files, as {wanted.model}/{problem.names[0]}"


def is_plain_name(name: str) -> bool:
    """Whether a name from the server is that of a file of the top directory, on any system."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _mirror_directory(wanted: _Wanted, commit: str) -> Path:
    """Where the commit is mirrored; the folder that was named is there below it."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    top = base / "ckptforensics" / "hub" / wanted.repo.replace("/", "--") / commit
    with writing(top):
        (top / wanted.folder).mkdir(parents=True, exist_ok=True)
    return top
