"""Make `fixtures/planted`: a small LLaMA-shaped checkpoint of RANDOM weights with a planted defect.

    python -m tools.make_planted [DIR]

Nothing in it was trained. One neuron of layer 3 answers a component that all embeddings share and
writes a large multiple of one direction (explosion); one neuron of layer 7 answers that direction
and takes most of it off again (decay). The file is the same on every machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

EXPLOSION_LAYER = 3
DECAY_LAYER = 7
DIRECTION_COORDINATE = 17

_HIDDEN, _FFN, _LAYERS, _VOCABULARY = 64, 160, 8, 256
_HEADS, _KV_HEADS, _HEAD_DIM = 4, 2, 16

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": _HIDDEN,
    "intermediate_size": _FFN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "head_dim": _HEAD_DIM,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 128,
    "vocab_size": _VOCABULARY,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}


def planted_tensors() -> dict[str, np.ndarray]:
    """The weights in float32, by their Hugging Face names."""
    generator = np.random.default_rng(20250711)

    def random(*shape: int, scale: float) -> np.ndarray:
        return generator.standard_normal(shape) * scale

    direction = random(_HIDDEN, scale=0.05)
    direction[DIRECTION_COORDINATE] = 1.0
    direction /= np.linalg.norm(direction)
    shared = random(_HIDDEN, scale=1.0)
    shared -= direction * (direction @ shared)
    shared /= np.linalg.norm(shared)

    tensors = {"model.embed_tokens.weight": random(_VOCABULARY, _HIDDEN, scale=0.5) + 2 * shared}
    for layer in range(1, _LAYERS + 1):
        prefix = f"model.layers.{layer - 1}."
        gate = random(_FFN, _HIDDEN, scale=0.1)
        up = random(_FFN, _HIDDEN, scale=0.1)
        down = random(_HIDDEN, _FFN, scale=0.05)
        if layer == EXPLOSION_LAYER:
            gate[41], up[41], down[:, 41] = 2 * shared, 2 * shared, 20 * direction
        if layer == DECAY_LAYER:
            gate[97], up[97], down[:, 97] = 2 * direction, 2 * direction, -1.2 * direction
        tensors |= {
            prefix + "input_layernorm.weight": 1 + random(_HIDDEN, scale=0.1),
            prefix + "self_attn.q_proj.weight": random(_HEADS * _HEAD_DIM, _HIDDEN, scale=0.1),
            prefix + "self_attn.k_proj.weight": random(_KV_HEADS * _HEAD_DIM, _HIDDEN, scale=0.1),
            prefix + "self_attn.v_proj.weight": random(_KV_HEADS * _HEAD_DIM, _HIDDEN, scale=0.1),
            prefix + "self_attn.o_proj.weight": random(_HIDDEN, _HEADS * _HEAD_DIM, scale=0.05),
            prefix + "post_attention_layernorm.weight": 1 + random(_HIDDEN, scale=0.1),
            prefix + "mlp.gate_proj.weight": gate,
            prefix + "mlp.up_proj.weight": up,
            prefix + "mlp.down_proj.weight": down,
        }
    tensors["model.norm.weight"] = np.ones(_HIDDEN)
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def write(folder: Path) -> Path:
    """Write the checkpoint: `config.json` and `model.safetensors` in BF16."""
    from tools.smollm2 import save_tensors

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    note = "random weights with a planted explosion and decay layer"
    save_tensors(planted_tensors(), folder / "model.safetensors", "BF16", note=note)
    return folder


if __name__ == "__main__":
    print(
        write(
            Path(sys.argv[1])
            if len(sys.argv) > 1
            else Path(__file__).parents[1] / "fixtures" / "planted"
        )
    )
