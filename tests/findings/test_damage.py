"""Damage that leaves every number finite is found where it is, and nothing is found elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.results import DamageRecord, ModelRecord
from tests.support.containers import run
from tests.support.models import save, tiny_gpt2, tiny_llama, write_gguf

DOWN, QUERY = "model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"
OUTPUT = "model.layers.1.self_attn.o_proj.weight"
HEAD, LAST_NORM = "lm_head.weight", "model.norm.weight"
READERS = {
    "inspect": lambda path: ckptforensics.inspect(path).model,
    "sign": lambda path: ckptforensics.sign(path).document.model,
    "layers": lambda path: ckptforensics.find_layers(path).model,
    "norms": lambda path: ckptforensics.rollout(path, tokens=[3]).document.model,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
    return save(tiny_llama(**sizes), tmp_path / "model")


def change(path: Path, **changes: Any) -> None:
    """Rewrite the file by what is done to its tensors, dots in their names as `__`."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, act in changes.items():
        act(tensors[name.replace("__", ".")])
    save_file(tensors, file, metadata={"format": "pt"})


def put(tensor: torch.Tensor, value: float) -> None:
    """Write a value into two elements, in different rows of a matrix."""
    flat = tensor.view(-1)
    flat[9] = flat[-20] = value


def stored_at(file: Path, tensor: str) -> int:
    """First byte of a tensor in the file, found in the header."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    offset: int = json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    return 8 + length + offset


def zero_bytes(file: Path, tensor: str, begin: int, end: int) -> tuple[int, int]:
    """Write zeros over bytes of a tensor; returns the range in the file, found in the header."""
    data, start = bytearray(file.read_bytes()), stored_at(file, tensor)
    data[start + begin : start + end] = bytes(end - begin)
    file.write_bytes(data)
    return start + begin, start + end


def only(record: ModelRecord) -> DamageRecord:
    (found,) = record.damage
    return found


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("tensor", [DOWN, QUERY])
def test_a_hole_is_named_with_rows_and_bytes(command, tensor, model):
    """Queries are read by no command here, so a few of their pages are looked at."""
    file = model / "model.safetensors"
    width = load_file(file)[tensor].shape[1] * 4
    begin, end = zero_bytes(file, tensor, 4 * width + 8, 4 * width + 8 + 9000)
    found = only(READERS[command](model))
    assert (found.tensor, found.file, found.what) == (tensor, "model.safetensors", "zeros")
    assert found.bytes == (begin, end)
    assert found.rows == (4, (4 * width + 8 + 9000 - 1) // width)


@pytest.mark.parametrize("command", READERS)
def test_rows_that_are_repeated(command, model):
    rows = load_file(model / "model.safetensors")[DOWN].clone()
    rows[[9, 40, 41]] = rows[[2, 2, 7]]
    change(model, **{DOWN.replace(".", "__"): lambda t: t.copy_(rows)})
    found = only(READERS[command](model))
    assert (found.tensor, found.what, found.rows, found.count) == (DOWN, "repeated", (2, 9), 3)


@pytest.mark.parametrize("command", ["inspect", "sign"])
def test_constant_matrices(command, model):
    change(model, **{DOWN.replace(".", "__"): lambda t: t.fill_(0.25)})
    found = only(READERS[command](model))
    assert (found.tensor, found.what, found.rows) == (DOWN, "constant", (0, 63))


def test_rows_of_zeros_shorter_than_a_page(model):
    change(model, **{DOWN.replace(".", "__"): lambda t: t[5:8].zero_()})
    found = only(READERS["sign"](model))
    assert (found.what, found.rows, found.bytes[1] - found.bytes[0]) == ("zeros", (5, 7), 3 * 512)


@pytest.mark.parametrize("command", READERS)
def test_layers_that_add_nothing_are_told_as_such(command, model, capsys):
    names = [DOWN, OUTPUT, DOWN.replace("weight", "bias"), OUTPUT.replace("weight", "bias")]
    change(model, **{n.replace(".", "__"): lambda t: t.zero_() for n in names[:2]})
    assert [d.what for d in READERS[command](model).damage] == ["zeros", "zeros"]  # biases remain
    change(model, **{n.replace(".", "__"): lambda t: t.zero_() for n in names})
    found = only(READERS[command](model))
    assert (found.what, found.layer, found.tensor) == ("identity", 2, "model.layers.1")
    ran = run(capsys, "inspect", model, "--strict")
    assert ran.code == 0
    assert "layer 2 (model.layers.1) adds nothing: output and down are zero" in ran.out


def test_strict_refuses_more_than_a_few(model, capsys):
    names = [f"model.layers.{n}.mlp.{m}_proj.weight" for n in (0, 1) for m in ("gate", "up")]
    change(model, **{n.replace(".", "__"): lambda t: t[3:9].zero_() for n in names[:3]})
    assert run(capsys, "sign", model, "--strict").code == 0
    change(model, **{names[3].replace(".", "__"): lambda t: t[3:9].zero_()})
    ran = run(capsys, "sign", model)
    assert ran.code == 0
    assert ran.out.count("hold zeros") == 4
    ran = run(capsys, "sign", model, "--strict", "--format", "json")
    assert ran.code == 2
    assert "--strict: 4 findings of damage" in ran.err


@pytest.mark.parametrize("command", READERS)
def test_sound_models_have_none(command, model, planted, tmp_path):
    gpt2 = save(tiny_gpt2(), tmp_path / "gpt2")
    gguf = write_gguf(tiny_llama(), tmp_path / "m.gguf")
    for path in (model, planted, gpt2, gguf):
        record = READERS[command](path)
        assert record.damage == ()
        assert record.examined is not None
        assert record.examined.not_read == 0


def test_real_models_have_none(smollm2_bf16, smollm2_gguf, gemma3, minilm):
    for path in (smollm2_bf16, smollm2_gguf, gemma3, minilm):
        assert ckptforensics.inspect(path, digest=True).model.damage == ()


@pytest.mark.parametrize("command", READERS)
def test_constants_of_the_architecture_may_be_infinite(command, tmp_path):
    """Masks, as GPT-2's files have them; no weight is among them."""
    path = save(tiny_gpt2(), tmp_path / "m")
    file = path / "model.safetensors"
    tensors = load_file(file)
    mask = torch.full((1, 1, 32, 32), -torch.inf).triu(1)
    for name in ("transformer.h.0.attn.bias", "transformer.h.1.attn.bias"):
        tensors[name] = mask.clone()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-torch.inf)
    save_file(tensors, file, metadata={"format": "pt"})
    assert READERS[command](path).damage == ()


def test_blocks_of_gguf_are_looked_at(tmp_path, smollm2_gguf):
    """A factor of one block of a query that no command reads as numbers."""
    data = bytearray(smollm2_gguf.read_bytes())
    reader = gguf.GGUFReader(smollm2_gguf)
    query = next(t for t in reader.tensors if t.name == "blk.3.attn_q.weight")
    assert query.tensor_type.name == "Q4_1"
    place = query.data_offset + 20 * 40
    data[place : place + 2] = b"\x00\x7e"  # NaN
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    found = only(ckptforensics.inspect(file).model)
    assert (found.tensor, found.what, found.count) == (query.name, "not-finite", 1)
    assert found.bytes == (place, place + 20)
    assert found.rows == (40 // (576 // 32), 40 // (576 // 32))


@pytest.mark.parametrize("command", READERS)
def test_gains_that_let_nothing_through(command, model):
    name = "model.layers.1.input_layernorm.weight"
    change(model, **{name.replace(".", "__"): lambda t: t.zero_()})
    found = only(READERS[command](model))
    assert (found.tensor, found.what, found.rows) == (name, "zeros", (0, 0))
    # Biases may be zero.
    change(model, **{name.replace(".", "__"): lambda t: t.fill_(1.0)})
    biases = [n for n in load_file(model / "model.safetensors") if n.endswith("bias")]
    change(model, **{n.replace(".", "__"): lambda t: t.zero_() for n in biases})
    assert READERS[command](model).damage == ()


def test_gains_that_one_is_added_to_may_be_zero(tmp_path):
    """Gemma's begin as zeros."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    config = transformers.GemmaConfig(**sizes, **heads, bos_token_id=1)
    path = save(transformers.GemmaForCausalLM(config), tmp_path / "m")
    gains = [t for n, t in load_file(path / "model.safetensors").items() if "norm" in n]
    assert gains
    assert not any(gain.any() for gain in gains)
    assert ckptforensics.inspect(path).model.damage == ()


@pytest.mark.parametrize(
    ("size", "last", "level"),
    [(1000, 100, None), (1000, 127, "note"), (1000, 128, "finding"), (256, 156, "finding"),
     (200, 110, "finding"), (20_000, 1024, None), (20_000, 2000, "note")],
)  # fmt: skip
def test_zeros_that_fill_a_vocabulary_up(size, last, level, tmp_path):
    """To a multiple of 128 or so; more of them are damage."""
    path = save(tiny_llama(vocab_size=size), tmp_path / "m")
    change(path, model__embed_tokens__weight=lambda t: t[-last:].zero_())
    found = ckptforensics.inspect(path).model.damage
    assert [(d.what, d.level) for d in found] == ([] if level is None else [("zeros", level)])


@pytest.mark.parametrize(("alike", "level"), [(30, None), (100, "note"), (200, "finding")])
def test_rows_of_a_vocabulary_that_are_alike(alike, level, tmp_path, capsys):
    path = save(tiny_llama(vocab_size=1000), tmp_path / "m")
    change(path, model__embed_tokens__weight=lambda t: t[40 : 41 + alike].copy_(t[40].clone()))
    found = ckptforensics.inspect(path).model.damage
    wanted = [] if level is None else [("repeated", level, alike)]
    assert [(d.what, d.level, d.count) for d in found] == wanted
    said = "unused tokens may be the reason" in run(capsys, "inspect", path).out
    assert said == (level == "note")


def test_a_padding_token_has_a_row_of_zeros(tmp_path):
    """As `padding_idx` of torch leaves it; a hole beside it, and beside padding, is still told."""
    path = save(tiny_llama(vocab_size=300, hidden_size=1200, num_hidden_layers=1), tmp_path / "m")
    change(path, model__embed_tokens__weight=lambda t: (t[1].zero_(), t[-10:].zero_()))
    assert ckptforensics.inspect(path).model.damage == ()
    change(path, model__embed_tokens__weight=lambda t: t[50:54].zero_())
    assert only(ckptforensics.inspect(path).model).rows == (50, 53)


def test_strict_refuses_numbers_that_are_not_finite(model, capsys):
    change(model, **{QUERY.replace(".", "__"): lambda t: put(t, float("nan"))})
    for command in ("inspect", "sign", "layers", "norms"):
        assert run(capsys, command, model).code == 0
        ran = run(capsys, command, model, "--strict", "-q")
        assert ran.code == 2
        assert f"--strict: numbers in {QUERY} are NaN or infinite" in ran.err


def test_what_was_not_looked_at_is_said(model, capsys, monkeypatch):
    monkeypatch.setattr("ckptforensics.findings.inspection._WHOLE_BYTES", 0)
    monkeypatch.setattr("ckptforensics.tensors.damage._GLANCES", 2)
    seen = ckptforensics.inspect(model).model.examined
    assert seen is not None
    assert (seen.whole > 0, seen.sampled > 0, seen.not_read) == (True, True, 0)
    line = f"{seen.whole} weights whole, a few pages of {seen.sampled}"
    assert f"examined      looked at for damage: {line}" in run(capsys, "inspect", model).out
    assert "examined" not in run(capsys, "inspect", model, "--digest").out


def test_rows_of_a_vocabulary_may_be_alike_and_pad_it(model):
    """Tokens that no text has keep the row they began with; tables are filled up with zeros."""
    vocabulary = "model__embed_tokens__weight"

    def unused(table: torch.Tensor) -> None:
        table[10] = table[11]
        table[-5:] = 0

    change(model, **{vocabulary: unused})
    assert ckptforensics.inspect(model).model.damage == ()
    change(model, **{vocabulary: lambda t: t[4:30].zero_()})
    found = only(ckptforensics.inspect(model).model)
    assert (found.what, found.rows) == ("zeros", (4, 29))


def test_many_rows_alike_where_they_are_sampled(model):
    """Columns that were pruned: rows are compared whole before they count."""

    def prune(matrix: torch.Tensor) -> None:
        matrix[:, :8] = 0
        matrix[:, 60:70] = 0

    change(model, **{DOWN.replace(".", "__"): prune})
    assert ckptforensics.inspect(model).model.damage == ()


def test_repeated_rows_are_those_numpy_finds(model):
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, 20, 64)
    change(model, **{DOWN.replace(".", "__"): lambda t: t.copy_(t[chosen].clone())})
    matrix = load_file(model / "model.safetensors")[DOWN].numpy()
    different = len(np.unique(matrix, axis=0))
    assert only(ckptforensics.inspect(model).model).count == len(matrix) - different


def test_a_large_model_is_sampled_unless_it_is_read_for_digests(model, monkeypatch):
    monkeypatch.setattr("ckptforensics.findings.inspection._WHOLE_BYTES", 0)
    file = model / "model.safetensors"
    zero_bytes(file, DOWN, 10_000, 15_000)
    record = ckptforensics.inspect(model).model
    assert record.examined is not None
    assert record.examined.sampled + record.examined.whole > 0
    assert only(ckptforensics.inspect(model, digest=True).model).tensor == DOWN


def test_a_damaged_signature_from_the_cache_says_so(model, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "cache"))
    zero_bytes(model / "model.safetensors", DOWN, 0, 9000)
    first = run(capsys, "sign", model)
    again = run(capsys, "sign", model)
    assert "from the cache" in again.err
    assert again.out == first.out
    assert f"damage        {DOWN}: rows 0 to 17 hold zeros" in again.out


@pytest.mark.parametrize("command", READERS)
def test_damage_behind_names_of_a_wrapper(command, model):
    """Names are read without what torch.compile put into them; the bytes are the same."""
    file = model / "model.safetensors"
    tensors = {f"_orig_mod.{name}": t for name, t in load_file(file).items()}
    tensors[f"_orig_mod.{DOWN}"][5:20] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    record = READERS[command](model)
    found = only(record)
    assert (found.tensor, found.what, found.rows) == (DOWN, "zeros", (5, 19))
    assert record.examined is not None
    assert record.examined.not_read == 0


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize(
    ("tensor", "value"), [(QUERY, float("nan")), (HEAD, float("inf")), (LAST_NORM, -float("inf"))]
)
def test_numbers_that_are_not_finite(command, tensor, value, model):
    """No command here reads queries, the head or the last norm as numbers."""
    change(model, **{tensor.replace(".", "__"): lambda t: put(t, value)})
    found = only(READERS[command](model))
    matrix = load_file(model / "model.safetensors")[tensor]
    places = torch.nonzero(~torch.isfinite(matrix.view(-1)))[:, 0].tolist()
    assert (found.tensor, found.what, found.count) == (tensor, "not-finite", len(places))
    width = matrix.shape[-1]
    assert found.rows == (places[0] // width, places[-1] // width)
    start = stored_at(model / "model.safetensors", tensor)
    assert found.bytes == (start + 4 * places[0], start + 4 * places[-1] + 4)
