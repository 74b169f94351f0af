"""Find the files of a checkpoint on the local disk."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol

from ckptforensics.errors import FormatError, NotFetched, NothingAnalysable, UsageError
from ckptforensics.sources.contents import (
    LONGEST_BEGINNING,
    container_of,
    is_pickle_of_weights,
    is_saved_signature,
)
from ckptforensics.sources.links import refuse_links_out
from ckptforensics.sources.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    NOT_A_MODEL,
    SAFETENSORS,
    SHARD,
    TORCH,
    ContainerName,
    Layout,
    split_name,
)
from ckptforensics.sources.original import config_of_params, refuse_ranks
from ckptforensics.sources.pointers import LONGEST_POINTER, refuse_pointer
from ckptforensics.sources.strictjson import read_json_object

_MOST_SHARDS = 100_000
_EXPECTED = "a directory, a .safetensors, .bin, .pt, .pth or .gguf file, or a .index.json of these"


class SeveralModels(UsageError):
    """The directory or repository at `path` holds several models, in the files `names`."""

    def __init__(self, path: Path, names: list[str]) -> None:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        self.names = tuple(names)
        super().__init__(
            f"there are several models: {shown}", path=path, hint="name one of these files"
        )


class _NoShards(NotFetched):
    """None of the files that an index names is there."""

    def __init__(self, message: str, *, path: Path, hint: str, index: str) -> None:
        self.index = index
        super().__init__(message, path=path, hint=hint)


class Fetcher(Protocol):
    """Makes byte ranges of sparse local files present."""

    @property
    def requests(self) -> int:
        """How often byte ranges were asked for by this process."""

    def fetch(self, wanted: Mapping[Path, Iterable[tuple[int, int]]]) -> None:
        """Fetch what is missing of the ranges (begin, count) of each file."""

    def cancel(self) -> None:
        """Make every `fetch` under way raise soon."""


@dataclass(frozen=True)
class Source:
    """The files of one checkpoint.

    Attributes
    ----------
    path : what the user named
    container : format of `files`
    files : weight files in the order of their names
    config : parsed `config.json`, None where there is none
    weight_map : tensor name to file, as promised by an index; None without an index
    commit : of a repository on the Hub
    remote : fetches byte ranges into `files`, where these are mirrors of remote files
    sha256 : of whole files, where the repository states it
    base : what the user named as the model that an adapter at `path` is merged onto
    notes : which of several files are read, where that is a choice
    """

    path: Path
    container: ContainerName
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    weight_map: Mapping[str, Path] | None = None
    commit: str | None = None
    remote: Fetcher | None = None
    sha256: Mapping[Path, str] = field(default_factory=dict)
    base: Path | None = None
    notes: tuple[str, ...] = ()


def locate(model: str | Path, config: str | Path | None = None) -> Source:
    """Resolve MODEL to files.

    Parameters
    ----------
    model : directory, `.safetensors`, `.bin`, `.pt`, `.pth` or `.gguf` file, or an index of shards
    config : a `config.json` to use in place of the one beside the weights

    Raises
    ------
    UsageError
        if `model` does not exist or holds several models.
    NothingAnalysable
        if there is no readable checkpoint at `model`.
    FormatError
        if the index or the configuration is broken.
    """
    path = Path(model)
    if not _exists(path):
        raise UsageError("no such file or directory", path=path, hint=f"give {_EXPECTED}")
    given_config = None if config is None else read_json_object(Path(config), what="configuration")
    try:
        folder = path if path.is_dir() else path.parent
        if given_config is None:
            refuse_links_out(folder, (folder / "config.json", folder / "params.json"))
        if not path.is_dir():  # the file itself is the user's word
            return _locate_file(path, given_config)
        source = _locate_directory(path, given_config)
        refuse_links_out(path, source.files)
        return source
    except PermissionError as problem:
        raise FormatError(
            "permission denied", path=problem.filename or path, hint="check who may read it"
        ) from None


def locate_adapter(model: str | Path) -> Source:
    """Find the files of a PEFT adapter; `config` of the source is its `adapter_config.json`.

    Parameters
    ----------
    model : directory with `adapter_config.json` and `adapter_model.safetensors` or `.bin`, or the
        latter file

    Raises
    ------
    UsageError
        if there is nothing at `model`, or no adapter.
    FormatError
        if its configuration is broken or missing.
    """
    path = Path(model)
    if not _exists(path):
        raise UsageError(
            "no such file or directory", path=path, hint="give the directory of an adapter"
        )
    folder = path if path.is_dir() else path.parent
    named = path.name if path.is_file() else None
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        file = folder / name
        if not _is_file(file) or named not in (None, name):
            continue
        config = folder / ADAPTER_CONFIG
        if not _is_file(config):
            raise FormatError(
                "the adapter's configuration is missing", path=config, hint="download it too"
            )
        container: ContainerName = "torch" if file.suffix == ".bin" else "safetensors"
        return Source(path, container, (file,), read_json_object(config, what="configuration"))
    raise UsageError(
        "--base is given and this is no adapter",
        path=path,
        hint=f"give a directory with {ADAPTER_CONFIG} and adapter_model.safetensors, or "
        "leave --base out",
    )


class IsAdapter(NothingAnalysable):
    """There is an adapter where a model was asked for."""


def refuse_adapter(path: Path) -> NoReturn:
    """IsAdapter saying which base the adapter at `path` names and how to give it."""
    config = (path if path.is_dir() else path.parent) / ADAPTER_CONFIG
    base = None
    if _is_file(config):
        base = read_json_object(config, what="configuration").get("base_model_name_or_path")
    names = f"of {base!r} " if isinstance(base, str) and base else ""
    # What the user may copy into a shell is a plain name.
    plain = isinstance(base, str) and re.fullmatch(r"[\w.][\w./-]*", base)
    raise IsAdapter(
        f"this is an adapter {names}and no model",
        path=path,
        hint=f"name the model it was trained on with --base {base if plain else 'BASE'}",
    )


def size_of_file(path: Path) -> int:
    """Bytes of a regular file.

    Raises
    ------
    FormatError
        if it is anything else: reading a named pipe, say, would wait for ever; or if it only
        stands for a file that was not fetched.
    OSError
        if there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FormatError("this is not a regular file", path=path, hint="give the file itself")
    with path.open("rb") as file:
        refuse_pointer(path, file.read(LONGEST_POINTER))
    return status.st_size


def container_by_content(path: Path) -> ContainerName | None:
    """What a file of another suffix holds, such as one of Ollama's blobs."""
    if not _is_file(path):
        return None
    try:
        with path.open("rb") as file:
            beginning = file.read(LONGEST_BEGINNING)
    except PermissionError:
        raise
    except OSError as problem:
        raise FormatError(f"cannot read the file: {problem.strerror}", path=path) from None
    pickle = is_pickle_of_weights(path.name, beginning)
    return container_of(beginning) or ("torch" if pickle else None)


def file_beside(source: Source, name: str) -> Path | None:
    """The file of that name beside the weights, fetched if it is remote; None if there is none.

    Of a merged adapter the weights are its base's. Errors as `Fetcher.fetch`, and FormatError for a
    link that leads nowhere or out of the directory.
    """
    path = source.files[0].parent / name
    refuse_links_out(path.parent, (path,))
    if not _is_file(path):
        return None
    if source.remote is not None:
        source.remote.fetch({path: [(0, path.stat().st_size)]})
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        raise
    except OSError:  # a name longer than the file system allows
        return False


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _locate_file(path: Path, config: Mapping[str, Any] | None) -> Source:
    if ADAPTER_WEIGHTS.fullmatch(path.name):
        refuse_adapter(path)
    for layout in (SAFETENSORS, TORCH):
        if path.name.endswith(layout.index_suffix):
            return _from_index(path, path, layout, config)
        if path.suffix in layout.suffixes:
            index = path.parent / layout.index
            if SHARD.fullmatch(path.name) and _is_file(index) and _needs(index, path.name):
                return _from_index(index, path, layout, config)
            files = _split_files(path)
            return Source(path, layout.container, files, _config_beside(path.parent, config))
    if path.suffix == ".gguf":
        return Source(path, "gguf", _split_files(path), _config_beside(path.parent, config))
    container = container_by_content(path)
    if container is not None:
        return Source(path, container, (path,), _config_beside(path.parent, config))
    raise NothingAnalysable(
        f"cannot read a model from a '{path.suffix}' file",
        path=path,
        hint=f"give {_EXPECTED}",
    )


def _locate_directory(path: Path, config: Mapping[str, Any] | None) -> Source:
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    ggufs = [n for n in names if n.endswith(".gguf")]
    # A .bin of another name than the model's may be anything; beside a GGUF it is not the model.
    torch_names = [n for n in names if not ggufs or n.startswith("pytorch_model")]
    stale: _NoShards | None = None
    for layout, of in ((SAFETENSORS, names), (TORCH, torch_names)):
        try:
            found = _in_layout(path, of, layout, config)
        except _NoShards as problem:
            stale = stale or problem
            others = [n for n in of if not n.endswith(layout.index_suffix)]
            found = _in_layout(path, others, layout, config)
        if found is not None:
            return _instead(found, stale)
    # The shards of one split are one model; a Q4 and a Q8 of the same stem are two.
    splits = {split_name(n): n for n in reversed(ggufs)}
    if len(splits) > 1:
        raise SeveralModels(path, sorted(splits.values()))
    if ggufs:
        files = _split_files(path / ggufs[0])
        return _instead(Source(path, "gguf", files, _config_beside(path, config)), stale)
    raise stale or _nothing(path, names)


def _is_signature(path: Path) -> bool:
    """Whether it is a signature that this program saved, which may lie beside the model's files."""
    if path.suffix != ".safetensors" or not _is_file(path):
        return False
    try:
        with path.open("rb") as file:
            return is_saved_signature(file.read(64))
    except OSError:  # reported by whoever reads it
        return False


def _instead(found: Source, stale: _NoShards | None) -> Source:
    """The source with a note, if it is read because an index names only files that are gone."""
    if stale is None:
        return found
    what = f"{found.files[0].name} is read: the files that {stale.index} names are not there"
    return replace(found, notes=(*found.notes, what))


def _in_layout(
    path: Path, names: list[str], layout: Layout, config: Mapping[str, Any] | None
) -> Source | None:
    indexes = [n for n in names if n.endswith(layout.index_suffix)]
    weights = [
        n
        for n in names
        if n.endswith(layout.suffixes)
        and not NOT_A_MODEL.fullmatch(n)
        and not _is_signature(path / n)
    ]
    # transformers reads a whole file rather than the shards beside it, which may be an older state.
    whole = layout.single in weights and not _needs(path / layout.index, layout.single)
    if layout.index in indexes and not whole:
        return _from_index(path / layout.index, path, layout, config)
    if layout.single in weights:
        weights = [layout.single]
    elif len(indexes) == 1:
        return _from_index(path / indexes[0], path, layout, config)
    elif len(indexes) > 1:
        raise SeveralModels(path, indexes)
    if not weights:
        return None
    # The same model as its maker saves it may lie beside.
    converted = [n for n in weights if not n.startswith("consolidated.")]
    refuse_ranks(path / (converted or weights)[0])
    splits = {split_name(n): n for n in reversed(converted or weights)}
    if len(splits) > 1:
        raise SeveralModels(path, sorted(splits.values()))
    weights = converted or weights
    files = _split_files(path / weights[0])
    notes: tuple[str, ...] = ()
    if layout.index in indexes:
        notes = (
            f"{layout.single} is read, as transformers does, and not the shards that "
            f"{layout.index} names",
        )
    return Source(path, layout.container, files, _config_beside(path, config), notes=notes)


def _needs(index: Path, name: str) -> bool:
    """Whether an index names this file as one of its shards, or is one that must not be trusted."""
    if not _is_file(index):
        return False
    shards = read_json_object(index, what="index").get("weight_map")
    if not isinstance(shards, dict):
        return True
    return any(
        not isinstance(shard, str) or Path(shard).name != shard or shard == name
        for shard in shards.values()
    )


def _from_index(
    index: Path, named: Path, layout: Layout, config: Mapping[str, Any] | None
) -> Source:
    weight_map = read_json_object(index, what="index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError("the index has no 'weight_map'", path=index)
    folder = index.parent
    files: dict[str, Path] = {}
    for tensor, name in weight_map.items():
        # An index comes with the download: it may name only its own directory's files.
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise FormatError(
                f"the index names a file outside its directory: {name!r}",
                path=index,
                tensor=tensor,
                hint="do not trust this checkpoint",
            )
        files[name] = folder / name
    plain = all(len(n) < 256 and n.isprintable() and n.endswith(layout.suffixes) for n in files)
    if plain and not any(_is_file(file) for file in files.values()):
        name, file = next(iter(files.items()))
        raise _NoShards(
            f"shard '{name}' named by {index.name} is missing, as all others are",
            path=file,
            hint="download the files",
            index=index.name,
        )
    for name, file in files.items():
        if not _is_file(file):
            there = _exists(file)
            raise NotFetched(
                f"shard '{name}' named by {index.name} is {'no file' if there else 'missing'}",
                path=file,
                hint=f"{'remove it and ' if there else ''}download the missing file",
            )
    return Source(
        named,
        layout.container,
        tuple(files[n] for n in sorted(files)),
        _config_beside(folder, config),
        MappingProxyType({tensor: files[name] for tensor, name in weight_map.items()}),
    )


def _split_files(path: Path) -> tuple[Path, ...]:
    """The file, or all shards of the model it is a part of; NotFetched if one is missing."""
    match = SHARD.fullmatch(path.name)
    if match is None:
        refuse_ranks(path)
        return (path,)
    split = split_name(path.name)
    beside = (SHARD.fullmatch(f.name) for f in path.parent.iterdir() if f.suffix == path.suffix)
    names = {int(m["number"]): m.string for m in beside if m and split_name(m.string) == split}
    first = 0 if 0 in names else 1
    for number in range(first, first + min(int(match["count"]), _MOST_SHARDS)):
        if number not in names:
            width = len(match["number"])
            name = f"{match['stem']}{number:0{width}d}-of-{match['count']}{match['suffix']}"
            raise NotFetched(
                "shard is missing", path=path.parent / name, hint="download the missing file"
            )
    return tuple(path.parent / names[number] for number in sorted(names))


def _config_beside(folder: Path, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if given is not None:
        return given
    beside = folder / "config.json"
    if beside.exists():
        return read_json_object(beside, what="configuration")
    return config_of_params(folder)


def _nothing(path: Path, names: list[str]) -> NothingAnalysable:
    if any(ADAPTER_WEIGHTS.fullmatch(n) for n in names):
        refuse_adapter(path)
    if any(NOT_A_MODEL.fullmatch(n) for n in names):
        return NothingAnalysable(
            "the directory holds a training state and no model",
            path=path,
            hint="name the directory that holds config.json and the weights",
        )
    return NothingAnalysable(
        "the directory holds no .safetensors, .bin, .pt, .pth or .gguf file",
        path=path,
        hint="name the directory that holds config.json and the weights",
    )
