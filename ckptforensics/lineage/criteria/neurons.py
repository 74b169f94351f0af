"""Group 2: do the neurons of two FFNs find the same partners in two independent ways?

A neuron of a gated FFN has two rows, its gate's and its up's. Each is matched on its own with the
rows of the other model, by how it responds to the same tokens, embedded by each model itself. Two
models that share a training run agree on the partners; two that only learned the same data do not,
however alike their responses are. No residual basis, order of neurons, gain or scale enters
(DESIGN 2.10). A neuron without a gate has its input row and its output column instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NothingAnalysable
from ckptforensics.forward.branches import attention_forward, ffn_forward
from ckptforensics.forward.embedding import finish_embedding
from ckptforensics.forward.norms import fold_norm, normalise
from ckptforensics.layers import Ffn
from ckptforensics.lineage.criteria.criterion import Criterion, Outcome
from ckptforensics.lineage.criteria.directions import UNFOLDED
from ckptforensics.lineage.numeric import assign, unit_rows

if TYPE_CHECKING:
    from ckptforensics.lineage.models import Side
    from ckptforensics.lineage.pair import Pair

# Sampled, and at most if thorough: neurons of the narrower FFN that are matched with all of the
# other, and tokens that they respond to.
UNITS, ALL_UNITS = 256, 4096
TOKENS, ALL_TOKENS = 512, 2048
# Neurons below which chance makes more than one in a million strangers agree as relatives do: k of
# them agree with probability 1/k! at most, and half of 24 are 12.
LEAST_UNITS = 24
# Layers of a sampled comparison; of models with experts, whose layers are read whole.
LAYERS, EXPERT_LAYERS = 12, 3
# Pseudo-tokens, the blocks that make them, and layers that they match in a sampled comparison.
PSEUDO_TOKENS, BLOCKS, DIRECTION_LAYERS = 512, 4, 4
# Experts of the narrower side that are sampled from.
EXPERTS = 8
_SAMPLE_KEY, _SHUFFLE_KEY, _PSEUDO_KEY = 2_101, 2_102, 2_103


@dataclass(frozen=True)
class Named:
    """What names each neuron of an FFN in two ways, as unit vectors of features.

    Attributes
    ----------
    first : (neurons, features) of gate rows, or of input rows without a gate
    second : (neurons, features) of up rows, or of output columns
    signed : whether the second kind has a sign of its own (up rows have not)
    """

    first: Floats
    second: Floats
    signed: bool


def agreeing(a: Named, b: Named, generator: np.random.Generator) -> float:
    """Share of A's neurons for which both ways find the same partner in B, less that of chance.

    Each way matches one to one, so that the sum of the similarities is largest.

    Parameters
    ----------
    a, b : of which B has as many neurons or more

    Returns
    -------
    1 if all agree, about 0 if no more do than at random
    """
    similar = a.second @ b.second.T
    other = assign((similar if a.signed else np.abs(similar)).T, generator)
    one = assign(b.first @ a.first.T, generator)
    neurons = len(one)
    chance = neurons / len(b.first)
    return float((np.count_nonzero(one == other) - chance) / max(neurons - chance, 1.0))


def token_states(pair: Pair, count: int) -> tuple[tuple[Floats, Floats], bool]:
    """Shared tokens as both models' norms show them to a block, centred over the tokens.

    Returns
    -------
    (tokens, hidden_size) of A and of B, at most `count` tokens; whether they were matched by string

    Raises
    ------
    NothingAnalysable
        if no tokens are known to be shared.
    """
    shared = pair.tokens
    a, b = (
        centred_states(side, side.embedding(ids[:count]))
        for side, ids in zip(pair.sides, (shared.a, shared.b), strict=True)
    )
    return (a, b), shared.by_string


def centred_states(side: Side, embeddings: Floats) -> Floats:
    """What a block's norm makes of stored embedding rows, without its gain, less their mean."""
    architecture = side.weights.architecture
    x = finish_embedding(side.weights, embeddings)
    n = normalise(x, architecture.family.norm.kind, architecture.eps)
    return n - n.mean(axis=0)


def has_gate(side: Side, layer: int) -> bool:
    """Whether the neurons of a layer's FFN, or of its experts, have gates."""
    plan = side.weights.architecture.layers[layer - 1]
    return "expert_gate" in plan.experts[0] if plan.experts else "gate" in plan.refs


def expert_count(side: Side, layer: int) -> int:
    """Number of routed experts of a layer, 1 for a dense FFN."""
    return max(1, len(side.weights.architecture.layers[layer - 1].experts))


def unit_width(side: Side, layer: int) -> int:
    """Number of neurons of a layer's FFN, or of one of its experts."""
    plan = side.weights.architecture.layers[layer - 1]
    if not plan.experts:
        return side.width(layer)
    return _routed(side, layer, 0)[1].shape[0]


def named_units(
    side: Side, layer: int, states: Floats, *, expert: int = 0, run: slice | None = None
) -> Named:
    """The neurons of a layer's FFN, or of one expert, by their responses to states.

    Parameters
    ----------
    states : (features, hidden_size)
    run : of consecutive neurons, None for all
    """
    gated = has_gate(side, layer)
    if expert_count(side, layer) > 1:
        first, second = _routed(side, layer, expert)
        first, second = (first, second) if run is None else (first[run], second[run])
    elif gated:
        run = run or slice(0, side.width(layer))
        first, second = side.rows(layer, run.start, run.stop)
    else:
        units = side.units(layer)
        first, second = units.up, units.down.T
        first, second = (first, second) if run is None else (first[run], second[run])
    return Named(features(first, states), features(second, states), signed=not gated)


def _routed(side: Side, layer: int, expert: int) -> tuple[Floats, Floats]:
    """Both kinds of rows of one expert; the others are not kept."""
    moe = side.block(layer).ffn
    assert not isinstance(moe, Ffn)
    ffn = moe.experts[expert]
    up = fold_norm(ffn.up.weight, moe.norm)
    if ffn.gate is None:
        return up, np.ascontiguousarray(ffn.down.weight.T)
    return fold_norm(ffn.gate.weight, moe.norm), up


def features(rows: Floats, states: Floats) -> Floats:
    """Responses of rows to states as unit vectors, (rows, states); rows without any stay 0."""
    return unit_rows(multiply(np.ascontiguousarray(rows), np.ascontiguousarray(states.T)))


def layer_agreement(
    pair: Pair,
    layers: tuple[int, int],
    states: tuple[Floats, Floats],
    *,
    units: int = UNITS,
) -> float:
    """Neuron agreement f of a layer of A and one of B; of experts, of the two that agree best.

    Parameters
    ----------
    layers : of A and of B
    states : (features, hidden_size) of each, the same tokens in the same order
    units : at most so many neurons of the narrower FFN are matched

    Raises
    ------
    NothingAnalysable
        if only one of the FFNs has gates, or one is too narrow.
    """
    table = expert_agreement(pair, layers, states, units=units)
    return float(table.max())


def expert_agreement(
    pair: Pair,
    layers: tuple[int, int],
    states: tuple[Floats, Floats],
    *,
    units: int = UNITS,
) -> Floats:
    """Neuron agreement of each expert of A's layer with each of B's; see `layer_agreement`.

    Returns
    -------
    (experts of A, experts of B), a dense FFN being one; 0 for experts that were not sampled
    """
    if has_gate(pair.a, layers[0]) != has_gate(pair.b, layers[1]):
        raise NothingAnalysable("the neurons of only one of the models have gates")
    few, many = zip(pair.sides, layers, states, strict=True)
    # Of equal widths the side with fewer experts is sampled, so that all of the other are matched.
    keys = [(unit_width(side, layer), expert_count(side, layer)) for side, layer, _ in (few, many)]
    if min(keys)[0] < LEAST_UNITS:
        raise NothingAnalysable(f"an FFN of {min(keys)[0]} neurons is too narrow to tell by them")
    swapped = keys[1] < keys[0]
    if swapped:
        few, many = many, few
    samples = sample_units(pair, *few, units)
    generator = pair.generator(_SHUFFLE_KEY, *layers)
    table = np.zeros((expert_count(*few[:2]), expert_count(*many[:2])), np.float32)
    side, layer, at = many
    for other in range(table.shape[1]):
        whole = named_units(side, layer, at, expert=other)
        for one, sample in samples:
            table[one, other] = agreeing(sample, whole, generator)
    return table.T if swapped else table


def sample_units(
    pair: Pair, side: Side, layer: int, states: Floats, units: int
) -> list[tuple[int, Named]]:
    """A run of at most so many consecutive neurons of a layer, of some experts if there are many.

    Returns
    -------
    The number of the expert, from 0 (of a dense FFN 0), and its neurons
    """
    generator = pair.generator(_SAMPLE_KEY, layer)
    experts, width = expert_count(side, layer), unit_width(side, layer)
    most = experts if pair.thorough else EXPERTS
    chosen = np.sort(generator.permutation(experts)[:most])
    start = int(generator.integers(max(1, width - units + 1)))
    run = slice(start, min(width, start + units))
    return [(int(i), named_units(side, layer, states, expert=int(i), run=run)) for i in chosen]


def inner_layers(pair: Pair, most: int) -> tuple[tuple[int, int], ...]:
    """Matched layers but the first and the last, which are less their own; evenly spread."""
    matched = pair.matched
    ends_a, ends_b = ((side.layers[0], side.layers[-1]) for side in pair.sides)
    inner = tuple((a, b) for a, b in matched if a not in ends_a and b not in ends_b) or matched
    if not inner:
        raise NothingAnalysable("no layers correspond")
    if pair.thorough or len(inner) <= most:
        return inner
    return tuple(inner[i] for i in np.linspace(0, len(inner) - 1, most).round().astype(int))


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
    matched = pair.matched
    if not matched:
        raise NothingAnalysable("no layers correspond")
    at = np.linspace(0, len(matched) - 1, min(BLOCKS, len(matched))).round().astype(int)
    blocks = [matched[i] for i in at]
    attend = [(a, b) for a, b in blocks if _attends(pair.a, a) and _attends(pair.b, b)]
    vectors = []
    for i, side in enumerate(pair.sides):
        x = _through_ffns(side, [m[i] for m in matched], [m[i] for m in blocks])
        more = [_attended(side, m[i], x) for m in attend]
        vectors.append(np.concatenate([x, *more]))
    few = pair.generator(_PSEUDO_KEY).permutation(len(vectors[0]))[:PSEUDO_TOKENS]
    a, b = (x[few] - x[few].mean(axis=0) for x in vectors)
    return a, b


def _through_ffns(side: Side, directions: list[int], ffns: list[int]) -> Floats:
    places = [side.layers.index(layer) for layer in directions]
    signature = side.signature
    x = np.concatenate([signature.u[places], signature.v[places]])
    x = x * np.float32(np.sqrt(side.hidden_size))
    found = []
    for layer in ffns:
        ffn = side.block(layer).ffn
        plus, minus = ffn_forward(ffn, x), ffn_forward(ffn, -x)
        longer = (np.linalg.norm(plus, axis=1) > np.linalg.norm(minus, axis=1))[:, None]
        found += [np.where(longer, plus, minus), np.where(longer, minus, plus)]
    return unit_rows(np.concatenate(found))


def _attends(side: Side, layer: int) -> bool:
    return "value" in side.weights.architecture.layers[layer - 1].refs


def _attended(side: Side, layer: int, x: Floats) -> Floats:
    attention = side.block(layer).attention
    assert attention is not None
    return unit_rows(attention_forward(attention, x * np.float32(np.sqrt(side.hidden_size))))


def agreement(outcomes: Sequence[tuple[str, Outcome]]) -> tuple[float | None, str]:
    """The largest neuron agreement f of the tests of this group that ran, and the test's name.

    Parameters
    ----------
    outcomes : of any tests, by their names

    Returns
    -------
    None and no name if none ran
    """
    names = {test.name for test in CRITERIA}
    found = [(o.statistic, n) for n, o in outcomes if n in names and o.statistic is not None]
    return max(found, default=(None, ""))


def _by_tokens(pair: Pair) -> Outcome:
    states, by_string = token_states(pair, ALL_TOKENS if pair.thorough else TOKENS)
    how = "by string" if by_string else "by id, since a vocabulary is missing"
    most = EXPERT_LAYERS if _has_experts(pair) else LAYERS
    return _over_layers(pair, states, most, f"{len(states[0]):,} tokens matched {how}")


def _by_directions(pair: Pair) -> Outcome:
    states = pseudo_tokens(pair)
    return _over_layers(pair, states, DIRECTION_LAYERS, f"{len(states[0]):,} pseudo-tokens")


def _over_layers(pair: Pair, states: tuple[Floats, Floats], most: int, on: str) -> Outcome:
    units = ALL_UNITS if pair.thorough else UNITS
    found = {
        layers[0]: layer_agreement(pair, layers, states, units=units)
        for layers in inner_layers(pair, most)
    }
    return Outcome(
        float(np.median(list(found.values()))),
        profile=tuple(found.get(layer) for layer in pair.a.layers),
        note=f"median of {len(found)} layers; {on}; at most {units:,} neurons a layer",
    )


def _has_experts(pair: Pair) -> bool:
    return any(plan.experts for side in pair.sides for plan in side.weights.architecture.layers)


_INVARIANT = ("residual basis", "residual signs", *UNFOLDED)
CRITERIA: tuple[Criterion, ...] = (
    Criterion("neuron agreement on tokens", "agreement", _INVARIANT, _by_tokens),
    Criterion(
        "neuron agreement on directions", "agreement", (*_INVARIANT, "embeddings"), _by_directions
    ),
)
