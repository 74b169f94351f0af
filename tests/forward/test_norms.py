"""Norms and their folding into a matrix, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from ckptforensics.forward.norms import affine, apply_norm, fold_into, fold_norm, normalise
from ckptforensics.layers import Norm

WIDTH, EPS = 24, 1e-3


@pytest.fixture(params=["rms", "layer"])
def norm(request: pytest.FixtureRequest) -> Norm:
    random = np.random.default_rng(3)
    gain, bias = random.standard_normal((2, WIDTH)).astype(np.float32)
    return Norm(request.param, gain, bias if request.param == "layer" else None, EPS)


def in_torch(x: np.ndarray, norm: Norm) -> np.ndarray:
    rows, gain = torch.from_numpy(x), torch.from_numpy(norm.gain)
    if norm.kind == "rms":
        return functional.rms_norm(rows, (WIDTH,), gain, norm.eps).numpy()
    assert norm.bias is not None
    return functional.layer_norm(
        rows, (WIDTH,), gain, torch.from_numpy(norm.bias), norm.eps
    ).numpy()


@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_rows_are_normed_as_torch_does(size, norm):
    x = (size * np.random.default_rng(4).standard_normal((7, WIDTH))).astype(np.float32)
    expected = in_torch(x, norm)
    np.testing.assert_allclose(apply_norm(x, norm), expected, rtol=2e-5, atol=2e-6)
    z = normalise(x, norm.kind, norm.eps)
    np.testing.assert_allclose(affine(z, norm), expected, rtol=2e-5, atol=2e-6)


def test_no_norm_changes_nothing():
    x = np.ones((2, WIDTH), np.float32)
    assert apply_norm(x, None) is x
    assert affine(x, None) is x
    assert fold_norm(x, None) is x


def test_squares_that_overflow_float32_do_not_hide_the_direction(norm):
    direction = np.random.default_rng(5).standard_normal((1, WIDTH)).astype(np.float32)
    large = normalise(direction * np.float32(1e25), norm.kind, 0.0)
    np.testing.assert_allclose(large, normalise(direction, norm.kind, 0.0), rtol=1e-5, atol=1e-6)


def test_a_folded_matrix_is_the_derivative_in_the_normalised_input(norm):
    """W diag(g), and W diag(g) C where the norm takes the mean away."""
    weight = np.random.default_rng(6).standard_normal((5, WIDTH)).astype(np.float32)
    centring = np.eye(WIDTH) - (1 / WIDTH if norm.kind == "layer" else 0.0)
    expected = weight.astype(np.float64) @ np.diag(norm.gain.astype(np.float64)) @ centring
    before = weight.copy()
    np.testing.assert_allclose(fold_norm(weight, norm), expected, atol=2e-6)
    np.testing.assert_array_equal(weight, before)
    # The same by folding it into what the matrix is multiplied with.
    vectors = np.random.default_rng(7).standard_normal((3, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(weight @ fold_into(vectors, norm), expected @ vectors.T, atol=2e-5)
