"""Agreement: do the neurons of two FFNs find the same partners in two independent ways?

Two models that share a training run agree on the partners (see `correspondence.neurons`); two that
only learned the same data do not, however alike their responses are. No residual basis, order of
neurons, gain or scale enters (docs/lineage.md).
"""

from __future__ import annotations

import numpy as np

from ckptforensics.arrays import Floats
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.layer_map import matched_layers
from ckptforensics.lineage.correspondence.neurons import (
    embedded_share,
    layer_agreement,
    own_agreement,
    token_states,
)
from ckptforensics.lineage.correspondence.pseudo_tokens import pseudo_tokens
from ckptforensics.lineage.criteria.criterion import Criterion, Outcome
from ckptforensics.lineage.criteria.directions import UNFOLDED
from ckptforensics.lineage.pair import Pair, spread
from ckptforensics.lineage.randomness import Stream


def inner_layers(pair: Pair, most: int | None) -> tuple[tuple[int, int], ...]:
    """Matched layers but the first and the last, which are less their own; evenly spread."""
    matched = matched_layers(pair)
    ends_a, ends_b = ((model.layers[0], model.layers[-1]) for model in pair.models)
    inner = tuple((a, b) for a, b in matched if a not in ends_a and b not in ends_b) or matched
    if not inner:
        raise NotApplicable("no layers correspond")
    return spread(inner, most)


def _by_tokens(pair: Pair) -> Outcome:
    effort = pair.effort
    states, by_string = token_states(pair, effort.tokens)
    how = "by string" if by_string else "by id, since a vocabulary is missing"
    most = effort.expert_layers if _has_experts(pair) else effort.neuron_layers
    return _over_layers(pair, states, most, f"{len(states[0]):,} tokens matched {how}")


def _by_directions(pair: Pair) -> Outcome:
    states = pseudo_tokens(pair)
    return _over_layers(
        pair, states, pair.effort.direction_layers, f"{len(states[0]):,} pseudo-tokens"
    )


def _over_layers(pair: Pair, states: tuple[Floats, Floats], most: int | None, on: str) -> Outcome:
    units = pair.effort.neurons
    matched = inner_layers(pair, most)

    def agreement(layers: tuple[int, int]) -> float | NotApplicable:
        try:
            return layer_agreement(pair, layers, states, units=units)
        except NotApplicable as why:
            return why

    told = list(pair.by_layer(agreement, matched))
    found = {a: f for (a, _), f in zip(matched, told, strict=True) if isinstance(f, float)}
    if not found:
        raise next(why for why in told if isinstance(why, NotApplicable))
    f = float(np.median(list(found.values())))
    if f >= _NOTABLE:
        _need_two_names(pair, [both for both in matched if both[0] in found], states)
    return Outcome(
        f,
        profile=tuple(found.get(layer) for layer in pair.a.layers),
        note=f"median of {len(found)} layers; {on}; at most {units:,} neurons a layer",
    )


def _need_two_names(
    pair: Pair, matched: list[tuple[int, int]], states: tuple[Floats, Floats]
) -> None:
    """NotApplicable where the two names of a neuron depend on each other, in both models.

    Measured in each model alone, so that relatives lose nothing by being relatives.
    """
    few = spread(matched, _OWN_LAYERS)

    def shares(place: tuple[int, int]) -> tuple[float, float]:
        at, layer = place
        model, generator = pair.models[at], pair.generator(Stream.OWN_NEURONS, at, layer)
        own = own_agreement(model, layer, states[at], generator)
        return own, embedded_share(model, layer, states[at])

    places = [(at, both[at]) for at in (0, 1) for both in few]
    told = np.reshape(list(pair.by_layer(shares, places)), (2, len(few), 2))
    own, embedded = np.median(told, axis=1).T.tolist()
    if min(own) >= _NOTABLE:
        raise NotApplicable(
            "a neuron's two rows depend on each other in both models, so that any neurons agree: "
            f"{own[0]:.0%} and {own[1]:.0%} of each model's with other neurons of its own"
        )
    if min(embedded) >= _NOTABLE:
        raise NotApplicable(
            "the neurons' rows are embeddings of tokens in both models, of which strangers can "
            "have chosen the same"
        )


def _has_experts(pair: Pair) -> bool:
    return any(plan.experts for model in pair.models for plan in model.weights.architecture.layers)


# Neuron agreement f; independent models were at most .045 where all neurons were matched.
_LIMITS = (0.15, 0.5)
# From here on an agreement could be taken for evidence, and is compared with that of a model's own
# neurons on so many layers.
_NOTABLE, _OWN_LAYERS = 0.1, 4
_SCALE = "0 to 1: relatives have at least 0.5, independent models less than 0.15"
_INVARIANT = ("residual basis", "residual signs", *UNFOLDED)
CRITERIA: tuple[Criterion, ...] = (
    Criterion(
        "neuron agreement on tokens",
        "agreement",
        _INVARIANT,
        _by_tokens,
        scale=_SCALE,
        limits=_LIMITS,
    ),
    Criterion(
        "neuron agreement on directions",
        "agreement",
        (*_INVARIANT, "embeddings"),
        _by_directions,
        scale=_SCALE,
        limits=_LIMITS,
    ),
)
