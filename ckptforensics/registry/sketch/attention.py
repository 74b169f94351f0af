"""What the attention of a layer does to a single token, by the leading singular values of W_O W_V.

The product of a layer's whole output and value maps, all heads together, is a part of its function:
how the same function is divided into heads does not enter, which moves each head's own spectrum.
A sketch keeps the layers that write most: layers that are put in besides, and leave the function as
it is, are none of them; and to look at all would take several times as long as the heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.errors import NotFinite
from ckptforensics.layers import Attention
from ckptforensics.linear.attention import AttentionMap
from ckptforensics.registry.sketch.spectra import PADDING, RANKS, at_ranks
from ckptforensics.spectra import leading_values

# Fewer values have hardly a shape.
_LEAST = 4
# Log values that spread by less are the same but for rounding: an orthogonal map has no shape.
_FLAT = 1e-3
# Layers that write less than this share of what the largest one does are not kept: a layer that
# leaves the function as it is would take the place of others. Of real ones hardly any is smaller.
_LEAST_SIZE = 0.05
# Random vectors by which a map's size is told, to some hundredths.
_SAMPLES = 16


def shape(attention: Attention) -> Doubles | None:
    """(`RANKS`,) log singular values, less their mean, as shares of their spread.

    The leading values of wide random matrices lie close together, so that those of any two would
    look alike; by how they are spaced, random matrices of every width differ from one another.

    Returns
    -------
    None where they say nothing: there are very few, all are alike, or they lie too close together
    or are too large to be found
    """
    # From the same vectors every time, for the same file has the same sketch.
    generator = np.random.default_rng(0)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            found = leading_values(AttentionMap(attention), RANKS, generator=generator)
    except NotFinite:
        return None
    if found is None:
        return None
    found = found[found > PADDING * found[0]]
    if len(found) < _LEAST:
        return None
    logs = at_ranks(np.log(found)[None])[0]
    return None if logs.std() < _FLAT else logs / logs.std()


def those_that_write(sizes: Mapping[int, float], most: int) -> list[int]:
    """Numbers of at most so many layers that write most, in order, by their `size`."""
    least = _LEAST_SIZE * max(sizes.values(), default=0.0)
    largest = heapq.nlargest(most, sizes, key=sizes.__getitem__)
    return sorted(layer for layer in largest if sizes[layer] >= least)


def size(attention: Attention) -> float:
    """How much is written, about: the norm of what is made of random vectors; 0 out of range."""
    vectors = np.random.default_rng(0).standard_normal((attention.output.matrix.shape[0], _SAMPLES))
    with np.errstate(over="ignore", invalid="ignore"):
        made = AttentionMap(attention).matmat(vectors.astype(np.float32)).astype(np.float64)
        return float(np.nan_to_num(np.linalg.norm(made), nan=0, posinf=0))
