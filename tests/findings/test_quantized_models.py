"""A whole checkpoint in each encoding: the signature of the same weights without quantization."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptforensics
from ckptforensics.checkpoint import open_checkpoint
from ckptforensics.findings import fingerprint_distance, inspect
from tests.support.containers import run

Parts = dict[str, torch.Tensor]
GROUP = 16


def _grouped(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (out, in), scales and zero points (out, groups)."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low).clamp(min=1e-4) / (2**bits - 1)).half().float()
    zero = (-low / scale).round().clamp(1, 2**bits - 1)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(weight.shape).long(), scale, zero.long()


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of codes as 32-bit words, the first in the low bits."""
    per = 32 // bits
    shifted = codes.reshape(len(codes), -1, per) << (bits * torch.arange(per))
    return shifted.sum(-1).to(torch.uint32).view(torch.int32)


def fp8(weight: torch.Tensor) -> Parts:
    rows, columns = weight.shape
    blocks = weight.abs().reshape(rows // 16, 16, columns // 16, 16)
    scale = blocks.amax((1, 3)) / 448
    spread = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {"weight": (weight / spread).to(torch.float8_e4m3fn), "weight_scale_inv": scale}


def gptq(weight: torch.Tensor) -> Parts:
    """With an order of the columns: every second column is in the other half's groups."""
    order = torch.arange(weight.shape[1]).reshape(-1, 2).T.reshape(-1)
    codes, scale, zero = _grouped(weight[:, order], 4)
    place = torch.argsort(order)
    return {
        "qweight": _words(codes[:, place], 4).T,
        "qzeros": _words(zero.T - 1, 4),
        "scales": scale.T.half(),
        "g_idx": (torch.arange(len(order)) // GROUP)[place].int(),
    }


def awq(weight: torch.Tensor) -> Parts:
    codes, scale, zero = _grouped(weight, 4)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(values: torch.Tensor) -> torch.Tensor:
        return _words(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape), 4)

    return {"qweight": packed(codes.T), "qzeros": packed(zero.T), "scales": scale.T.half()}


def pack(weight: torch.Tensor) -> Parts:
    codes, scale, zero = _grouped(weight, 4)
    return {
        "weight_packed": _words(codes, 4),
        "weight_scale": scale,
        "weight_zero_point": _words(zero.T, 4).T,
        "weight_shape": torch.tensor(weight.shape),
    }


def int8(weight: torch.Tensor) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def llm_int8(weight: torch.Tensor) -> Parts:
    parts = int8(weight)
    return {"weight": parts["weight"], "SCB": parts["weight_scale"].reshape(-1) * 127}


def nf4(weight: torch.Tensor) -> Parts:
    table = torch.linspace(-1, 1, 16).sign() * torch.linspace(-1, 1, 16).abs() ** 1.3
    blocks = weight.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    between = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize(blocks / absmax[:, None], between).reshape(-1, 2)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [*weight.shape]}
    text = bytearray(json.dumps(state).encode())
    return {
        "weight": (codes[:, :1] << 4 | codes[:, 1:]).to(torch.uint8),
        "weight.absmax": absmax,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(text, dtype=torch.uint8),
    }


def nvfp4(weight: torch.Tensor) -> Parts:
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    blocks = weight.reshape(len(weight), -1, 16)
    second = weight.abs().max() / (6 * 448)
    scale = (blocks.abs().amax(-1) / 6 / second).to(torch.float8_e4m3fn)
    factor = (scale.float() * second).clamp(min=1e-12)
    codes = ((blocks / factor[..., None])[..., None] - values).abs().argmin(-1)
    pairs = codes.reshape(len(weight), -1, 2)
    packed = (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)
    return {"weight": packed, "weight_scale": scale, "weight_scale_2": second}


def hqq(weight: torch.Tensor) -> Parts:
    codes, scale, zero = _grouped(weight, 4)
    rows = codes.reshape(-1, GROUP)
    half = len(rows) // 2
    return {
        "W_q": (rows[:half] << 4 | rows[half:]).to(torch.uint8),
        "scale": scale.reshape(-1, 1),
        "zero": zero.reshape(-1, 1).float(),
        "shape": torch.tensor(weight.shape),
        "axis": torch.tensor(1, dtype=torch.int32),
        "group_size": torch.tensor(GROUP, dtype=torch.int32),
        "packing": torch.tensor([ord(c) for c in "4bit_u8"], dtype=torch.uint8),
        "nbits": torch.tensor(4, dtype=torch.int32),
    }


_GROUP_0 = {"weights": {"num_bits": 4, "group_size": GROUP}}
# Writer, quantization_config, name of the encoding, largest distance of the fingerprints.
ENCODINGS: dict[str, tuple[Callable[[torch.Tensor], Parts], dict[str, Any], str, int]] = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [16, 16]}, "FP8", 4),
    "gptq": (
        gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True}, "GPTQ4", 8
    ),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP}, "AWQ4", 8),
    "pack": (
        pack, {"quant_method": "compressed-tensors", "config_groups": {"a": _GROUP_0}}, "INT4", 8
    ),
    "int8": (int8, {"quant_method": "compressed-tensors", "config_groups": {}}, "INT8", 4),
    "llm.int8": (llm_int8, {"load_in_8bit": True}, "INT8", 4),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4", 8),
    "nvfp4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4", 8),
    "hqq": (hqq, {"quant_method": "hqq", "quant_config": {}}, "HQQ4", 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def original(planted: Path) -> Any:
    return ckptforensics.sign(planted)


def quantized_copy(planted: Path, folder: Path, encoding: str) -> Path:
    write, settings, _, _ = ENCODINGS[encoding]
    tensors: Parts = {}
    for name, tensor in load_file(planted / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        stem = name.removesuffix("weight")
        tensors |= {stem + k: t.contiguous() for k, t in write(tensor.float()).items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((planted / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_same_as_the_dequantized_model(
    encoding: str, planted: Path, original: Any, tmp_path: Path, capsys
):
    _, _, shown, limit = ENCODINGS[encoding]
    folder = quantized_copy(planted, tmp_path / "quantized", encoding)
    store = open_checkpoint(folder).store
    plain = tmp_path / "plain"
    plain.mkdir()
    arrays = {name: torch.from_numpy(store.read(name)) for name in store}
    save_file(arrays, plain / "model.safetensors")
    (plain / "config.json").write_text((planted / "config.json").read_text())
    exact = load_file(planted / "model.safetensors")
    assert set(arrays) == set(exact)
    for name, array in arrays.items():
        reference = exact[name].float()
        assert (array - reference).norm() <= 0.25 * reference.norm(), name

    one, other = ckptforensics.sign(folder), ckptforensics.sign(plain)
    assert one.document.fingerprint == other.document.fingerprint
    for field, value in vars(one).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(other, field)), field
    mark = original.document.fingerprint
    assert fingerprint_distance(one.document.fingerprint, mark) <= limit

    document = inspect(folder)
    weights = [t for t in document.tensors if t.dtype == shown and t.part_of is None]
    assert len(weights) == 7 * 8
    assert document.parameters == inspect(planted).parameters
    for weight in weights:
        parts = [t for t in document.tensors if t.part_of == weight.name]
        assert weight.bytes == sum(p.bytes for p in parts)
        assert {(p.role, p.skipped) for p in parts} == {(weight.role, weight.skipped)}
    listed = [t for t in document.tensors if t.part_of or t not in weights]
    assert len(listed) == len(load_file(folder / "model.safetensors"))
    assert shown in run(capsys, "inspect", folder).out
    assert "stored" in run(capsys, "inspect", folder, "-v").out


def test_linear_maps_that_replace_transposed_ones(tmp_path: Path):
    """GPT-2 stores (in, out); quantized, its maps are stored as those of other models."""
    from tests.support.models import save, tiny_gpt2

    model = tiny_gpt2(n_embd=64, n_inner=64)
    plain = save(model, tmp_path / "plain")
    tensors: Parts = {}
    for name, tensor in load_file(plain / "model.safetensors").items():
        if name.endswith(("c_proj.weight", "c_fc.weight", "c_attn.weight")):
            stem = name.removesuffix("weight")
            tensors |= {stem + k: t.contiguous() for k, t in llm_int8(tensor.T).items()}
        else:
            tensors[name] = tensor
    folder = tmp_path / "quantized"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    from ckptforensics.layers import load_block

    for layer in (1, 3):
        one, other = (load_block(open_checkpoint(f), layer) for f in (folder, plain))
        for pick in (
            lambda b: b.attention.value, lambda b: b.attention.output,
            lambda b: b.ffn.up, lambda b: b.ffn.down,
        ):  # fmt: skip
            np.testing.assert_allclose(pick(one).weight, pick(other).weight, atol=0.01)


def test_gpt_oss_in_mxfp4(tmp_path: Path):
    """As transformers dequantizes it: stacked experts, gate and up in alternate columns."""
    from transformers import GptOssConfig, GptOssForCausalLM
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    model = GptOssForCausalLM(
        GptOssConfig(
            hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, vocab_size=50, num_local_experts=3,
            num_experts_per_tok=2,
        )
    )  # fmt: skip
    quantized, plain = model.state_dict(), model.state_dict()
    for name in [n for n in plain if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = quantized.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 123, blocks.shape[:3], dtype=torch.uint8)
        quantized |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    signatures = []
    for kind, tensors in (("mxfp4", quantized), ("plain", plain)):
        folder = tmp_path / kind
        folder.mkdir()
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
        config = model.config.to_dict()
        config |= {"quantization_config": {"quant_method": "mxfp4"}} if kind == "mxfp4" else {}
        (folder / "config.json").write_text(json.dumps(config, default=str))
        signatures.append(ckptforensics.sign(folder))
    one, other = signatures
    assert one.document.fingerprint == other.document.fingerprint
    for field, value in vars(one).items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, getattr(other, field)), field
    assert {t.dtype for t in inspect(tmp_path / "mxfp4").tensors} >= {"MXFP4", "U8", "F32"}
