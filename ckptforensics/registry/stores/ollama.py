"""Ollama's store: manifests that name blobs by their digests.

Each layer of a manifest is a file of the model, named by its media type: `model`, `adapter`,
`projector`, `template` (the chat template, so of role `tokenizer`), `system`, `params`, `license`
and `config`; a second one of a kind is `license-2`. Layers of single tensors and JSON files have
the names that the manifest gives them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError, FormatError
from ckptforensics.registry.found import Found, FoundFile, Listing, Problem
from ckptforensics.registry.stores.files import (
    Entry,
    leads_out,
    local_entry,
    read_small,
    role_of,
    shown,
)
from ckptforensics.registry.stores.tree import walk
from ckptforensics.results.audit import FileRole
from ckptforensics.sources import parse_json_object
from ckptforensics.sources.contents import LONGEST_BEGINNING, container_of
from ckptforensics.sources.pointers import stands_for

DIGEST = re.compile(r"sha256[:-](?P<hex>[0-9a-fA-F]{64})")
_MEDIA = "application/vnd.ollama.image."
_ROLES: Mapping[str, FileRole] = {
    "model": "weights",
    "adapter": "adapter",
    "template": "tokenizer",
    "params": "configuration",
    "config": "configuration",
    "tensor": "weights",
}
# One with a layer for each tensor is some MB.
_LONGEST_MANIFEST = 1 << 26
_LONGEST_CONFIG = 1 << 20
_DEFAULT_HOST = "registry.ollama.ai"
_PARTIAL = re.compile(r"sha256[:-](?P<hex>[0-9a-fA-F]{64})-partial.*")


def default_place() -> Path:
    """Where Ollama keeps models: `OLLAMA_MODELS`, else below the user's home or its service's."""
    named = os.environ.get("OLLAMA_MODELS", "").strip().strip("\"'")
    if named:
        return Path(named)
    own = Path.home() / ".ollama" / "models"
    service = Path("/usr/share/ollama/.ollama/models")
    return service if service.is_dir() and not own.is_dir() else own


def list_store(place: Path, *, tell: Callable[[str], None] | None = None) -> Listing:
    """All models of a store, and blobs with weights that no manifest names."""
    for name in ("manifests", "blobs"):
        if leads_out(place / name, place):
            said = "the link leads out of the store"
            return Listing((), ((shown(str(place / name)), said),))
    store = _Store(place)
    tree = walk(place / "manifests", tell=tell)
    for folder in tree.top.everything():
        for problem in folder.problems:
            store.leave(place / "manifests" / problem.file, problem.message)
        for name, entry in folder.files.items():
            if not name.startswith("."):
                store.add_manifest(folder.below(name), entry)
    store.add_unnamed_blobs()
    return Listing(tuple(store.models), (*tree.not_read, *store.not_read))


@dataclass
class _Model:
    """A manifest that is being followed."""

    name: str
    path: str
    files: list[FoundFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    opens: list[str | None] = field(default_factory=list)
    lacking: list[Problem] = field(default_factory=list)

    def count(self, kind: str) -> str:
        """The name of the next layer of a kind."""
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        return kind if number == 1 else f"{kind}-{number}"


class _Store:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.models: list[Found] = []
        self.not_read: list[tuple[str, str]] = []
        self._blobs = Path(os.path.realpath(place / "blobs"))
        self._named: set[str] = set()
        try:
            self._present = sorted(os.listdir(self._blobs))
        except OSError as problem:
            self._present = []
            self.leave(self._blobs, f"cannot be listed: {problem.strerror}")
        # A store of an older version, or of another system, spells the digest with a colon.
        self._by_digest = {m["hex"].lower(): n for n in self._present if (m := DIGEST.fullmatch(n))}
        self._partial = {m["hex"].lower() for n in self._present if (m := _PARTIAL.fullmatch(n))}

    def leave(self, path: Path, why: str) -> None:
        self.not_read.append((shown(str(path)), why))

    def add_manifest(self, name: str, entry: Entry) -> None:
        """Follow one; `name` is HOST/NAMESPACE/MODEL/TAG."""
        path = self.place / "manifests" / name
        model = _Model(_name_of(name), shown(str(path)))
        if entry.problem is not None or entry.path is None:
            unread = entry.problem or Problem("unreadable", "", "it cannot be read")
            problems = (replace(unread, file="manifest"),)
            self.models.append(Found(model.name, "ollama", model.path, None, problems=problems))
            return
        model.files.append(entry.found("manifest", "other"))
        try:
            layers = self._layers(path, entry.path, model)
        except CkptError as problem:
            model.problems.append(Problem("layout", "manifest", problem.message))
            layers = []
        for kind, layer in layers:
            self._add_layer(model, kind, layer)
        self.models.append(_finished(model))

    def _layers(self, path: Path, real: Path, model: _Model) -> list[tuple[str, Mapping[str, Any]]]:
        """What a manifest names, as (kind, descriptor)."""
        content = read_small(real, _LONGEST_MANIFEST)
        manifest = parse_json_object(content, path=path, what="the manifest")
        if manifest.get("remote_host"):
            model.problems.append(_remote(manifest["remote_host"]))
        layers = manifest.get("layers")
        layers = [] if layers is None else layers
        config = manifest.get("config")
        found: list[tuple[str, Mapping[str, Any]]] = []
        if not isinstance(layers, list) or not all(isinstance(v, dict) for v in layers):
            raise FormatError("the manifest's layers are no list of objects", path=path)
        if isinstance(config, dict):
            found.append(("config", config))
        for layer in layers:
            media = str(layer.get("mediaType", ""))
            found.append((media.removeprefix(_MEDIA) if media.startswith(_MEDIA) else "", layer))
        return found

    def _add_layer(self, model: _Model, kind: str, layer: Mapping[str, Any]) -> None:
        name = model.count(kind) if kind in _KINDS else model.count("layer")
        given = layer.get("name")
        if kind in ("tensor", "json") and isinstance(given, str) and given:
            name = given
        role = _ROLES.get(kind, "other") if kind != "json" else role_of(name.rpartition("/")[2])
        digest = layer.get("digest")
        match = DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            quoted = shown(repr(digest))[:100]
            said = f"the manifest names no digest, but {quoted}"
            self._lack(model, kind, Problem("digest", name, said))
            return
        hexadecimal = match["hex"].lower()
        self._named.add(hexadecimal)
        entry = self._blob(hexadecimal)
        problem: Problem | None = None
        stated = layer.get("size")
        size = stated if type(stated) is int and stated >= 0 else 0
        if entry is None:
            part = hexadecimal in self._partial
            said = "only a part of its blob was downloaded" if part else "its blob is missing"
            entry = Entry(name, size, "", None, f"sha256:{hexadecimal}")
            problem = Problem("not-fetched", name, said)
        elif entry.problem is not None:
            problem = Problem(entry.problem.kind, name, entry.problem.message)
        else:
            problem = _wrong_size(name, entry.bytes, stated)
        model.files.append(entry.found(name, role))
        if problem is not None:
            self._lack(model, kind, problem)
        elif kind == "model":
            model.opens.append(entry.opens)
        if kind == "config" and entry.path is not None:
            self._read_config(model, entry.path)

    def _lack(self, model: _Model, kind: str, problem: Problem) -> None:
        (model.lacking if kind == "model" else model.problems).append(problem)

    def _read_config(self, model: _Model, path: Path) -> None:
        """Whether the model is served elsewhere."""
        try:
            content = read_small(path, _LONGEST_CONFIG)
            config = parse_json_object(content, path=path, what="the configuration")
        except CkptError as problem:
            model.problems.append(Problem("layout", "config", problem.message))
            return
        if config.get("remote_host"):
            model.problems.append(_remote(config["remote_host"]))

    def _blob(self, hexadecimal: str) -> Entry | None:
        name = self._by_digest.get(hexadecimal)
        if name is None:
            return None
        return local_entry(self._blobs / name, (self._blobs,), f"sha256:{hexadecimal}")

    def add_unnamed_blobs(self) -> None:
        """Blobs that no manifest names: models of their own where they hold weights."""
        for name in self._present:
            match = DIGEST.fullmatch(name)
            path = self._blobs / name
            if match is None:
                part = _PARTIAL.fullmatch(name)
                if part is None or part["hex"].lower() not in self._named:
                    said = "a download that was not finished" if part else "this is no blob's name"
                    self.leave(path, said)
            elif match["hex"].lower() not in self._named:
                self._add_unnamed(path, match["hex"].lower())

    def _add_unnamed(self, path: Path, hexadecimal: str) -> None:
        entry = local_entry(path, (self._blobs,), f"sha256:{hexadecimal}")
        if entry.problem is not None:
            self.leave(path, entry.problem.message)
            return
        try:
            head = entry.head(LONGEST_BEGINNING) or b""
        except CkptError as problem:
            self.leave(path, problem.message)
            return
        stub = stands_for(head)
        if stub is None and container_of(head) is None:
            self.leave(path, "no manifest names this blob, and it holds no weights")
            return
        problems = () if stub is None else (Problem("not-fetched", path.name, stub[0]),)
        self.models.append(
            Found(
                f"sha256:{hexadecimal}",
                "ollama",
                shown(str(path)),
                entry.opens if stub is None else None,
                files=(entry.found(path.name, "weights"),),
                problems=problems,
            )
        )


_KINDS = frozenset(
    {*_ROLES, "projector", "system", "license", "json", "prompt", "messages", "embed"}
)


def _finished(model: _Model) -> Found:
    """The model, with what its layers together mean for reading it."""
    problems = [*model.problems, *model.lacking]
    opens = model.opens[0] if len(model.opens) == 1 and not model.lacking else None
    tensors = model.counts.get("tensor", 0)
    said = None
    if tensors:
        said = f"each of its {tensors:,} tensors is a blob of its own, which is not read"
        opens = None
    elif len(model.opens) > 1:
        said = f"its weights are {len(model.opens)} blobs, which are not read as one model"
    elif opens is not None and "adapter" in model.counts:
        said = "it is served with an adapter, and the weights that are read are those of its base"
    elif not model.counts.get("model") and not problems:
        said = "the manifest names no weights"
    if said is not None:
        problems.append(Problem("layout", "manifest", said))
    files = tuple(sorted(model.files, key=lambda file: file.name))
    return Found(model.name, "ollama", model.path, opens, files=files, problems=tuple(problems))


def _name_of(name: str) -> str:
    """As Ollama shows it: without its own registry and the namespace `library`."""
    parts = shown(name).split("/")
    if len(parts) < 4:
        return "/".join(parts)
    host, *namespace, model, tag = parts
    if host == _DEFAULT_HOST:
        host = ""
        namespace = [] if namespace == ["library"] else namespace
    return "/".join([*filter(None, [host]), *namespace, f"{model}:{tag}"])


def _remote(host: object) -> Problem:
    return Problem(
        "remote", "config", f"the model is served elsewhere, by {shown(repr(host))[:200]}"
    )


def _wrong_size(name: str, size: int, stated: object) -> Problem | None:
    if type(stated) is not int or size == stated:
        return None
    said = f"its blob has {size:,} bytes, and the manifest says {stated:,}"
    return Problem("not-fetched" if size < stated else "digest", name, said)
