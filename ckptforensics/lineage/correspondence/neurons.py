"""The neurons of two FFNs, told by how they respond, and whether they find the same partners.

A neuron of a gated FFN has two rows, its gate's and its up's. Each is matched on its own with the
rows of the other model, by how it responds to the same vectors, which each model has in its own
basis. A neuron without a gate has its input row and its output column instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ckptforensics.arrays import Bools, Floats, Ints
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
# Neurons with these cosines by both kinds of features are copies of each other.
_COPIES = 0.999
# Neurons of the wider FFN that are looked at for copies.
_SAMPLED = 512
# Cosine of a row with a token's state from which on it is that token's embedding.
_EMBEDDED = 0.8


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

    def at(self, chosen: Ints | Bools) -> Named:
        """Some of the neurons."""
        return Named(self.first[chosen], self.second[chosen], self.signed)

    def distinct(self) -> Named:
        """Neurons that answer something in both ways, one of each that are copies."""
        answers = self.first.any(axis=1) & self.second.any(axis=1)
        alike = (multiply(self.first, self.first.T.copy()) > _COPIES) & (
            np.abs(multiply(self.second, self.second.T.copy())) > _COPIES
        )
        return self.at(np.logical_and(answers, ~np.triu(alike, 1).any(axis=0)))

    def copies(self, one: Ints, other: Ints) -> Bools:
        """Whether neurons are the same or copies of each other, by their numbers."""
        first, second = (np.einsum("ij,ij->i", x[one], x[other]) for x in (self.first, self.second))
        return (one == other) | ((first > _COPIES) & (np.abs(second) > _COPIES))


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
    agree, chance = b.copies(one, other), neurons / len(b.first)
    if (agree & (one != other)).any():
        random = b.copies(one, generator.permutation(other))
        chance = max(chance, float(np.count_nonzero(random)))
    return float((np.count_nonzero(agree) - chance) / max(neurons - chance, 1.0))


def own_agreement(
    model: Model, layer: int, states: Floats, generator: np.random.Generator
) -> float:
    """Agreement of half of a layer's neurons with the other half: of strangers, in one model.

    About 0 where a neuron's two kinds of features know nothing of each other. Where one follows
    from the other, as of an up that is the gate or a down that is the input row, both find the same
    partners in any model; such agreement is no evidence.
    """
    width = unit_width(model, layer)
    count = min(width, _SAMPLED)
    start = int(generator.integers(width - count + 1))
    units = named_units(model, layer, states, run=slice(start, start + count)).distinct()
    if len(units.first) < LEAST_UNITS:
        return 0.0
    order = generator.permutation(len(units.first))
    half = len(order) // 2
    return agreeing(units.at(order[:half]), units.at(order[half:]), generator)


def embedded_share(model: Model, layer: int, states: Floats) -> float:
    """Share of neurons whose rows of both kinds are embeddings of tokens, about.

    Keys and values that are embeddings of tokens are the same in any two models that chose the same
    tokens. Of the tokens only those of `states` are known: the share is scaled to all.
    """
    width = min(unit_width(model, layer), _SAMPLED)
    run = slice(0, width)
    if has_gate(model, layer) and expert_count(model, layer) == 1:
        both = model.rows(layer, run.start, run.stop)
    elif expert_count(model, layer) == 1:
        units = model.units(layer)
        both = units.up[run], units.down.T[run]
    else:
        return 0.0
    tokens = np.ascontiguousarray(unit_rows(states).T)
    shares = [
        float(
            np.mean(
                np.abs(multiply(unit_rows(np.ascontiguousarray(rows)), tokens)).max(axis=1)
                > _EMBEDDED
            )
        )
        for rows in both
    ]
    return min(1.0, min(shares) * model.vocabulary_size / len(states))


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
    if gated and expert_count(model, layer) == 1:
        run = run or slice(0, model.width(layer))
        first, second = model.responses(layer, states, run)
        return Named(unit_rows(first), unit_rows(second), signed=False)
    if expert_count(model, layer) > 1:
        first, second = _routed(model, layer, expert)
        first, second = (first, second) if run is None else (first[run], second[run])
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
    up = fold_norm(ffn.up.matrix, moe.norm)
    if ffn.gate is None:
        return up, np.ascontiguousarray(ffn.down.weight.T)
    return fold_norm(ffn.gate.matrix, moe.norm), up


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
        if only one of the FFNs has gates, one is too narrow, or the neurons of one are alike.
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
    samples = [
        (number, sample)
        for number, sample in sample_units(pair, *few, units)
        if len(sample.distinct().first) >= LEAST_UNITS
    ]
    if not samples:
        raise NotApplicable(_ALIKE.format(few[0].name, few[1]))
    generator = pair.generator(Stream.NEURON_TIES, *layers)
    table = np.zeros((expert_count(*few[:2]), expert_count(*many[:2])), np.float32)
    model, layer, at = many
    for other in range(table.shape[1]):
        whole = named_units(model, layer, at, expert=other)
        some = generator.permutation(len(whole.first))[:_SAMPLED]
        if len(whole.at(some).distinct().first) < LEAST_UNITS:
            if table.shape[1] == 1:
                raise NotApplicable(_ALIKE.format(model.name, layer))
            continue
        for one, sample in samples:
            table[one, other] = agreeing(sample, whole, generator)
    return table.T if swapped else table


_ALIKE = "the neurons of {}'s layer {} answer nothing, or are copies of each other, but for a few"


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
