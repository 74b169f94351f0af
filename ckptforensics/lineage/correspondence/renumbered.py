"""Whether tokens that are known by their ids only may have been renumbered."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Doubles
from ckptforensics.compute.threads import in_threads
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Rows of the embeddings whose spectrum is compared.
_ROWS = 8_192
# Mean difference of log10 of the larger half of the singular values, scale taken off, below which
# embeddings may be the same in another order. Copies have 0 to .005 (30% noise), trained strangers
# of one recipe .003 to .016, SmolLM2 and random weights .029.
_ALIKE = 0.012


def may_be_renumbered(pair: Pair) -> bool:
    """Whether a vocabulary is missing, and the embeddings may be the same ones in another order.

    What is measured token by token then says nothing where it is silent.
    """
    try:
        if shared_tokens(pair).by_string:
            return False
    except NotApplicable:  # nothing was measured by tokens
        return False
    a, b = in_threads(lambda model: _spectrum(model, pair), pair.models)
    count = max(1, min(len(a), len(b)) // 2)
    difference = a[:count] - b[:count]
    return bool(np.abs(difference - difference.mean()).mean() < _ALIKE)


def _spectrum(model: Model, pair: Pair) -> Doubles:
    """log10 of the singular values of centred embeddings, in any order of rows."""
    size = model.vocabulary_size
    ids = pair.generator(Stream.RENUMBERED).permutation(size)[:_ROWS]
    rows = model.embedding(ids).astype(np.float64)
    rows -= rows.mean(axis=0)
    squares = np.linalg.eigvalsh(rows.T @ rows)[::-1]
    return np.asarray(0.5 * np.log10(np.maximum(squares, 1e-12 * max(squares[0], 1e-300))))
