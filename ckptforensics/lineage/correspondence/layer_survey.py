"""One pass over every layer of two models: what is behind their gates, their heads, their rows.

Neither a layer map nor a matching of neurons enters, since who hides a copy may choose both: what
is sampled of A is looked for in every layer of B (docs/lineage.md). Each block is read once; what
is kept of it are samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
from ckptforensics.lineage.correspondence.hashes import Side, matrices_of, sides_of
from ckptforensics.lineage.correspondence.heads import head_spectra
from ckptforensics.lineage.correspondence.neurons import has_gate, token_states
from ckptforensics.lineage.pair import Pair
from ckptforensics.lineage.randomness import Stream

Sides = tuple[Side, Side]


@dataclass(frozen=True)
class Survey:
    """What the layers of two models showed.

    Attributes
    ----------
    heads : of A and of B, by layer (heads, values) as `head_spectra`; layers without heads left out
    sides : of A and of B, the rows and columns of the layers' matrices, by their names
    functions : for layers of A and of B the median |cosine| of what sampled gates of A open in both
    unmeasured : why there are no functions
    """

    heads: tuple[Mapping[int, Doubles], Mapping[int, Doubles]]
    sides: tuple[Mapping[str, Sides], Mapping[str, Sides]]
    functions: Mapping[tuple[int, int], float]
    unmeasured: str | None


def survey(pair: Pair) -> Survey:
    """Read every layer of A, then of B.

    Raises
    ------
    CkptError
        if a layer cannot be read.
    """
    states, unmeasured = _states(pair)
    a, b = _Seen(pair, 0), _Seen(pair, 1)
    parts: list[Gates] = []

    def sampled(layer: int) -> Gates | None:
        block = a.look_at(layer)
        if states is None:
            return None
        generator = pair.generator(Stream.GATE_FUNCTIONS, layer)
        return sample_gates(block, states[0], pair.effort.function_neurons, generator)

    for found in pair.by_layer(sampled, pair.a.ahead(a.names)):
        parts += [] if found is None else [found]
    if states is not None and not parts:
        unmeasured = f"no neuron of {pair.a.name} writes anything, or none can be told"
    gates = Gates.joined(parts) if parts else None
    sizes = np.empty(0) if gates is None else sizes_of(gates)
    functions: dict[tuple[int, int], float] = {}

    def compared(layer: int) -> dict[tuple[int, int], float]:
        block = b.look_at(layer)
        if gates is None or states is None:
            return {}
        cosines = function_cosines(gates, sizes, block, states[1])
        return {(of, layer): value for of, value in cosines.items()}

    for cosines in pair.by_layer(compared, pair.b.ahead(b.names)):
        functions |= cosines
    return Survey((a.heads, b.heads), (a.sides, b.sides), functions, unmeasured)


class _Seen:
    """What is kept of the layers of one model whatever the other is.

    Attributes
    ----------
    names : of the matrices of each layer
    heads, sides : as in `Survey`
    """

    def __init__(self, pair: Pair, at: int) -> None:
        self._pair, self._at = pair, at
        self.names: dict[int, list[str]] = {}
        for name, layer, _ in matrices_of(pair.models[at]):
            if layer is not None:
                self.names.setdefault(layer, []).append(name)
        self._heads: dict[int, Doubles] = {}
        self.sides: dict[str, Sides] = {}

    def look_at(self, layer: int) -> Block:
        """The block, of which heads, rows and columns were noted."""
        block = self._pair.models[self._at].block(layer)
        if block.attention is not None:
            self._heads[layer] = head_spectra(block.attention)
        for name in self.names.get(layer, ()):
            self.sides[name] = sides_of(self._pair, self._at, name)
        return block

    @property
    def heads(self) -> Mapping[int, Doubles]:
        """In the order of the layers, without those that have none."""
        return {layer: rows for layer, rows in sorted(self._heads.items()) if len(rows)}


def _states(pair: Pair) -> tuple[tuple[Floats, Floats] | None, str | None]:
    """Shared tokens as both models see them, or why their FFNs cannot be compared by any."""
    try:
        if len({has_gate(model, model.layers[0]) for model in pair.models}) > 1:
            raise NotApplicable("the neurons of only one of the models have gates")
        return token_states(pair, pair.effort.function_tokens)[0], None
    except NotApplicable as problem:
        return None, problem.message
