"""GGUF: names against the tables of the gguf package, and the same rollout from both containers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import ckptforensics
from ckptforensics.architectures.schema import Family, Layout, families
from ckptforensics.layers import Block, Ffn, load_block
from tests.families.harness import Case, build_model, relative_errors, rollout_states, save_model
from tests.families.test_families import CASES, TOKENS

ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
CLAIMED = [
    (family.gguf, name)
    for family in families().values()
    if family.gguf is not None
    for name in family.gguf_architectures
]
# One case a family: its first.
DENSE = {case.family: case for case in reversed(CASES) if families()[case.family].gguf is not None}


@pytest.mark.parametrize(("layout", "name"), CLAIMED, ids=[name for _, name in CLAIMED])
def test_names_are_those_of_the_format(layout: Layout, name: str) -> None:
    tensors = gguf.MODEL_TENSORS[ARCHITECTURES[name]]
    known = {gguf.TENSOR_NAMES[tensor].replace("{bid}", "{layer}") for tensor in tensors}
    for role, spec in layout.tensors.items():
        names = {layout.block + name for name in spec.name}
        assert names & known or spec.optional, role


@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE)
def test_rollout_of_gguf_equals_that_of_safetensors(case: Case, tmp_path: Path) -> None:
    """The same weights under GGUF's names and metadata keys, as its own writer spells them."""
    folder = save_model(build_model(case), tmp_path / "hf", case)
    checkpoint = ckptforensics.open_checkpoint(folder)
    family, sizes = checkpoint.architecture.family, checkpoint.architecture.sizes
    blocks = [load_block(checkpoint, layer + 1) for layer in range(sizes.num_layers)]
    embedding = checkpoint.architecture.embedding
    assert embedding is not None
    if reason := next(filter(None, map(_unwritten, blocks)), ""):
        pytest.skip(reason)
    if embedding.positions is not None or embedding.norm is not None:
        pytest.skip("the test writes token embeddings only")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, family.gguf_architectures[0])
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_layers)
    writer.add_head_count(sizes.num_heads)
    writer.add_head_count_kv(sizes.num_kv_heads)
    if family.norm.kind == "rms":
        writer.add_layer_norm_rms_eps(checkpoint.architecture.eps)
    else:
        writer.add_layer_norm_eps(checkpoint.architecture.eps)
    if checkpoint.architecture.value_clip is not None:
        writer.add_clamp_kqv(checkpoint.architecture.value_clip)
    if family.embedding_scale.gguf_key is not None:
        writer.add_embedding_scale(checkpoint.architecture.embedding_scale)
    if family.attention_scale.gguf_key is not None:
        writer.add_residual_scale(checkpoint.architecture.attention_scale)
    writer.add_tensor("token_embd.weight", checkpoint.store.read(embedding.tokens))
    for number, block in enumerate(blocks):
        for name, array in _tensors(family, block, sizes.num_heads).items():
            writer.add_tensor(f"blk.{number}.{name}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    opened = ckptforensics.open_checkpoint(path)
    assert opened.architecture.family.name == case.family
    assert opened.architecture.source == "gguf"
    errors = relative_errors(rollout_states(path, TOKENS), rollout_states(folder, TOKENS))
    assert errors.max() < 1e-6


def _unwritten(block: Block) -> str:
    """Why the test cannot write a block."""
    attention = block.attention
    if attention is None or not isinstance(block.ffn, Ffn):
        return "the test writes attention and one FFN"
    if attention.latent is not None or attention.sink is not None or attention.gate is not None:
        return "the test writes plain attention"
    return ""


def _tensors(family: Family, block: Block, num_heads: int) -> dict[str, np.ndarray]:
    """A block's tensors as the family's GGUF layout has them; shares of others are zeros."""
    attention, ffn = block.attention, block.ffn
    assert attention is not None
    assert isinstance(ffn, Ffn)
    assert family.gguf is not None
    whole = {
        "attention_norm": attention.norm,
        "value": attention.value,
        "output": attention.output,
        "attention_post_norm": attention.post_norm,
        "ffn_norm": ffn.norm,
        "ffn_post_norm": ffn.post_norm,
        "gate": ffn.gate,
        "up": ffn.up,
        "down": ffn.down,
    }
    # The norms behind the sum play the roles of those before the branches.
    if attention.norm is None:
        whole["attention_norm"] = attention.after_norm
    if ffn.norm is None:
        whole["ffn_norm"] = ffn.after_norm
    found: dict[str, np.ndarray] = {}
    for role, spec in family.gguf.tensors.items():
        part = whole.get(role)  # experts have tests of their own
        if part is None:
            assert spec.optional
            continue
        weight = part.gain - family.gguf.gain_offset if hasattr(part, "gain") else part.weight
        for array, suffix in ((weight, spec.suffix), (part.bias, spec.bias_suffix)):
            if array is None:
                continue
            name = spec.name[0] + suffix
            if spec.take == "qkv:v":
                queries_and_keys = num_heads * attention.head_dim + len(array)
                array = np.concatenate([np.zeros((queries_and_keys, *array.shape[1:])), array])
            elif spec.take == "half:2":
                array = np.concatenate([found[name], array])
            found[name] = array.astype(np.float32)
    return found
