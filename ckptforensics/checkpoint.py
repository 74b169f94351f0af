"""An opened checkpoint: its files, its tensors and what architecture they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ckptforensics.architectures import Architecture, resolve
from ckptforensics.errors import UnknownFamily
from ckptforensics.sources import Source, is_hub_id, locate, locate_adapter, locate_on_hub
from ckptforensics.tensors import TensorStore, merge_adapter, open_store, wrap_quantized


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
    store: TensorStore
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
        `org/name[@revision]` on the Hugging Face Hub, of which only the ranges needed are read
    config : a `config.json` to use in place of the one beside the weights
    offline : look for a repository in the local cache only
    strict : refuse a family that is only inferred from names and shapes
    base : what `model`, a directory with a LoRA or DoRA adapter of PEFT, is merged onto while it
        is read; `config` is then the base's

    Raises
    ------
    CkptError
        `UsageError` if `model` does not exist or holds several models, `NothingAnalysable` if it
        holds none that is supported, `FormatError` or `TensorError` if it is damaged.
    """
    adapter = None if base is None else locate_adapter(model)
    named = model if base is None else base
    if is_hub_id(named):
        source = locate_on_hub(str(named), config, offline=offline)
    else:
        source = locate(named, config)
    store = wrap_quantized(open_store(source), source.config)
    if adapter is not None:
        store = merge_adapter(store, open_store(adapter), adapter.config or {})
        files = (*source.files, *adapter.files)
        source = replace(source, path=adapter.path, files=files, base=source.path)
    architecture = resolve(store, source.config)
    if strict and architecture.source == "inferred":
        raise UnknownFamily(
            f"the family '{architecture.family.name}' is only inferred, which --strict refuses",
            path=source.path,
            hint="leave --strict out to analyse it all the same",
        )
    return Checkpoint(source, store, architecture)
