"""Response of the true block to chosen directions (docs/mathematics.md, section 7).

The linear gain alone misleads: s1 is large at decay layers too, and a least-squares map keeps only
the odd part of the FFN. What the real block does to +-v and +-c u decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.compute.bf16 import Bf16Matrix
from ckptforensics.compute.threads import over_rows
from ckptforensics.errors import NotFinite
from ckptforensics.forward import (
    apply_linear,
    apply_norm,
    ffn_forward,
    ffn_hidden,
    finish_branch,
    routing_weights,
    sigmoid,
)
from ckptforensics.layers import Block, Ffn, Moe
from ckptforensics.probes.rollout import advance


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


def probe_pair(direction: Doubles, size: float) -> Floats:
    """The residual streams +-size * direction, (2, hidden_size).

    Parameters
    ----------
    direction : (hidden_size,) unit vector u
    size : norm c of the probed residual stream
    """
    u = direction.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of no finite answer, which is an error
        return np.stack([u, -u]) * np.float32(size)


def read_response(pair: Floats, after: Floats, direction: Doubles) -> Response:
    """What a block that turns `pair` of `probe_pair` into `after` adds along the direction."""
    added = (after.astype(np.float64) - pair) @ direction
    return Response(plus=float(added[0]), minus=float(added[1]))


def response(block: Block, direction: Doubles, size: float) -> Response:
    """Feed +-size * direction to the true block and read what it adds along the direction.

    Raises
    ------
    NotFinite
        if the residual stream overflows float32.
    """
    pair = probe_pair(direction, size)
    return read_response(pair, advance(block, pair), direction)


def trigger(ffn: Ffn | Moe, direction: Doubles) -> Trigger:
    """Feed the true FFN +-v, v the leading right singular vector of its linear fit.

    The vectors have a unit mean square, which matters only where no norm precedes the FFN. In a
    layer of experts the output is that of the experts the router chooses, and the super weight
    the strongest among these and the shared expert.

    Parameters
    ----------
    direction : (hidden_size,) unit vector v

    Raises
    ------
    NotFinite
        if the answer overflows float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        answered = _trigger(ffn, direction)
    if not (np.isfinite(answered.output).all() and math.isfinite(answered.norm)):
        raise NotFinite(
            "the FFN's answer to the direction it amplifies most overflows float32",
            hint="the weights are damaged or not of this architecture",
        )
    return answered


def _trigger(ffn: Ffn | Moe, direction: Doubles) -> Trigger:
    v = direction.astype(np.float32) * np.float32(np.sqrt(direction.size))
    x = np.stack([v, -v])
    n = apply_norm(x, ffn.norm)
    if isinstance(ffn, Ffn):
        added, candidate = _answer(ffn, n)
        candidates = [candidate]
        outputs = finish_branch(ffn, added)
    else:
        outputs = ffn_forward(ffn, x)
        chosen = np.flatnonzero(routing_weights(ffn, n).any(axis=0))
        acting = [ffn.experts[int(i)] for i in chosen]
        if ffn.shared is not None:
            acting.append(ffn.shared)
        candidates = [_answer(expert, n)[1] for expert in acting]
    norms = np.linalg.norm(outputs.astype(np.float64), axis=1)
    stronger = int(np.argmax(norms))
    strongest = max(candidates, key=lambda weight: abs(weight.amplitude))
    return Trigger(float(norms[stronger]), outputs[stronger], strongest)


def _answer(ffn: Ffn, n: Floats) -> tuple[Floats, SuperWeight]:
    """Output for rows of normed input, and the super weight of the row with the larger one."""
    hidden = ffn_hidden(ffn, n)
    added = apply_linear(ffn.down, hidden)
    opens = None if ffn.output_gate is None else sigmoid(apply_linear(ffn.output_gate, n))
    if opens is not None:
        added = added * opens
    row = int(np.argmax(np.linalg.norm(added.astype(np.float64), axis=1)))
    return added, _super_weight(ffn, hidden[row], None if opens is None else opens[row])


def _super_weight(ffn: Ffn, hidden: Floats, opens: Floats | None) -> SuperWeight:
    """The entry of W_down with the largest |weight| |activation|, times the output gate."""
    down, size = ffn.down.matrix, np.abs(hidden)
    if isinstance(down, Bf16Matrix):
        peaks = down.row_peaks(size)
    else:
        array = down
        peaks = np.concatenate(
            over_rows(lambda rows: (np.abs(array[rows]) * size).max(axis=1), *array.shape)
        )
    row = int(np.argmax(peaks if opens is None else peaks * opens))
    column = int(np.argmax(np.abs(down[row]) * size))
    value = float(down[row, column])
    acts = value if opens is None else value * float(opens[row])
    return SuperWeight(ffn.down_name, row, column, value, acts * float(hidden[column]))
