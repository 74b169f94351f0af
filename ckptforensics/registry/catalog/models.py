"""A model as the catalog has it."""

from __future__ import annotations

from dataclasses import dataclass

from ckptforensics.registry.reading import Reading
from ckptforensics.results.audit import State


@dataclass(frozen=True)
class CataloguedModel:
    """A model as the catalog has it.

    Attributes
    ----------
    number : in the catalog
    place, name, store, path, opens, adapter, commit : as it was listed, see `Found`
    state : how much of it was read
    identity : what tells its weights from others; models with one identity have the same weights
    reading : what was read
    sketch : number of its sketch, None where it has none
    first_run : the run that saw it first, 0 for one that was imported
    """

    number: int
    place: str
    name: str
    store: str
    path: str
    opens: str | None
    adapter: bool
    commit: str | None
    state: State
    identity: str
    reading: Reading
    sketch: int | None = None
    first_run: int = 0
