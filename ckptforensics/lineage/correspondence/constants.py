"""What corresponding layers hold beside their maps: biases, and norms behind the branches."""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.errors import NotApplicable
from ckptforensics.layers import Attention, Ffn, Linear, Moe, Norm
from ckptforensics.lineage.correspondence.alignment import Alignment, find_alignment
from ckptforensics.lineage.correspondence.matching import match_layer
from ckptforensics.lineage.pair import Pair

_TINY = 1e-30


def constants_error(pair: Pair, layer_a: int, layer_b: int) -> float:
    """The largest relative error of two layers' biases and norms behind branches, after the map.

    Biases count by what they do: those of values together with the output's, since attention's
    weights sum to 1; those of units one by one, in the order and scale that were undone.

    Raises
    ------
    NotApplicable
        if one model has what the other has not, or the map does not say what it should be.
    """
    block_a, block_b = pair.a.block(layer_a), pair.b.block(layer_b)
    alignment = pair.once(find_alignment)
    worst = 0.0
    if block_a.attention is not None and block_b.attention is not None:
        worst = _branch_error(
            alignment,
            (block_a.attention, block_b.attention),
            (_attended(block_a.attention), _attended(block_b.attention)),
        )
    a, b = block_a.ffn, block_b.ffn
    if not isinstance(a, Ffn) or not isinstance(b, Ffn):
        raise NotApplicable("the layers have experts")
    worst = max(worst, _branch_error(alignment, (a, b), (a.down.bias, b.down.bias)))
    read = [[_read(ffn.gate, ffn.norm), _read(ffn.up, ffn.norm)] for ffn in (a, b)]
    if all(part is None for parts in read for part in parts):
        return worst
    match = match_layer(pair, layer_a, layer_b)
    scales = (np.ones_like(match.scales), match.scales)
    for one, other, scale in zip(read[0], read[1], scales, strict=True):
        if (one is None) != (other is None):
            raise NotApplicable("only one of the models has biases of units")
        if one is not None and other is not None:
            worst = max(worst, _relative(one[match.order] * scale, other))
    return worst


def _branch_error(
    alignment: Alignment,
    branches: tuple[Attention | Ffn | Moe, Attention | Ffn | Moe],
    written: tuple[Floats | None, Floats | None],
) -> float:
    """Error of what is added whatever the input is, and of the norms behind a branch."""
    a, b = branches
    worst = 0.0
    for one, other in ((a.post_norm, b.post_norm), (a.after_norm, b.after_norm)):
        if (one is None) != (other is None):
            raise NotApplicable("only one of the models has a norm behind a branch")
        if one is not None and other is not None:
            worst = max(worst, _norm_error(alignment, one, other))
    if (written[0] is None) != (written[1] is None):
        raise NotApplicable("only one of the models adds a constant")
    if written[0] is None or written[1] is None:
        return worst
    factor = 1.0 if a.post_norm is not None else alignment.scale
    mine = np.float32(factor) * alignment.apply(_centred(written[0], a)[None])[0]
    return max(worst, _relative(mine, _centred(written[1], b)))


def _norm_error(alignment: Alignment, a: Norm, b: Norm) -> float:
    if alignment.rotation is not None and np.ptp(a.gain) > 0:
        raise NotApplicable("a norm behind a branch has gains of its own, and the basis is rotated")
    gain = a.gain if alignment.order is None else a.gain[alignment.order]
    worst = _relative(gain, b.gain)
    if (a.bias is None) != (b.bias is None):
        raise NotApplicable("only one of the models has a bias of a norm")
    if a.bias is not None and b.bias is not None:
        worst = max(worst, _relative(alignment.apply(a.bias[None])[0], b.bias))
    return worst


def _attended(attention: Attention) -> Floats | None:
    """What attention adds whatever it sees: W_O rep(b_V) + b_O; None where there are no biases."""
    value = _read(attention.value, attention.norm)
    if value is None and attention.output.bias is None:
        return None
    if attention.latent is not None:
        raise NotApplicable("values have a norm inside")
    added = np.zeros(attention.output.weight.shape[0], np.float32)
    if value is not None:
        heads = value.reshape(-1, attention.head_dim).repeat(attention.repeats, axis=0)
        added = attention.output.weight @ heads.reshape(-1)
    return added if attention.output.bias is None else added + attention.output.bias


def _read(linear: Linear | None, norm: Norm | None) -> Floats | None:
    """A map of the constant part of its input, plus its bias; None where there is neither."""
    if linear is None or (linear.bias is None and (norm is None or norm.bias is None)):
        return None
    constant = np.zeros(linear.weight.shape[0], np.float32) if linear.bias is None else linear.bias
    if norm is not None and norm.bias is not None:
        constant = constant + linear.weight @ norm.bias
    return constant


def _centred(constant: Floats, branch: Attention | Ffn | Moe) -> Floats:
    """LayerNorms take the mean of the stream out."""
    if branch.norm is not None and branch.norm.kind == "layer":
        return constant - constant.mean()
    return constant


def _relative(a: Floats, b: Floats) -> float:
    if a.shape != b.shape:
        raise NotApplicable("biases have other sizes")
    size = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / size if size > _TINY else 0.0
