"""What is not finite is found in every type as its decoder finds it."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch

from ckptforensics.tensors.dtypes import decoder
from ckptforensics.tensors.finite import BLOCKS, element_bytes, not_finite

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}


@pytest.mark.parametrize("dtype", TORCH)
def test_random_bits_against_torch(dtype):
    raw = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    finite = torch.from_numpy(raw.copy()).view(TORCH[dtype]).double().isfinite().numpy()
    bad = np.flatnonzero(~finite)
    assert not_finite(dtype, raw) == (
        bad[0] * element_bytes(dtype),
        (bad[-1] + 1) * element_bytes(dtype),
        len(bad),
    )


@pytest.mark.parametrize("dtype", BLOCKS)
def test_blocks_against_gguf(dtype):
    kind = gguf.GGMLQuantizationType[dtype]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    assert element_bytes(dtype) == size
    raw = np.random.default_rng(0).integers(0, 256, (4000, size), np.uint8)
    values = np.empty(raw.shape[0] * gguf.GGML_QUANT_SIZES[kind][0], np.float32)
    decoder(dtype, path=Path("x"), tensor="x")(raw.reshape(-1), values)
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(raw), -1)).all(axis=1))
    assert 0 < len(bad) < len(raw)
    found = not_finite(dtype, raw.reshape(-1))
    assert found == (bad[0] * size, (bad[-1] + 1) * size, len(bad))
    assert not_finite(dtype, np.delete(raw, bad, axis=0).reshape(-1)) is None


def test_integers_are_finite():
    raw = np.full(4096, 255, np.uint8)
    assert not_finite("I32", raw) is None
    assert not_finite("U8", raw) is None
    assert not_finite("F32", raw[:0]) is None
