"""An opened checkpoint: its files, its tensors and what architecture they make."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptforensics.architectures import Architecture, resolve, unwrapped
from ckptforensics.errors import CkptError, UnknownFamily, UsageError
from ckptforensics.sources import (
    RemoteFiles,
    Source,
    is_hub_id,
    is_url,
    locate,
    locate_adapter,
    locate_at_url,
    locate_on_hub,
)
from ckptforensics.tensors import TensorReader, open_files
from ckptforensics.tensors.adapters import merge_adapter
from ckptforensics.tensors.quantized import wrap_quantized


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers are read and whose weights are not.

    Attributes
    ----------
    source : the files
    store : read access to the tensors
    architecture : family, sizes and the tensors of each block
    """

    source: Source
    store: TensorReader
    architecture: Architecture


def open_checkpoint(
    model: str | Path,
    *,
    config: str | Path | None = None,
    offline: bool = False,
    strict: bool = False,
    base: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint by reading its headers.

    Parameters
    ----------
    model : directory with `config.json` and weights, one `.safetensors`, `.bin`, `.pt`, `.pth` or
        `.gguf` file, an index of shards (`.safetensors.index.json`, `.bin.index.json`), or
        `org/name[@revision]` on the Hugging Face Hub or a URL that fsspec reads, such as
        `s3://bucket/models/x`, of which only the ranges needed are read
    config : a `config.json` to use in place of the one beside the weights
    offline : look for a repository in the local cache only
    strict : refuse a family that is only inferred from names and shapes
    base : what `model`, a directory or repository with a LoRA or DoRA adapter of PEFT, is merged
        onto while it is read; `config` is then the base's

    Raises
    ------
    CkptError
        `UsageError` if `model` does not exist or holds several models, `NothingAnalysable` if it
        holds none that is supported, `FormatError` or `TensorError` if it is damaged.
    """
    adapter = None
    if base is not None:
        adapter = _located(model, None, offline, adapter=True)
    named = model if base is None else base
    source = _located(named, config, offline)
    if config is not None and source.container == "gguf":
        raise UsageError(
            "a GGUF file tells what it is itself, and --config is not read",
            path=source.path,
            hint="leave --config out",
        )
    if adapter is not None:
        remote = _one_transfer(source, adapter)
        source, adapter = replace(source, remote=remote), replace(adapter, remote=remote)
    files, notes = unwrapped(open_files(source), source.config)
    source = replace(source, notes=(*source.notes, *notes))
    store = wrap_quantized(files, source.config)
    if adapter is not None:
        layouts = _layouts(store, source.config)
        store = merge_adapter(store, open_files(adapter), adapter.config or {}, layouts)
        source = _together(source, adapter)
    architecture = resolve(store, source.config)
    if strict and architecture.source == "inferred":
        raise UnknownFamily(
            f"the family '{architecture.family.name}' is only inferred, which --strict refuses",
            path=source.path,
            hint="leave --strict out to analyse it all the same",
        )
    return Checkpoint(source, store, architecture)


def _located(
    model: str | Path, config: str | Path | None, offline: bool, *, adapter: bool = False
) -> Source:
    """The files of what the user named, wherever it is."""
    if is_hub_id(model):
        return locate_on_hub(str(model), config, offline=offline, adapter=adapter)
    if is_url(model):
        return locate_at_url(str(model), config, offline=offline, adapter=adapter)
    return locate_adapter(model) if adapter else locate(model, config)


def _layouts(base: TensorReader, config: Mapping[str, Any] | None) -> dict[str, bool]:
    """Weights of an adapter's base to whether they are stored as (in, out), where that is known."""
    with suppress(CkptError):  # what is wrong with the base is wrong with both together
        plans = resolve(base, config).layers
        return {ref.weight: ref.transposed for plan in plans for ref in plan.refs.values()}
    return {}


def _one_transfer(*sources: Source) -> RemoteFiles | None:
    """The mirrors of all sources, None if there are none."""
    remotes = [source.remote for source in sources if isinstance(source.remote, RemoteFiles)]
    files = {path: mirror for remote in remotes for path, mirror in remote.files.items()}
    return RemoteFiles(files) if files else None


def _together(base: Source, adapter: Source) -> Source:
    """The files of an adapter and its base; the path, and the commit if any, are the adapter's."""
    named = str(base.path)
    # A revision that was named, or is named with a file, is left as it is.
    plain = base.commit is not None and "@" not in named and named.count("/") == 1
    return replace(
        base,
        path=adapter.path,
        files=(*base.files, *adapter.files),
        base=Path(f"{named}@{base.commit}") if plain else base.path,
        commit=adapter.commit,
        sha256={**base.sha256, **adapter.sha256},
    )
