"""Decoded values against torch (F8, BF16, F16) and numpy, code by code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckptforensics.errors import NotFinite, TensorError
from tests.support.containers import entry, pack, store_of

TORCH = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
CODES = {"F8_E4M3": 256, "F8_E5M2": 256, "BF16": 1 << 16, "F16": 1 << 16}


def all_codes(dtype: str) -> torch.Tensor:
    """Every bit pattern of the type, in order."""
    width = np.uint8 if CODES[dtype] == 256 else np.uint16
    codes = np.arange(CODES[dtype], dtype=width)
    return torch.from_numpy(codes.view(np.uint8).copy()).view(TORCH[dtype])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, the sign of zero included."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("dtype", TORCH)
def test_every_finite_code_is_torchs_value(dtype: str, tmp_path: Path):
    codes = all_codes(dtype)
    values = codes.float()
    finite = torch.isfinite(values)
    # Four of the 256 E5M2 codes and 2 of the E4M3 codes are not to be lost on the way.
    assert int(finite.sum()) == {
        "F8_E4M3": 254, "F8_E5M2": 248, "BF16": 2 * 255 * 128, "F16": 2 * 31 * 1024,
    }[dtype]  # fmt: skip
    kept = codes.view(torch.uint8).reshape(len(codes), -1)[finite].reshape(-1).view(TORCH[dtype])
    save_file({"w": kept.reshape(2, -1)}, tmp_path / "w.safetensors")
    store = store_of(tmp_path / "w.safetensors")
    assert store.info("w").dtype == dtype
    assert same_bits(store.read("w"), values[finite].reshape(2, -1).numpy())


@pytest.mark.parametrize("dtype", TORCH)
def test_every_other_code_is_reported_where_it_stands(dtype: str, tmp_path: Path):
    codes = all_codes(dtype)
    bad = torch.nonzero(~torch.isfinite(codes.float())).flatten().tolist()
    one = torch.ones((3, 5)).to(TORCH[dtype])
    # All of the FP8 ones; of the 16-bit types the ends and a sample of the NaN range.
    for code in bad if len(bad) < 10 else [bad[0], *bad[1::173], bad[-1]]:
        damaged = one.clone()
        damaged[2, 3] = codes[code]
        save_file({"w": damaged}, tmp_path / "w.safetensors")
        store = store_of(tmp_path / "w.safetensors")
        with pytest.raises(NotFinite, match=r"row 2, column 3 is -?(nan|inf)") as caught:
            store.read("w")
        assert caught.value.tensor == "w"
        is_nan = bool(torch.isnan(codes[code].float()))
        assert ("nan" in str(caught.value)) == is_nan
        assert np.array_equal(store.read_rows("w", 0, 2), np.ones((2, 5), np.float32))


def test_f64_and_f32_are_numpys_values(tmp_path: Path):
    rng = np.random.default_rng(2)
    f64 = rng.standard_normal((40, 30)) * 10.0 ** rng.integers(-40, 38, (40, 30))
    f32 = f64.astype(np.float32)
    save_file({"d": torch.from_numpy(f64), "f": torch.from_numpy(f32)}, tmp_path / "w.safetensors")
    store = store_of(tmp_path / "w.safetensors")
    assert same_bits(store.read("d"), f32)
    assert same_bits(store.read("f"), f32)


@pytest.mark.parametrize("bits", [0x7FF0000000000001, 0x7FF8000000000000, 0xFFF0000000000000])
def test_f64_that_is_not_finite(bits: int, tmp_path: Path):
    """Signalling NaN too, which numpy warns about when it is cast."""
    data = np.array([0, bits], np.uint64).tobytes()
    (tmp_path / "w.safetensors").write_bytes(pack({"w": entry("F64", [2], 0, 16)}, data))
    with pytest.raises(NotFinite, match="row 0, column 1"):
        store_of(tmp_path / "w.safetensors").read("w")


def test_f64_beyond_float32_is_reported_not_clipped(tmp_path: Path):
    save_file({"w": torch.tensor([1.0, 1e300], dtype=torch.float64)}, tmp_path / "w.safetensors")
    with pytest.raises(NotFinite, match="column 1"):
        store_of(tmp_path / "w.safetensors").read("w")


@pytest.mark.parametrize(
    "dtype",
    ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "C64",
     "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"],
)  # fmt: skip
def test_types_that_are_not_weights_are_listed_and_not_decoded(dtype: str, tmp_path: Path):
    bits = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}.get(dtype)
    bits = bits or int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)
    file = tmp_path / "w.safetensors"
    file.write_bytes(pack({"w": entry(dtype, [2, 8], 0, 2 * bits)}, bytes(2 * bits)))
    store = store_of(file)
    assert store.info("w").nbytes == 2 * bits
    with pytest.raises(TensorError, match=f"type {dtype} cannot be decoded"):
        store.read("w")


@pytest.mark.parametrize("padding", range(8))
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_unaligned_buffers_are_read(dtype: str, padding: int, tmp_path: Path):
    width = {"F64": 8, "F32": 4}.get(dtype, 2)
    exact = np.array([1.0, -2.5, 0.15625], np.float32)
    kind = {"F64": torch.float64, "F32": torch.float32, **TORCH}[dtype]
    raw = torch.from_numpy(exact).to(kind).view(torch.uint8).numpy().tobytes()
    header = json.dumps({"w": entry(dtype, [3], 0, 3 * width)}) + " " * padding
    (tmp_path / "w.safetensors").write_bytes(pack(header, raw))
    assert np.array_equal(store_of(tmp_path / "w.safetensors").read("w"), exact)
