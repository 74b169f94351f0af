"""Checkpoints of a chosen shape with RANDOM weights and planted defects, written shard by shard.

    python -m benchmarks.shapes DIR [--hidden 4096 --ffn 11008 --layers 32]

Nothing in them was trained. What a trained layer has and a plain Gaussian one lacks is imitated:
the sizes of neurons and value channels spread log-normally, so that spectra fall off as in real
models (the benchmark prints how many steps they took), one neuron of the explosion layer answers
what all embeddings share and writes a large multiple of one direction, one of the decay layer takes
most of it off.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file

Array = np.ndarray

# How far the neurons' sizes spread: standard deviation of the logarithm.
_SPREAD = 0.6
_SEED = 20250711


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA-like model; planted layers explode and, the last but one, decay.

    With a period, layers repeat but for what is planted, so that deeper models do the same work;
    a plain model has nothing planted, so that its layers do.
    """

    hidden: int
    ffn: int
    layers: int
    vocabulary: int = 32000
    kv_share: int = 1  # query heads to a key-value head
    head_dim: int = 128
    period: int | None = None
    plain: bool = False
    seed: int = _SEED

    @property
    def explosion(self) -> int:
        """The layer, from 1, that explodes."""
        return min(2, self.layers)

    @property
    def decay(self) -> int | None:
        """The layer that decays; None in a model too shallow for one."""
        return self.layers - 1 if self.layers > 3 else None

    @property
    def layer_parameters(self) -> int:
        """Weights of a layer."""
        kv = self.hidden // self.kv_share
        return 2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """Weights of all layers and the embeddings."""
        return self.layers * self.layer_parameters + self.vocabulary * self.hidden


LLAMA2_7B = Shape(4096, 11008, 32)


def write(folder: Path, shape: Shape) -> Path:
    """Write `config.json` and one BF16 shard a layer."""
    folder.mkdir(parents=True, exist_ok=True)
    heads = shape.hidden // shape.head_dim
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // shape.kv_share,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = np.random.default_rng(shape.seed)
    direction, shared = _planted_directions(generator, shape.hidden)
    names: dict[str, str] = {}
    for layer in range(shape.layers + 1):
        if layer == 0:
            tensors = _outer_tensors(generator, shape, shared)
        else:
            if shape.period is not None:
                generator = np.random.default_rng([shape.seed, layer % shape.period])
            tensors = _layer_tensors(generator, shape, layer, direction, shared)
        file = f"model-{layer + 1:05d}-of-{shape.layers + 1:05d}.safetensors"
        save_file(tensors, folder / file)
        names |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _planted_directions(generator: np.random.Generator, hidden: int) -> tuple[Array, Array]:
    direction = generator.standard_normal(hidden) * 0.4 / hidden**0.5
    direction[17] = 1.0
    direction /= np.linalg.norm(direction)
    shared = generator.standard_normal(hidden)
    shared -= direction * (direction @ shared)
    return direction, shared / np.linalg.norm(shared)


def _random(generator: np.random.Generator, rows: int, columns: int, scale: float) -> Array:
    values = generator.standard_normal((rows, columns), dtype=np.float32)
    values *= np.float32(scale)
    return values


def _outer_tensors(
    generator: np.random.Generator, shape: Shape, shared: Array
) -> dict[str, torch.Tensor]:
    embeddings = _random(generator, shape.vocabulary, shape.hidden, 1.0)
    embeddings += (shape.hidden**0.5 * shared).astype(np.float32)
    tensors = {
        "model.embed_tokens.weight": torch.from_numpy(embeddings),
        "lm_head.weight": torch.from_numpy(
            _random(generator, shape.vocabulary, shape.hidden, 0.02)
        ),
        "model.norm.weight": torch.ones(shape.hidden),
    }
    return {name: values.to(torch.bfloat16) for name, values in tensors.items()}


def _layer_tensors(
    generator: np.random.Generator, shape: Shape, layer: int, direction: Array, shared: Array
) -> dict[str, torch.Tensor]:
    hidden, ffn = shape.hidden, shape.ffn
    kv, scale = hidden // shape.kv_share, hidden**-0.5
    reads, writes, neuron = {
        shape.explosion: (4 * shared, 5.0 * direction, 41),
        shape.decay: (4 * direction, -2.0 * direction, 97),
    }.get(0 if shape.plain else layer, (None, None, 0))
    tensors = {}
    # Rows, columns, scale, whether row or column sizes spread: value channels and neurons do.
    for name, rows, columns, size, spread in (
        ("self_attn.q_proj", hidden, hidden, scale, None),
        ("self_attn.k_proj", kv, hidden, scale, None),
        ("self_attn.v_proj", kv, hidden, 0.5 * scale, 0),
        ("self_attn.o_proj", hidden, hidden, 0.5 * scale, 1),
        ("mlp.gate_proj", ffn, hidden, scale, 0),
        ("mlp.up_proj", ffn, hidden, scale, 0),
        ("mlp.down_proj", hidden, ffn, 0.5 * ffn**-0.5, 1),
    ):
        values = _random(generator, rows, columns, size)
        if spread is not None:
            count = (rows, 1) if spread == 0 else (1, columns)
            values *= np.exp(_SPREAD * generator.standard_normal(count, dtype=np.float32))
        if reads is not None and name in ("mlp.gate_proj", "mlp.up_proj"):
            values[neuron] = reads
        elif writes is not None and name == "mlp.down_proj":
            values[:, neuron] = writes
        # One matrix at a time in float32: those of a layer would take twice the file.
        tensors[name] = torch.from_numpy(values).to(torch.bfloat16)
    for name in ("input_layernorm", "post_attention_layernorm"):
        gain = 0.5 + 0.1 * generator.standard_normal(hidden)
        tensors[name] = torch.from_numpy(gain).to(torch.bfloat16)
    prefix = f"model.layers.{layer - 1}."
    return {f"{prefix}{name}.weight": values for name, values in tensors.items()}


def write_q4_k(file: Path, shape: Shape) -> Path:
    """A GGUF file of the shape with random Q4_K blocks: nothing is planted."""
    import gguf

    generator = np.random.default_rng(_SEED)
    writer = gguf.GGUFWriter(file, "llama")
    heads = shape.hidden // shape.head_dim
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads // shape.kv_share)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    kind = gguf.GGMLQuantizationType.Q4_K

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(name, _q4_k(generator, rows, columns), raw_dtype=kind)

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(shape.hidden, np.float32))

    matrix("token_embd.weight", shape.vocabulary, shape.hidden)
    ones("output_norm.weight")
    kv = shape.hidden // shape.kv_share
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", shape.hidden, shape.hidden),
            ("attn_k", kv, shape.hidden),
            ("attn_v", kv, shape.hidden),
            ("attn_output", shape.hidden, shape.hidden),
            ("ffn_gate", shape.ffn, shape.hidden),
            ("ffn_up", shape.ffn, shape.hidden),
            ("ffn_down", shape.hidden, shape.ffn),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
        ones(f"blk.{layer}.attn_norm.weight")
        ones(f"blk.{layer}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _q4_k(generator: np.random.Generator, rows: int, columns: int) -> Array:
    """Random blocks of 256 elements: value = d sc q - dmin m, here around 0, rows of many sizes."""
    blocks = generator.integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
    sizes = np.exp(_SPREAD * generator.standard_normal((rows, 1)))
    # All eight 6-bit scales and minima are 32; q is uniform on 0 to 15.
    d = (sizes * columns**-0.5 / (32 * 4.6)).astype(np.float16)
    blocks[:, :, 0:2] = d.view(np.uint8)[:, None, :]
    blocks[:, :, 2:4] = (7.5 * d).astype(np.float16).view(np.uint8)[:, None, :]
    blocks[:, :, 4:12] = 0b10_100000  # the upper bits belong to the last four
    blocks[:, :, 12:16] = 0
    return blocks.reshape(rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=LLAMA2_7B.hidden)
    parser.add_argument("--ffn", type=int, default=LLAMA2_7B.ffn)
    parser.add_argument("--layers", type=int, default=LLAMA2_7B.layers)
    options = parser.parse_args()
    click.echo(write(options.folder, Shape(options.hidden, options.ffn, options.layers)))


if __name__ == "__main__":
    main()
