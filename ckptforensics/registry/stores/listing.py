"""What there is in the sources of an audit."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ckptforensics.errors import UsageError
from ckptforensics.registry.found import Found, Listing
from ckptforensics.registry.stores import huggingface, lmstudio, ollama
from ckptforensics.registry.stores.directory import list_directory, list_file, store_of
from ckptforensics.registry.stores.files import shown

Tell = Callable[[str], None]

_STORES = {
    "ollama": (ollama.default_place, ollama.list_store, "OLLAMA_MODELS"),
    "huggingface": (huggingface.default_place, huggingface.list_cache, "HF_HUB_CACHE or HF_HOME"),
    "lmstudio": (lmstudio.default_place, lmstudio.list_folder, None),
}
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://.*", re.DOTALL)


def list_models(
    sources: Sequence[str], *, offline: bool = False, tell: Tell | None = None
) -> Listing:
    """The models of all sources, in order of their names.

    Parameters
    ----------
    sources : each a directory, a file, `ollama:`, `huggingface:` or `lmstudio:` (or these with
        another directory, as `ollama:DIR`), `org/name[@revision]`, `hub:org/name` or `hub:org/*` on
        the Hugging Face Hub, or a URL that fsspec reads (`s3://bucket/models`)
    offline : ask no server: of the Hub, what the local cache has
    tell : is told what is being listed

    Raises
    ------
    UsageError
        if a source does not exist.
    """
    found: list[Found] = []
    not_read: list[tuple[str, str]] = []
    requests = 0
    for source in sources:
        if tell is not None:
            tell(shown(source))
        listing = _list(source, offline, tell)
        if not listing.models and not listing.not_read:
            listing = replace(listing, not_read=((shown(source), "there are no models in it"),))
        found += listing.models
        not_read += listing.not_read
        requests += listing.requests
    return Listing(_unique(found), tuple(dict.fromkeys(not_read)), requests)


def _list(source: str, offline: bool, tell: Tell | None) -> Listing:
    store, colon, rest = source.partition(":")
    if colon and store in _STORES and not os.path.lexists(source):
        return _list_store(store, rest, tell)
    if source.startswith("hub:"):
        from ckptforensics.registry.stores import hub

        return hub.list_hub(source.removeprefix("hub:"), offline=offline, tell=tell)
    if source.startswith("file://"):
        from ckptforensics.sources.names import path_of_url

        source = str(path_of_url(source))
    elif _URL.fullmatch(source):
        from ckptforensics.registry.stores import remote

        return remote.list_url(source, offline=offline, tell=tell)
    return _list_path(source, offline, tell)


def _list_store(store: str, rest: str, tell: Tell | None) -> Listing:
    default, listed, variable = _STORES[store]
    place = Path(rest).expanduser() if rest else default()
    if not place.is_dir():
        where = f", or set {variable}" if variable and not rest else ""
        raise UsageError(
            f"there is no store of {store}",
            path=place,
            hint=f"name its directory, as {store}:DIR{where}",
        )
    return _listed(place, lambda: listed(place, tell=tell))


def _list_path(source: str, offline: bool, tell: Tell | None) -> Listing:
    path = Path(source).expanduser()
    try:
        is_directory = source != "" and path.is_dir()
        exists = source != "" and os.path.lexists(path)
    except (OSError, ValueError):  # a name that no file can have
        is_directory = exists = False
    if is_directory:
        return _listed(path, lambda: _list_any_directory(path, tell))
    if exists:
        return _listed(path, lambda: list_file(path))
    from ckptforensics.sources import is_hub_id

    if is_hub_id(source):
        from ckptforensics.registry.stores import hub

        return hub.list_hub(source, offline=offline, tell=tell, named_as_path=True)
    raise UsageError(
        "there is no such file, directory or store",
        path=source,
        hint="give a directory, a file, org/name, hub:org/*, a URL such as s3://bucket/models, "
        "ollama:, huggingface: or lmstudio:",
    )


def _list_any_directory(path: Path, tell: Tell | None) -> Listing:
    """A directory that is a store or a part of one is listed as such."""
    kind = store_of(path)
    if kind == "ollama":
        return ollama.list_store(path, tell=tell)
    if kind == "huggingface":
        return huggingface.list_repository(path)
    if path.parent.name == "snapshots" and huggingface.is_repository(path.parent.parent):
        return huggingface.list_snapshot(path)
    return list_directory(path, tell=tell)


def _listed(place: Path, listing: Callable[[], Listing]) -> Listing:
    try:
        return listing()
    except OSError as problem:
        return Listing((), ((shown(str(place)), f"cannot be listed: {problem.strerror}"),))


def _place_of(model: Found) -> tuple[str, str]:
    local = model.store not in ("hub", "url")
    return model.store, os.path.abspath(model.path) if local else f"{model.path} {model.opens}"


def _unique(found: list[Found]) -> tuple[Found, ...]:
    """Each model once, under a name of its own: one that several share is told by its place."""
    once = list({_place_of(model): model for model in reversed(found)}.values())
    counts = Counter(model.name for model in once)
    named = [replace(model, name=model.path) if counts[model.name] > 1 else model for model in once]
    seen: Counter[str] = Counter()
    result = []
    for model in sorted(named, key=lambda model: (model.name, model.path)):
        seen[model.name] += 1
        number = seen[model.name]
        result.append(model if number == 1 else replace(model, name=f"{model.name} ({number})"))
    return tuple(result)
