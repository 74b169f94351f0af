"""Vectors that mean the same in two models without any token."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import attention_forward, ffn_forward
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import unit_rows
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Vectors, and the blocks that make them.
PSEUDO_TOKENS, BLOCKS = 512, 4


def pseudo_tokens(pair: Pair) -> tuple[Floats, Floats]:
    """Vectors of both models that mean the same without any token: what blocks make of directions.

    The leading directions u1 and v1 of corresponding layers, with either sign, go through the true
    FFNs of some layers. Of each direction's two results the longer comes first, so that the sign of
    a singular vector, which means nothing, does not enter. These, and what the attention of the
    same layers makes of them, are returned.

    Returns
    -------
    (vectors, hidden_size) of A and of B, unit vectors less their mean, at most `PSEUDO_TOKENS`
    """
    matched = matched_layers(pair)
    if not matched:
        raise NotApplicable("no layers correspond")
    at = np.linspace(0, len(matched) - 1, min(BLOCKS, len(matched))).round().astype(int)
    blocks = [matched[i] for i in at]
    attend = [(a, b) for a, b in blocks if _attends(pair.a, a) and _attends(pair.b, b)]
    vectors = []
    for i, model in enumerate(pair.models):
        x = _through_ffns(model, [m[i] for m in matched], [m[i] for m in blocks])
        more = [_attended(model, m[i], x) for m in attend]
        vectors.append(np.concatenate([x, *more]))
    few = pair.generator(Stream.PSEUDO_TOKENS).permutation(len(vectors[0]))[:PSEUDO_TOKENS]
    a, b = (x[few] - x[few].mean(axis=0) for x in vectors)
    return a, b


def _through_ffns(model: Model, directions: list[int], ffns: list[int]) -> Floats:
    places = [model.layers.index(layer) for layer in directions]
    signature = model.signature
    x = np.concatenate([signature.u[places], signature.v[places]])
    x = x * np.float32(np.sqrt(model.hidden_size))
    found = []
    for layer in ffns:
        ffn = model.block(layer).ffn
        plus, minus = ffn_forward(ffn, x), ffn_forward(ffn, -x)
        longer = (np.linalg.norm(plus, axis=1) > np.linalg.norm(minus, axis=1))[:, None]
        found += [np.where(longer, plus, minus), np.where(longer, minus, plus)]
    return unit_rows(np.concatenate(found))


def _attends(model: Model, layer: int) -> bool:
    return "value" in model.weights.architecture.layers[layer - 1].refs


def _attended(model: Model, layer: int, x: Floats) -> Floats:
    # The FFN of the block, most of its bytes, was read before.
    return unit_rows(
        attention_forward(model.attention(layer), x * np.float32(np.sqrt(model.hidden_size)))
    )
