"""Which blocks are read, in which order, and how one that cannot be read is refused."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ckptforensics.checkpoint import Checkpoint, open_checkpoint
from ckptforensics.errors import NotFinite, NothingAnalysable
from ckptforensics.layers import load_block, memory_needed, stream_blocks
from tests.support.containers import LLAMA_CONFIG, Model, llama_arrays

LAYERS = 3


@pytest.fixture
def model(tmp_path: Path) -> Model:
    config = {**LLAMA_CONFIG, "num_hidden_layers": LAYERS}
    return Model(tmp_path / "model", llama_arrays(layers=LAYERS), config)


def skipping(checkpoint: Checkpoint, *layers: int) -> Checkpoint:
    """The checkpoint with layers of which nothing is analysed."""
    plans = [
        replace(plan, skipped="a layer of noise") if number in layers else plan
        for number, plan in enumerate(checkpoint.architecture.layers, 1)
    ]
    architecture = replace(checkpoint.architecture, layers=tuple(plans))
    return replace(checkpoint, architecture=architecture)


def test_every_block_in_order_with_the_weights_of_its_files(model):
    stored = load_file(model.weights)
    seen = []
    for block in stream_blocks(open_checkpoint(model.path)):
        seen.append(block.layer)
        assert block.prefix == f"model.layers.{block.layer - 1}"
        assert block.attention is not None
        for matrix, name in (
            (block.attention.value, "self_attn.v_proj"),
            (block.attention.output, "self_attn.o_proj"),
            (block.ffn.gate, "mlp.gate_proj"),
            (block.ffn.up, "mlp.up_proj"),
            (block.ffn.down, "mlp.down_proj"),
        ):
            np.testing.assert_array_equal(matrix.weight, stored[f"{block.prefix}.{name}.weight"])
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("layers", [(2,), (1, 3), (3, 1), (2, 2)])
def test_chosen_blocks_come_as_they_were_asked_for(layers, model):
    checkpoint = open_checkpoint(model.path)
    assert tuple(block.layer for block in stream_blocks(checkpoint, layers)) == layers


def test_a_block_is_gone_when_the_next_one_is_there(model):
    blocks = stream_blocks(open_checkpoint(model.path))
    first = weakref.ref(next(blocks))
    second = next(blocks)
    assert (first(), second.layer) == (None, 2)
    blocks.close()


def test_layers_with_nothing_to_analyse_are_left_out(model):
    checkpoint = skipping(open_checkpoint(model.path), 1, 3)
    assert [block.layer for block in stream_blocks(checkpoint)] == [2]
    with pytest.raises(NothingAnalysable, match=r"layer 3 \(model.layers.2\).*a layer of noise"):
        load_block(checkpoint, 3)


def test_a_model_with_nothing_to_analyse_is_refused(model):
    checkpoint = skipping(open_checkpoint(model.path), 1, 2, 3)
    with pytest.raises(NothingAnalysable, match=r"none of the 3 layers.*a layer of noise"):
        next(stream_blocks(checkpoint))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(value, model):
    name = "model.layers.1.mlp.up_proj.weight"
    model.poke(name, 4, 5, value)
    checkpoint = open_checkpoint(model.path)
    assert load_block(checkpoint, 1).layer == 1
    with pytest.raises(NotFinite) as caught:
        load_block(checkpoint, 2)
    assert caught.value.tensor == name


def test_memory_needed_is_that_of_the_largest_block(model):
    """Of what is read of it, as float32 and a third more; there are no experts."""
    arrays = load_file(model.weights)
    unread = ("q_proj", "k_proj")
    elements = sum(
        math.prod(array.shape)
        for name, array in arrays.items()
        if name.startswith("model.layers.0.") and not any(part in name for part in unread)
    )
    assert memory_needed(open_checkpoint(model.path)) == (elements * 16 // 3, 0)
