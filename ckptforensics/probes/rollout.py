"""Single-token rollout: the initial token's exact path (docs/mathematics.md, section 7)."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.errors import NotFinite
from ckptforensics.forward import block_forward
from ckptforensics.layers import Block

# The FFN's hidden activation of this many tokens is in memory at once.
_TOKENS_AT_ONCE = 2048


def advance(block: Block, x: Floats, *, with_attention: bool = True) -> Floats:
    """The residual stream of many single tokens after the block.

    Parameters
    ----------
    x : (tokens, hidden_size), each row a token alone at position 0
    with_attention : False gives the path of the paper's Fig. 6, the FFNs only

    Returns
    -------
    (tokens, hidden_size), a new array

    Raises
    ------
    NotFinite
        if the residual stream overflows float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [
            block_forward(block, x[i : i + _TOKENS_AT_ONCE], with_attention=with_attention)
            for i in range(0, len(x), _TOKENS_AT_ONCE)
        ]
    after = np.concatenate(parts) if parts else x.copy()
    if not np.isfinite(after).all():
        raise NotFinite(
            f"the residual stream of a single token overflows float32 in layer {block.layer} "
            f"({block.prefix.rstrip('.')})",
            hint="the weights are damaged or not of this architecture",
        )
    return after


def start_tokens(vocabulary: int, count: int, generator: np.random.Generator) -> list[int]:
    """`count` different token ids (all, if there are fewer), in increasing order."""
    count = min(count, vocabulary)
    return sorted(int(t) for t in generator.choice(vocabulary, size=count, replace=False))
