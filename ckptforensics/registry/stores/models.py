"""Which files of a folder make a model: the same rules for a directory, a repository, a bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptforensics.errors import CkptError
from ckptforensics.registry.found import Found, FoundFile, Problem, Store
from ckptforensics.registry.stores.files import (
    PARTIAL_SUFFIXES,
    WEIGHT_SUFFIXES,
    Entry,
    role_of,
    shown,
)
from ckptforensics.registry.stores.tree import Folder
from ckptforensics.results.audit import FileRole
from ckptforensics.sources.contents import (
    LONGEST_BEGINNING,
    PICKLE_SUFFIXES,
    container_of,
    is_pickle_of_weights,
    is_saved_signature,
    may_be_torch,
)
from ckptforensics.sources.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    NOT_A_MODEL,
    SAFETENSORS,
    SHARD,
    TORCH,
    Layout,
    split_name,
)
from ckptforensics.sources.pointers import stands_for
from ckptforensics.sources.strictjson import parse_json_object

_LONGEST_CONFIGURATION = 1 << 20
_LONGEST_INDEX = 1 << 26
# A shard of more bytes is no pointer.
_LONGEST_STUB = 1 << 20
_LONGEST_POINTER = 4096
# Of files that say something of every model beside them.
SHARED_ROLES: tuple[FileRole, ...] = ("card", "configuration", "tokenizer", "adapter")
_CONFIG = "config.json"
# Beside a model, what its program keeps, and the model as Rust programs read it.
_BESIDE = (*PICKLE_SUFFIXES, ".ot")
_PROJECTOR = "mmproj"
# How the weights of a whole directory are named.
_LIKELY = ("model", "pytorch_model", "consolidated")


@dataclass(frozen=True)
class Place:
    """Where a folder is, for what is said of its models.

    Attributes
    ----------
    store : which kind of store
    name : of the folder's own model
    prefix : of the names of models in it and below it, with what separates them
    path : of the folder, as shown to people
    commit : of a repository
    """

    store: Store
    name: str
    prefix: str
    path: str
    commit: str | None = None


def models_of(top: Folder, place: Place) -> tuple[list[Found], list[tuple[str, str]]]:
    """The models of a tree, and what of it belongs to none and could not be listed or used."""
    grouping = _Grouping(place, top)
    grouping.visit(top, inside=False)
    return grouping.models, grouping.not_read


@dataclass
class _Unit:
    """One model: its weight files by their names in the folder."""

    weights: tuple[str, ...]
    opens: str | None
    whole: bool = False  # the folder's own model
    adapter: bool = False
    problems: list[Problem] = field(default_factory=list)


class _Grouping:
    def __init__(self, place: Place, top: Folder) -> None:
        self.place, self.top = place, top
        self.models: list[Found] = []
        self.not_read: list[tuple[str, str]] = []

    def visit(self, folder: Folder, *, inside: bool) -> list[Folder]:
        """Add the models of a folder and of all below it; the folders that belong to none."""
        contents = _Contents(folder)
        own = contents.is_repository
        units = contents.units() if own or not inside else contents.gguf_units()
        repository = bool(units) and (own or contents.whole)
        before = len(self.models)
        loose: list[Folder] = []
        for inner in folder.folders:
            loose += self.visit(inner, inside=inside or repository)
        alone = len(self.models) == before and not units and not inside
        if alone and (contents.names_an_architecture or self._is_whole_store(folder)):
            units, repository = [_without_weights(contents)], True
        belongs = [folder, *loose] if repository else [folder]
        taken: set[str] = set()
        for unit in units:
            self.models.append(self._found(unit, contents, belongs, repository))
            taken.update(file.name for file in self.models[-1].files)
        if not units:
            if not inside:
                self._tell_left([folder, *loose])
            return [folder, *loose] if inside else []
        if not repository:
            self._tell_left([folder, *loose], taken)
        return []

    def _is_whole_store(self, folder: Folder) -> bool:
        """Whether it is a repository, which is a model whatever of it is at hand."""
        return folder is self.top and self.place.commit is not None

    def _found(
        self, unit: _Unit, contents: _Contents, belongs: Sequence[Folder], repository: bool
    ) -> Found:
        folder = contents.folder
        files: list[FoundFile] = []
        problems = list(unit.problems)
        for holder in belongs:
            inner = holder.name.removeprefix(folder.name).lstrip("/")
            for name, entry in holder.files.items():
                if holder is folder and not self._is_of(unit, contents, name, repository):
                    continue
                role = contents.role(name, unit.weights) if holder is folder else role_of(name)
                found = entry.found(f"{inner}/{name}" if inner else name, role)
                files.append(found)
                problem = contents.problem(entry) if holder is folder else _problem(entry)
                if problem is not None:
                    problems.append(replace(problem, file=found.name))
            if holder is folder and not repository:
                continue
            for problem in holder.problems:
                file = problem.file.removeprefix(shown(folder.name)).lstrip("/")
                problems.append(replace(problem, file=file))
        if not any(file.role == "card" for file in files) and self.place.commit is not None:
            cards = [e for e in self.top.files.values() if role_of(e.name) == "card"]
            files += [entry.found(entry.name) for entry in cards]
        needed = {shown(name) for name in unit.weights}
        needed |= {ADAPTER_CONFIG if unit.adapter else _CONFIG}
        unusable = any(problem.file in needed for problem in problems)
        missing = any(problem.kind == "not-fetched" for problem in unit.problems)
        inner = folder.name if unit.whole else folder.below(unit.weights[0])
        return Found(
            name=shown(f"{self.place.prefix}{inner}" if inner else self.place.name),
            store=self.place.store,
            path=self._shown_path(inner),
            opens=None if missing or unusable else unit.opens,
            adapter=unit.adapter,
            files=tuple(sorted(files, key=lambda file: file.name)),
            commit=self.place.commit,
            problems=tuple(dict.fromkeys(problems)),
        )

    def _is_of(self, unit: _Unit, contents: _Contents, name: str, repository: bool) -> bool:
        """Whether a file of the folder is of the model."""
        if name in unit.weights:
            return True
        if name in contents.claimed:
            return False
        if unit.whole or (repository and not contents.whole):
            return True
        return role_of(name) in SHARED_ROLES or name.startswith(_PROJECTOR)

    def _tell_left(self, folders: Iterable[Folder], taken: Collection[str] = ()) -> None:
        """Say what could not be used of folders without a model, and of others what none took."""
        for folder in folders:
            for problem in folder.problems:
                self.not_read.append((self._shown_path(problem.file), problem.message))
            for name, entry in folder.files.items():
                told = _problem(entry)
                if told is not None and shown(name) not in taken:
                    self.not_read.append((self._shown_path(folder.below(name)), told.message))

    def _shown_path(self, name: str) -> str:
        return shown(f"{self.place.path.rstrip('/')}/{name}" if name else self.place.path)


class _Contents:
    """What a folder's own files are."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._heads: dict[str, bytes] = {}
        self.claimed: set[str] = set()
        self.whole = False
        self.ggufs: list[str] = []
        self._containers: set[str] = set()
        self._weights: dict[str, list[str]] = {"safetensors": [], "torch": []}
        for name, entry in folder.files.items():
            kind = self._container(name, entry)
            if kind is not None:
                self._containers.add(name)
            if kind == "gguf":
                self.ggufs.append(name)
            elif kind is not None:
                self._weights[kind].append(name)
        models = [n for n in self.ggufs if not n.startswith(_PROJECTOR)]
        self.ggufs = models or self.ggufs  # a projector belongs to the models beside it

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """`config.json` where it can be read, an empty one where it cannot be or is not at hand."""
        entry = self.folder.files.get(_CONFIG)
        return None if entry is None else self._json(entry, _LONGEST_CONFIGURATION)

    @cached_property
    def names_an_architecture(self) -> bool:
        config = self.config
        return config is not None and bool({"model_type", "architectures"} & config.keys())

    @cached_property
    def is_repository(self) -> bool:
        """Whether a folder in that of a model is one of its own."""
        names = self.folder.files
        return (
            self.names_an_architecture
            or ADAPTER_CONFIG in names
            or "params.json" in names
            or any(n.endswith((SAFETENSORS.index_suffix, TORCH.index_suffix)) for n in names)
        )

    def problem(self, entry: Entry) -> Problem | None:
        """Why a file cannot be used."""
        told = _problem(entry)
        weights = entry.name.endswith(WEIGHT_SUFFIXES)
        small = entry.name.endswith(".json") and entry.bytes <= _LONGEST_POINTER
        if told is not None or not (weights or small) or self._is_large_shard(entry):
            return told
        if entry.bytes == 0 and (weights or entry.name == _CONFIG):
            return Problem("not-fetched", shown(entry.name), "the file is empty")
        try:
            stub = stands_for(self._head(entry))
        except CkptError as problem:
            return Problem("unreadable", shown(entry.name), problem.message)
        return None if stub is None else Problem("not-fetched", shown(entry.name), stub[0])

    def role(self, name: str, weights: Collection[str]) -> FileRole:
        """What a file of the folder is for in the model with these weights."""
        named = role_of(name)
        if named == "adapter" or (named == "weights" and name in self._containers):
            return named
        if name in weights:
            return "weights"
        return "other" if named == "weights" else named

    def gguf_units(self) -> list[_Unit]:
        """The GGUF files alone."""
        return list(self._splits(self.ggufs))

    def units(self) -> list[_Unit]:
        """The models whose weights are in the folder itself."""
        units = []
        main = self._main()
        if main is not None:
            self.whole = True
            units.append(main)
            self.claimed.update(main.weights)
        units += self._adapters()
        units += self._splits(self.ggufs)
        for kind, layout in (("safetensors", SAFETENSORS), ("torch", TORCH)):
            own = [n for n in self._weights[kind] if n not in self.claimed]
            if main is not None:  # the same model in another format or as its maker saves it
                stem = layout.single.partition(".")[0]
                own = [n for n in own if not self._is_a_copy(n, stem)]
                own = [n for n in own if not n.endswith(_BESIDE)]
            units += self._splits(own)
        return units

    def _is_a_copy(self, name: str, stem: str) -> bool:
        match = SHARD.fullmatch(name)
        plain = match["stem"].rstrip("-_") if match else Path(name).stem
        return plain == stem or name.startswith("consolidated")

    def _container(self, name: str, entry: Entry) -> str | None:
        """Which kind of weights of a model a file holds, or says that it holds."""
        whole = _without_partial(name)
        if NOT_A_MODEL.fullmatch(whole) or (whole != name and whole in self.folder.files):
            return None
        if whole != name:  # what there is of a download
            kinds = {".gguf": "gguf", ".safetensors": "safetensors"}
            return kinds.get(
                Path(whole).suffix, "torch" if whole.endswith(TORCH.suffixes) else None
            )
        if name.endswith(".gguf"):
            return "gguf"
        head = b""
        if entry.problem is None and entry.bytes and not self._is_large_shard(entry):
            try:
                head = self._head(entry)
            except CkptError:
                head = b""
        if name.endswith(SAFETENSORS.suffixes):
            return None if is_saved_signature(head) else "safetensors"
        if name.endswith(TORCH.suffixes):
            if role_of(name) != "weights":
                return None
            likely = name.startswith(_LIKELY) or not head
            return "torch" if likely or may_be_torch(head) or stands_for(head) else None
        return container_of(head) or ("torch" if is_pickle_of_weights(name, head) else None)

    def _is_large_shard(self, entry: Entry) -> bool:
        named = entry.name.endswith(WEIGHT_SUFFIXES) and SHARD.fullmatch(entry.name)
        return bool(named) and entry.bytes > _LONGEST_STUB

    def _head(self, entry: Entry) -> bytes:
        if entry.name not in self._heads:
            self._heads[entry.name] = entry.head(LONGEST_BEGINNING) or b""
        return self._heads[entry.name]

    def _json(self, entry: Entry, most: int) -> dict[str, Any]:
        if entry.problem is not None:
            return {}
        try:
            text = entry.head(most + 1)
            if text is None:  # only the listing is at hand: it is what its name says
                return {"model_type": None} if entry.name == _CONFIG else {}
            if len(text) > most:
                return {}
            return parse_json_object(text, path=Path(entry.name), what="the file")
        except CkptError:
            return {}

    def _main(self) -> _Unit | None:
        """The model that a program means that is given the folder."""
        stale: _Unit | None = None
        for kind, layout in (("safetensors", SAFETENSORS), ("torch", TORCH)):
            suffixes = layout.suffixes  # one of another name is opened by its own name only
            names = [n for n in self._weights[kind] if _without_partial(n).endswith(suffixes)]
            if kind == "torch" and self.ggufs:
                names = [n for n in names if n.startswith("pytorch_model")]
            unit = self._of_layout(names, layout)
            if unit is not None and unit.weights:
                return unit
            stale = stale or unit
        if stale is not None and not self.ggufs:
            return stale
        return None

    def _of_layout(self, names: list[str], layout: Layout) -> _Unit | None:
        indexes = [n for n in self.folder.files if n.endswith(layout.index_suffix)]
        index = layout.index if layout.index in indexes else None
        if index is None and len(indexes) == 1:
            index = indexes[0]
        shards = self._shards(index) if index is not None else {}
        if layout.single in names and layout.single not in shards:
            return _Unit((layout.single,), self.folder.opens, whole=True)
        if index is not None and shards:
            there = [s for s in sorted(shards) if s in self.folder.files]
            lost = [
                Problem("not-fetched", shown(s), f"{shown(index)} names it, and it is not there")
                for s in sorted(shards)
                if s not in self.folder.files
            ]
            if there or not names:
                return _Unit(tuple(there), self.folder.opens, whole=True, problems=lost)
        if len(indexes) > 1 and index is None:
            return None
        broken = [] if index is None or shards else list(self._broken(index))
        if broken and not names:
            return _Unit((), None, whole=True, problems=broken)
        converted = [n for n in names if not n.startswith("consolidated.")] or names
        splits = {split_name(n) for n in converted}
        ranks = converted is names and len(splits) > 1
        likely = self.folder.files.keys() & {_CONFIG, "params.json"} or any(
            n.startswith(_LIKELY) for n in converted
        )
        if not converted or not likely or (len(splits) > 1 and not ranks):
            return None
        if ranks and not all(n.startswith("consolidated.") for n in converted):
            return None
        lost = [*broken, *_lost_shards(converted[0], set(converted))]
        return _Unit(tuple(converted), self.folder.opens, whole=True, problems=lost)

    def _shards(self, index: str) -> set[str]:
        """The files that an index names; none if it cannot be followed, which opening it tells."""
        shards = self._json(self.folder.files[index], _LONGEST_INDEX).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) and _strings(shards) else set()
        return names if all(Path(n).name == n for n in names) else set()

    def _broken(self, index: str) -> Iterator[Problem]:
        """That an index names no shards, where its content is at hand."""
        entry = self.folder.files[index]
        if self.problem(entry) is None and entry.head(1) is not None:
            said = "the index names no files of its own directory"
            yield Problem("layout", shown(index), said)

    def _adapters(self) -> Iterator[_Unit]:
        weights = [n for n in self.folder.files if ADAPTER_WEIGHTS.fullmatch(n)]
        self.claimed.update(weights)
        if not weights and ADAPTER_CONFIG not in self.folder.files:
            return
        if not weights and self.whole:  # transformers saves such a configuration beside a model
            return
        weights.sort(key=lambda name: not name.endswith(".safetensors"))
        problems = []
        if not weights:
            said = "there are no weights beside the adapter's configuration"
            problems.append(Problem("not-fetched", ADAPTER_CONFIG, said))
        elif ADAPTER_CONFIG not in self.folder.files:
            said = "the adapter's configuration is not there"
            problems.append(Problem("not-fetched", ADAPTER_CONFIG, said))
        alone = not self.whole
        yield _Unit(tuple(weights), self.folder.opens, alone, adapter=True, problems=problems)

    def _splits(self, names: list[str]) -> Iterator[_Unit]:
        """A model for each file, or for each set of shards."""
        self.claimed.update(names)
        sets: dict[tuple[str, str], list[str]] = {}
        for name in sorted(names):
            sets.setdefault(split_name(name), []).append(name)
        for files in sets.values():
            lost = list(_lost_shards(files[0], set(files)))
            yield _Unit(tuple(files), self.folder.files[files[0]].opens, problems=lost)


def _lost_shards(name: str, present: set[str]) -> Iterator[Problem]:
    """The first shard that is missing of the split that a file is of, and how many are."""
    match = SHARD.fullmatch(name)
    if match is None:
        return
    numbers = {int(m["number"]) for n in present if (m := SHARD.fullmatch(n))}
    count = int(match["count"])
    lacking = count - len(numbers)
    if lacking > 0:
        first = next(i for i in range(min(0 in numbers, 1) ^ 1, count + 1) if i not in numbers)
        missing = f"{match['stem']}{first:0{len(match['number'])}d}-of-{match['count']}"
        said = f"{lacking:,} of {count:,} shards are not there, this one first"
        yield Problem("not-fetched", shown(missing + match["suffix"]), said)


def _problem(entry: Entry) -> Problem | None:
    """Why a file cannot be used, as far as its listing tells."""
    if entry.problem is None and entry.name.endswith(PARTIAL_SUFFIXES):
        return Problem("not-fetched", shown(entry.name), "a download that was not finished")
    return entry.problem


def _without_partial(name: str) -> str:
    """The name of a file when its download is finished."""
    return next((name.removesuffix(s) for s in PARTIAL_SUFFIXES if name.endswith(s)), name)


def _without_weights(contents: _Contents) -> _Unit:
    beside = _CONFIG if contents.config is not None else ""
    said = "there are no weights beside the configuration"
    if not beside:
        said = "none of its files holds weights that can be opened"
    return _Unit((), None, whole=True, problems=[Problem("not-fetched", beside, said)])


def _strings(values: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())
