"""Damaged and hostile input: one line that says what is wrong, the exit code, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ckptforensics.cli.main import main
from tests.support.containers import (
    LLAMA_CONFIG,
    Model,
    assert_one_error,
    entry,
    llama_arrays,
    pack,
    run,
    write_llama_gguf,
)

COMMANDS = ("sign", "layers", "norms", "inspect")
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model.llama(tmp_path / "model")


def fails(capsys: Any, command: str, path: Path, code: int, *words: str) -> str:
    """The command fails as it should, and leaves an older -o file and its directory alone."""
    folder = path.parent / "out"
    folder.mkdir(exist_ok=True)
    output = folder / "old.json"
    output.write_text("older result")
    ran = run(capsys, command, path, "-o", output)
    assert_one_error(ran, code, *words)
    assert output.read_text() == "older result"
    output.unlink()
    assert_one_error(run(capsys, command, path, "-o", output, "-q"), code, *words)
    assert os.listdir(folder) == []
    return ran.err


def test_the_undamaged_model_is_fine(model, capsys):
    """Else the failures below would prove nothing."""
    for command in COMMANDS:
        ran = run(capsys, command, model.path, "-q")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out


# The damage, the exit code it must give and the words that must be in the message.

Damage = Callable[[Model], None]


def truncate(model: Model) -> None:
    model.weights.write_bytes(model.weights.read_bytes()[:-100])


def truncate_in_header(model: Model) -> None:
    model.weights.write_bytes(model.weights.read_bytes()[:100])


def header_longer_than_file(model: Model) -> None:
    header, buffer = model.header()
    model.repack(header, buffer, length=99_000_000)


def header_over_limit(model: Model) -> None:
    header, buffer = model.header()
    model.repack(header, buffer, length=1 << 62)


def overlap(model: Model) -> None:
    header, buffer = model.header()
    begin, end = header[DOWN]["data_offsets"]
    header[DOWN]["data_offsets"] = [begin - 4, end - 4]
    model.repack(header, buffer)


def hole(model: Model) -> None:
    header, buffer = model.header()
    header["hole"] = entry("F32", [1], len(buffer) + 8, len(buffer) + 12)
    model.repack(header, buffer + bytes(12))


def tail(model: Model) -> None:
    model.weights.write_bytes(model.weights.read_bytes() + b"tail")


def duplicate_in_header(model: Model) -> None:
    header, buffer = model.header()
    text = json.dumps(header)
    model.repack(text[:-1] + f', "{DOWN}": {json.dumps(header[DOWN])}}}', buffer)


def duplicate_in_config(model: Model) -> None:
    model.write_config(json.dumps(LLAMA_CONFIG)[:-1] + ', "model_type": "gpt2"}')


def duplicate_in_index(model: Model) -> None:
    text = json.dumps({"weight_map": model.shard()})
    model.write_index(text.replace("{", '{"weight_map": {}, ', 1))


def missing_shard(model: Model) -> None:
    model.shard()
    (model.path / "model-00002-of-00002.safetensors").unlink()


def missing_shard_without_index(model: Model) -> None:
    missing_shard(model)
    (model.path / "model.safetensors.index.json").unlink()


def index_outside(model: Model) -> None:
    weight_map = model.shard()
    (model.path.parent / "x").write_bytes(b"")
    model.write_index({**weight_map, DOWN: "../x"})


def index_absolute(model: Model) -> None:
    model.write_index({**model.shard(), DOWN: "/etc/passwd"})


def index_long_name(model: Model) -> None:
    model.write_index({**model.shard(), DOWN: "x" * 300})


def index_wrong_shard(model: Model) -> None:
    weight_map = model.shard()
    other = next(f for f in weight_map.values() if f != weight_map[DOWN])
    model.write_index({**weight_map, DOWN: other})


def index_unknown_tensor(model: Model) -> None:
    weight_map = model.shard()
    model.write_index({**weight_map, "model.more.weight": next(iter(weight_map.values()))})


def tensor_in_two_shards(model: Model) -> None:
    model.shard()
    name = "model.norm.weight"
    for file in model.path.glob("*.safetensors"):
        save_file({name: np.ones(8, np.float32)}, file)
    (model.path / "model.safetensors.index.json").unlink()


def change(rename: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    """Write the model again with other arrays."""

    def damage(model: Model) -> None:
        arrays = llama_arrays()
        rename(arrays)
        save_file(arrays, model.weights)

    return damage


def empty_file(model: Model) -> None:
    model.weights.write_bytes(b"")


def no_model(model: Model) -> None:
    model.weights.unlink()


def directory_in_place(model: Model) -> None:
    model.weights.unlink()
    model.weights.mkdir()


def set_config(config: Any) -> Damage:
    return lambda model: model.write_config(config)


def with_config(**changes: Any) -> Damage:
    return lambda model: model.write_config({**LLAMA_CONFIG, **changes})


def rename_all(arrays: dict[str, np.ndarray]) -> None:
    for name in list(arrays):
        arrays[name.replace("self_attn", "attention_layer")] = arrays.pop(name)


def escape_in_name(model: Model) -> None:
    header, buffer = model.header()
    header["\x1b]0;title\x07\x1b[31m\r\nmodel"] = entry("F32", [7], len(buffer), len(buffer) + 4)
    model.repack(header, buffer + bytes(4))


def escape_in_block(model: Model) -> None:
    header, buffer = model.header()
    name = "model.layers.0.\x1b[2J\nevil.weight"
    header[name] = entry("F32", [1], len(buffer), len(buffer) + 4)
    model.repack(header, buffer + bytes(4))


DAMAGE: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "truncated file": (truncate, 2, ("model.safetensors", "truncated")),
    "truncated header": (truncate_in_header, 2, ("the header claims",)),
    "header longer than file": (header_longer_than_file, 2, ("header claims 99,000,000 bytes",)),
    "header over 100 MB": (header_over_limit, 2, ("100 MB",)),
    "overlap": (overlap, 2, ("overlaps", "tensor '")),
    "hole": (hole, 2, ("hole", "tensor 'hole'")),
    "tail": (tail, 2, ("belong to no tensor",)),
    "duplicate in header": (duplicate_in_header, 2, ("duplicate key", DOWN)),
    "duplicate in config": (duplicate_in_config, 2, ("duplicate key 'model_type'", "config.json")),
    "duplicate in index": (duplicate_in_index, 2, ("duplicate key 'weight_map'",)),
    "missing shard": (missing_shard, 2, ("model-00002-of-00002.safetensors", "missing")),
    "missing shard, no index": (
        missing_shard_without_index, 2, ("model-00002-of-00002.safetensors", "missing"),
    ),
    "index names ../x": (index_outside, 2, ("'../x'", DOWN)),
    "index names an absolute path": (index_absolute, 2, ("'/etc/passwd'", DOWN)),
    "index names an impossible file": (index_long_name, 2, ("missing",)),
    "index names the wrong shard": (index_wrong_shard, 2, ("promises", DOWN)),
    "index names an unknown tensor": (index_unknown_tensor, 2, ("promises", "model.more.weight")),
    "tensor in two shards": (tensor_in_two_shards, 2, ("model.norm.weight", "also in")),
    "missing tensor": (change(lambda a: a.pop(DOWN)), 2, (DOWN, "missing")),
    "missing norm": (
        change(lambda a: a.pop("model.layers.0.input_layernorm.weight")), 2,
        ("model.layers.0.input_layernorm.weight", "missing"),
    ),
    "wrong shape": (
        change(lambda a: a.update({DOWN: np.ones((8, 13), np.float32)})), 2,
        (DOWN, "8 x 13", "8 x 12"),
    ),
    "wrong rank": (
        change(lambda a: a.update({DOWN: np.ones((1, 8, 12), np.float32)})), 2,
        (DOWN, "1 x 8 x 12"),
    ),
    "scalar norm": (
        change(lambda a: a.update({"model.layers.0.input_layernorm.weight": np.float32(1)[...]})),
        2, ("model.layers.0.input_layernorm.weight",),
    ),
    "embedding of another width": (
        change(lambda a: a.update({"model.embed_tokens.weight": np.ones((10, 9), np.float32)})), 2,
        ("model.embed_tokens.weight", "10 x 9"),
    ),
    "zero-byte file": (empty_file, 2, ("empty",)),
    "no model": (no_model, 3, ("holds no .safetensors",)),
    "directory in place of file": (directory_in_place, 2, ("model.safetensors",)),
    "unknown family, unknown names": (
        lambda m: (change(rename_all)(m), with_config(model_type="mystery")(m)), 3, ("'mystery'",),
    ),
    "known family, unknown names": (change(rename_all), 2, ("llama",)),
    "no config, unknown names": (
        lambda m: (change(rename_all)(m), (m.path / "config.json").unlink()), 3, (),
    ),
    "quantized": (
        with_config(quantization_config={"quant_method": "gptq", "bits": 4}), 3,
        ("quantized", "gptq"),
    ),
    "quantized, unnamed": (with_config(quantization_config="int8"), 3, ("quantized",)),
    "quantized, hostile": (
        with_config(quantization_config={"quant_method": "\x1b[31m\n" * 5000}), 3, ("quantized",),
    ),
    "escape in a tensor's name": (escape_in_name, 2, (r"\x1b]0;title\x07\x1b[31m\r\nmodel",)),
    "escape in a block": (escape_in_block, 2, (r"\x1b[2J\nevil",)),
    "config is a list": (set_config([LLAMA_CONFIG]), 2, ("config.json", "not a JSON object")),
    "config is a string": (set_config('"llama"'), 2, ("not a JSON object",)),
    "config is empty": (set_config(""), 2, ("not valid JSON",)),
    "config is nested": (set_config('{"a":' + "[" * 10**5 + "]" * 10**5 + "}"), 2, ("nested",)),
    "config has half a pair": (set_config('{"a": "\\ud800"}'), 2, ("surrogate",)),
    "billions of layers": (with_config(num_hidden_layers=1 << 40), 2, ("num_layers",)),
    "millions of layers": (
        with_config(num_hidden_layers=1 << 23), 2, ("layers, and the files hold 2",),
    ),
    "negative layers": (with_config(num_hidden_layers=-1), 2, ("num_layers", "-1")),
    "no layers": (with_config(num_hidden_layers=0), 2, ("num_layers", "0")),
    "layers as text": (with_config(num_hidden_layers="2"), 2, ("num_layers", "'2'")),
    "layers as bool": (with_config(num_hidden_layers=True), 2, ("num_layers", "True")),
    "layers as float": (with_config(num_hidden_layers=2.0), 2, ("num_layers", "2.0")),
    "layers as list": (with_config(num_hidden_layers=[2]), 2, ("num_layers",)),
    "layers as object": (with_config(num_hidden_layers={"n": 2}), 2, ("num_layers",)),
    "width as text": (with_config(hidden_size="8"), 2, ("hidden_size",)),
    "another width": (with_config(hidden_size=16), 2, ("8",)),
    "enormous width": (with_config(hidden_size=10**18), 2, ("hidden_size",)),
    "negative heads": (with_config(num_attention_heads=-2), 2, ("num_heads",)),
    "more heads than width": (with_config(num_attention_heads=1 << 20), 2, ()),
    "indivisible heads": (with_config(num_attention_heads=3), 2, ("heads",)),
    "negative epsilon": (with_config(rms_norm_eps=-1e-5), 2, ("epsilon",)),
    "epsilon is not a number": (
        lambda m: m.write_config(json.dumps({**LLAMA_CONFIG, "rms_norm_eps": float("nan")})), 2,
        ("epsilon", "nan"),
    ),
    "epsilon is text": (with_config(rms_norm_eps="1e-5"), 2, ("epsilon",)),
    "activation is a list": (with_config(hidden_act=["silu"]), 2, ("activation",)),
    "a very long text for a number": (
        with_config(num_hidden_layers="9" * 10**6), 2, ("num_layers",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line(case, model, capsys):
    damage, code, words = DAMAGE[case]
    damage(model)
    begun = time.monotonic()
    for command in COMMANDS:
        error = fails(capsys, command, model.path, code, *words)
        assert len(error) < 5_000
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("command", ["sign", "layers", "norms"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(command, value, model, capsys):
    model.poke(DOWN, 5, 7, value)
    fails(capsys, command, model.path, 2, DOWN, "row 5", "column 7", str(value))


def test_a_gain_that_is_not_finite_is_named(model, capsys):
    name = "model.layers.0.post_attention_layernorm.weight"
    model.poke(name, 0, 3, np.nan)
    fails(capsys, "sign", model.path, 2, name, "row 0", "column 3")


def test_an_embedding_that_is_not_finite_is_named_where_it_is_read(model, capsys):
    model.poke("model.embed_tokens.weight", 6, 2, np.inf)
    words = ("model.embed_tokens.weight", "row 6", "column 2")
    assert_one_error(run(capsys, "norms", model.path, "--tokens", "all"), 2, *words)
    assert run(capsys, "norms", model.path, "--tokens", "1,5,7").code == 0


def test_headers_are_enough_to_inspect_a_model_with_damaged_weights(model, capsys):
    model.poke(DOWN, 5, 7, np.nan)
    assert run(capsys, "inspect", model.path).code == 0


def test_an_unknown_family_with_known_names_is_inferred_and_said_so(model, capsys):
    model.write_config({**LLAMA_CONFIG, "model_type": "mystery"})
    for command in COMMANDS:
        ran = run(capsys, command, model.path, "-q")
        assert ran.code == 0
        assert "llama" in ran.out
        assert "INFERRED" in ran.out
        document = json.loads(run(capsys, command, model.path, "-q", "--format", "json").out)
        assert document["model"]["family"] == "llama"
        assert document["model"]["family_source"] == "inferred"


@pytest.mark.parametrize("model_type", [None, 1, ["llama"], {"llama": 1}, "\x1b[31m\nllama"])
def test_a_model_type_that_is_no_name_is_inferred_too(model_type, model, capsys):
    model.write_config({**LLAMA_CONFIG, "model_type": model_type})
    ran = run(capsys, "inspect", model.path, "--format", "json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["model"]["family_source"] == "inferred"


def test_without_config_the_names_decide_and_what_is_assumed_is_said(model, capsys):
    (model.path / "config.json").unlink()
    ran = run(capsys, "inspect", model.path, "--format", "json")
    assert ran.code == 0
    notes = json.loads(ran.out)["model"]["notes"]
    assert any("epsilon" in note for note in notes)
    assert any("activation" in note for note in notes)


def test_an_unsupported_activation(model, capsys):
    model.write_config({**LLAMA_CONFIG, "hidden_act": "\x1b[31msnake\n"})
    for command in ("sign", "layers", "norms"):
        fails(capsys, command, model.path, 3, "activation", r"\x1b[31msnake\n")


@pytest.mark.parametrize(
    "name", ["x.safetensors", "x.gguf", "x.bin", "x.safetensors.index.json", "x.bin.index.json"]
)
def test_a_zero_byte_file(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"")
    for command in COMMANDS:
        fails(capsys, command, tmp_path / name, 2, name)


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [("pytorch_model.bin", 2, "not a zip"), ("adapter_model.safetensors", 3, "adapter")],
)
def test_a_directory_with_something_else(name, code, word, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    for command in COMMANDS:
        fails(capsys, command, folder, code, word)


def test_two_models_in_one_directory(tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a", "b"):
        write_llama_gguf(folder / f"{name}.gguf")
    for command in COMMANDS:
        fails(capsys, command, folder, 4, "a.gguf, b.gguf")
        assert run(capsys, command, folder / "a.gguf", "-q").code == 0


def test_what_does_not_exist(tmp_path, capsys):
    for command in (*COMMANDS, "show"):
        for name in ("nowhere", "x" * 300, "line\nbreak", "\x1b[31m"):
            assert_one_error(run(capsys, command, tmp_path / name), 4)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("what", ["model.safetensors", "config.json"])
def test_an_unreadable_file(what, model, capsys, monkeypatch):
    """Root may read everything, so for root the refusal is played where files are opened."""
    (model.path / what).chmod(0)
    if os.access(model.path / what, os.R_OK):
        opened = Path.open

        def denied(self: Path, *arguments: Any, **how: Any) -> Any:
            if self.name == what:
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *arguments, **how)

        monkeypatch.setattr(Path, "open", denied)
    for command in COMMANDS:
        ran = run(capsys, command, model.path)
        assert_one_error(ran, 2, what, "ermission denied")


@pytest.mark.skipif(os.name != "posix", reason="non-UTF-8 names of POSIX")
def test_a_path_that_is_not_unicode(model, tmp_path, capsys):
    folder = model.copy(Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xffel")))
    for command in COMMANDS:
        assert run(capsys, command, folder, "-q").code == 0
        ran = run(capsys, command, folder, "-q", "--format", "json", "-o", tmp_path / "x.json")
        assert (ran.code, ran.err) == (0, "")
        assert json.loads(ran.out)["model"]["path"].endswith("el")
    (folder / "model.safetensors").write_bytes(b"")
    assert_one_error(run(capsys, "sign", folder), 2, r"mod\udcffel")


@pytest.mark.parametrize("name", ["with space", "ünïcødé 世界 ☃", "-dash", "[bold]markup[/bold]"])
def test_odd_names_are_shown_as_they_are(name, model, tmp_path, capsys):
    folder = model.copy(tmp_path / name)
    ran = run(capsys, "sign", folder, "-q", "-o", tmp_path / f"{name}.safetensors")
    assert (ran.code, ran.err) == (0, "")
    assert str(folder) in ran.out
    assert run(capsys, "show", tmp_path / f"{name}.safetensors").out == ran.out
    (folder / "model.safetensors").write_bytes(b"")
    assert_one_error(run(capsys, "sign", folder), 2, str(folder))


def test_hostile_names_outside_the_blocks_do_not_reach_the_terminal(model, capsys):
    header, buffer = model.header()
    name = "extra\x1b[31m\n\u202e[bold]name"
    header[name] = entry("F32", [1], len(buffer), len(buffer) + 4)
    model.repack(header, buffer + bytes(4))
    ran = run(capsys, "inspect", model.path, "-v")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "\u202e" not in ran.out
    document = json.loads(run(capsys, "inspect", model.path, "--format", "json").out)
    assert name in [t["name"] for t in document["tensors"]]


# GGUF.


@pytest.fixture
def gguf_file(tmp_path) -> Path:
    return write_llama_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: b"GGML" + d[4:], ("GGUF",)),
        (lambda d: d[:4] + struct.pack("<I", 1) + d[8:], ("version 1",)),
        (lambda d: d[:4] + struct.pack(">I", 3) + d[8:], ("big-endian",)),
        (lambda d: d[:8] + struct.pack("<Q", 1 << 60) + d[16:], ("x.gguf",)),
        (lambda d: d[:16] + struct.pack("<Q", 1 << 60) + d[24:], ("x.gguf",)),
        (lambda d: d[:-700], ("truncated",)),
        (lambda d: d[:300], ("truncated",)),
        (lambda d: d[:20], ("too short",)),
        (lambda d: d.replace(b"blk.1.attn_v.weight", b"blk.0.attn_v.weight"), ("duplicate",)),
        (lambda d: d.replace(b"blk.1.attn_q.weight", b"blk.1.attn_\x1b.weight"), (r"\x1b",)),
        (lambda d: d.replace(b"blk.1.attn_v.weight", b"blk.1.attn_\xff.weight"), ("UTF-8",)),
        (lambda d: d.replace(b"blk.1.attn_v.weight", b"blk.9.attn_v.weight"), ("blk.1.attn_v",)),
    ],
)
def test_a_damaged_gguf_file(damage, words, gguf_file, capsys):
    damaged = damage(gguf_file.read_bytes())
    assert damaged != gguf_file.read_bytes()
    gguf_file.write_bytes(damaged)
    for command in COMMANDS:
        fails(capsys, command, gguf_file, 2, *words)


def test_an_array_of_2_to_the_60(gguf_file, capsys):
    data = gguf_file.read_bytes()
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens")
    assert struct.unpack_from("<IIQ", data, at) == (9, 8, 10)
    for kind in (0, 8, 12):
        changed = bytearray(data)
        struct.pack_into("<IIQ", changed, at, 9, kind, 1 << 60)
        gguf_file.write_bytes(changed)
        begun = time.monotonic()
        for command in COMMANDS:
            fails(capsys, command, gguf_file, 2, "truncated")
        assert time.monotonic() - begun < 30


def test_a_gguf_file_of_an_unknown_architecture(gguf_file, capsys):
    data = gguf_file.read_bytes()
    gguf_file.write_bytes(data.replace(b"llama", b"rhino", 1).replace(b"llama", b"rhino", 1))
    ran = run(capsys, "inspect", gguf_file, "--format", "json")
    assert ran.code in (0, 3)
    if ran.code == 0:
        assert json.loads(ran.out)["model"]["family_source"] == "inferred"
    else:
        assert_one_error(ran, 3, "rhino")


def test_a_gguf_weight_that_is_not_finite_is_named(tmp_path, capsys):
    arrays = llama_arrays()
    arrays[DOWN][3, 4] = np.nan
    path = write_llama_gguf(tmp_path / "x.gguf", arrays)
    for command in ("sign", "layers", "norms"):
        fails(capsys, command, path, 2, "blk.1.ffn_down.weight", "row 3", "column 4", "nan")


def test_a_damaged_quantized_scale_is_one_line_without_warnings(tmp_path):
    """In a process of its own, where numpy's warnings would reach stderr."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    rng = np.random.default_rng(0)
    for name in ("attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        data = gguf.quants.quantize(
            rng.standard_normal((32, 32)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
        )
        if name == "ffn_up":
            data[9, :2] = np.array([np.inf], np.float16).view(np.uint8)
        writer.add_tensor(f"blk.0.{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = subprocess.run(
        [sys.executable, "-m", "ckptforensics", "sign", str(tmp_path / "x.gguf")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "blk.0.ffn_up.weight" in done.stderr
    assert "row 9" in done.stderr


@pytest.mark.parametrize("case", ["truncated file", "no model", "missing shard"])
def test_in_a_process_of_its_own(case, model):
    damage, code, words = DAMAGE[case]
    damage(model)
    done = subprocess.run(
        [sys.executable, "-m", "ckptforensics", "sign", str(model.path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("ckpt: error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


# Mutated configurations and headers through the whole command line.

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 100), st.integers(), st.floats(),
    st.text(max_size=5), st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.sampled_from(["hidden_size", "model_type", "x"]), st.integers(), max_size=2),
    st.sampled_from([1 << 23, 1 << 24, 1 << 63, 10**30, 1e308, "llama", "gpt2", "silu"]),
)  # fmt: skip
KEYS = st.sampled_from(
    [*LLAMA_CONFIG, "head_dim", "text_config", "quantization_config", "n_embd", "n_layer",
     "layer_norm_epsilon", "activation_function", "rope_parameters", "architectures"]
)  # fmt: skip
quickly = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def behaves(capsys: Any, *arguments: object) -> None:
    """Success, or one line and a documented exit code; never an internal error."""
    ran = run(capsys, *arguments)
    if ran.code:
        assert ran.code in (2, 3, 4)
        assert_one_error(ran, ran.code)
    else:
        assert ran.err == ""


@quickly
@given(changes=st.dictionaries(KEYS, ODD, min_size=1, max_size=3), drop=st.sets(KEYS, max_size=3))
def test_any_configuration_is_refused_or_used(changes, drop, capsys, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated-config"
    model = Model(folder, llama_arrays(), None)
    config = {k: v for k, v in {**LLAMA_CONFIG, **changes}.items() if k not in drop}
    model.write_config(config)
    behaves(capsys, "inspect", folder, "-q")


@quickly
@given(
    tensor=st.sampled_from(sorted(llama_arrays())),
    shape=st.lists(st.sampled_from([0, 1, 2, 4, 8, 10, 12, 96, 80]), max_size=3),
    drop_config=st.booleans(),
)
def test_any_shape_is_refused_or_used(tensor, shape, drop_config, capsys, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mutated-shapes"
    shutil.rmtree(folder, ignore_errors=True)
    arrays = {**llama_arrays(), tensor: np.ones(shape, np.float32)}
    Model(folder, arrays, None if drop_config else LLAMA_CONFIG)
    behaves(capsys, "inspect", folder, "-q")
    behaves(capsys, "norms", folder, "-q", "--tokens", "all")


# Weights without a single singular direction, or whose products leave float32.
def test_a_model_of_empty_tensors(tmp_path, capsys):
    """Width zero, without a configuration that says otherwise."""
    arrays = {n: np.zeros([0] * a.ndim, np.float32) for n, a in llama_arrays().items()}
    Model(tmp_path / "model", arrays, None)
    for command in COMMANDS:
        behaves(capsys, command, tmp_path / "model", "-q")


def test_a_model_of_zeros(tmp_path, capsys):
    arrays = {n: np.zeros_like(a) for n, a in llama_arrays().items()}
    Model(tmp_path / "model", arrays, LLAMA_CONFIG)
    for command in COMMANDS:
        behaves(capsys, command, tmp_path / "model", "-q")


@pytest.mark.parametrize("scale", [1e10, 1e30])
def test_a_model_whose_computation_overflows(scale, tmp_path, capsys):
    arrays = {n: a * np.float32(scale) for n, a in llama_arrays().items()}
    Model(tmp_path / "model", arrays, LLAMA_CONFIG)
    for command in COMMANDS:
        behaves(capsys, command, tmp_path / "model", "-q")


def test_an_internal_error_is_one_line_too(model, capsys, monkeypatch):
    def broken(*arguments: Any, **how: Any) -> None:
        raise ZeroDivisionError("a\nb\x1b[31m")

    monkeypatch.setattr("ckptforensics.checkpoint.open_checkpoint", broken)
    monkeypatch.delenv("CKPT_TRACEBACK", raising=False)
    ran = run(capsys, "sign", model.path)
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert "internal error: ZeroDivisionError" in ran.err
    assert "\x1b" not in ran.err
    monkeypatch.setenv("CKPT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["sign", str(model.path)])


def test_too_little_memory_is_one_line(model, capsys, monkeypatch):
    def broken(*arguments: Any, **how: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("ckptforensics.checkpoint.open_checkpoint", broken)
    assert_one_error(run(capsys, "sign", model.path), 2, "out of memory")


def test_an_interrupt_is_not_a_traceback(model, capsys, monkeypatch):
    def interrupt(*arguments: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptforensics.checkpoint.open_checkpoint", interrupt)
    ran = run(capsys, "sign", model.path)
    assert ran.code == 130
    assert ran.out == ""
    assert ran.err.strip() == "ckpt: error: interrupted"


def test_the_packer_of_these_tests_packs(model):
    """`pack` and `unpack` are inverse, or half of the damage above would be of their making."""
    header, buffer = model.header()
    model.weights.write_bytes(pack(header, buffer))
    assert main(["inspect", str(model.path), "-q"]) == 0
