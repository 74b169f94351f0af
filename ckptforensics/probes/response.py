"""Response of the true block to chosen directions (docs/mathematics.md, section 7).

The linear gain alone misleads: s1 is large at decay layers too, and a least-squares map keeps only
the odd part of the FFN. What the real block does to +-v and +-c u decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptforensics.layers import Block, Ffn, Floats, Moe
from ckptforensics.linear.activations import sigmoid
from ckptforensics.linear.forward import (
    apply_linear,
    block_forward,
    dense_forward,
    ffn_forward,
    ffn_hidden,
)
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
    tensor : name of the down projection
    row, column : residual coordinate and hidden unit, from 0
    value : W_down[row, column]
    amplitude : what it adds to `row` at the trigger: value times the hidden unit's activation,
        times the output gate where there is one
    """

    tensor: str
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


def trigger(ffn: Ffn | Moe, direction: NDArray[np.float64]) -> Trigger:
    """Feed the true FFN +-v, v the leading right singular vector of its linear fit.

    The vectors have a unit mean square, which matters only where no norm precedes the FFN. In a
    layer of experts the output is that of the experts the router chooses, and the super weight
    the strongest among all experts, each fed the vectors by itself.

    Parameters
    ----------
    direction : (hidden_size,) unit vector v
    """
    v = direction.astype(np.float32) * np.float32(np.sqrt(direction.size))
    x = np.stack([v, -v])
    outputs = ffn_forward(ffn, x)
    norms = np.linalg.norm(outputs, axis=1)
    stronger = int(np.argmax(norms))
    n = apply_norm(x, ffn.norm)
    candidates = []
    for expert in experts(ffn):
        row = int(np.argmax(np.linalg.norm(dense_forward(expert, n), axis=1)))
        candidates.append(_super_weight(expert, n[row : row + 1]))
    strongest = max(candidates, key=lambda weight: abs(weight.amplitude))
    return Trigger(float(norms[stronger]), outputs[stronger], strongest)


def experts(ffn: Ffn | Moe) -> tuple[Ffn, ...]:
    """The FFN itself, or the routed experts and then the shared one."""
    if isinstance(ffn, Ffn):
        return (ffn,)
    return ffn.experts if ffn.shared is None else (*ffn.experts, ffn.shared)


def _super_weight(ffn: Ffn, n: Floats) -> SuperWeight:
    """The entry of W_down that adds most to one coordinate for normed input n, (1, hidden_size)."""
    hidden = ffn_hidden(ffn, n)[0]
    acting = ffn.down.weight
    if ffn.output_gate is not None:
        acting = acting * sigmoid(apply_linear(ffn.output_gate, n)).T
    column = int(np.argmax(np.abs(acting).max(axis=0) * np.abs(hidden)))
    row = int(np.argmax(np.abs(acting[:, column])))
    value, acts = float(ffn.down.weight[row, column]), float(acting[row, column])
    return SuperWeight(ffn.down_name, row, column, value, acts * float(hidden[column]))
