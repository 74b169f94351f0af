"""GGUF files for transformers: its configuration, its tokenizer, its names of the tensors.

How GGUF's metadata and names become those of a transformers class is transformers' own knowledge.
Weights come from this package's readers, so that every type and every split file can be run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ckptforensics.arrays import Floats
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.errors import NothingAnalysable
from ckptforensics.runtime import libraries
from ckptforensics.tensors.containers.gguf import GgufArray

_TOKENS = "tokenizer.ggml.tokens"


def gguf_config(checkpoint: Checkpoint) -> Any:
    """The transformers configuration of a GGUF file; NothingAnalysable if transformers has none."""
    fields = _parsed(checkpoint)["config"]
    configs = libraries.transformers().AutoConfig
    return configs.for_model(fields.pop("model_type"), **fields)


def gguf_tensors(checkpoint: Checkpoint, model: Any) -> Iterator[tuple[str, Floats]]:
    """Name in the transformers class and weights of every tensor, laid out as the class wants it.

    Parameters
    ----------
    model : an instance of the class, whose own weights are not looked at
    """
    loading = libraries.transformers("modeling_gguf_pytorch_utils")
    parsed = _parsed(checkpoint)
    kind = loading.TENSOR_PROCESSORS.get(_architecture(checkpoint), loading.TensorProcessor)
    processor = kind(config=parsed["config"])
    with _one_name_map():
        names = loading.get_gguf_hf_weights_map(model, processor)
    # Some processors gather the parts of a stacked tensor here.
    parsed["tensors"] = {}
    for name in checkpoint.store:
        made = processor.process(
            weights=checkpoint.store.read(name),
            name=name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        if made.name in names:
            yield names[made.name], made.weights
    for name, tensor in parsed["tensors"].items():
        yield name, tensor.float().numpy()


def _architecture(checkpoint: Checkpoint) -> str:
    return str(checkpoint.store.metadata["general.architecture"])


def _parsed(checkpoint: Checkpoint) -> dict[str, Any]:
    """What transformers reads from the metadata.

    Its reader takes half a minute for the strings of a large vocabulary, so it is given a file
    with the same header but for these.
    """
    loading = libraries.transformers("modeling_gguf_pytorch_utils")
    with tempfile.TemporaryDirectory() as folder:
        header = Path(folder) / "header.gguf"
        _write_header(header, checkpoint.store.metadata, tuple(checkpoint.store))
        try:
            parsed: dict[str, Any] = loading.load_gguf_checkpoint(str(header))
        except (ValueError, KeyError, NotImplementedError) as problem:
            raise NothingAnalysable(
                f"transformers cannot run GGUF files of the architecture "
                f"'{_architecture(checkpoint)}' ({problem})",
                path=checkpoint.source.path,
                hint="give the same model as safetensors with its config.json",
            ) from None
    parsed["config"].pop("_model_name_or_path", None)
    return parsed


@contextmanager
def _one_name_map() -> Iterator[None]:
    """Let the package gguf make a table of names once: transformers asks for every submodule."""
    import gguf

    made = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(made)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = made


def _write_header(file: Path, metadata: Mapping[str, Any], tensors: tuple[str, ...]) -> None:
    import gguf
    import numpy as np

    architecture = str(metadata["general.architecture"])
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in metadata.items():
        if key == "general.architecture" or isinstance(value, GgufArray):
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_int64 if value < 0 else writer.add_uint64)(key, value)
        elif isinstance(value, float):
            writer.add_float64(key, value)
        else:
            writer.add_string(key, str(value))
    vocabulary, size = metadata.get(_TOKENS), f"{architecture}.vocab_size"
    if isinstance(vocabulary, GgufArray) and size not in metadata:
        writer.add_uint64(size, vocabulary.length)
    for name in tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
