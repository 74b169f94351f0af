"""Repositories on the Hugging Face Hub, listed without fetching any of their files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, UsageError
from ckptforensics.registry.found import Found, Listing
from ckptforensics.registry.stores import huggingface
from ckptforensics.registry.stores.files import Entry
from ckptforensics.registry.stores.models import Place, models_of
from ckptforensics.registry.stores.tree import Folder
from ckptforensics.sources.hub import HUB_ID, model_info, repositories_of
from ckptforensics.sources.retry import NotOnTheHub

# Repositories in one answer of the Hub.
_PAGE = 1000
_EVERYTHING = "/*"


def list_hub(
    name: str,
    *,
    offline: bool = False,
    tell: Callable[[str], None] | None = None,
    named_as_path: bool = False,
) -> Listing:
    """The models of a repository, or of all repositories of an organisation.

    Parameters
    ----------
    name : `org/name`, `org/name@revision` or `org/*`
    offline : only what the local cache has
    tell : is told which repository is asked for
    named_as_path : the name may be meant as a path: that there is no such repository is an error

    Raises
    ------
    UsageError
        if the name is none; if there is no such repository and `named_as_path`.
    """
    from huggingface_hub import constants

    offline = offline or constants.HF_HUB_OFFLINE
    if name.endswith(_EVERYTHING) and name.count("/") == 1:
        return _list_owner(name.removesuffix(_EVERYTHING), offline, tell)
    match = HUB_ID.fullmatch(name)
    if match is None:
        raise UsageError(
            "this is no name of a repository", path=name, hint="give hub:org/name or hub:org/*"
        )
    repo, revision = match["repo"], match["revision"]
    if offline:
        return _cached(name, repo, revision)
    try:
        info = model_info(name, repo, revision or "main")
    except NotOnTheHub as problem:
        if named_as_path:
            raise
        return Listing((), ((name, _reason(problem)),), requests=1)
    except CkptError as problem:
        return Listing((), ((name, _reason(problem)),), requests=1)
    models, left = _models(repo, revision, info)
    wanted = f"{match['folder'] or ''}{match['file'] or ''}"
    if wanted:
        models = [m for m in models if any(f.name == wanted for f in m.files)]
    return Listing(tuple(models), tuple(left), requests=1)


def _list_owner(owner: str, offline: bool, tell: Callable[[str], None] | None) -> Listing:
    named = f"hub:{owner}{_EVERYTHING}"
    if offline:
        return _cached_of_owner(owner, named)
    try:
        repos = repositories_of(owner)
    except CkptError as problem:
        return Listing((), ((named, _reason(problem)),), requests=1)
    models: list[Found] = []
    not_read: list[tuple[str, str]] = []
    requests = max(1, math.ceil(len(repos) / _PAGE))
    if not repos:
        not_read.append((named, "the Hub lists no models of it"))
    for repo in repos:
        if tell is not None:
            tell(repo)
        listing = list_hub(repo)
        models += listing.models
        not_read += listing.not_read
        requests += listing.requests
    return Listing(tuple(models), tuple(not_read), requests)


def _models(repo: str, revision: str | None, info: Any) -> tuple[list[Found], list[Any]]:
    """What the Hub's answer says of a repository's files, as models."""
    commit = str(info.sha)
    top = Folder("", f"{repo}@{commit}")
    folders = {"": top}
    for sibling in sorted(info.siblings or [], key=lambda sibling: sibling.rfilename):
        path = str(sibling.rfilename)
        parts = path.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path:
            continue  # such a name is none of a file
        for depth in range(1, len(parts)):
            name = "/".join(parts[:depth])
            if name not in folders:
                folders[name] = Folder(name, f"{repo}@{commit}/{name}")
                folders["/".join(parts[: depth - 1])].folders.append(folders[name])
        holder = folders["/".join(parts[:-1])]
        lfs = getattr(sibling, "lfs", None)
        blob = getattr(sibling, "blob_id", None)
        stated = f"sha256:{lfs.sha256}" if lfs is not None else f"git:{blob}" if blob else None
        holder.files[parts[-1]] = Entry(
            parts[-1],
            sibling.size or 0,
            f"{repo}@{commit}/{path}",
            stated=stated,
            changed=stated or commit,
            url=f"hf://{repo}@{commit}/{path}",
        )
    name = repo if revision in (None, "main") else f"{repo}@{revision}"
    models, left = models_of(top, Place("hub", name, f"{name}/", name, commit))
    # A folder of a repository is no name of a model: its weights are named one by one.
    return [_openable(m, folders, commit, repo) for m in models], left


def _openable(model: Found, folders: dict[str, Folder], commit: str, repo: str) -> Found:
    inner = (model.opens or "").removeprefix(f"{repo}@{commit}").lstrip("/")
    if not inner or inner not in folders:
        return model
    weights = [f.name for f in model.files if f.role in ("weights", "adapter")]
    first = next((w for w in weights if w.endswith((".safetensors", ".bin"))), None)
    opens = None if first is None else f"{repo}@{commit}/{inner}/{first}"
    return replace(model, opens=opens)


def _cached(name: str, repo: str, revision: str | None) -> Listing:
    """The repository in the local cache."""
    place = huggingface.default_place() / f"models--{repo.replace('/', '--')}"
    listing = huggingface.list_repository(place) if place.is_dir() else Listing(())
    wanted = repo if revision in (None, "main") else f"{repo}@{revision}"
    models = [
        m
        for m in listing.models
        if m.name == wanted or m.name.startswith(f"{wanted}/") or m.commit == revision
    ]
    if not models:
        said = "offline, and the local cache does not have it"
        return Listing((), ((name, said),))
    return Listing(tuple(models), listing.not_read)


def _cached_of_owner(owner: str, named: str) -> Listing:
    place: Path = huggingface.default_place()
    models: list[Found] = []
    not_read = [(named, "offline: only what the local cache has was listed")]
    for folder in sorted(place.glob(f"models--{owner}--*")) if place.is_dir() else ():
        listing = huggingface.list_repository(folder)
        models += listing.models
        not_read += listing.not_read
    return Listing(tuple(models), tuple(not_read))


def _reason(problem: CkptError) -> str:
    return problem.message if problem.hint is None else f"{problem.message}; {problem.hint}"
