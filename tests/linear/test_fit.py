"""The FFN fit against least squares on samples that are drawn and evaluated here, in torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.functional import layer_norm, linear
from transformers.activations import ACT2FN

from ckptforensics.errors import UsageError
from ckptforensics.layers import Ffn, Linear, Norm
from ckptforensics.linear import Calibration, Fit, fit_ffn

HIDDEN, WIDTH = 12, 20
SAMPLES = (10_000, 100_000, 1_000_000)
ACTIVATIONS = ["silu", "gelu", "gelu_new", "quick_gelu", "relu", "relu2"]


def make_ffn(activation: str, kind: str, *, gated: bool, biased: bool, seed: int = 0) -> Ffn:
    """A random FFN whose gains are not 1 and whose biases, if any, are not 0."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(np.float32)

    def matrix(rows: int, columns: int) -> Linear:
        # Row norms from 0.3 to 3: units that are nearly linear and units that are not.
        scale = np.geomspace(0.3, 3, rows, dtype=np.float32)[:, None]
        weight = scale * normal(rows, columns, scale=columns**-0.5)
        return Linear(weight, normal(rows, scale=0.5) if biased else None)

    gain = 1 + normal(HIDDEN, scale=0.4)
    shift = normal(HIDDEN, scale=0.5) if biased and kind == "layer" else None
    return Ffn(
        norm=Norm(kind, gain, shift, 1e-5),
        gate=matrix(WIDTH, HIDDEN) if gated else None,
        up=matrix(WIDTH, HIDDEN),
        down=matrix(HIDDEN, WIDTH),
        activation=activation,
        down_name="down",
    )


def _apply(map_: Linear, n: torch.Tensor) -> torch.Tensor:
    bias = None if map_.bias is None else torch.tensor(map_.bias).to(n)
    return linear(n, torch.tensor(map_.weight).to(n), bias)


def hidden_in_torch(ffn: Ffn, n: torch.Tensor) -> np.ndarray:
    """The FFN's hidden activation for rows of normed input."""
    s = ACT2FN[ffn.activation]
    if ffn.gate is None:
        return s(_apply(ffn.up, n)).numpy()
    return (s(_apply(ffn.gate, n)) * _apply(ffn.up, n)).numpy()


def normed(ffn: Ffn, z: np.ndarray) -> torch.Tensor:
    """g z + b."""
    n = torch.tensor(z * ffn.norm.gain)
    return n if ffn.norm.bias is None else n + torch.tensor(ffn.norm.bias)


@dataclass(frozen=True)
class Samples:
    """Gaussian vectors, and the pseudo-inverse that solves every least-squares problem on them."""

    z: np.ndarray
    design: np.ndarray
    inverse: np.ndarray

    def solve(self, y: np.ndarray) -> tuple[np.ndarray, float]:
        """The map of minimum norm, with intercept, and the norm of error it must expect.

        The expected error is the usual one of least squares whose noise depends on the input:
        the norm of E[r_i^2 z z'] / N over all units, r the residual.
        """
        coefficients = self.inverse @ y
        residual = y - self.design @ coefficients
        spread = np.sum(np.square(residual), axis=1) @ np.sum(np.square(self.z), axis=1)
        return coefficients[1:].T, float(np.sqrt(spread)) / len(y)


@cache
def samples(kind: str, count: int) -> Samples:
    """Standard Gaussian vectors; for LayerNorm in the hyperplane of centred ones.

    Kept in float32: its rounding is a thousand times below the noise of a million samples.
    """
    z = np.random.default_rng([count, kind == "layer"]).standard_normal((count, HIDDEN))
    if kind == "layer":
        z -= z.mean(axis=1, keepdims=True)
    design = np.hstack([np.ones((count, 1)), z])
    # The Gram matrix is close to a multiple of the identity (or a projection), so forming it is
    # harmless.
    inverse = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True) @ design.T
    return Samples(*(part.astype(np.float32) for part in (z, design, inverse)))


@pytest.mark.parametrize("biased", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_closed_form_is_the_limit_of_least_squares(
    activation: str, kind: str, gated: bool, biased: bool
):
    ffn = make_ffn(activation, kind, gated=gated, biased=biased)
    closed = fit_ffn(ffn, Fit("canonical"), layer=1)
    assert closed.dtype == np.float32
    errors = []
    for count in SAMPLES:
        drawn = samples(kind, count)
        fitted, expected_error = drawn.solve(hidden_in_torch(ffn, normed(ffn, drawn.z)))
        errors.append(np.linalg.norm(closed - fitted))
        # The error of the norm of the error was 0.1 over the seeds tried, up to 0.37 for the heavy
        # tails of a gated squared relu. At a million samples a systematic error as large as the
        # noise, 0.4% of F1, would exceed the limit.
        assert errors[-1] / expected_error == pytest.approx(1, abs=0.5), f"at {count:,} samples"
    # Falling as 1/sqrt(N): a factor of 10 over two decades, within the same scatter.
    assert errors[0] / errors[2] == pytest.approx(10, rel=0.5)
    assert errors[2] < 0.02 * np.linalg.norm(closed)


def test_layer_norm_is_blind_to_the_mean():
    """No row of F1 answers to the vector of ones."""
    ffn = make_ffn("gelu", "layer", gated=False, biased=True)
    f1 = fit_ffn(ffn, Fit("canonical"), layer=1)
    # Float32 sums of a dozen terms.
    assert np.abs(f1.sum(axis=1)).max() < 1e-5 * np.abs(f1).sum(axis=1).max()


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_paper_convention(kind: str, gated: bool):
    """Gaussian after the gain; the gain is appended; no centring and no shift of the norm."""
    ffn = make_ffn("silu", kind, gated=gated, biased=True)
    drawn = samples("rms", 1_000_000)  # N(0, I) whatever the norm
    fitted, expected_error = drawn.solve(hidden_in_torch(ffn, torch.tensor(drawn.z)))
    paper = fit_ffn(ffn, Fit("paper"), layer=1)
    error = np.linalg.norm(paper / ffn.norm.gain - fitted)
    assert error / expected_error == pytest.approx(1, abs=0.5)
    # It is another map than the canonical one, beyond the noise.
    canonical = fit_ffn(ffn, Fit("canonical"), layer=1)
    assert np.linalg.norm(paper - canonical) > 5 * expected_error


def test_paper_and_canonical_agree_without_a_gain():
    ffn = make_ffn("silu", "rms", gated=True, biased=True)
    ffn = replace(ffn, norm=replace(ffn.norm, gain=np.ones(HIDDEN, np.float32)))
    paper, canonical = (fit_ffn(ffn, Fit(kind), layer=1) for kind in ("paper", "canonical"))
    np.testing.assert_allclose(paper, canonical, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_sampled_as_drawn(activation: str, kind: str, gated: bool):
    """Its error is that of least squares on as many other samples, and falls with them."""
    ffn = make_ffn(activation, kind, gated=gated, biased=True)
    limit = fit_ffn(ffn, Fit("canonical"), layer=1)
    errors = []
    for count in (10_000, 100_000):
        drawn = samples(kind, count)
        _, expected_error = drawn.solve(hidden_in_torch(ffn, normed(ffn, drawn.z)))
        found = fit_ffn(ffn, Fit("sampled", samples=count, seed=3), layer=1)
        errors.append(np.linalg.norm(found - limit))
        assert errors[-1] / expected_error == pytest.approx(1, abs=0.5)
    assert errors[0] / errors[1] == pytest.approx(10**0.5, rel=0.5)


def test_sampled_is_reproducible():
    ffn = make_ffn("silu", "rms", gated=True, biased=False)
    fit = Fit("sampled", samples=5000, seed=1)
    np.testing.assert_array_equal(fit_ffn(ffn, fit, 1), fit_ffn(ffn, fit, 1))
    assert not np.array_equal(fit_ffn(ffn, fit, 1), fit_ffn(ffn, fit, 2))
    other = Fit("sampled", samples=5000, seed=2)
    assert not np.array_equal(fit_ffn(ffn, fit, 1), fit_ffn(ffn, other, 1))


def _calibration_vectors(count: int, seed: int) -> np.ndarray:
    """Vectors as a residual stream has them: not centred, not isotropic, of very unequal norms."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, HIDDEN)) @ random.standard_normal((HIDDEN, HIDDEN))
    sizes = np.exp(random.standard_normal((count, 1)))
    return ((mixed + random.standard_normal(HIDDEN)) * sizes).astype(np.float32)


def _normalised_in_torch(ffn: Ffn, x: np.ndarray) -> np.ndarray:
    rows = torch.tensor(x).double()
    if ffn.norm.kind == "layer":
        return layer_norm(rows, (HIDDEN,), eps=ffn.norm.eps).numpy()
    return torch.nn.functional.rms_norm(rows, (HIDDEN,), eps=ffn.norm.eps).numpy()


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_sampled_on_supplied_vectors(kind: str, gated: bool, tmp_path: Path):
    """The same least-squares problem, solved by numpy in float64."""
    ffn = make_ffn("silu", kind, gated=gated, biased=True)
    x = _calibration_vectors(9000, seed=2)
    save_file({"states": x}, tmp_path / "calibration.safetensors")
    calibration = Calibration.read(tmp_path / "calibration.safetensors", HIDDEN)
    found = fit_ffn(ffn, Fit("sampled", calibration=calibration), layer=4)

    z = _normalised_in_torch(ffn, x)
    y = hidden_in_torch(ffn, normed(ffn, z))
    design = np.hstack([np.ones((len(z), 1)), z])
    expected = np.linalg.lstsq(design, y, rcond=1e-6)[0][1:].T
    # Float32 activations, a Gram matrix of condition some hundreds.
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_supplied_vectors_by_layer(tmp_path: Path):
    ffn = make_ffn("silu", "rms", gated=True, biased=False)
    by_layer = {str(layer): _calibration_vectors(500, layer) for layer in (1, 2)}
    save_file(by_layer, tmp_path / "both.safetensors")
    both = Fit("sampled", calibration=Calibration.read(tmp_path / "both.safetensors", HIDDEN))
    for layer in (1, 2):
        file = tmp_path / f"{layer}.safetensors"
        save_file({"x": by_layer[str(layer)]}, file)
        alone = Fit("sampled", calibration=Calibration.read(file, HIDDEN))
        np.testing.assert_array_equal(fit_ffn(ffn, both, layer), fit_ffn(ffn, alone, layer))
    assert not np.array_equal(fit_ffn(ffn, both, 1), fit_ffn(ffn, both, 2))
    with pytest.raises(UsageError, match="layer 3"):
        fit_ffn(ffn, both, 3)


def test_too_few_vectors():
    ffn = make_ffn("silu", "rms", gated=True, biased=False)
    with pytest.raises(UsageError, match="12 vectors for 12 unknowns"):
        fit_ffn(ffn, Fit("sampled", samples=HIDDEN), layer=1)
