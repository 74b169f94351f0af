"""Checkpoint files for tests: valid ones by other people's writers, broken ones byte by byte."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckptforensics.cli.main import main
from ckptforensics.errors import CkptError
from ckptforensics.sources import Source
from ckptforensics.tensors import FileReader, open_files

LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
}


@dataclass(frozen=True)
class Ran:
    """What one run of the command line left behind."""

    code: int
    out: str
    err: str


def run(capsys: Any, *arguments: object) -> Ran:
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err)


def assert_one_error(ran: Ran, code: int, *words: str) -> None:
    """One line on stderr, nothing on stdout, and the words that tell the user what is wrong."""
    assert ran.err.startswith("ckpt: error: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err[:-1].isprintable()
    assert "Traceback" not in ran.err
    assert "internal error" not in ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err
    assert ran.code == code


def store_of(*paths: Path, weight_map: dict[str, Path] | None = None) -> FileReader:
    container = "gguf" if paths[0].suffix == ".gguf" else "safetensors"
    return open_files(Source(paths[0], container, paths, None, weight_map))


def attempt(action: Callable[[], Any]) -> Any:
    """What the action returns, or the printable text of the CkptError it raises; no other error."""
    try:
        return action()
    except CkptError as error:
        text = str(error)
    assert text.isprintable()
    return text


def pack(
    header: dict[str, Any] | bytes | str, buffer: bytes, *, length: int | None = None
) -> bytes:
    """A safetensors file with this header, however wrong it is."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + buffer


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def llama_arrays(
    *, d: int = 8, ffn: int = 12, layers: int = 2, vocabulary: int = 10
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    arrays = {"model.embed_tokens.weight": matrix(vocabulary, d)}
    for i in range(layers):
        block = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            arrays[f"{block}self_attn.{name}.weight"] = matrix(d, d)
        arrays[f"{block}mlp.gate_proj.weight"] = matrix(ffn, d)
        arrays[f"{block}mlp.up_proj.weight"] = matrix(ffn, d)
        arrays[f"{block}mlp.down_proj.weight"] = matrix(d, ffn)
        for name in ("input_layernorm", "post_attention_layernorm"):
            arrays[f"{block}{name}.weight"] = np.ones(d, np.float32)
    arrays["model.norm.weight"] = np.ones(d, np.float32)
    return arrays


class Model:
    """A small checkpoint directory that a test may damage."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray], config: dict[str, Any] | None):
        from safetensors.numpy import save_file

        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.weights = path / "model.safetensors"
        save_file(arrays, self.weights)
        if config is not None:
            self.write_config(config)

    @classmethod
    def llama(cls, path: Path, **changes: Any) -> Model:
        return cls(path, llama_arrays(), {**LLAMA_CONFIG, **changes})

    def write_config(self, config: Any) -> None:
        text = config if isinstance(config, str) else json.dumps(config)
        (self.path / "config.json").write_text(text, encoding="utf-8")

    def write_index(self, weight_map: Any) -> None:
        text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
        (self.path / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def shard(self, count: int = 2) -> dict[str, str]:
        """Split the weights into `count` shards with an index; returns its weight_map."""
        from safetensors.numpy import load_file, save_file

        arrays = load_file(self.weights)
        self.weights.unlink()
        weight_map = {}
        for i in range(count):
            file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            part = {n: arrays[n] for n in sorted(arrays)[i::count]}
            save_file(part, self.path / file)
            weight_map |= dict.fromkeys(part, file)
        self.write_index(weight_map)
        return weight_map

    def header(self) -> tuple[dict[str, Any], bytes]:
        return unpack(self.weights.read_bytes())

    def repack(self, header: dict[str, Any] | bytes | str, buffer: bytes, **how: Any) -> None:
        self.weights.write_bytes(pack(header, buffer, **how))

    def poke(self, tensor: str, row: int, column: int, value: float) -> None:
        """Overwrite one F32 element in place."""
        header, _ = self.header()
        begin = 8 + struct.unpack("<Q", self.weights.read_bytes()[:8])[0]
        place = header[tensor]
        index = row * place["shape"][-1] + column
        data = bytearray(self.weights.read_bytes())
        struct.pack_into("<f", data, begin + place["data_offsets"][0] + 4 * index, value)
        self.weights.write_bytes(data)

    def copy(self, path: Path) -> Path:
        return Path(shutil.copytree(self.path, path))


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
    "lm_head": "output",
}


def write_model_gguf(
    path: Path,
    arrays: dict[str, np.ndarray],
    config: dict[str, Any],
    encoding: str | None = None,
) -> Path:
    """A LLaMA of any size as GGUF by gguf's own writer, without a vocabulary.

    With an `encoding` such as Q4_0 the matrices of layers are stored by gguf's own encoder.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10_000.0))
    for name, array in arrays.items():
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if encoding is not None and array.ndim == 2 and name.startswith("blk"):
            kind = gguf.GGMLQuantizationType[encoding]
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_llama_gguf(path: Path, arrays: dict[str, np.ndarray] | None = None, **split: Any) -> Path:
    """The small LLaMA as GGUF by gguf's own writer, with a vocabulary of strings."""
    import gguf

    arrays = arrays or llama_arrays()
    writer = gguf.GGUFWriter(path, "llama", **split)
    writer.add_block_count(2)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(1)
    writer.add_token_list([f"token {i}" for i in range(10)])
    writer.add_token_scores([0.5] * 10)
    for name, array in arrays.items():
        for theirs, ours in _GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
