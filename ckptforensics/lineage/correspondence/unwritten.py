"""Directions of the residual stream that nothing writes to: a stream that was padded.

Training uses all of it. Padding changes nothing of a model and lets its maker fill whatever reads
there with noise, which hides directions, heads and neurons from what looks at matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.layers import Ffn
from ckptforensics.lineage.models import Model

# Share of the mean power written to a direction, below which nothing writes there. In the weakest
# direction of one layer real models have .013 (MiniLM) to .06, those of the zoo .15, laundered ones
# .026; over all layers .045 to .4. Padded streams have less than .001.
_LEAST = 0.005


def unwritten(model: Model) -> int:
    """How many directions of the residual stream no layer writes to.

    One layer tells of most models that there are none; where it does not, all of them are read.

    Raises
    ------
    NotApplicable
        if the model has no weights.
    """
    if not model.layers:
        return 0
    middle = model.layers[len(model.layers) // 2]
    if _all_written(_power(model, [middle])):
        return 0
    return int((np.linalg.eigvalsh(_power(model, model.layers)) < _LEAST).sum())


def _power(model: Model, layers: Sequence[int]) -> Doubles:
    """Covariance of what output and down projections write, all alike, 1 in the mean direction."""
    found = np.zeros((model.hidden_size, model.hidden_size))
    for layer in layers:
        block = model.block(layer)
        ffns = [block.ffn] if isinstance(block.ffn, Ffn) else list(block.ffn.experts)
        maps = [ffn.down.weight for ffn in ffns]
        if block.attention is not None:
            maps.append(block.attention.output.weight)
        for weight in maps:
            products = (weight @ weight.T).astype(np.float64)
            found += products / max(float(np.trace(products)), 1e-300)
    return found * (len(found) / max(float(np.trace(found)), 1e-300))


def _all_written(power: Doubles) -> bool:
    try:
        np.linalg.cholesky(power - _LEAST * np.eye(len(power)))
    except np.linalg.LinAlgError:
        return False
    return True
