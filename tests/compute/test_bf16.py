"""Matrices in BF16 and the compiled loops, against NumPy in float64 on torch's decoded numbers."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ckptforensics.compute import products
from ckptforensics.compute.bf16 import Bf16Matrix

SHAPES = [(1, 2), (3, 6), (4, 8), (37, 50), (130, 1030), (1031, 258)]
THREADS = ["1", "2", "3"]


def stored(rows: int, columns: int, seed: int = 0) -> tuple[Bf16Matrix, np.ndarray]:
    """A matrix as it would lie in a file, read-only, and torch's float64 of the same numbers."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, columns, generator=random).to(torch.bfloat16)
    raw = numbers.view(torch.int16).numpy().tobytes()
    words = np.frombuffer(raw, np.uint32).reshape(rows, columns // 2)
    return Bf16Matrix(words), numbers.double().numpy()


def vectors(rows: int, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, count), dtype=np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    # Sums of float32 products: a few units in the last place of the largest.
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 26])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(shape: tuple[int, int], count: int, threads: str, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    matrix, exact = stored(*shape)
    x, y = vectors(shape[1], count), vectors(shape[0], count, 2)
    assert_close(matrix.matmat(x), exact @ x)
    assert_close(matrix.rmatmat(y), exact.T @ y)
    image = exact @ x + y
    for found, expected in zip(matrix.round_trip(x, y), (image, exact.T @ image), strict=True):
        assert_close(found, expected)
    image = exact @ x
    for found, expected in zip(matrix.round_trip(x), (image, exact.T @ image), strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_float32(shape: tuple[int, int], count: int, monkeypatch):
    """The loops for arrays are used for large ones only, and in large models."""
    monkeypatch.setattr(products, "_WORTH_SPLITTING", 0)
    matrix = vectors(*shape)
    exact = matrix.astype(np.float64)
    x, y = vectors(shape[1], count), vectors(shape[0], count, 2)
    loops = products.compiled_loops()
    calls = []
    monkeypatch.setattr(products, "loop_there", _counted(products.loop_there, calls))
    monkeypatch.setattr(products, "loop_back", _counted(products.loop_back, calls))
    with products.loops_compiled(True):
        assert_close(products.multiply(matrix, x), exact @ x)
        assert_close(products.multiply_adjoint(matrix, y), exact.T @ y)
        found = products.multiply_and_back(matrix, x, y)
    assert_close(found[0], exact @ x + y)
    assert_close(found[1], exact.T @ (exact @ x + y))
    assert calls == [loops.multiply, loops.multiply_adjoint] * 2


def _counted(function, calls):
    def counted(loop, *arguments):
        calls.append(loop)
        return function(loop, *arguments)

    return counted


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding(shape: tuple[int, int]):
    matrix, exact = stored(*shape)
    np.testing.assert_array_equal(matrix.decoded(), exact)
    np.testing.assert_array_equal(matrix[1:], exact[1:])
    np.testing.assert_array_equal(matrix[:, 1], exact[:, 1])
    np.testing.assert_array_equal(matrix[-1], exact[-1])
    assert matrix[0, 1] == exact[0, 1]
    assert (len(matrix), matrix.size) == (shape[0], exact.size)


def test_every_bit_pattern_is_decoded_exactly():
    halves = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    numbers = torch.from_numpy(halves.view(np.int16)).view(torch.bfloat16).float().numpy()
    decoded = Bf16Matrix(halves.view(np.uint32)).decoded()
    # NaN's payloads too.
    np.testing.assert_array_equal(decoded.view(np.uint32), numbers.view(np.uint32))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_survives_products(value: float):
    matrix, _ = stored(10, 8)
    x = vectors(8, 2)
    x[3, 1] = value
    y = matrix.matmat(x)
    assert np.isfinite(y[:, 0]).all()
    assert not np.isfinite(y[:, 1]).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_along_rows_and_columns(shape: tuple[int, int]):
    (a, one), (b, other) = stored(*shape), stored(*shape, seed=5)
    weight = np.abs(vectors(1, shape[1])[0])
    for factor in (weight, None):
        times = 1 if factor is None else factor
        expected = [
            (times * p * q).sum(axis=1) for p, q in ((one, one), (one, other), (other,) * 2)
        ]
        scale = max(np.abs(expected[0]).max(), np.abs(expected[2]).max())
        for found, sums in zip(a.row_products(b, factor), expected, strict=True):
            np.testing.assert_allclose(found, sums, atol=2e-6 * scale, rtol=0)
    # Squares are added one after another: an error of up to an epsilon for each.
    np.testing.assert_allclose(a.column_squares, (one**2).sum(axis=0), rtol=1e-7 * max(10, len(a)))
    peaks = a.row_peaks(weight)
    np.testing.assert_array_equal(peaks, (np.abs(one.astype(np.float32)) * weight).max(axis=1))


def test_remembered_sums_are_of_the_weights_asked_for():
    (a, one), (b, other) = stored(37, 50), stored(37, 50, seed=5)
    weight = np.ones(50, np.float32)
    a.row_products(b, weight)
    weight *= 2
    np.testing.assert_allclose(a.row_products(b, weight)[1], 2 * (one * other).sum(1), atol=1e-4)
    np.testing.assert_allclose(a.row_products(a, weight)[1], 2 * (one * one).sum(1), atol=1e-4)
    with pytest.raises(ValueError, match="read-only"):
        a.row_products(a, weight)[0][0] = 0


def test_loops_without_a_place_to_keep_them(tmp_path):
    """A folder nobody can write to costs compiling again, not the run."""
    code = (
        "import numba\n"
        "compile = numba.njit\n"
        "def refuse(*arguments, cache=False, **options):\n"
        "    if cache: raise RuntimeError('cannot cache function: no locator available')\n"
        "    return compile(*arguments, **options)\n"
        "numba.njit = refuse\n"
        "import numpy as np\n"
        "from ckptforensics.compute.bf16 import Bf16Matrix\n"
        "ones = np.full((2, 2), 0x3F803F80, np.uint32)\n"
        "print(Bf16Matrix(ones).matmat(np.ones((4, 1), np.float32))[:, 0])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[4. 4.]\n"


BROKEN = {
    "not installed": "raise ImportError('No module named numba')",
    "of another NumPy": "raise ImportError('Numba needs NumPy 2.2 or less')",
    "library missing": "raise OSError('Could not find/load shared object file')",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_numba_is_no_numba(how: str, tmp_path):
    (tmp_path / "numba.py").write_text(BROKEN[how])
    code = "from ckptforensics.compute import products; print(products.compiled_loops())"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert ran.stdout == "None\n"


@pytest.mark.parametrize("damage", [b"", b"\x80\x04garbage"])
def test_damaged_kept_loops_are_compiled_anew(damage: bytes, tmp_path):
    code = (
        "import numpy as np\n"
        "from ckptforensics.compute.bf16 import Bf16Matrix\n"
        "ones = np.full((2, 2), 0x3F803F80, np.uint32)\n"
        "print(Bf16Matrix(ones).matmat(np.ones((4, 1), np.float32))[:, 0])"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert ran.stdout == "[4. 4.]\n"
        kept = [file for file in tmp_path.rglob("*") if file.suffix in (".nbi", ".nbc")]
        assert kept
        for file in kept:
            file.write_bytes(damage)
