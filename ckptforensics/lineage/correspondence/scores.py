"""Queries and keys of corresponding layers, up to what leaves every attention score as it is.

A score is q(n_i)' R k(n_j), R the rotation of each pair of coordinates by an angle that grows with
the distance i - j (RoPE), or the identity. So what counts of a head is, for each pair, the complex
product of its query row and the conjugate of its key row; how the two share a factor or an angle
does not. Without RoPE it is the product W_q' W_k alone. Biases are one more input that is always 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ckptforensics.architectures import WeightRef
from ckptforensics.architectures.plan import Ranges
from ckptforensics.architectures.rotary import rotary_pairing
from ckptforensics.architectures.scores import query_and_key
from ckptforensics.arrays import Floats, Ints
from ckptforensics.errors import NotApplicable, TensorError
from ckptforensics.forward import fold_norm
from ckptforensics.layers import Attention, Linear
from ckptforensics.layers.reader import BlockReader
from ckptforensics.lineage.correspondence.alignment import find_alignment
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.pair import Pair

Complex = NDArray[np.complex128]
# One head's rows as the complex numbers that its pairs make.
Way = Callable[[Floats], Complex]

# Tensors of norms of queries and keys, in the block.
_NORMS = (
    ("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    ("attn_q_norm.weight", "attn_k_norm.weight"),
    ("self_attn.query_layernorm.weight", "self_attn.key_layernorm.weight"),
)
_TINY = 1e-30


@dataclass(frozen=True)
class ScoreRefs:
    """Where the queries and keys of a layer are stored.

    Attributes
    ----------
    query, key : as the value map's `WeightRef`
    norms : tensors of the norms of queries and keys, None where there are none
    """

    query: WeightRef
    key: WeightRef
    norms: tuple[str, str] | None

    def names(self) -> frozenset[str]:
        """All tensors."""
        return frozenset((*self.query.names(), *self.key.names(), *(self.norms or ())))


def score_refs(model: Model, layer: int) -> ScoreRefs | None:
    """Where queries and keys are, told from the value map's tensor; None where that is not known.

    Beside `v_proj` lie `q_proj` and `k_proj`; in a fused tensor they lie before the values, all
    queries first, or head by head.
    """
    plan = model.weights.architecture.layers[layer - 1]
    value = plan.refs.get("value")
    if value is None or value.expert is not None or "latent" in plan.refs:
        return None
    store = model.weights.store
    prefix = plan.prefix
    named = [(prefix + a, prefix + b) for a, b in _NORMS]
    norms = next((both for both in named if both[0] in store and both[1] in store), None)
    if value.ranges is not None:
        found = _fused(model, value)
        return None if found is None else ScoreRefs(*found, norms)
    names = query_and_key(value.weight)
    if names is None or any(name not in store for name in names):
        return None
    refs = [replace(value, weight=name, bias=_bias(model, name)) for name in names]
    return ScoreRefs(refs[0], refs[1], norms)


def _bias(model: Model, weight: str) -> str | None:
    name = weight.removesuffix("weight") + "bias"
    return name if name != weight and name in model.weights.store else None


def _fused(model: Model, value: WeightRef) -> tuple[WeightRef, WeightRef] | None:
    """Queries and keys before the values of one tensor."""
    sizes = model.weights.architecture.sizes
    width, ranges = sizes.head_dim, value.ranges
    if ranges is None or not sizes.num_kv_heads or value.step != 1:
        return None
    if len(ranges) == 1:
        begin = ranges[0][0]
        keys = sizes.num_kv_heads * width
        if begin != keys + sizes.num_heads * width:
            return None
        queries: Ranges = ((0, begin - keys),)
        rest: Ranges = ((begin - keys, begin),)
    else:
        group = sizes.num_heads // sizes.num_kv_heads * width
        if any(begin < group + width for begin, _ in ranges):
            return None
        queries = tuple((begin - width - group, begin - width) for begin, _ in ranges)
        rest = tuple((begin - width, begin) for begin, _ in ranges)
    return replace(value, ranges=queries), replace(value, ranges=rest)


def score_error(pair: Pair, layer_a: int, layer_b: int, order: Ints, *, rotary: bool) -> float:
    """The largest relative error of a head's products of queries and keys, after the map.

    Parameters
    ----------
    order : (heads of B,) the head of A that is each one of B's
    rotary : whether scores depend on the distance by RoPE; then pairs of coordinates count

    Raises
    ------
    NotApplicable
        if where queries and keys are stored is not known of one model, or only one has norms of
        queries and keys.
    TensorError
        if they cannot be decoded.
    """
    a, b = (_heads(pair, at, layer) for at, layer in enumerate((layer_a, layer_b)))
    if (a.gains is None) != (b.gains is None):
        raise NotApplicable("only one of the models norms its queries and keys")
    if a.query.shape[1] != b.query.shape[1]:
        raise NotApplicable("queries have other widths")
    if not rotary or a.query.shape[1] % 2:
        return _worst(a, b, order, (_whole, _whole))
    one, other = (_way(model) for model in pair.models)
    if one is not None and other is not None:
        return _worst(a, b, order, (one, other))
    if _program(pair.a) != _program(pair.b):
        raise NotApplicable("how RoPE pairs the coordinates of a head is not known of both models")
    # One program runs both: whichever way it pairs them, it is one way.
    return min(_worst(a, b, order, (way, way)) for way in (_halves, _neighbours))


def _program(model: Model) -> tuple[object, object]:
    """What decides which program runs the model: `model_type`, or GGUF's architecture."""
    config = model.weights.source.config
    if config is not None:
        return config.get("model_type"), None
    return None, model.weights.store.metadata.get("general.architecture")


def _way(model: Model) -> Way | None:
    """How the coordinates of the model's heads are paired, None where it is not known."""
    plans = model.weights.architecture.layers
    values = [plan.refs["value"].weight for plan in plans if "value" in plan.refs]
    kind, gguf = _program(model)
    pairing = rotary_pairing(
        values[0] if values else "",
        model_type=None if kind is None else str(kind),
        gguf=None if gguf is None else str(gguf),
    )
    return None if pairing is None else {"halves": _halves, "neighbours": _neighbours}[pairing]


@dataclass(frozen=True)
class _Heads:
    """Folded queries and keys of each query head, (heads, width, hidden_size + 1)."""

    query: Floats
    key: Floats
    gains: tuple[Floats, Floats] | None


def _heads(pair: Pair, at: int, layer: int) -> _Heads:
    model = pair.models[at]
    refs = score_refs(model, layer)
    attention = model.block(layer).attention
    if refs is None or attention is None:
        raise NotApplicable("where queries and keys are stored is not known")
    checkpoint = model.weights
    plan = checkpoint.architecture.layers[layer - 1]
    reader = BlockReader(checkpoint, plan, keep=False)
    found = []
    for ref in (refs.query, refs.key):
        try:
            rows = _folded(reader.read_linear(ref), attention)
        except ValueError:
            raise TensorError("the tensor does not fit the block", tensor=ref.weight) from None
        rows_b = rows[:, :-1] if at else pair.once(find_alignment).apply(rows[:, :-1])
        found.append(np.concatenate([rows_b, rows[:, -1:]], axis=1))
    sizes = checkpoint.architecture.sizes
    heads = sizes.num_heads
    if not heads or found[0].shape[0] % heads:
        raise NotApplicable("the queries do not part into heads")
    width = found[0].shape[0] // heads
    query = found[0].reshape(heads, width, -1)
    key = found[1].reshape(-1, width, found[1].shape[1])
    if heads % len(key):
        raise NotApplicable("the keys do not part into heads")
    key = key.repeat(heads // len(key), axis=0)
    gains = None
    if refs.norms is not None:
        offset = np.float32(checkpoint.architecture.gain_offset)
        one, other = (checkpoint.store.read(name).reshape(-1) + offset for name in refs.norms)
        if one.size != width or other.size != width:
            raise NotApplicable("queries and keys have norms over all heads")
        gains = (one, other)
        # The norm takes a head's own size away.
        query = query / np.maximum(_size(query), _TINY) * one[:, None]
        key = key / np.maximum(_size(key), _TINY) * other[:, None]
    return _Heads(query, key, gains)


def _folded(linear: Linear, attention: Attention) -> Floats:
    """(rows, hidden_size + 1): what a map reads of the normalised stream, and of the constant 1."""
    constant = np.zeros(linear.weight.shape[0], np.float32) if linear.bias is None else linear.bias
    norm = attention.norm
    if norm is not None and norm.bias is not None:
        constant = constant + linear.weight @ norm.bias
    return np.concatenate([fold_norm(linear.matrix, norm), constant[:, None]], axis=1)


def _size(heads: Floats) -> Floats:
    size: Floats = np.sqrt(np.einsum("hij,hij->h", heads, heads))[:, None, None]
    return size


def _halves(rows: Floats) -> Complex:
    """Coordinates i and i + width / 2 of a head are a pair."""
    half = len(rows) // 2
    return rows[:half].astype(np.float64) + 1j * rows[half:]


def _neighbours(rows: Floats) -> Complex:
    """Coordinates 2 i and 2 i + 1 of a head are a pair."""
    return rows[::2].astype(np.float64) + 1j * rows[1::2]


def _whole(rows: Floats) -> Complex:
    """Only the product of all coordinates counts."""
    return rows.astype(np.complex128)


def _worst(a: _Heads, b: _Heads, order: Ints, ways: tuple[Way, Way]) -> float:
    """The largest |P_b - P_a| / |P_b| of a head, P = sum of q_i (x) conj(k_i) where one counts."""
    errors = [0.0]
    by_pair = ways[0] is not _whole
    for head, partner in enumerate(order):
        one = ways[0](a.query[partner]), ways[0](a.key[partner])
        other = ways[1](b.query[head]), ways[1](b.key[head])
        own, theirs = (_inner(x, x, by_pair) for x in (one, other))
        left = max(own - 2 * _inner(one, other, by_pair) + theirs, 0.0)
        errors.append(float(np.sqrt(left / max(theirs, _TINY))) if left > 0 else 0.0)
    return max(errors)


def _inner(x: tuple[Complex, Complex], y: tuple[Complex, Complex], by_pair: bool) -> float:
    """Real inner product of the products of queries and keys, pair by pair or of their sum."""
    if by_pair:
        queries = np.einsum("id,id->i", x[0], y[0].conj())
        keys = np.einsum("id,id->i", x[1].conj(), y[1])
        return float((queries * keys).real.sum())
    return float(((x[0] @ y[0].conj().T) * (x[1].conj() @ y[1].T)).real.sum())
