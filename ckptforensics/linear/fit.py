"""The FFN fitted linearly on Gaussian input: F = W_down F1.

y(n) is the FFN's hidden activation for n = norm(x); F1 is the least-squares map from the
norm's input direction to y. For Gaussian input it is the mean Jacobian (Stein's lemma), which
`canonical` and `paper` compute in closed form, row by row; `sampled` solves the least squares.
docs/mathematics.md, equations 4 to 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ckptforensics.errors import UsageError
from ckptforensics.layers import Ffn, Floats, Linear, Norm
from ckptforensics.linear.forward import dense_forward, ffn_hidden
from ckptforensics.linear.moments import clamped_moments, gaussian_moments
from ckptforensics.linear.norms import affine, fold_norm, normalise
from ckptforensics.sources import Source
from ckptforensics.tensors import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

FitKind = Literal["canonical", "paper", "sampled"]

# Hidden units folded at once, and samples drawn at once: temporaries stay near 16 MB.
_UNITS_AT_ONCE = 1024
_SAMPLES_AT_ONCE = 4096


@dataclass(frozen=True)
class Calibration:
    """Residual-stream vectors to fit on, as they enter the norm of the FFN.

    Attributes
    ----------
    by_layer : layer from 1 to (N, hidden_size) vectors; key 0 serves every other layer
    path : the file they come from
    """

    by_layer: dict[int, Floats]
    path: Path

    @classmethod
    def read(cls, path: str | Path, hidden_size: int) -> Calibration:
        """Read a safetensors file: one matrix for all layers, or matrices named by layer.

        Raises
        ------
        UsageError
            if the file holds anything else.
        """
        file = Path(path)
        if not file.is_file():
            raise UsageError("no such calibration file", path=file)
        store = open_store(Source(file, "safetensors", (file,), None))
        by_layer: dict[int, Floats] = {}
        for name, info in store.tensors.items():
            if len(info.shape) != 2 or info.shape[1] != hidden_size:
                raise UsageError(
                    f"calibration vectors must have shape N x {hidden_size}",
                    path=file,
                    tensor=name,
                )
            if len(store.tensors) > 1 and not name.isdecimal():
                raise UsageError(
                    "name each tensor by its layer (1, 2, ...), or give one tensor",
                    path=file,
                    tensor=name,
                )
            by_layer[int(name) if name.isdecimal() else 0] = store.read(name)
        if not by_layer:
            raise UsageError("the calibration file holds no vectors", path=file)
        return cls(by_layer, file)

    def vectors(self, layer: int) -> Floats:
        """Vectors for `layer`; UsageError if the file has none for it."""
        if layer in self.by_layer:
            return self.by_layer[layer]
        if 0 in self.by_layer:
            return self.by_layer[0]
        raise UsageError(f"no calibration vectors for layer {layer}", path=self.path)


@dataclass(frozen=True)
class Fit:
    """How the FFN is fitted.

    Attributes
    ----------
    kind : `canonical` closed form, Gaussian on the norm's normalised input; `paper` closed form,
        Gaussian after the norm's gain, no centring or shift; `sampled` least squares on vectors
    samples, seed : of `sampled` without calibration
    calibration : vectors for `sampled`
    """

    kind: FitKind = "canonical"
    samples: int = 100_000
    seed: int = 0
    calibration: Calibration | None = None


def fit_ffn(ffn: Ffn, fit: Fit, layer: int) -> Floats:
    """F1 of one FFN, taken with respect to the residual-stream direction x.

    An output gate is left out here; see `fit_gated_output`.

    Returns
    -------
    (ffn_width, hidden_size) float32, so that F = down.weight @ F1

    Raises
    ------
    NothingAnalysable
        if the activation is unknown.
    UsageError
        if `sampled` has too few vectors.
    """
    if fit.kind == "sampled":
        return _fit_sampled(ffn, fit, layer, ffn_hidden)
    return _fit_closed(ffn, with_norm=fit.kind == "canonical")


def fit_gated_output(ffn: Ffn, fit: Fit, layer: int) -> tuple[Floats, Floats]:
    """Two factors of F = down F1 of an FFN behind an output gate: sigmoid(r(n)) times f(n).

    In closed form to first order in the covariance of gate and hidden units
    (docs/mathematics.md, section 4). `sampled` fits the whole output, and down is the identity.
    Errors as `fit_ffn`.

    Returns
    -------
    down (hidden_size, units) and F1 (units, hidden_size); the last hidden_size units are the gate's
    """
    gate = ffn.output_gate
    assert gate is not None and ffn.gate is None
    if fit.kind == "sampled":
        identity = np.eye(gate.weight.shape[0], dtype=np.float32)
        return identity, _fit_sampled(ffn, fit, layer, dense_forward)
    with_norm = fit.kind == "canonical"
    up, up_shift = _folded_rows(ffn.up, ffn.norm, slice(None), with_norm)
    opens, opens_shift = _folded_rows(gate, ffn.norm, slice(None), with_norm)
    y, slope, bend = _moments(ffn.activation, up, up_shift)
    share, share_slope, share_bend = _moments("sigmoid", opens, opens_shift)
    # E[q(G) p(U)] is nearly E[q] E[p] + cov(G, U) E[q'] E[p'] (Price's theorem).
    covarying = ffn.down.weight * (opens @ up.T)
    down = ffn.down.weight * np.outer(share, slope) + covarying * np.outer(share_slope, bend)
    output = share_slope * (ffn.down.weight @ y) + share_bend * (covarying @ slope)
    if ffn.down.bias is not None:
        output += share_slope * ffn.down.bias
    f1 = np.vstack([up, opens])
    if not with_norm and ffn.norm is not None:
        f1 *= ffn.norm.gain
    return np.hstack([down, np.diag(output)]), f1


def _moments(name: str, rows: Floats, shift: NDArray[np.float64]) -> tuple[Floats, Floats, Floats]:
    """E[s], E[s'] and E[s''] of units s(w.z + c), the last as E[U s'] / |w|^2."""
    square = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    value, slope, moment = gaussian_moments(name, np.sqrt(square), shift)
    bend = np.divide(moment, square, out=np.zeros_like(moment), where=square > 0)
    return value.astype(np.float32), slope.astype(np.float32), bend.astype(np.float32)


def _fit_closed(ffn: Ffn, *, with_norm: bool) -> Floats:
    width, hidden_size = ffn.up.weight.shape
    f1 = np.empty((width, hidden_size), np.float32)
    for begin in range(0, width, _UNITS_AT_ONCE):
        rows = slice(begin, min(begin + _UNITS_AT_ONCE, width))
        up, up_shift = _folded_rows(ffn.up, ffn.norm, rows, with_norm)
        if ffn.gate is None:
            # y_i = s(w_i.z + c_i): row i of F1 = E[s'] w_i
            sigma = np.linalg.norm(up, axis=1)
            _, slope, _ = gaussian_moments(ffn.activation, sigma, up_shift)
            f1[rows] = up * slope[:, None].astype(np.float32)
            continue
        # y_i = s(g_i.z + c_i)(u_i.z + e_i):
        # row i of F1 = (rho E[U s'] + e E[s']) g_i + E[s] u_i,  rho = g.u / |g|^2
        gate, gate_shift = _folded_rows(ffn.gate, ffn.norm, rows, with_norm)
        square = np.einsum("ij,ij->i", gate, gate).astype(np.float64)
        dot = np.einsum("ij,ij->i", gate, up).astype(np.float64)
        rho = np.divide(dot, square, out=np.zeros_like(dot), where=square > 0)
        if ffn.clamp is not None:
            rest = np.einsum("ij,ij->i", up, up).astype(np.float64) - rho * dot
            on_gate, on_up = clamped_moments(
                np.sqrt(square), gate_shift, rho, np.sqrt(np.maximum(rest, 0)), up_shift, ffn.clamp
            )
        else:
            value, slope, moment = gaussian_moments(ffn.activation, np.sqrt(square), gate_shift)
            on_gate, on_up = rho * moment + up_shift * slope, value
        f1[rows] = gate * on_gate[:, None].astype(np.float32)
        f1[rows] += up * on_up[:, None].astype(np.float32)
    if not with_norm and ffn.norm is not None:
        # The paper fits y on the norm's output and appends the gain to the map.
        f1 *= ffn.norm.gain
    return f1


def _folded_rows(
    linear: Linear, norm: Norm | None, rows: slice, with_norm: bool
) -> tuple[Floats, NDArray[np.float64]]:
    """Rows of the weight and the constant, with respect to the fit's Gaussian vector."""
    weight = linear.weight[rows]
    shift = np.zeros(weight.shape[0])
    if linear.bias is not None:
        shift += linear.bias[rows]
    if with_norm:
        if norm is not None and norm.bias is not None:
            shift += weight @ norm.bias
        weight = fold_norm(weight, norm)
    return weight, shift


def _fit_sampled(
    ffn: Ffn, fit: Fit, layer: int, function: Callable[[Ffn, Floats], Floats]
) -> Floats:
    """Least squares of a function of the normed input on the normalised one, with intercept."""
    hidden_size = ffn.up.weight.shape[1]
    count = 0
    sum_z = np.zeros(hidden_size)
    gram = np.zeros((hidden_size, hidden_size))
    sum_y = cross = np.zeros(1)
    for z in _sample_inputs(ffn.norm, hidden_size, fit, layer):
        y = function(ffn, affine(z, ffn.norm)).astype(np.float64)
        z64 = z.astype(np.float64)
        count += z.shape[0]
        sum_z += z64.sum(axis=0)
        sum_y = sum_y + y.sum(axis=0)
        gram += z64.T @ z64
        cross = cross + z64.T @ y
    if count <= hidden_size:
        raise UsageError(
            f"the sampled fit has {count:,} vectors for {hidden_size:,} unknowns a unit",
            hint=f"give more than {hidden_size:,} samples",
        )
    gram -= np.outer(sum_z, sum_z) / count
    cross -= np.outer(sum_z, sum_y) / count
    # LayerNorm's input lies in a hyperplane, so the Gram matrix may be singular: minimum norm.
    values, vectors = np.linalg.eigh(gram)
    keep = values > values[-1] * hidden_size * np.finfo(np.float32).eps
    basis = vectors[:, keep] / np.sqrt(values[keep])
    solution: Floats = (basis @ (basis.T @ cross)).T.astype(np.float32)
    return np.ascontiguousarray(solution)


def _sample_inputs(norm: Norm | None, hidden_size: int, fit: Fit, layer: int) -> Iterator[Floats]:
    """Normalised vectors z, in blocks: drawn from a standard Gaussian, or the supplied ones."""
    if fit.calibration is not None:
        vectors = fit.calibration.vectors(layer)
        for begin in range(0, len(vectors), _SAMPLES_AT_ONCE):
            block = vectors[begin : begin + _SAMPLES_AT_ONCE]
            yield block if norm is None else normalise(block, norm.kind, norm.eps)
        return
    generator = np.random.default_rng([fit.seed, layer])
    for begin in range(0, fit.samples, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, fit.samples - begin)
        z = generator.standard_normal((count, hidden_size), dtype=np.float32)
        if norm is not None and norm.kind == "layer":
            z -= z.mean(axis=1, keepdims=True)
        yield z
