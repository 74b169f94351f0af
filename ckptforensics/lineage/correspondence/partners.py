"""For each layer of one model the layer of another whose neurons it has, in any order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ckptforensics.arrays import Floats
from ckptforensics.errors import NotApplicable
from ckptforensics.lineage.correspondence.layer_map import (
    PARTNER,
    common_states,
    comparable,
    nearest_layers,
)
from ckptforensics.lineage.correspondence.pseudo_tokens import pseudo_tokens
from ckptforensics.lineage.pair import Pair

# Neurons of each layer that are looked for among those of every other.
_PARTNER_UNITS = 32


def free_partners(pair: Pair) -> tuple[tuple[int, int | None, float], ...]:
    """For each layer of B the layer of A whose neurons it has, whatever their order.

    One layer of A may be the partner of several of B. Neurons are told by their rows in the basis
    that was found or the stored one, else by how they respond to shared tokens or to
    pseudo-tokens: the first of these by which any layer has a partner.

    Returns
    -------
    (layer of B, layer of A or None, neuron agreement f of the two or of the nearest) for each layer

    Raises
    ------
    NotApplicable
        if only one model's neurons have gates.
    """
    if not comparable(pair):
        raise NotApplicable("the neurons of only one of the models have gates")
    nearest = nearest_layers(pair, _every_state(pair), _PARTNER_UNITS)
    best = nearest.argmax(axis=1)
    return tuple(
        (layer, pair.a.layers[i] if row[i] >= PARTNER else None, float(row[i]))
        for layer, i, row in zip(pair.b.layers, best, nearest, strict=True)
    )


def _every_state(pair: Pair) -> Iterator[tuple[Floats, Floats]]:
    """The same, and pseudo-tokens, which need to know which layers correspond."""
    yield from common_states(pair)
    with contextlib.suppress(NotApplicable):  # no layers do
        yield pseudo_tokens(pair)
