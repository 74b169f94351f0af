"""Links in a model's directory, and files as Meta and Mistral publish them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import ckptforensics
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.errors import FormatError, NothingAnalysable
from ckptforensics.findings import sign
from ckptforensics.tokens import read_vocabulary
from tests.support.containers import assert_one_error, run
from tests.support.models import save, tiny_llama


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_directory_is_refused(tmp_path, name):
    folder = save(tiny_llama(), tmp_path / "m")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="leads out of the model's directory"):
        open_checkpoint(folder)


def test_links_that_are_fine(tmp_path):
    folder = save(tiny_llama(), tmp_path / "m")
    (tmp_path / "whole").symlink_to(folder)
    assert open_checkpoint(tmp_path / "whole").architecture.sizes.num_layers == 3
    (folder / "model.safetensors").rename(folder / "inside")
    (folder / "model.safetensors").symlink_to("inside")
    assert open_checkpoint(folder).architecture.sizes.num_layers == 3
    link = tmp_path / "given.safetensors"
    link.symlink_to(folder / "inside")
    opened = open_checkpoint(link, config=folder / "config.json")
    assert opened.architecture.sizes.num_layers == 3


def test_blobs_of_the_cache(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot = save(tiny_llama(), repository / "snapshots" / ("a" * 40))
    blobs = repository / "blobs"
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    assert open_checkpoint(snapshot).architecture.sizes.num_layers == 3


_META = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def original(tmp_path):
    model = tiny_llama(attention_bias=False, mlp_bias=False)
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, metas in _META.items():
            name = name.replace(theirs, metas)
        tensors[name.removeprefix("model.")] = tensor.clone()
    params = {"dim": 36, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "head_dim": 10}
    (tmp_path / "params.json").write_text(json.dumps(params | {"norm_eps": 3e-4, "vocab_size": -1}))
    return save(model, tmp_path / "plain"), tensors


@pytest.mark.parametrize("name", ["consolidated.safetensors", "consolidated.00.pth"])
def test_original_files(tmp_path, name):
    plain, tensors = original(tmp_path)
    (save_file if name.endswith("safetensors") else torch.save)(tensors, tmp_path / name)
    assert sign(tmp_path).document.fingerprint == sign(plain).document.fingerprint
    assert open_checkpoint(tmp_path).architecture.embedding is not None


def test_ranks_are_refused_by_their_name(tmp_path):
    _, tensors = original(tmp_path)
    for rank in range(2):
        torch.save(tensors, tmp_path / f"consolidated.{rank:02d}.pth")
    for given in (tmp_path, tmp_path / "consolidated.01.pth"):
        with pytest.raises(NothingAnalysable, match="one of 2 tensor-parallel ranks"):
            open_checkpoint(given)


@pytest.mark.parametrize("where", ["nowhere", "outside"])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_links_of_a_tokenizer(name, where, planted, tmp_path, capsys):
    """`layers` names tokens, so it reads the vocabulary where there is one."""
    folder = tmp_path / "m"
    shutil.copytree(planted, folder)
    for old in ("tokenizer.json", "vocab.json"):
        (folder / old).unlink(missing_ok=True)
    target = tmp_path / "elsewhere.json"
    if where == "outside":
        target.write_text('{"a": 0}')
    (folder / name).symlink_to(target)
    checkpoint = ckptforensics.open_checkpoint(folder)
    with pytest.raises(FormatError, match="leads"):
        read_vocabulary(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_configuration_beside_a_named_file(name, planted, tmp_path, capsys):
    folder = tmp_path / "m"
    shutil.copytree(planted, folder)
    outside = tmp_path / "other.json"
    (folder / "config.json").rename(outside)
    (folder / name).symlink_to(outside)
    ran = run(capsys, "sign", folder / "model.safetensors")
    assert_one_error(ran, 2, name, "leads out of the model's directory")
