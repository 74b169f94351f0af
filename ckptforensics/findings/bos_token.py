"""The begin-of-sequence token beside ordinary ones: high norm that one learned token has alone.

Labels speak of what single tokens do in common. A model may instead give a high norm to its
begin-of-sequence token only, and build it up over many layers (Gemma 3 does); then neither 'none'
nor one explosion layer is the truth.
"""

from __future__ import annotations

import math

import numpy as np

from ckptforensics.findings.measure import Measurements
from ckptforensics.results import BeginTokenRecord

# Norm of the token over the median of the others, at its largest, from which it stands out.
STANDS_OUT = 5.0
# Share of its highest norm that one layer adds, from which the growth counts as abrupt.
ABRUPT = 0.5


def begin_token(measured: Measurements, token: int | None) -> BeginTokenRecord | None:
    """How the begin-of-sequence token's norm grows; None if it was not rolled out beside others."""
    states = [m.after for m in measured.layers if m.after is not None]
    tokens = measured.tokens
    if token is None or tokens is None or token not in tokens or len(tokens) < 2 or not states:
        return None
    is_begin = np.array(tokens) == token
    every = np.stack([state.norms for state in states])
    norms, ordinary = every[:, is_begin][:, 0], np.median(every[:, ~is_begin], axis=1)
    # Beside tokens that are zero any other norm stands out, by no number.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = float(np.nan_to_num(norms / ordinary, nan=0.0, posinf=np.inf).max())
    peak = int(np.argmax(norms))
    gains = np.diff(norms[: peak + 1], prepend=0.0) / max(float(norms[peak]), 1e-300)
    if ratio < STANDS_OUT:
        growth = "like the others"
    else:
        growth = "abrupt" if gains.max() >= ABRUPT else "gradual"
    return BeginTokenRecord(
        token=token,
        growth=growth,
        peak_layer=measured.layers[peak].layer,
        peak_norm=float(norms[peak]),
        largest_ratio=ratio if math.isfinite(ratio) else None,
        largest_gain=float(gains.max()),
        norms=tuple(norms.tolist()),
        ordinary=tuple(ordinary.tolist()),
    )
