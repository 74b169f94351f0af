"""The cache of huggingface_hub: repositories by commit, files by their digests."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ckptforensics.errors import CkptError
from ckptforensics.registry.found import Found, Listing, Problem
from ckptforensics.registry.stores.files import Entry, leads_out, local_entry, read_small, shown
from ckptforensics.registry.stores.models import Place, models_of
from ckptforensics.registry.stores.tree import walk

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHORT = 12
_LONGEST_REF = 256


def default_place() -> Path:
    """Where huggingface_hub keeps its cache, by its own environment variables."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def list_cache(place: Path, *, tell: Callable[[str], None] | None = None) -> Listing:
    """All models of a cache.

    Raises
    ------
    OSError
        if it cannot be listed.
    """
    models: list[Found] = []
    not_read: list[tuple[str, str]] = []
    with os.scandir(place) as items:
        names = sorted(item.name for item in items if item.name.startswith("models--"))
    for name in names:
        if tell is not None:
            tell(shown(name))
        listing = list_repository(place / name)
        models += listing.models
        not_read += listing.not_read
    return Listing(tuple(models), tuple(not_read))


def list_repository(place: Path) -> Listing:
    """The models of one repository of a cache, `models--org--name`: of each commit that is there.

    Those of main are named `org/name`, others `org/name@REF`, or by the beginning of their commit
    where no ref leads to it.
    """
    repo = shown(place.name.removeprefix("models--").replace("--", "/"))
    if place.is_symlink() or not place.is_dir():
        return Listing((), ((shown(str(place)), "this is no directory of the cache"),))
    if leads_out(place / "snapshots", place):
        said = "the link leads out of the cache"
        return Listing((), ((shown(str(place / "snapshots")), said),))
    refs, not_read = _refs(place)
    partials = _partial_blobs(place)
    models: list[Found] = []
    commits = _names_in(place / "snapshots")
    for commit in commits:
        snapshot = place / "snapshots" / commit
        if snapshot.is_symlink() or not snapshot.is_dir():
            not_read.append((shown(str(snapshot)), "this is no snapshot"))
            continue
        named = sorted(ref for ref, to in refs.items() if to == commit)
        revision = "" if "main" in named else f"@{named[0] if named else commit[:_SHORT]}"
        listing = _snapshot(place, snapshot, f"{repo}{revision}")
        models += [replace(m, problems=(*m.problems, *partials)) for m in listing.models]
        not_read += listing.not_read
    if not models:
        nothing = Problem("not-fetched", "", "the cache holds no snapshot of the repository")
        problems = (nothing, *partials)
        models = [Found(repo, "huggingface", shown(str(place)), None, problems=problems)]
    return Listing(tuple(models), tuple(not_read))


def list_snapshot(snapshot: Path) -> Listing:
    """The models of one commit of a repository of a cache."""
    listing = list_repository(snapshot.parent.parent)
    models = tuple(m for m in listing.models if m.commit == snapshot.name)
    return replace(listing, models=models)


def blobs_of(folder: Path) -> tuple[Path, ...]:
    """Where links of a folder in a snapshot may lead; nowhere else for any other folder."""
    snapshots = next((p for p in folder.parents if p.name == "snapshots"), None)
    own = snapshots is not None and is_repository(snapshots.parent)
    return (snapshots.parent / "blobs",) if snapshots is not None and own else ()


def is_repository(path: Path) -> bool:
    """Whether a directory is a repository of a cache."""
    inner = (path / "snapshots", path / "blobs")
    return path.name.startswith("models--") and any(folder.is_dir() for folder in inner)


def _snapshot(place: Path, snapshot: Path, name: str) -> Listing:
    blobs = Path(os.path.realpath(place)) / "blobs"
    tree = walk(snapshot, (blobs,), entry=partial(_entry, blobs))
    commit = snapshot.name if _COMMIT.fullmatch(snapshot.name) else None
    where = Place("huggingface", name, f"{name}/", shown(str(snapshot)), commit or snapshot.name)
    models, left = models_of(tree.top, where)
    if commit is None:
        models = [replace(model, commit=None) for model in models]
    return Listing(tuple(models), (*tree.not_read, *left))


def _entry(blobs: Path, path: Path, roots: tuple[Path, ...]) -> Entry:
    """A file of a snapshot; the name of the blob that it leads to states its digest."""
    entry = local_entry(path, roots)
    if entry.problem is not None and entry.problem.kind == "broken-link":
        return replace(
            entry, problem=replace(entry.problem, kind="not-fetched", message="its blob is missing")
        )
    target = entry.path
    if target is None or target.parent != blobs or _BLOB.fullmatch(target.name) is None:
        return entry
    algorithm = "sha256" if len(target.name) == 64 else "git"
    return replace(entry, stated=f"{algorithm}:{target.name}")


def _refs(place: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Names of branches, tags and pull requests to commits, and which could not be read."""
    refs: dict[str, str] = {}
    not_read: list[tuple[str, str]] = []
    top = place / "refs"
    if not top.is_dir() or top.is_symlink():
        return refs, not_read
    for folder in walk(top).top.everything():
        for name, entry in folder.files.items():
            try:
                if entry.problem is not None or entry.path is None:
                    raise CkptError("this is no file")
                commit = read_small(entry.path, _LONGEST_REF).decode("ascii", "replace").strip()
                if _COMMIT.fullmatch(commit) is None:
                    raise CkptError("this names no commit")
            except CkptError as problem:
                not_read.append((shown(str(top / folder.below(name))), problem.message))
            else:
                refs[shown(folder.below(name))] = commit
    return refs, not_read


def _partial_blobs(place: Path) -> list[Problem]:
    return [
        Problem("not-fetched", shown(f"blobs/{name}"), "a download that was not finished")
        for name in _names_in(place / "blobs")
        if name.endswith(".incomplete")
    ]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
