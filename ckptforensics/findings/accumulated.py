"""Accumulated singular defect directions: those of L_i ... L_1 (arXiv 2407.16826).

The leading left singular vector of the product of the first i blocks is where the linear
approximation of the network as far as block i drives a token, whatever it was. Of vision towers
it is the direction of their high-norm patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckptforensics.arrays import Array, Doubles
from ckptforensics.checkpoint import Checkpoint
from ckptforensics.compute.threads import all_cores
from ckptforensics.findings.model import opened
from ckptforensics.findings.overflow import overflow_named
from ckptforensics.layers import stream_blocks
from ckptforensics.linear import Fit, block_map
from ckptforensics.progress import Progress, running
from ckptforensics.spectra import singular_triplets


@dataclass(frozen=True)
class Accumulated:
    """Leading singular triplet of the product L_i ... L_1.

    Attributes
    ----------
    layer, prefix : block i
    direction : (hidden_size,) leading left singular vector u1, its largest component positive
    log10_sigma : log10 of s1, which itself may be too large for a float
    gap : s1/s2
    residual : |M'u1 - s1 v1| / s1
    layer_cosine : |cosine| between u1 and that of L_i alone
    """

    layer: int
    prefix: str
    direction: Doubles
    log10_sigma: float
    gap: float
    residual: float
    layer_cosine: float


@all_cores()
def accumulate(
    model: Checkpoint | str | Path,
    *,
    fit: Fit | None = None,
    progress: Progress | None = None,
) -> tuple[Accumulated, ...]:
    """Accumulated singular defect directions, one for each layer.

    The product is kept as a matrix in float64, divided by its s1 after every layer: 8 d^2 bytes.

    Parameters
    ----------
    model : an opened checkpoint or what `open_checkpoint` takes
    fit : of the FFN, `canonical` by default
    progress : told of each layer

    Raises
    ------
    CkptError
        if the checkpoint cannot be opened, decoded or analysed; see `open_checkpoint`.
    """
    checkpoint = opened(model)
    fit = fit or Fit()
    sizes = checkpoint.architecture.sizes
    generator = np.random.default_rng(0)  # as for a signature: two runs give the same
    product: Doubles = np.eye(sizes.hidden_size)
    log10_scale = 0.0
    leading: Doubles | None = None
    found = []
    with running(progress, "accumulated directions", sizes.num_layers) as step:
        for block in stream_blocks(checkpoint):
            with (
                overflow_named(checkpoint, block.layer),
                np.errstate(over="ignore", invalid="ignore"),
            ):
                own = block_map(block, fit)
                dense = own.dense().astype(np.float64)
                product = dense @ product
                # The tokens' direction rarely turns much within one layer.
                start = None if leading is None else dense @ leading[:, 0]
                spectrum = singular_triplets(_Dense(product), 2, start=start, generator=generator)
                leading = spectrum.left
                alone = singular_triplets(
                    _Dense(dense), 1, start=leading[:, 0], generator=generator
                )
            s1 = max(float(spectrum.values[0]), float(np.finfo(np.float64).tiny))
            s2 = float(spectrum.values[1])
            product /= s1
            log10_scale += float(np.log10(s1))
            found.append(
                Accumulated(
                    layer=block.layer,
                    prefix=block.prefix,
                    direction=leading[:, 0],
                    log10_sigma=log10_scale,
                    gap=s1 / s2 if s2 > 0 else 1.0,
                    residual=float(spectrum.residuals[0]),
                    layer_cosine=min(1.0, abs(float(alone.left[:, 0] @ leading[:, 0]))),
                )
            )
            step(block.prefix)
            del block, own  # before the next one is read
    return tuple(found)


class _Dense:
    """A matrix as the operator that `singular_triplets` takes."""

    def __init__(self, matrix: Doubles) -> None:
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])

    def matmat(self, x: Array) -> Doubles:
        """The product with each column of x."""
        return self.matrix @ x

    def rmatmat(self, y: Array) -> Doubles:
        """The adjoint's product with each column of y."""
        return self.matrix.T @ y

    def round_trip(self, x: Array) -> tuple[Doubles, Doubles]:
        """y = M x and M'y, for each column."""
        y = self.matrix @ x
        return y, self.matrix.T @ y
