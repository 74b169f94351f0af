"""The begin-of-sequence token beside ordinary ones: high norm that one learned token has alone.

Labels speak of what single tokens do in common. A model may instead give a high norm to its
begin-of-sequence token only, and build it up over many layers (Gemma 3 does); then neither 'none'
nor one explosion layer is the truth.
"""

from __future__ import annotations

import numpy as np

from ckptforensics.findings.measure import Measurements
from ckptforensics.results import BeginTokenRecord

# Norm of the token over the median of the others, at its largest, from which it stands out.
STANDS_OUT = 5.0
# Share of its highest norm that one layer adds, from which the growth counts as abrupt.
ABRUPT = 0.5


def begin_token(measured: Measurements) -> BeginTokenRecord | None:
    """How the begin-of-sequence token's norm grows; None if it was not rolled out."""
    norms, ordinary = measured.begin_norms, measured.ordinary_medians
    if measured.begin_token is None or norms is None or ordinary is None:
        return None
    ratios = norms / np.maximum(ordinary, np.finfo(np.float64).tiny)
    peak = int(np.argmax(norms))
    gains = np.diff(norms[: peak + 1], prepend=0.0) / max(float(norms[peak]), 1e-300)
    if ratios.max() < STANDS_OUT:
        growth = "like the others"
    else:
        growth = "abrupt" if gains.max() >= ABRUPT else "gradual"
    return BeginTokenRecord(
        token=measured.begin_token,
        growth=growth,
        peak_layer=measured.layers[peak].layer,
        peak_norm=float(norms[peak]),
        largest_ratio=float(ratios.max()),
        largest_gain=float(gains.max()),
        norms=tuple(norms.tolist()),
        ordinary=tuple(ordinary.tolist()),
    )
