"""Encoders against the `gguf` package, torch's casts, and formulas written out."""

from __future__ import annotations

import gguf.quants as quants
import numpy as np
import pytest
import torch

from ckptforensics.quantization.encoders import SCHEMES

FLOOR = np.float32(1e-5)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    generator = np.random.default_rng(0)
    w = generator.standard_normal((48, 256), dtype=np.float32) * np.float32(0.02)
    w[3, 70] = 1.5  # a super weight
    w[5] = 0
    w[6, :32] = 0
    return w


def absmax(w: np.ndarray) -> np.ndarray:
    return np.abs(w).max(keepdims=True)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_gguf_types_are_those_of_the_gguf_package(kind, weight):
    number = quants.GGMLQuantizationType[kind]
    expected = quants.dequantize(quants.quantize(weight, number), number)
    assert np.array_equal(SCHEMES[kind.lower()].rows(weight), expected)


@pytest.mark.parametrize("name", ["int8", "w8a8"])
def test_int8_has_one_scale(name, weight):
    step = np.abs(weight).max() / np.float32(127)
    expected = np.rint(weight / step) * step
    assert np.array_equal(SCHEMES[name].encode(weight, absmax(weight)), expected)


def test_int8_by_output(weight):
    step = np.maximum(np.abs(weight).max(axis=1, keepdims=True), FLOOR) / np.float32(127)
    assert np.array_equal(SCHEMES["int8-channel"].rows(weight), np.rint(weight / step) * step)


def test_ties_go_to_even_and_small_matrices_have_a_floor():
    w = np.array([[127, 0.5, 1.5, 2.5, -0.5]], np.float32)
    assert SCHEMES["int8"].encode(w, absmax(w)).tolist() == [[127, 0, 2, 2, 0]]
    tiny = np.array([[3e-8, -1e-6]], np.float32)
    step = FLOOR / np.float32(127)
    assert np.array_equal(
        SCHEMES["int8"].encode(tiny, absmax(tiny)), np.rint(tiny / step).astype(np.float32) * step
    )


@pytest.mark.parametrize("columns", [256, 200, 90])
def test_int4_in_groups_of_128(columns, weight):
    w = weight[:, :columns]
    expected, uneven = np.empty_like(w), np.empty_like(w)
    for row in range(len(w)):
        for begin in range(0, columns, 128):
            group = w[row, begin : begin + 128]
            step = max(np.abs(group).max(), FLOOR) / np.float32(7.5)
            expected[row, begin : begin + 128] = np.clip(np.rint(group / step), -8, 7) * step
            low, high = min(group.min(), 0), max(group.max(), 0)
            step = max(np.float32(high - low), FLOOR) / np.float32(15)
            zero = np.clip(np.rint(-low / step), 0, 15)
            code = np.clip(np.rint(group / step) + zero, 0, 15)
            uneven[row, begin : begin + 128] = (code - zero) * step
    assert np.array_equal(SCHEMES["int4-g128"].rows(w), expected)
    assert np.array_equal(SCHEMES["int4-g128-asym"].rows(w), uneven)


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [("fp8", torch.float8_e4m3fn, 448.0), ("fp8-e5m2", torch.float8_e5m2, 57344.0)],
)
def test_fp8_is_torchs_cast(name, dtype, most, weight):
    scale = torch.from_numpy(absmax(weight)) / most
    small = (torch.from_numpy(weight) / scale).clamp(-most, most)
    expected = (small.to(dtype).to(torch.float32) * scale).numpy()
    assert np.array_equal(SCHEMES[name].encode(weight, absmax(weight)), expected)


def test_fp8_of_every_size_and_tie_is_torchs_cast():
    """With a scale of 1: all codes, the middles between them, subnormal ones and what is beyond."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    values = np.unique(codes[torch.isfinite(codes)].numpy())
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2])[None]
    expected = torch.from_numpy(x).to(torch.float8_e4m3fn).to(torch.float32).numpy()
    assert np.array_equal(SCHEMES["fp8"].encode(x, np.full((1, 1), 448, np.float32)), expected)


def test_fp8_by_output(weight):
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), FLOOR) / np.float32(448)
    small = torch.from_numpy(weight / scale).clamp(-448, 448)
    expected = small.to(torch.float8_e4m3fn).to(torch.float32).numpy() * scale
    assert np.array_equal(SCHEMES["fp8-channel"].rows(weight), expected)
