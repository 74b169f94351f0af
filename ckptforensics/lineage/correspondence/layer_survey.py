"""One pass over every layer of two models: what is behind their gates, their heads, their rows.

Neither a layer map nor a matching of neurons enters, since who hides a copy may choose both: what
is sampled of A is looked for in every layer of B (docs/lineage.md). Each block is read once; what
is kept of it are samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ckptforensics.arrays import Doubles, Floats
from ckptforensics.errors import NotApplicable
from ckptforensics.layers import Block
from ckptforensics.lineage.correspondence.behind_gates import (
    Gates,
    function_cosines,
    sample_gates,
    sizes_of,
)
from ckptforensics.lineage.correspondence.heads import head_spectra
from ckptforensics.lineage.correspondence.neurons import has_gate, token_states
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream


@dataclass(frozen=True)
class Survey:
    """What the layers of two models showed.

    Attributes
    ----------
    heads : of A and of B, by layer (heads, values) as `head_spectra`; layers without heads left out
    functions : for layers of A and of B the median |cosine| of what sampled gates of A open in both
    unmeasured : why there are no functions
    """

    heads: tuple[Mapping[int, Doubles], Mapping[int, Doubles]]
    functions: Mapping[tuple[int, int], float] = field(default_factory=dict)
    unmeasured: str | None = None


def survey(pair: Pair) -> Survey:
    """Read every layer of A, then of B.

    Raises
    ------
    CkptError
        if a layer cannot be read.
    """
    states, unmeasured = _states(pair)
    heads: tuple[dict[int, Doubles], dict[int, Doubles]] = ({}, {})
    parts: list[Gates] = []

    def sampled(layer: int) -> tuple[int, Doubles, Gates | None]:
        block = pair.a.block(layer)
        if states is None:
            return layer, _heads(block), None
        generator = pair.generator(Stream.GATE_FUNCTIONS, layer)
        most = pair.effort.function_neurons
        return layer, _heads(block), sample_gates(block, states[0], most, generator)

    for layer, spectra, found in pair.by_layer(sampled, pair.a.ahead()):
        heads[0][layer] = spectra
        parts += [] if found is None else [found]
    if states is not None and not parts:
        unmeasured = f"no neuron of {pair.a.name} writes anything, or none can be told"
    gates = Gates.joined(parts) if parts else None
    sizes = np.empty(0) if gates is None else sizes_of(gates)
    functions: dict[tuple[int, int], float] = {}

    def looked_at(layer: int) -> tuple[int, Doubles, dict[int, float]]:
        block = pair.b.block(layer)
        if gates is None or states is None:
            return layer, _heads(block), {}
        return layer, _heads(block), function_cosines(gates, sizes, block, states[1])

    for layer, spectra, cosines in pair.by_layer(looked_at, pair.b.ahead()):
        heads[1][layer] = spectra
        functions |= {(a, layer): value for a, value in cosines.items()}
    a, b = ({layer: rows for layer, rows in of.items() if len(rows)} for of in heads)
    return Survey((a, b), functions, unmeasured)


def _states(pair: Pair) -> tuple[tuple[Floats, Floats] | None, str | None]:
    """Shared tokens as both models see them, or why their FFNs cannot be compared by any."""
    try:
        if len({has_gate(model, model.layers[0]) for model in pair.models}) > 1:
            raise NotApplicable("the neurons of only one of the models have gates")
        return token_states(pair, pair.effort.function_tokens)[0], None
    except NotApplicable as problem:
        return None, problem.message


def _heads(block: Block) -> Doubles:
    return np.empty((0, 0)) if block.attention is None else head_spectra(block.attention)
