"""Adapters merged while reading give what the explicitly merged checkpoint gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptforensics
from ckptforensics.errors import (
    CkptError,
    FormatError,
    NotFinite,
    NothingAnalysable,
    TensorError,
    UsageError,
    exit_code,
)
from ckptforensics.tensors import files
from tests.support.adapters import base_tensors, low_rank, merged_weight, write_adapter
from tests.support.containers import Model, assert_one_error, run, write_llama_gguf
from tests.support.models import save, tiny_gpt2, tiny_llama

LLAMA_MODULES = [
    f"model.layers.{layer}.{name}"
    for layer in (0, 2)
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
]
GPT2_MODULES = [
    f"transformer.h.{layer}.{name}"
    for layer in range(3)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
]
Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save(tiny_llama(), tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    return save(tiny_gpt2(), tmp_path_factory.mktemp("gpt2") / "base")


def explicit(base: Path, folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The base with these tensors in place of its own."""
    shutil.copytree(base, folder)
    whole = {**base_tensors(base), **tensors}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_same(adapter: Path, base: Path, merged: Path) -> None:
    """Tensors, rows, signature and single-token norms are those of the merged checkpoint."""
    ours = ckptforensics.open_checkpoint(adapter, base=base)
    theirs = ckptforensics.open_checkpoint(merged)
    assert set(ours.store) == set(theirs.store)
    for name in theirs.store:
        expected = theirs.store.read(name)
        assert name in ours.store
        read = ours.store.read(name)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, expected, rtol=1e-5, atol=1e-5)
        rows = expected.reshape(-1, expected.shape[-1])
        for start, stop in ((0, 0), (0, 1), (len(rows) // 3, len(rows) // 2), (len(rows) - 1,) * 2):
            np.testing.assert_allclose(
                ours.store.read_rows(name, start, stop), rows[start:stop], rtol=1e-5, atol=1e-5
            )
    signed, expected_signature = ckptforensics.sign(ours), ckptforensics.sign(theirs)
    for key in ("u", "v", "sigma"):
        np.testing.assert_allclose(
            getattr(signed, key), getattr(expected_signature, key), rtol=1e-5, atol=1e-5
        )
    assert signed.document.fingerprint == expected_signature.document.fingerprint
    norms = [ckptforensics.rollout(m, tokens="bos,3,50").document.norms for m in (ours, theirs)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    plain = ckptforensics.sign(base)
    assert np.abs(plain.sigma - signed.sigma).max() > 1e-3  # the adapter matters


@pytest.mark.parametrize("binary", [False, True])
def test_lora(binary, llama, tmp_path):
    base = base_tensors(llama)
    parts = low_rank(base, LLAMA_MODULES)
    merged = {
        f"{m}.weight": merged_weight(
            base[f"{m}.weight"], parts[f"{m}.lora_A.weight"], parts[f"{m}.lora_B.weight"]
        )
        for m in LLAMA_MODULES
    }
    adapter = write_adapter(tmp_path / "adapter", parts, binary=binary)
    assert_same(adapter, llama, explicit(llama, tmp_path / "merged", merged))


def test_rank_stabilised_with_ranks_and_alphas_of_their_own(llama, tmp_path):
    base = base_tensors(llama)
    ranks = dict.fromkeys(LLAMA_MODULES, 3)
    alphas = dict.fromkeys(LLAMA_MODULES, 5.0)
    for layer in (0, 2):
        ranks[f"model.layers.{layer}.self_attn.v_proj"] = 2
        alphas[f"model.layers.{layer}.self_attn.o_proj"] = 7.5
    ranks["model.layers.2.mlp.down_proj"] = 6
    alphas["model.layers.2.mlp.down_proj"] = 1
    parts = {}
    for n, module in enumerate(LLAMA_MODULES):
        parts |= low_rank(base, [module], rank=ranks[module], seed=n)
    merged = {
        f"{m}.weight": merged_weight(
            base[f"{m}.weight"],
            parts[f"{m}.lora_A.weight"],
            parts[f"{m}.lora_B.weight"],
            alpha=alphas[m],
            rslora=True,
        )
        for m in LLAMA_MODULES
    }
    adapter = write_adapter(
        tmp_path / "adapter",
        parts,
        use_rslora=True,
        rank_pattern={"v_proj": 2, r"^model\.layers\.2\.mlp\.down_proj": 6, "proj": 99},
        # The first that fits counts; 'o_proj' is the end of a name and no part of one.
        alpha_pattern={"o_proj": 7.5, "layers.2.mlp.down_proj": 1, "down_proj": 5, "_proj": 99},
    )
    assert_same(adapter, llama, explicit(llama, tmp_path / "merged", merged))


def test_dora(llama, tmp_path):
    base = base_tensors(llama)
    parts = low_rank(base, LLAMA_MODULES)
    merged = {}
    generator = torch.Generator().manual_seed(1)
    for n, m in enumerate(LLAMA_MODULES):
        magnitude = 0.5 + torch.rand(len(base[f"{m}.weight"]), generator=generator)
        parts[f"{m}.lora_magnitude_vector" + (".weight" if n % 2 else "")] = magnitude
        merged[f"{m}.weight"] = merged_weight(
            base[f"{m}.weight"],
            parts[f"{m}.lora_A.weight"],
            parts[f"{m}.lora_B.weight"],
            magnitude=magnitude,
        )
    adapter = write_adapter(tmp_path / "adapter", parts, use_dora=True)
    assert_same(adapter, llama, explicit(llama, tmp_path / "merged", merged))


@pytest.mark.parametrize("dora", [False, True])
def test_weights_stored_in_out_and_embeddings(dora, gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr("ckptforensics.tensors.adapters.BLOCK_ELEMENTS", 100)
    base = base_tensors(gpt2)
    modules = [*GPT2_MODULES, "transformer.wte"]
    parts = low_rank(base, modules, in_out=True)
    merged = {}
    generator = torch.Generator().manual_seed(1)
    for m in modules:
        outputs = base[f"{m}.weight"].shape[1]
        magnitude = 0.5 + torch.rand(outputs, generator=generator) if dora else None
        merged[f"{m}.weight"] = merged_weight(
            base[f"{m}.weight"],
            parts[f"{m}.lora_A.weight"],
            parts[f"{m}.lora_B.weight"],
            magnitude=magnitude,
            in_out=True,
        )
        if magnitude is not None:
            parts[f"{m}.lora_magnitude_vector"] = magnitude
    for part in "AB":
        parts[f"transformer.wte.lora_embedding_{part}"] = parts.pop(
            f"transformer.wte.lora_{part}.weight"
        )
    adapter = write_adapter(tmp_path / "adapter", parts, fan_in_fan_out=True, use_dora=dora)
    assert_same(adapter, gpt2, explicit(gpt2, tmp_path / "merged", merged))


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_square_weight_is_turned_as_its_base_stores_it(kind, said, tmp_path):
    """PEFT sets `fan_in_fan_out` by the module's class, whatever the configuration says."""
    made = tiny_gpt2() if kind == "gpt2" else tiny_llama(head_dim=6)
    folder = save(made, tmp_path / "base")
    base = base_tensors(folder)
    module = {
        "gpt2": "transformer.h.0.attn.c_proj",
        "llama": "model.layers.1.self_attn.o_proj",
    }[kind]
    parts = low_rank(base, [module], in_out=kind == "gpt2")
    adapter = write_adapter(tmp_path / "adapter", parts, fan_in_fan_out=said)
    store = ckptforensics.open_checkpoint(adapter, base=folder).store
    expected = merged_weight(
        base[f"{module}.weight"],
        parts[f"{module}.lora_A.weight"],
        parts[f"{module}.lora_B.weight"],
        in_out=kind == "gpt2",
    )
    np.testing.assert_allclose(store.read(f"{module}.weight"), expected, atol=1e-5)


def test_biases_norms_and_whole_modules(llama, tmp_path):
    base = base_tensors(llama)
    generator = torch.Generator().manual_seed(4)

    def random_like(name: str) -> torch.Tensor:
        return torch.randn(base[name].shape, generator=generator) * 0.5

    parts = low_rank(base, [Q, V])
    gain = "model.layers.1.input_layernorm"
    replaced = {
        f"{gain}.weight": random_like(f"{gain}.weight"),
        "model.embed_tokens.weight": random_like("model.embed_tokens.weight"),
        f"{V}.bias": random_like(f"{V}.bias"),
    }
    added = random_like(f"{Q}.bias")
    saved = {
        f"{Q}.lora_B.bias": added,
        f"{gain}.weight": replaced[f"{gain}.weight"],
        "model.embed_tokens.modules_to_save.weight": replaced["model.embed_tokens.weight"],
        f"{V}.base_layer.bias": replaced[f"{V}.bias"],
    }
    merged = replaced | {f"{Q}.bias": base[f"{Q}.bias"] + 5 / 3 * added}
    for m in (Q, V):
        merged[f"{m}.weight"] = merged_weight(
            base[f"{m}.weight"], parts[f"{m}.lora_A.weight"], parts[f"{m}.lora_B.weight"]
        )
    adapter = write_adapter(tmp_path / "adapter", parts | saved, lora_bias=True)
    assert_same(adapter, llama, explicit(llama, tmp_path / "merged", merged))


def test_added_tokens_and_a_head_of_its_own(llama, tmp_path):
    """A vocabulary that grew is saved whole; a low-rank change may come on top of it."""
    tokens = torch.randn(101, 36, generator=torch.Generator().manual_seed(0))
    grown = {"model.embed_tokens.weight": tokens}
    parts = low_rank(grown, ["model.embed_tokens"], in_out=True)
    saved = {
        "model.embed_tokens.base_layer.weight": tokens,
        "model.embed_tokens.lora_embedding_A": parts["model.embed_tokens.lora_A.weight"],
        "model.embed_tokens.lora_embedding_B": parts["model.embed_tokens.lora_B.weight"],
        "score.weight": torch.ones(2, 36),
    }
    adapter = write_adapter(tmp_path / "adapter", saved, modules_to_save=["score"])
    store = ckptforensics.open_checkpoint(adapter, base=llama).store
    expected = merged_weight(
        tokens, saved["model.embed_tokens.lora_embedding_A"],
        saved["model.embed_tokens.lora_embedding_B"], in_out=True,
    )  # fmt: skip
    np.testing.assert_allclose(store.read("model.embed_tokens.weight"), expected, atol=1e-5)
    assert store.read("score.weight").shape == (2, 36)
    described = ckptforensics.inspect(ckptforensics.open_checkpoint(adapter, base=llama))
    assert described.vocabulary_size == 101


def test_names_with_and_without_the_outer_module(gpt2, tmp_path):
    """Checkpoints of the time before `transformer.` was saved name blocks `h.0`."""
    base = base_tensors(gpt2)
    parts = low_rank(base, GPT2_MODULES, in_out=True)
    adapter = write_adapter(tmp_path / "adapter", parts, fan_in_fan_out=True)
    old = shutil.copytree(gpt2, tmp_path / "old")
    renamed = {n.removeprefix("transformer."): t for n, t in base.items()}
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    named = ckptforensics.sign(ckptforensics.open_checkpoint(adapter, base=gpt2))
    bare = ckptforensics.sign(ckptforensics.open_checkpoint(adapter, base=old))
    assert np.array_equal(named.u, bare.u)
    assert np.array_equal(named.sigma, bare.sigma)


def test_a_quantized_base(llama, tmp_path):
    """The change is added to the dequantized weight, whose shape is not that of its parts."""
    base = base_tensors(llama)
    parts = low_rank(base, [V])
    codes = (base[f"{V}.weight"] * 16).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1 / 16]])
    quantized = shutil.copytree(llama, tmp_path / "quantized")
    stored = {**base, f"{V}.weight": codes, f"{V}.weight_scale_inv": scale}
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (quantized / "config.json").write_text(json.dumps(config))
    adapter = write_adapter(tmp_path / "adapter", parts)
    weight = merged_weight(
        codes.float() / 16, parts[f"{V}.lora_A.weight"], parts[f"{V}.lora_B.weight"]
    )
    assert_same(adapter, quantized, explicit(llama, tmp_path / "merged", {f"{V}.weight": weight}))


def test_prefetch_bytes_and_parts(llama, tmp_path, monkeypatch):
    base = base_tensors(llama)
    saved = low_rank(base, [V]) | {f"{V}.bias": base[f"{V}.bias"] + 1}
    adapter = write_adapter(tmp_path / "adapter", saved)
    store = ckptforensics.open_checkpoint(adapter, base=llama).store
    fetched: list[str] = []
    monkeypatch.setattr(files.FileReader, "prefetch", lambda self, names: fetched.extend(names))
    store.prefetch([f"{V}.weight", f"{V}.bias", "model.norm.weight"])
    prefix = "base_model.model."
    lora = [f"{prefix}{V}.lora_{part}.weight" for part in "AB"]
    assert sorted(fetched) == sorted(
        [f"{V}.weight", "model.norm.weight", *lora, f"{prefix}{V}.bias"]
    )
    assert [p.name for p in store.parts(f"{V}.weight")] == [f"{V}.weight", *lora]
    assert store.info(f"{V}.bias").path.name == "adapter_model.safetensors"
    for name, stored in ((f"{V}.bias", saved[f"{V}.bias"]), (lora[0], saved[f"{V}.lora_A.weight"])):
        raw = store.stored_bytes(name).view(np.float32)
        assert np.array_equal(raw, stored.numpy().reshape(-1))
        store.release(name)
    raw = store.stored_bytes(f"{V}.weight").view(np.float32)
    assert np.array_equal(raw, base[f"{V}.weight"].numpy().reshape(-1))
    store.release(f"{V}.weight")


# What the result and the command line say.


@pytest.mark.parametrize("command", ["sign", "layers", "norms", "inspect"])
def test_the_result_names_adapter_and_base(command, llama, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "adapter", low_rank(base_tensors(llama), LLAMA_MODULES))
    for model in (adapter, adapter / "adapter_model.safetensors"):
        ran = run(capsys, command, model, "--base", llama, "--format", "json", "-q")
        assert ran.code == 0, ran.err
        record = json.loads(ran.out)["model"]
        assert record["path"] == str(model)
        assert record["base"] == str(llama)
        files = {file["name"] for file in record["files"]}
        assert files == {"model.safetensors", "adapter_model.safetensors"}
    shown = run(capsys, command, adapter, "--base", llama, "-q").out
    assert f"{llama} (the adapter {adapter} merged onto it)" in shown


def test_without_an_adapter_there_is_no_base(llama, capsys):
    ran = run(capsys, "inspect", llama, "--format", "json", "-q")
    assert json.loads(ran.out)["model"]["base"] is None
    ran = run(capsys, "inspect", llama, "--base", llama)
    assert_one_error(ran, 4, "--base is given and this is no adapter")
    ran = run(capsys, "inspect", "nowhere", "--base", llama)
    assert_one_error(ran, 4, "no such file", "nowhere")


@pytest.mark.parametrize("file", ["", "adapter_model.safetensors"])
def test_an_adapter_alone_says_which_base_it_needs(file, llama, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "adapter", low_rank(base_tensors(llama), [V]))
    ran = run(capsys, "sign", adapter / file)
    assert_one_error(ran, 3, "adapter of 'some-org/some-base'", "--base some-org/some-base")
    (adapter / "adapter_config.json").unlink()
    assert_one_error(run(capsys, "sign", adapter / file), 3, "this is an adapter", "--base BASE")
    ran = run(capsys, "sign", adapter / file, "--base", llama)
    assert_one_error(ran, 2, "configuration is missing", "adapter_config.json")


def test_output_may_not_overwrite_the_adapter_or_the_base(llama, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "adapter", low_rank(base_tensors(llama), [V]))
    for file in (adapter / "adapter_config.json", llama / "config.json"):
        before = file.read_bytes()
        ran = run(capsys, "inspect", adapter, "--base", llama, "-o", file)
        assert_one_error(ran, 4, "overwrite")
        assert file.read_bytes() == before


# What is refused.


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"peft_type": "ADALORA"}, "'ADALORA'"),
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING'"),
        ({"peft_type": None}, "None"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, "'olora'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layers repeated"),
        ({"target_parameters": ["experts.down_proj"]}, "parameters that are no module's"),
        ({"trainable_token_indices": [1, 2]}, "single tokens"),
        ({"use_qalora": True}, "QALoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
    ],
)
def test_other_adapters_are_refused_by_name(config, word, llama, tmp_path):
    adapter = write_adapter(tmp_path / "a", low_rank(base_tensors(llama), [V]), **config)
    with pytest.raises(NothingAnalysable) as caught:
        ckptforensics.open_checkpoint(adapter, base=llama)
    assert word in str(caught.value)
    assert exit_code(caught.value) == 3


def test_a_gguf_base_is_refused(llama, tmp_path):
    adapter = write_adapter(tmp_path / "a", low_rank(base_tensors(llama), [V]))
    base = write_llama_gguf(tmp_path / "base.gguf")
    with pytest.raises(NothingAnalysable, match="not merged onto GGUF"):
        ckptforensics.open_checkpoint(adapter, base=base)


def _damaged(llama: Path, change: Any) -> dict[str, torch.Tensor]:
    parts = low_rank(base_tensors(llama), [V])
    change(parts)
    return parts


def _rename(old: str, new: str) -> Any:
    return lambda parts: parts.update({new: parts.pop(old)})


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (_rename(f"{V}.lora_A.weight", f"{V}.lora_C.weight"), {}, ["lora_C", "no tensor"]),
        (_rename(f"{V}.lora_A.weight", "x.lora_A.weight"), {}, ["is missing"]),
        (lambda p: p.pop(f"{V}.lora_B.weight"), {}, ["lora_B is missing"]),
        (lambda p: p.update({f"{V}.ia3_l": torch.ones(3)}), {}, [f"{V}.ia3_l", "no tensor"]),
        (lambda p: p.update({"model.layers.9.mlp.up_proj.weight": torch.ones(3)}), {},
         ["model.layers.9.mlp.up_proj.weight", "no tensor"]),
        (lambda p: p.update({f"{V}.bias": torch.ones(3)}), {}, ["shape is 3, the base's 20"]),
        (lambda p: p.update({f"{V}.base_layer.bias": torch.ones(20), f"{V}.bias": torch.ones(20)}),
         {}, ["twice"]),
        (lambda p: p.update({"layers.0.self_attn.v_proj." + k: p[f"{V}.{k}"]
                             for k in ("lora_A.weight", "lora_B.weight")}), {}, ["also changes"]),
        (lambda p: p.update({f"{V}.lora_A.weight": torch.ones(3, 35)}), {}, ["20 x 35", "20 x 36"]),
        (lambda p: p.update({f"{V}.lora_A.weight": torch.ones(2, 36)}), {}, ["2 x 36", "20 x 3"]),
        (lambda p: p.update({f"{V}.lora_A.weight": torch.ones(36)}), {}, ["shapes 36 and"]),
        (lambda p: p.update({f"{V}.lora_magnitude_vector": torch.ones(20)}), {},
         ["use_dora is off"]),
        (lambda p: p.update({f"{V}.lora_magnitude_vector": torch.ones(7)}), {"use_dora": True},
         ["7 magnitudes for 20"]),
        (lambda p: None, {"use_dora": True}, ["no magnitudes"]),
        (lambda p: None, {"r": 4}, ["rank 3", "says 4"]),
        (lambda p: p.update({f"{V}.lora_B.bias": torch.ones(19)}), {}, ["19", "20"]),
        (lambda p: p.update({f"{V}.lora_embedding_A": torch.ones(3, 36)}), {},
         ["lora_embedding_B"]),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, config, words, llama, tmp_path):
    adapter = write_adapter(tmp_path / "a", _damaged(llama, change), **config)
    with pytest.raises(TensorError) as caught:
        ckptforensics.open_checkpoint(adapter, base=llama)
    assert caught.value.path == adapter / "adapter_model.safetensors"
    assert caught.value.tensor is not None
    for word in words:
        assert word in str(caught.value)


def test_an_added_bias_where_the_base_has_none(tmp_path):
    base = Model.llama(tmp_path / "base").path
    saved = low_rank(base_tensors(base), [V]) | {f"{V}.lora_B.bias": torch.ones(8)}
    adapter = write_adapter(tmp_path / "a", saved, lora_bias=True)
    with pytest.raises(TensorError, match=r"no tensor 'model\.layers\.0.self_attn.v_proj.bias'"):
        ckptforensics.open_checkpoint(adapter, base=base)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "much"},
        {"lora_alpha": True},
        {"lora_alpha": 10**400},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": {"v_proj": None}},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"(": 1}},
        {"rank_pattern": {"(a+)+": 1}},
        {"rank_pattern": {".*.*.*.*.*": 1}},
        {"rank_pattern": {"a" * 300: 1}},
    ],
)
def test_impossible_configurations(config, llama, tmp_path):
    adapter = write_adapter(tmp_path / "a", low_rank(base_tensors(llama), [V]), **config)
    with pytest.raises(FormatError) as caught:
        ckptforensics.open_checkpoint(adapter, base=llama)
    assert "adapter_config.json" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_what_is_not_finite_is_named(value, llama, tmp_path):
    parts = low_rank(base_tensors(llama), [V])
    parts[f"{V}.lora_B.weight"][4] = value
    adapter = write_adapter(tmp_path / "a", parts, lora_alpha=100)
    checkpoint = ckptforensics.open_checkpoint(adapter, base=llama)
    with pytest.raises(NotFinite, match="row 4"):
        checkpoint.store.read(f"{V}.weight")


def test_an_output_of_norm_zero_has_no_direction(llama, tmp_path):
    base = base_tensors(llama)
    zeroed = explicit(llama, tmp_path / "base", {f"{V}.weight": torch.zeros(20, 36)})
    parts = low_rank(base, [V])
    parts[f"{V}.lora_B.weight"][:] = 0
    parts[f"{V}.lora_magnitude_vector"] = torch.ones(20)
    adapter = write_adapter(tmp_path / "a", parts, use_dora=True)
    checkpoint = ckptforensics.open_checkpoint(adapter, base=zeroed)
    with pytest.raises(NotFinite):
        checkpoint.store.read(f"{V}.weight")


def test_no_tensors_and_no_adapter(llama, tmp_path):
    with pytest.raises(NothingAnalysable, match="holds no tensors"):
        ckptforensics.open_checkpoint(write_adapter(tmp_path / "a", {}), base=llama)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no adapter"):
        ckptforensics.open_checkpoint(tmp_path / "empty", base=llama)
    adapter = write_adapter(tmp_path / "b", low_rank(base_tensors(llama), [V]))
    with pytest.raises(CkptError, match="no such file"):
        ckptforensics.open_checkpoint(adapter, base=tmp_path / "nowhere")
    with pytest.raises(NothingAnalysable, match="adapter of"):
        ckptforensics.open_checkpoint(adapter, base=adapter)
