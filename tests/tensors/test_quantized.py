"""Quantized weights: against what other libraries write and read, and numbers done by hand."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ckptforensics.errors import CkptError, NotFinite, NothingAnalysable, TensorError, exit_code
from ckptforensics.tensors import FileReader
from ckptforensics.tensors.quantized import QuantizedReader, wrap_quantized
from tests.support.containers import store_of

GOLDEN = Path(__file__).resolve().parents[2] / "fixtures" / "quantized"
FILES = sorted(GOLDEN.glob("*.safetensors"))


def stored(tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> FileReader:
    """The tensors in a file, read as a quantization_config tells."""
    file = tmp_path / "w.safetensors"
    save_file({name: t.contiguous() for name, t in tensors.items()}, file)
    return wrap_quantized(store_of(file), {"quantization_config": config})


def assert_reads(store: FileReader, name: str, expected: np.ndarray, **tolerance: float) -> None:
    """The whole tensor, and every kind of row range of it, bit by bit the same as the whole."""
    assert store.info(name).shape == expected.shape
    whole = store.read(name)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, **{"rtol": 1e-6, "atol": 1e-7, **tolerance})
    rows = whole.reshape(-1, whole.shape[-1])
    count = len(rows)
    ranges = {(0, 1), (0, count), (count - 1, count), (count, count), (1, max(count - 1, 1))}
    ranges |= {(a, b) for a in range(0, count, 7) for b in range(a, count, 5)}
    for start, stop in ranges:
        part = store.read_rows(name, start, stop)
        assert np.array_equal(part, rows[start:stop]), (start, stop)


def golden(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["config"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_as_the_library_that_wrote_it(file: Path):
    tensors, config = golden(file)
    store = wrap_quantized(store_of(file), {"quantization_config": config})
    assert set(store) == {"m.weight", "expected"}
    expected = tensors["expected"].numpy()
    # compressed-tensors gives four-bit floats back in bfloat16.
    rtol = 2.0**-8 if file.stem in ("ct-nvfp4", "ct-mxfp4") else 1e-6
    assert_reads(store, "m.weight", expected, rtol=rtol)
    assert {part.name for part in store.parts("m.weight")} == set(tensors) - {"expected"}
    assert store.info("m.weight").nbytes == sum(
        t.nbytes for name, t in tensors.items() if name != "expected"
    )


def test_there_are_files_of_every_library():
    stems = {file.stem.split("-")[0] for file in FILES}
    assert stems == {"gptq", "gptq_v2", "awq", "ct", "bnb", "hqq"}


def test_rows_are_read_in_blocks_that_do_not_depend_on_the_range(monkeypatch):
    for file in FILES:
        _, config = golden(file)
        store = wrap_quantized(store_of(file), {"quantization_config": config})
        whole = store.read("m.weight")
        monkeypatch.setattr("ckptforensics.tensors.quantized.reader.BLOCK_ELEMENTS", 500)
        assert np.array_equal(store.read("m.weight"), whole), file.stem
        monkeypatch.undo()


# FP8


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 32]}


def fp8_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, columns), generator=generator).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_fp8_in_blocks_as_transformers_reads_it(scale_dtype, tmp_path):
    weight = fp8_weight(48, 96)
    scale = (torch.rand((3, 3)) + 0.1).to(scale_dtype)
    store = stored(tmp_path, {"m.weight": weight, "m.weight_scale_inv": scale}, FP8)
    read = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert store.info("m.weight").dtype == "FP8"
    assert_reads(store, "m.weight", read.numpy())


def test_fp8_blocks_at_the_edge_may_be_cut(tmp_path):
    """5 x 3 in blocks of 2 x 2: the last row and column have blocks of their own."""
    weight = torch.arange(1, 16).reshape(5, 3).float().to(torch.float8_e4m3fn)  # exact
    scale = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    config = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    store = stored(tmp_path, {"m.weight": weight, "m.weight_scale_inv": scale}, config)
    expected = np.array(
        [[1, 2, 30], [4, 5, 60], [14, 16, 180], [20, 22, 240], [52, 56, 600]], np.float32
    )
    assert_reads(store, "m.weight", expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_fp8_with_one_scale(shape, tmp_path):
    weight = fp8_weight(8, 12)
    tensors = {
        "m.weight": weight,
        "m.weight_scale": torch.full(shape, 0.25),
        "m.input_scale": torch.tensor(3.0),
    }
    store = stored(tmp_path, tensors, {"quant_method": "fp8"})
    assert set(store) == {"m.weight"}
    assert_reads(store, "m.weight", weight.float().numpy() / 4)


def test_fp8_with_a_scale_for_each_row(tmp_path):
    weight, scale = fp8_weight(8, 12), torch.rand((8, 1))
    for shape in ((8, 1), (8,)):
        tensors = {"m.weight": weight, "m.weight_scale": scale.reshape(shape)}
        store = stored(tmp_path, tensors, {"quant_method": "fbgemm_fp8"})
        assert_reads(store, "m.weight", (weight.float() * scale).numpy())


def test_fp8_stacked_experts(tmp_path):
    weight = torch.stack([fp8_weight(32, 64, seed) for seed in range(3)])
    scale = torch.rand((3, 2, 2))
    tensors = {"m.experts.up_proj": weight, "m.experts.up_proj_scale_inv": scale}
    store = stored(tmp_path, tensors, FP8)
    expected = weight.float() * scale.repeat_interleave(16, 1).repeat_interleave(32, 2)
    assert_reads(store, "m.experts.up_proj", expected.numpy())


# GPTQ and AWQ


def test_gptq_by_hand(tmp_path):
    """4 bits, 32 inputs in 2 groups by an order of their own, 8 outputs.

    Code of input i and output o: (i + o) mod 16. Zeros as stored: 7 for all but output 3, where 15
    wraps to 0. Scales: 0.5 for group 0, 2 for group 1. Inputs with odd numbers are in group 1.
    """
    codes = (np.arange(32)[:, None] + np.arange(8)) % 16
    words = sum(
        codes.reshape(4, 8, 8)[:, n].astype(np.uint32) << np.uint32(4 * n) for n in range(8)
    )
    zeros = np.array([0x7777F777, 0x7777F777], np.uint32).reshape(2, 1)
    tensors = {
        "m.qweight": torch.from_numpy(words.view(np.int32).copy()),
        "m.qzeros": torch.from_numpy(zeros.view(np.int32)),
        "m.scales": torch.tensor([[0.5] * 8, [2.0] * 8], dtype=torch.float16),
        "m.g_idx": torch.arange(32, dtype=torch.int32) % 2,
        "m.bias": torch.ones(8),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    store = stored(tmp_path, tensors, config)
    assert set(store) == {"m.weight", "m.bias"}
    assert store.info("m.weight").dtype == "GPTQ4"
    weight = store.read("m.weight")
    assert weight[0, :4].tolist() == [(0 - 8) * 0.5, (1 - 8) * 2, (2 - 8) * 0.5, (3 - 8) * 2]
    assert weight[3, :4].tolist() == [3 * 0.5, 4 * 2, 5 * 0.5, 6 * 2]
    expected = codes.T - np.where(np.arange(8) == 3, 0, 8)[:, None]
    assert_reads(store, "m.weight", expected * np.where(np.arange(32) % 2, 2, 0.5))
    # The other convention has the same zeros as they are.
    store = stored(tmp_path, tensors, {**config, "checkpoint_format": "gptq_v2"})
    expected = codes.T - np.where(np.arange(8) == 3, 15, 7)[:, None]
    assert_reads(store, "m.weight", expected * np.where(np.arange(32) % 2, 2, 0.5))


def test_awq_by_hand(tmp_path):
    """One word of eight outputs: hexadecimal digits from the right are outputs 0 2 4 6 1 3 5 7."""
    tensors = {
        "m.qweight": torch.tensor([[0x75316420], [0x11111111]], dtype=torch.int32),
        "m.qzeros": torch.tensor([[0x00000002]], dtype=torch.int32),
        "m.scales": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0.5]], dtype=torch.float16),
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": 2, "version": "GEMM"}
    store = stored(tmp_path, tensors, config)
    first, second = store.read("m.weight").T.tolist()
    assert first == [-2, 1, 2, 3, 4, 5, 6, 3.5]
    assert second == [-1, 1, 1, 1, 1, 1, 1, 0.5]


def test_a_configuration_beside_the_weights_in_gptqs_own_file(tmp_path):
    tensors, config = golden(GOLDEN / "gptq-4.safetensors")
    file = tmp_path / "w.safetensors"
    save_file(tensors, file)
    with pytest.raises(NothingAnalysable, match="no configuration says"):
        wrap_quantized(store_of(file), {"model_type": "llama"})
    del config["quant_method"]
    (tmp_path / "quantize_config.json").write_text(json.dumps(config))
    store = wrap_quantized(store_of(file), {"model_type": "llama"})
    assert_reads(store, "m.weight", tensors["expected"].numpy())


# Four-bit floats


def test_mxfp4_experts_as_transformers_reads_them(tmp_path):
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 10, 2), generator=generator, dtype=torch.uint8)
    tensors = {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales}
    tensors["m.gate_up_proj_bias"] = torch.ones((3, 10))
    store = stored(tmp_path, tensors, {"quant_method": "mxfp4"})
    assert set(store) == {"m.gate_up_proj", "m.gate_up_proj_bias"}
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert expected.shape == (3, 64, 10)
    assert_reads(store, "m.gate_up_proj", expected.numpy(), rtol=0, atol=0)


def test_mxfp4_by_hand(tmp_path):
    """Low half first: byte 0x21 is 0.5 and 1; 0xF7 is 6 and -6; 128 doubles."""
    blocks = torch.zeros((1, 1, 1, 16), dtype=torch.uint8)
    blocks[0, 0, 0, :2] = torch.tensor([0x21, 0xF7])
    scales = torch.tensor([[[128]]], dtype=torch.uint8)
    tensors = {"m.down_proj_blocks": blocks, "m.down_proj_scales": scales}
    store = stored(tmp_path, tensors, {"quant_method": "mxfp4"})
    assert store.read("m.down_proj").reshape(-1)[:5].tolist() == [1, 2, 12, -12, 0]


def test_nvfp4_of_modelopt_by_hand(tmp_path):
    """Value times FP8 scale times the second scale; compressed-tensors divides by its own."""
    weight = torch.zeros((2, 16), dtype=torch.uint8)
    weight[0, 0], weight[0, 8], weight[1, 15] = 0x71, 0x02, 0xA0
    tensors = {
        "m.weight": weight,
        "m.weight_scale": torch.tensor([[2.0, 4.0], [8.0, 16.0]]).to(torch.float8_e4m3fn),
        "m.weight_scale_2": torch.tensor(0.5),
        "m.input_scale": torch.tensor(1.0),
        "a.k_proj.k_scale": torch.tensor(1.0),
    }
    store = stored(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    assert isinstance(store, QuantizedReader)
    assert set(store) == {"m.weight"}
    assert set(store.aside) == {"a.k_proj.k_scale"}
    expected = np.zeros((2, 32), np.float32)
    expected[0, 0], expected[0, 1] = 0.5 * 2 * 0.5, 6 * 2 * 0.5
    expected[0, 16] = 1 * 4 * 0.5
    expected[1, 31] = -1 * 16 * 0.5
    assert_reads(store, "m.weight", expected)


# compressed-tensors in an order of its own


def test_packed_with_an_order_of_the_columns(tmp_path):
    tensors, config = golden(GOLDEN / "ct-pack-4-group.safetensors")
    parts = {n: t for n, t in tensors.items() if n != "expected"}
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0)).int() // 32
    plain = stored(tmp_path, parts, config).read("m.weight")
    ungrouped = plain.copy()
    store = stored(tmp_path, {**parts, "m.weight_g_idx": order}, config)
    scale = parts["m.weight_scale"].numpy()
    from ckptforensics.tensors.quantized.base import unpack

    codes = unpack(parts["m.weight_packed"].numpy(), 4, 96).astype(np.float32)
    zeros = unpack(parts["m.weight_zero_point"].numpy().T, 4, 32).T.astype(np.float32)
    expected = (codes - zeros[:, order]) * scale[:, order]
    assert_reads(store, "m.weight", expected)
    assert not np.array_equal(expected, ungrouped)
    # -1 says that the order was never filled in.
    store = stored(tmp_path, {**parts, "m.weight_g_idx": torch.full((96,), -1).int()}, config)
    assert_reads(store, "m.weight", ungrouped)


# What cannot be read


STATE = "weight.quant_state.bitsandbytes__nf4"


def damaged(file: str, tmp_path: Path, **changes: Any) -> str:
    """The one error that reading the golden file with these parts in place of its own ends in."""
    tensors, config = golden(GOLDEN / f"{file}.safetensors")
    del tensors["expected"]
    config |= changes.pop("config", {})
    for part, value in changes.items():
        name = "m." + (STATE if part == "state" else part.replace("__", "."))
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name]) if callable(value) else value
    with pytest.raises(CkptError) as caught:
        stored(tmp_path, tensors, config).read("m.weight")
    text = str(caught.value)
    assert text.isprintable()
    return text


def first(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1]


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("gptq-4", {"scales": None}, "m.scales': the tensor is missing"),
        ("gptq-4", {"qzeros": None}, "m.qzeros': the tensor is missing"),
        ("gptq-4", {"qweight": None}, "whose other parts are missing"),
        ("gptq-4", {"scales": first}, "expected 3 x 32"),
        ("gptq-4", {"qweight": lambda t: t.long()}, "elements of type I64"),
        ("gptq-4", {"qweight": lambda t: t[0]}, "1 axes"),
        ("gptq-4", {"config": {"group_size": 10**30}}, "do not make 96 columns"),
        ("gptq-4", {"config": {"group_size": 0}}, "do not make 96 columns"),
        ("gptq-4", {"config": {"group_size": "x"}}, "do not make 96 columns"),
        ("gptq-4", {"config": {"group_size": 64}}, "do not make 96 columns"),
        ("gptq-4", {"config": {"bits": 5}}, "5 bits"),
        ("gptq-4", {"config": {"bits": 8}}, "8 bits"),
        ("gptq-4", {"config": {"bits": None, "dynamic": {}}}, None),
        ("gptq-4", {"config": {"desc_act": True}}, "m.g_idx': the tensor is missing"),
        ("gptq-4", {"config": {"checkpoint_format": "marlin"}}, "marlin"),
        ("gptq-4", {"config": {"checkpoint_format": ["x"]}}, "gptq in the format"),
        ("gptq-4", {"scales": lambda t: t * math.inf}, "the weight at row 0, column 0 is"),
        ("gptq-4", {"g_idx": torch.full((96,), 3).int()}, "not one of 3"),
        ("gptq-4", {"g_idx": torch.full((96,), -2).int()}, "not one of 3"),
        ("gptq-4", {"g_idx": torch.zeros(95).int()}, "expected 96"),
        ("gptq-4", {"weight": torch.ones((32, 96))}, "quantized and unquantized"),
        ("awq", {"qzeros": None}, "m.qzeros': the tensor is missing"),
        ("awq", {"config": {"version": "gemv"}}, "gemv"),
        ("awq", {"config": {"bits": 3}}, "3 bits"),
        ("awq", {"scales": lambda t: t.T}, "the shape is 32 x 3"),
        ("ct-pack-4-group", {"weight_scale": None}, "m.weight_scale': the tensor is missing"),
        ("ct-pack-4-group", {"weight_shape": None}, "m.weight_shape': the tensor is missing"),
        ("ct-pack-4-group", {"weight_shape": torch.tensor([32, -5])}, "is not what is packed"),
        ("ct-pack-4-group", {"weight_shape": torch.tensor([32, 10**12])}, "not what is packed"),
        ("ct-pack-4-group", {"weight_shape": torch.ones(10**3).long()}, "a few integers"),
        ("ct-pack-4-group", {"weight_zero_point": first}, "the shape is 1 x 3"),
        ("ct-pack-4-group", {"weight_scale": lambda t: t[:, :2]}, "fit no configured group size"),
        ("ct-pack-4-group", {"config": {"config_groups": None}}, "no 'config_groups'"),
        ("ct-pack-4-group", {"config": {"transform_config": {"R3": {}}}}, "transform"),
        ("ct-pack-4-group", {"config": {"sparsity_config": {"format": "24"}}}, "sparse, 24"),
        ("ct-fp8-channel", {"weight_scale": None}, "has no scale"),
        ("ct-fp8-channel", {"weight_scale": first}, None),
        ("ct-fp8-channel", {"weight_scale": lambda t: t[:5]}, "do not fit"),
        ("ct-fp8-block", {"weight_scale": lambda t: t[:, :2]}, "do not fit"),
        ("ct-fp8-block", {"config": {"weight_block_size": [0, 3]}}, "block size"),
        ("ct-fp8-block", {"config": {"weight_block_size": "128"}}, "block size"),
        ("ct-int8-channel", {"weight_scale": None}, "has no scale"),
        ("ct-nvfp4", {"weight_global_scale": None}, "m.weight_global_scale': the tensor is miss"),
        ("ct-nvfp4", {"weight_global_scale": lambda t: t * 0}, "the weight at row"),
        ("ct-nvfp4", {"weight_scale": first}, "expected 32 x 6"),
        ("ct-mxfp4", {"weight_scale": lambda t: t * 0 + 255}, "the weight at row 0, column 0 is"),
        ("bnb-int8", {"SCB": None}, "m.SCB': the tensor is missing"),
        ("bnb-int8", {"SCB": first}, "the shape is 1, expected 32"),
        ("bnb-int8", {"weight_format": torch.tensor(2).byte()}, "rearranged"),
        ("bnb-nf4", {"weight__absmax": None}, "m.weight.absmax': the tensor is missing"),
        ("bnb-nf4", {"weight__quant_map": None}, "m.weight.quant_map': the tensor is missing"),
        ("bnb-nf4", {"weight__quant_map": first}, "the shape is 1, expected 16"),
        ("bnb-nf4", {"weight": lambda t: t[:-1]}, "not half of 32 x 96"),
        ("bnb-nf4", {"state": None}, "elements of type U8"),
        ("bnb-nf4-double", {"weight__nested_quant_map": None}, "nested_quant_map': the tensor is"),
        ("bnb-nf4-double", {"weight__nested_absmax": None}, "elements of type U8"),
        ("hqq-4-axis1", {"scale": None}, "m.scale': the tensor is missing"),
        ("hqq-4-axis1", {"shape": torch.tensor([2**40, 2**40])}, "a weight of"),
        ("hqq-4-axis1", {"group_size": torch.tensor(0)}, "groups of 0"),
        ("hqq-4-axis1", {"group_size": torch.tensor(2**40)}, "groups of"),
        ("hqq-4-axis1", {"axis": torch.tensor(2)}, "axis 2"),
        ("hqq-4-axis1", {"packing": torch.tensor([52, 27]).byte()}, "packing"),
        ("hqq-4-axis1", {"W_q": first}, "the shape is 1 x 32"),
        ("hqq-4-axis1", {"zero": first}, None),
        ("hqq-4-axis1", {"view_as_float": torch.tensor(1).byte()}, "view_as_float"),
    ],
)  # fmt: skip
def test_damage_is_one_error(file: str, changes: dict[str, Any], words: str | None, tmp_path):
    if words is None:  # this is not damage: one scale for all, or bits that the shapes tell
        tensors, config = golden(GOLDEN / f"{file}.safetensors")
        config |= changes.pop("config", {})
        tensors |= {f"m.{part}": change(tensors[f"m.{part}"]) for part, change in changes.items()}
        assert stored(tmp_path, tensors, config).read("m.weight").shape == (32, 96)
        return
    assert words in damaged(file, tmp_path, **changes)


@pytest.mark.parametrize(
    "state",
    [b"{}", b"[]", b"nonsense", b'{"shape": [32, 96], "blocksize": 0}',
     b'{"shape": [-1, 96], "blocksize": 64}', b'{"shape": [32, 96], "blocksize": 1e9}',
     b'{"shape": [1073741824, 1073741824], "blocksize": 64}', b'{"shape": "x", "blocksize": 64}'],
)  # fmt: skip
def test_a_damaged_state_of_bitsandbytes(state: bytes, tmp_path):
    data = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    words = "not half of" if b"1073" in state else "bitsandbytes__nf4"
    assert words in damaged("bnb-nf4", tmp_path, state=data)


def test_nothing_quantized_is_read_without_its_configuration(tmp_path):
    for file in FILES:
        tensors, _ = golden(file)
        save_file(tensors, tmp_path / "w.safetensors")
        for config in (None, {}, {"quantization_config": None}):
            with pytest.raises(NothingAnalysable, match="no configuration says how"):
                wrap_quantized(store_of(tmp_path / "w.safetensors"), config)


@pytest.mark.parametrize(
    ("parts", "tool"),
    [
        (("weight._data", "weight._scale", "input_scale", "output_scale"), "optimum-quanto"),
        (("_weight_qdata", "_weight_scale", "_weight_zero_point"), "torchao"),
        (("weight:qdata", "weight:scale"), "torchao"),
        (("q_groups", "q_invperm", "q_scale", "q_scale_max", "q_weight"), "ExLlamaV2"),
        (("suh", "svh", "trellis"), "ExLlamaV3"),
        (("codebooks", "codes", "scales"), "AQLM"),
        (("Qidxs", "SU", "SV"), "QuIP#"),
    ],
)
def test_formats_that_are_not_read_are_named(parts: tuple[str, ...], tool: str, tmp_path):
    name = "model.layers.0.mlp.down_proj"
    tensors = {f"{name}.{part}": torch.ones((8, 8), dtype=torch.int8) for part in parts}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(NothingAnalysable, match=f"quantized by {tool}.*configuration") as caught:
        wrap_quantized(store_of(tmp_path / "w.safetensors"), {})
    assert exit_code(caught.value) == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [({"quant_method": "exl2"}, "exl2"), ({"bits": 4}, "method not named"), ("int8", "not named"),
     ({"quant_method": ["gptq"]}, "not named"), ({"quant_method": "aqlm"}, "aqlm")],
)  # fmt: skip
def test_unknown_methods_are_named(config: Any, words: str, tmp_path):
    save_file({"m.weight": torch.ones((2, 2))}, tmp_path / "w.safetensors")
    store = store_of(tmp_path / "w.safetensors")
    with pytest.raises(NothingAnalysable, match=words):
        wrap_quantized(store, {"quantization_config": config})
    with pytest.raises(NothingAnalysable, match=words):
        wrap_quantized(store, {"text_config": {"quantization_config": config}})


def test_a_configuration_without_quantized_weights(tmp_path):
    """Some methods also quantize plain weights when they are loaded; others do not."""
    save_file({"m.weight": torch.ones((2, 2))}, tmp_path / "w.safetensors")
    store = store_of(tmp_path / "w.safetensors")
    asked = {"quantization_config": {"load_in_4bit": True}}
    assert wrap_quantized(store, asked).read("m.weight").tolist() == [[1, 1], [1, 1]]
    with pytest.raises(NothingAnalysable, match="none is stored so"):
        wrap_quantized(store, {"quantization_config": {"quant_method": "gptq"}})


def test_modules_that_are_not_converted_stay_as_they_are(tmp_path):
    tensors = {
        "m.weight": fp8_weight(16, 32), "m.weight_scale_inv": torch.ones((1, 1)),
        "n.weight": torch.full((2, 2), 7.0), "norm.weight": torch.ones(4),
    }  # fmt: skip
    store = stored(tmp_path, tensors, {**FP8, "modules_to_not_convert": ["n"]})
    assert store.read("n.weight").tolist() == [[7, 7], [7, 7]]
    assert [part.name for part in store.parts("n.weight")] == ["n.weight"]


def test_fp8_without_its_scale_is_refused(tmp_path):
    tensors = {"m.weight": fp8_weight(16, 32), "m.weight_scale_inv": torch.ones((1, 1))}
    with pytest.raises(TensorError, match="has no scale"):
        stored(tmp_path, {**tensors, "n.weight": fp8_weight(4, 4)}, FP8)
    with pytest.raises(TensorError, match="other parts are missing"):
        stored(tmp_path, {**tensors, "n.weight_scale_inv": torch.ones((1, 1))}, FP8)
    store = stored(tmp_path, {**tensors, "m.weight_scale_inv": torch.tensor([[math.inf]])}, FP8)
    with pytest.raises((NotFinite, TensorError), match="row 0, column 0 is"):
        store.read("m.weight")


def test_rows_that_do_not_exist():
    _, config = golden(GOLDEN / "awq.safetensors")
    store = wrap_quantized(store_of(GOLDEN / "awq.safetensors"), {"quantization_config": config})
    for start, stop in ((-1, 2), (0, 33), (3, 2)):
        with pytest.raises(TensorError, match="rows"):
            store.read_rows("m.weight", start, stop)


def test_words_of_odd_bits():
    """Three bits without gaps: 32 numbers are 96 bits in three words."""
    from ckptforensics.tensors.quantized.base import unpack

    numbers = [n % 8 for n in range(3, 35)]
    stream = sum(n << (3 * i) for i, n in enumerate(numbers))
    words = np.array([struct.unpack("<3i", stream.to_bytes(12, "little"))], np.int32)
    assert unpack(words, 3, 32).tolist() == [numbers]
