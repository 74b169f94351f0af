"""A directory of models, and one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ckptforensics.registry.found import Found, Listing, Store
from ckptforensics.registry.stores import huggingface, ollama
from ckptforensics.registry.stores.files import local_entry, role_of, shown
from ckptforensics.registry.stores.models import SHARED_ROLES, Place, models_of
from ckptforensics.registry.stores.tree import Folder, walk
from ckptforensics.sources.names import SAFETENSORS, TORCH, split_name

_INDEXES = (SAFETENSORS.index_suffix, TORCH.index_suffix)


def list_directory(
    place: Path, *, store: Store = "directory", tell: Callable[[str], None] | None = None
) -> Listing:
    """The models of a directory and of the stores of other programs below it.

    Parameters
    ----------
    place : the directory
    store : what the models are said to be from
    tell : is told how far the walk is
    """
    tree = walk(place, is_store=store_of, tell=tell)
    name = shown(Path(place).resolve().name or str(place))
    found, left = models_of(tree.top, Place(store, name, "", shown(str(place))))
    not_read = [*tree.not_read, *left]
    models = list(found)
    for path, kind in tree.stores:
        inner = (
            huggingface.list_repository(path) if kind == "huggingface" else ollama.list_store(path)
        )
        models += inner.models
        not_read += inner.not_read
    return Listing(tuple(models), tuple(not_read))


def list_file(path: Path) -> Listing:
    """The model in one file, of whatever name, or in the shards beside it that it stands for."""
    folder = path.absolute().parent.resolve()
    # The file itself is the user's word, wherever it leads.
    roots = (folder, Path(os.path.realpath(path)).parent)
    beside_roots = (folder, *huggingface.blobs_of(folder))
    index = path.name.endswith(_INDEXES)
    top = Folder("", str(folder))
    with os.scandir(folder) as items:
        names = sorted(item.name for item in items if not item.is_dir())
    for name in names:
        split = split_name(name) == split_name(path.name) or (index and role_of(name) == "weights")
        beside = role_of(name) in SHARED_ROLES and not name.endswith(_INDEXES)
        if name == path.name or split or beside:
            own = roots if name == path.name else beside_roots
            top.files[name] = local_entry(folder / name, own)
    models, left = models_of(top, Place("directory", shown(path.name), "", shown(str(folder))))
    of_it = [m for m in models if _is_weights_of(m, path, index)]
    if not of_it:
        return Listing((), tuple(left) or ((shown(str(path)), "the file holds no weights"),))
    found = of_it[0]
    opens = None if found.opens is None else str(path)
    return Listing((replace(found, name=shown(path.name), path=shown(str(path)), opens=opens),))


def _is_weights_of(model: Found, path: Path, index: bool) -> bool:
    """Whether a file is what the model is read from."""
    role = {file.name: file.role for file in model.files}.get(shown(path.name))
    return role in ("weights", "adapter") or (index and role is not None)


def store_of(path: Path) -> str | None:
    """Whether a folder is a repository of a Hugging Face cache, or a store of Ollama's."""
    if huggingface.is_repository(path):
        return "huggingface"
    if (path / "manifests").is_dir() and (path / "blobs").is_dir():
        return "ollama"
    return None
