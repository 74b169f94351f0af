"""The FFN fitted linearly on Gaussian input: F = W_down F1.

y(n) is the FFN's hidden activation for n = norm(x); F1 is the least-squares map from the
norm's input direction to y. For Gaussian input it is the mean Jacobian (Stein's lemma), which
`canonical` and `paper` compute in closed form, row by row; `sampled` solves the least squares.
docs/mathematics.md, equations 4 to 7.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ckptforensics.compute import buffers
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.products import multiply
from ckptforensics.compute.threads import over_rows
from ckptforensics.errors import UsageError
from ckptforensics.forward import (
    affine,
    dense_forward,
    ffn_hidden,
    fold_in_place,
    fold_norm,
    normalise,
)
from ckptforensics.layers import Ffn, Linear, Matrix, Norm
from ckptforensics.linear.folded import FoldedMatrix, Term
from ckptforensics.linear.moments import clamped_moments, gaussian_moments
from ckptforensics.sources import Source
from ckptforensics.tensors import open_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptforensics.arrays import Doubles, Floats

FitKind = Literal["canonical", "paper", "sampled"]
# Of each row of F1 on the gate's row (None without a gate) and on the up row.
Coefficients = tuple["Floats | None", "Floats"]

# Samples drawn at once.
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
        store = open_files(Source(file, "safetensors", (file,), None))
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


def fit_ffn(ffn: Ffn, fit: Fit, layer: int) -> Floats | FoldedMatrix:
    """F1 of one FFN, taken with respect to the residual-stream direction x.

    An output gate is left out here; see `fit_gated_output`.

    Returns
    -------
    (ffn_width, hidden_size), so that F = down.weight @ F1; float32, or its products where matrices
    are kept as they are stored

    Raises
    ------
    NothingAnalysable
        if the activation is unknown.
    UsageError
        if `sampled` has too few vectors.
    """
    if fit.kind == "sampled":
        return _fit_sampled(ffn, fit, layer, ffn_hidden)
    with_norm = fit.kind == "canonical"
    on_gate, on_up = closed_coefficients(ffn, with_norm=with_norm)
    return combine_rows(ffn, on_gate, on_up, with_norm=with_norm)


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
        identity = np.eye(gate.matrix.shape[0], dtype=np.float32)
        return identity, _fit_sampled(ffn, fit, layer, dense_forward)
    with_norm = fit.kind == "canonical"
    norm = ffn.norm if with_norm else None
    up, up_shift = fold_norm(ffn.up.weight, norm), _shift(ffn.up, ffn.norm, with_norm)
    opens, opens_shift = fold_norm(gate.weight, norm), _shift(gate, ffn.norm, with_norm)
    y, slope, bend = _moments(ffn.activation, up, up_shift)
    share, share_slope, share_bend = _moments("sigmoid", opens, opens_shift)
    # E[q(G) p(U)] is nearly E[q] E[p] + cov(G, U) E[q'] E[p'] (Price's theorem).
    stored = ffn.down.weight
    covarying = stored * (opens @ up.T)
    down = stored * np.outer(share, slope) + covarying * np.outer(share_slope, bend)
    output = share_slope * (stored @ y) + share_bend * (covarying @ slope)
    if ffn.down.bias is not None:
        output += share_slope * ffn.down.bias
    f1 = np.vstack([up, opens])
    if not with_norm and ffn.norm is not None:
        f1 *= ffn.norm.gain
    return np.hstack([down, np.diag(output)]), f1


def _moments(name: str, rows: Floats, shift: Doubles) -> tuple[Floats, Floats, Floats]:
    """E[s], E[s'] and E[s''] of units s(w.z + c), the last as E[U s'] / |w|^2."""
    square = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    value, slope, moment = gaussian_moments(name, np.sqrt(square), shift)
    bend = np.divide(moment, square, out=np.zeros_like(moment), where=square > 0)
    return value.astype(np.float32), slope.astype(np.float32), bend.astype(np.float32)


def closed_coefficients(ffn: Ffn, *, with_norm: bool) -> Coefficients:
    """The coefficients that make F1 of the gate's and the up matrix in closed form.

    `with_norm` takes the moments of the folded rows (`canonical`), else of the stored (`paper`).
    """
    up_shift = _shift(ffn.up, ffn.norm, with_norm)
    norm = ffn.norm if with_norm else None
    up = ffn.up.matrix
    if ffn.gate is None:
        # y_i = s(w_i.z + c_i): row i of F1 = E[s'] w_i
        (square,) = _row_products(norm, (up, up))
        _, slope, _ = gaussian_moments(ffn.activation, np.sqrt(square), up_shift)
        return None, slope.astype(np.float32)
    # y_i = s(g_i.z + c_i)(u_i.z + e_i):
    # row i of F1 = (rho E[U s'] + e E[s']) g_i + E[s] u_i,  rho = g.u / |g|^2
    gate_shift = _shift(ffn.gate, ffn.norm, with_norm)
    gate = ffn.gate.matrix
    square, dot = _row_products(norm, (gate, gate), (gate, up))
    rho = np.divide(dot, square, out=np.zeros_like(dot), where=square > 0)
    if ffn.clamp is not None:
        (rest,) = _row_products(norm, (up, up))
        rest -= rho * dot
        on_gate, on_up = clamped_moments(
            np.sqrt(square), gate_shift, rho, np.sqrt(np.maximum(rest, 0)), up_shift, ffn.clamp
        )
    else:
        value, slope, moment = gaussian_moments(ffn.activation, np.sqrt(square), gate_shift)
        on_gate, on_up = rho * moment + up_shift * slope, value
    return on_gate.astype(np.float32), on_up.astype(np.float32)


def combine_rows(
    ffn: Ffn,
    on_gate: Floats | None,
    on_up: Floats,
    *,
    with_norm: bool,
) -> Floats | FoldedMatrix:
    """F1 from the coefficients of `closed_coefficients`, with respect to the direction of x."""
    # The paper fits y on the norm's output and appends the gain, without centring, to the map.
    norm = ffn.norm if with_norm or ffn.norm is None else replace(ffn.norm, kind="rms")
    up, gate = ffn.up.matrix, None if ffn.gate is None else ffn.gate.matrix
    if isinstance(up, Bf16Matrix) and (gate is None or isinstance(gate, Bf16Matrix)):
        terms: list[Term] = [(up, on_up)] if gate is None else [(gate, on_gate), (up, on_up)]
        return FoldedMatrix(terms, norm)
    f1 = buffers.empty(up.shape)

    def combine(rows: slice) -> None:
        block = np.multiply(up[rows], on_up[rows, None], out=f1[rows])
        if gate is not None and on_gate is not None:
            block += gate[rows] * on_gate[rows, None]
        if norm is not None:
            fold_in_place(block, norm)

    over_rows(combine, *f1.shape)
    return f1


def _row_products(norm: Norm | None, *pairs: tuple[Matrix, Matrix]) -> list[Doubles]:
    """Inner products of corresponding rows of each pair of matrices, the norm folded into both.

    The first pair is a matrix with itself, a second one the same with another matrix.
    """
    a, b = pairs[-1]
    rows, columns = a.shape
    out = [np.empty(rows) for _ in pairs]
    weight = None if norm is None else np.square(norm.gain)

    def sum_up(block: slice) -> None:
        scaled: dict[int, Floats] = {}
        for total, (a, b) in zip(out, pairs, strict=True):
            if id(a) not in scaled:
                scaled[id(a)] = a[block] if weight is None else a[block] * weight
            total[block] = np.einsum("ij,ij->i", scaled[id(a)], b[block])

    if isinstance(a, Bf16Matrix) and isinstance(b, Bf16Matrix):
        out = [found.astype(np.float64) for found in a.row_products(b, weight)[: len(pairs)]]
    else:
        over_rows(sum_up, rows, columns)
    if norm is not None and norm.kind == "layer":
        # Of rows without their means: <a, b> - d mean(a) mean(b).
        means = {id(m): multiply(m, norm.gain[:, None])[:, 0] for pair in pairs for m in pair}
        for total, (a, b) in zip(out, pairs, strict=True):
            total -= means[id(a)].astype(np.float64) * means[id(b)] / columns
    return out


def _shift(linear: Linear, norm: Norm | None, with_norm: bool) -> Doubles:
    """The constant of each row, with respect to the fit's Gaussian vector."""
    shift = np.zeros(linear.matrix.shape[0])
    if linear.bias is not None:
        shift += linear.bias
    if with_norm and norm is not None and norm.bias is not None:
        shift += multiply(linear.matrix, norm.bias[:, None])[:, 0]
    return shift


def _fit_sampled(
    ffn: Ffn, fit: Fit, layer: int, function: Callable[[Ffn, Floats], Floats]
) -> Floats:
    """Least squares of a function of the normed input on the normalised one, with intercept."""
    hidden_size = ffn.up.matrix.shape[1]
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
