"""Whether a catalogued model is still the one that was read."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from ckptforensics.errors import CkptError
from ckptforensics.registry.found import Store
from ckptforensics.registry.stores.files import changed
from ckptforensics.registry.stores.listing import list_models


def is_unchanged(
    store: Store, opens: str, path: str, files: Collection[tuple[str, str]], *, offline: bool
) -> bool:
    """Whether all weight files are in the state that the catalog has of them.

    A model of the Hub is opened by its commit. Of a URL nothing is known offline, where it cannot
    be opened either.

    Parameters
    ----------
    store, opens, path : of the model, as of `Found`
    files : the names of its weight files below its place, and `FoundFile.changed` of each
    """
    known = {state for _, state in files if state}
    if store == "hub" or (store == "url" and offline):
        return True
    if store == "url":
        try:
            models = list_models([path]).models
        except CkptError:
            return True  # whoever opens it is told why that cannot be done
        return known <= {file.changed for model in models for file in model.files}
    return known <= set(_states(opens, [name for name, _ in files]))


def _states(opens: str, names: Collection[str]) -> Iterator[str]:
    """Of all files beside those of a local model, whatever these are called."""
    base = opens if os.path.isdir(opens) else os.path.dirname(opens)
    for folder in {os.path.join(base, PurePosixPath(name).parent) for name in names}:
        try:
            for name in os.listdir(folder):
                yield changed(os.stat(os.path.join(folder, name)))
        except OSError:
            continue
