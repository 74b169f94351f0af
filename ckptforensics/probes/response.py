"""Response of the true block to chosen directions (DESIGN 2.5).

The linear gain alone misleads: s1 is large at decay layers too, and a least-squares map keeps only
the odd part of the FFN. What the real block does to +-v and +-c u decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptforensics.layers import Block, Ffn, Floats
from ckptforensics.linear.forward import apply_linear, block_forward, ffn_hidden
from ckptforensics.linear.norms import apply_norm


@dataclass(frozen=True)
class Response:
    """Signed amount the block adds along u when the residual stream is +c u or -c u."""

    plus: float
    minus: float


@dataclass(frozen=True)
class SuperWeight:
    """An entry of W_down through which a layer's trigger acts.

    Attributes
    ----------
    row, column : residual coordinate and hidden unit, from 0
    value : W_down[row, column]
    amplitude : value times the hidden unit's activation at the trigger, what it adds to `row`
    """

    row: int
    column: int
    value: float
    amplitude: float


@dataclass(frozen=True)
class Trigger:
    """What the true FFN answers to its own trigger direction.

    Attributes
    ----------
    norm : of its output at +v or -v, whichever is larger
    output : (hidden_size,) that output
    super_weight : the entry of W_down that adds most to one coordinate of that output
    """

    norm: float
    output: Floats
    super_weight: SuperWeight


def response(block: Block, direction: NDArray[np.float64], size: float) -> Response:
    """Feed +-size * direction to the true block and read what it adds along the direction.

    Parameters
    ----------
    direction : (hidden_size,) unit vector u
    size : norm c of the probed residual stream
    """
    u = direction.astype(np.float32)
    x = np.stack([u, -u]) * np.float32(size)
    added = (block_forward(block, x) - x) @ u
    return Response(plus=float(added[0]), minus=float(added[1]))


def trigger(ffn: Ffn, direction: NDArray[np.float64]) -> Trigger:
    """Feed the true FFN +-v, v the leading right singular vector of its linear fit.

    Parameters
    ----------
    direction : (hidden_size,) unit vector v; the FFN's own norm sets its scale
    """
    v = direction.astype(np.float32)
    hidden = ffn_hidden(ffn, apply_norm(np.stack([v, -v]), ffn.norm))
    outputs = apply_linear(ffn.down, hidden)
    norms = np.linalg.norm(outputs, axis=1)
    stronger = int(np.argmax(norms))
    strongest = _super_weight(ffn.down.weight, hidden[stronger])
    return Trigger(float(norms[stronger]), outputs[stronger], strongest)


def _super_weight(down: Floats, hidden: Floats) -> SuperWeight:
    """The entry of W_down with the largest |weight| times |activation|."""
    column = int(np.argmax(np.abs(down).max(axis=0) * np.abs(hidden)))
    row = int(np.argmax(np.abs(down[:, column])))
    value = float(down[row, column])
    return SuperWeight(row, column, value, value * float(hidden[column]))
