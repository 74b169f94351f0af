"""An opened checkpoint: its files, its tensors and what architecture they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptforensics.architectures import Architecture, resolve
from ckptforensics.sources import Source, locate
from ckptforensics.tensors import TensorStore, open_store


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


def open_checkpoint(model: str | Path, *, config: str | Path | None = None) -> Checkpoint:
    """Open a checkpoint by reading its headers.

    Parameters
    ----------
    model : directory with `config.json` and safetensors, one `.safetensors` or
        `.safetensors.index.json` file, or a `.gguf` file
    config : a `config.json` to use in place of the one beside the weights

    Raises
    ------
    CkptError
        `UsageError` if `model` does not exist or holds several models, `NothingAnalysable` if it
        holds none that is supported, `FormatError` or `TensorError` if it is damaged.
    """
    source = locate(model, config)
    store = open_store(source)
    return Checkpoint(source, store, resolve(store, source.config))
