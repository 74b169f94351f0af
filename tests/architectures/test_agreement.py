"""Checkpoints that contradict themselves are refused, with both numbers, in one line."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError
from tests.support.containers import run
from tests.support.models import save, tiny_llama


def failed(capsys, *arguments):
    ran = run(capsys, *arguments)
    return ran.code, ran.err


@pytest.fixture
def model(tmp_path):
    return save(tiny_llama(0, attention_bias=False, mlp_bias=False), tmp_path / "model")


def configure(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 2}, "says 2 layers, and the files hold 3"),
        ({"num_hidden_layers": 5}, "says 5 layers, and the files hold 3"),
        ({"vocab_size": 7}, "vocab_size is 7"),
        ({"bos_token_id": 99_999}, "begin-of-sequence token is 99,999"),
    ],
)
def test_sizes_of_the_configuration(model, changes, told, capsys):
    configure(model, **changes)
    code, err = failed(capsys, "sign", str(model))
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


def test_a_gap_in_the_layers_is_a_part_of_a_model(model):
    tensors = {n: t for n, t in tensors_of(model).items() if ".layers.1." not in n}
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(FormatError, match="layer 2 has no tensors, though later ones have"):
        open_checkpoint(model)


def test_heads_that_the_tensors_contradict(model):
    config = json.loads((model / "config.json").read_text())
    heads = 2 * config["num_attention_heads"]
    configure(model, num_attention_heads=heads, num_key_value_heads=heads)
    with pytest.raises(FormatError, match="heads are"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("setting", "name"), [("attention_bias", "self_attn.q_proj"), ("mlp_bias", "mlp.up_proj")]
)
def test_biases_that_the_configuration_denies(model, setting, name):
    tensors = tensors_of(model)
    weight = tensors[f"model.layers.0.{name}.weight"]
    tensors[f"model.layers.0.{name}.bias"] = np.ones(len(weight), np.float32)
    save_file(tensors, model / "model.safetensors")
    configure(model, **{setting: False})
    with pytest.raises(FormatError, match=f"{setting} is false"):
        open_checkpoint(model)


def test_a_whole_file_goes_before_the_shards_of_an_index_beside_it(model, capsys):
    """transformers reads model.safetensors; the index may be that of an older state."""
    index = {"weight_map": dict.fromkeys(tensors_of(model), "model-00001-of-00001.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(model)
    assert [file.name for file in checkpoint.source.files] == ["model.safetensors"]
    ran = run(capsys, "inspect", str(model))
    assert ran.code == 0
    assert "as transformers does" in " ".join(ran.out.split())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_the_configuration_does_not_hang(model, capsys):
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    code, err = failed(capsys, "inspect", str(model))
    assert code == 2
    assert "not a regular file" in err


def test_a_link_that_leads_nowhere_is_no_absence(model):
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(model / "gone.json")
    with pytest.raises(FormatError, match="leads nowhere"):
        open_checkpoint(model)


def rewritten(model, change):
    """The weights with another header."""
    path = model / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def test_headers_that_the_reference_library_reads_are_read(model):
    rewritten(model, lambda h: {**h, "__metadata__": None})
    assert open_checkpoint(model).store.metadata == {}
    name = "model.norm.weight"
    rewritten(model, lambda h: {**h, name: {**h[name], "extra": 1}})
    open_checkpoint(model)


def test_a_header_of_a_million_tensors_is_refused_at_once(tmp_path):
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(f'"{i}":{entry}' for i in range(600_000)) + "}").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FormatError, match="lists 600,000 tensors"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"intermediate_size": 99}, "takes 53 units, and intermediate_size is 99"),
        ({"num_key_value_heads": 3}, "3 key-value heads by the configuration, and 2 of width 10"),
    ],
)
def test_widths_and_heads_that_the_tensors_contradict(model, changes, told, capsys):
    configure(model, **changes)
    code, err = failed(capsys, "sign", str(model))
    assert code == 2
    assert told in err


@pytest.mark.parametrize("kept", ["head_dim", "num_key_value_heads"])
def test_a_head_count_that_is_left_out_follows_from_the_widths(model, kept):
    other = {"head_dim", "num_key_value_heads"} - {kept}
    configure(model, num_attention_heads=None, **dict.fromkeys(other))
    sizes = open_checkpoint(model).architecture.sizes
    assert (sizes.num_heads, sizes.num_kv_heads, sizes.head_dim) == (6, 2, 10)


def test_a_shard_stands_for_all_of_them(tmp_path):
    folder = save(tiny_llama(), tmp_path / "m", shards=3)
    shards = sorted(folder.glob("*.safetensors"))
    assert open_checkpoint(shards[0]).source.files == tuple(shards)
    (folder / "model.safetensors.index.json").unlink()
    assert open_checkpoint(shards[1]).source.files == tuple(shards)
    shards[2].unlink()
    for given in (folder, shards[0]):
        with pytest.raises(FormatError, match="shard is missing"):
            open_checkpoint(given)


@pytest.mark.parametrize(
    ("first", "digits"), [(0, 5), (1, 6)], ids=["numbered from 0", "six digits"]
)
def test_shards_named_otherwise(tmp_path, first, digits):
    folder = save(tiny_llama(), tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    shards = sorted(folder.glob("*.safetensors"))
    for number, shard in enumerate(shards, first):
        shard.rename(folder / f"model-{number:05d}-of-{len(shards):0{digits}d}.safetensors")
    assert len(open_checkpoint(folder).source.files) == len(shards)


def test_an_index_whose_shards_are_gone(model, tmp_path):
    (model / "model.safetensors").rename(model / "output.safetensors")
    weights = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(weights))
    source = open_checkpoint(model).source
    assert source.files == (model / "output.safetensors",)
    assert "the files that model.safetensors.index.json names are not there" in source.notes[0]
    (model / "output.safetensors").unlink()
    with pytest.raises(FormatError, match="is missing, as all others are"):
        open_checkpoint(model)
