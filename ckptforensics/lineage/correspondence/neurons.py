"""The neurons of two FFNs, told by how they respond, and whether they find the same partners.

A neuron of a gated FFN has two rows, its gate's and its up's. Each is matched on its own with the
rows of the other model, by how it responds to the same vectors, which each model has in its own
basis. A neuron without a gate has its input row and its output column instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.compute.products import multiply
from ckptforensics.errors import NotApplicable
from ckptforensics.forward import finish_embedding, fold_norm, normalise
from ckptforensics.layers import Ffn
from ckptforensics.lineage.correspondence.shared_tokens import shared_tokens
from ckptforensics.lineage.models import Model
from ckptforensics.lineage.numeric import assign, unit_rows
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

# Neurons below which chance makes more than one in a million independent models agree as relatives
# do: k of them agree with probability 1/k! at most, and half of 24 are 12.
LEAST_UNITS = 24


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
    NotApplicable
        if no tokens are known to be shared.
    """
    shared = pair.once(shared_tokens)
    a, b = (
        centred_states(model, model.embedding(ids[:count]))
        for model, ids in zip(pair.models, (shared.a, shared.b), strict=True)
    )
    return (a, b), shared.by_string


def centred_states(model: Model, embeddings: Floats) -> Floats:
    """What a block's norm makes of stored embedding rows, without its gain, less their mean."""
    architecture = model.weights.architecture
    x = finish_embedding(model.weights, embeddings)
    n = normalise(x, architecture.family.norm.kind, architecture.eps)
    return n - n.mean(axis=0)


def has_gate(model: Model, layer: int) -> bool:
    """Whether the neurons of a layer's FFN, or of its experts, have gates."""
    plan = model.weights.architecture.layers[layer - 1]
    return "expert_gate" in plan.experts[0] if plan.experts else "gate" in plan.refs


def expert_count(model: Model, layer: int) -> int:
    """Number of routed experts of a layer, 1 for a dense FFN."""
    return max(1, len(model.weights.architecture.layers[layer - 1].experts))


def unit_width(model: Model, layer: int) -> int:
    """Number of neurons of a layer's FFN, or of one of its experts."""
    plan = model.weights.architecture.layers[layer - 1]
    if not plan.experts:
        return model.width(layer)
    return _routed(model, layer, 0)[1].shape[0]


def named_units(
    model: Model, layer: int, states: Floats, *, expert: int = 0, run: slice | None = None
) -> Named:
    """The neurons of a layer's FFN, or of one expert, by their responses to states.

    Parameters
    ----------
    states : (features, hidden_size)
    run : of consecutive neurons, None for all
    """
    gated = has_gate(model, layer)
    if expert_count(model, layer) > 1:
        first, second = _routed(model, layer, expert)
        first, second = (first, second) if run is None else (first[run], second[run])
    elif gated:
        run = run or slice(0, model.width(layer))
        first, second = model.rows(layer, run.start, run.stop)
    else:
        units = model.units(layer)
        first, second = units.up, units.down.T
        first, second = (first, second) if run is None else (first[run], second[run])
    return Named(features(first, states), features(second, states), signed=not gated)


def _routed(model: Model, layer: int, expert: int) -> tuple[Floats, Floats]:
    """Both kinds of rows of one expert; the others are not kept."""
    moe = model.block(layer).ffn
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
    units: int,
) -> float:
    """Neuron agreement f of a layer of A and one of B; of experts, of the two that agree best.

    Parameters
    ----------
    layers : of A and of B
    states : (features, hidden_size) of each, the same tokens in the same order
    units : at most so many neurons of the narrower FFN are matched

    Raises
    ------
    NotApplicable
        if only one of the FFNs has gates, or one is too narrow.
    """
    table = expert_agreement(pair, layers, states, units=units)
    return float(table.max())


def expert_agreement(
    pair: Pair,
    layers: tuple[int, int],
    states: tuple[Floats, Floats],
    *,
    units: int,
) -> Floats:
    """Neuron agreement of each expert of A's layer with each of B's; see `layer_agreement`.

    Returns
    -------
    (experts of A, experts of B), a dense FFN being one; 0 for experts that were not sampled
    """
    if has_gate(pair.a, layers[0]) != has_gate(pair.b, layers[1]):
        raise NotApplicable("the neurons of only one of the models have gates")
    few, many = zip(pair.models, layers, states, strict=True)
    # Of equal widths the side with fewer experts is sampled, so that all of the other are matched.
    keys = [
        (unit_width(model, layer), expert_count(model, layer)) for model, layer, _ in (few, many)
    ]
    if min(keys)[0] < LEAST_UNITS:
        raise NotApplicable(f"an FFN of {min(keys)[0]} neurons is too narrow to tell by them")
    swapped = keys[1] < keys[0]
    if swapped:
        few, many = many, few
    samples = sample_units(pair, *few, units)
    generator = pair.generator(Stream.NEURON_TIES, *layers)
    table = np.zeros((expert_count(*few[:2]), expert_count(*many[:2])), np.float32)
    model, layer, at = many
    for other in range(table.shape[1]):
        whole = named_units(model, layer, at, expert=other)
        for one, sample in samples:
            table[one, other] = agreeing(sample, whole, generator)
    return table.T if swapped else table


def sample_units(
    pair: Pair, model: Model, layer: int, states: Floats, units: int
) -> list[tuple[int, Named]]:
    """A run of at most so many consecutive neurons of a layer, of some experts if there are many.

    Returns
    -------
    The number of the expert, from 0 (of a dense FFN 0), and its neurons
    """
    generator = pair.generator(Stream.SAMPLED_NEURONS, layer)
    experts, width = expert_count(model, layer), unit_width(model, layer)
    chosen = np.sort(generator.permutation(experts)[: pair.effort.experts])
    start = int(generator.integers(max(1, width - units + 1)))
    run = slice(start, min(width, start + units))
    return [(int(i), named_units(model, layer, states, expert=int(i), run=run)) for i in chosen]
